//! What a restore needs is known before slots are asked for; a node that lacks it is left.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rstest::rstest;

use super::life::*;
use crate::{
    api::{JobPhase, job_status::UnfitNode},
    controller::job::plan::{Effect, Leadership},
    driver::{
        agent::{Accelerator, LoadFault, VmState, fake::machine_record},
        site::{End, SlotRequest},
    },
    store::machine::{Lack, MachineRecord},
};

/// A job of one member with a generation, whose machine is like this, and which has just lost its slot.
fn lost(machine: &MachineRecord) -> Life {
    let mut life = Life::running(1);
    life.run(700);
    assert_eq!(life.status().snapshots.last_stored, Some(1));
    for summary in &mut life.content().generations {
        summary.machine = Some(machine.clone());
    }
    life.end_slot("101", End::Preempted);
    life
}

fn kvm() -> MachineRecord {
    MachineRecord { accelerator: Accelerator::Kvm, flags: vec!["avx2".into(), "sse".into()], ..machine_record() }
}

fn requests(life: &Life) -> Vec<SlotRequest> {
    let requests = life.done.iter().filter_map(|effect| match effect {
        Effect::SubmitSlots { request, .. } => Some(request.clone()),
        _ => None,
    });
    requests.collect()
}

/// The guest is refused by the node it is on, as soon as it is restored.
fn refuse(life: &mut Life, lacks: &[Lack]) {
    for _ in 0..60 {
        life.advance(1);
        life.pass();
        if life.phase() == JobPhase::Restoring {
            let agent = life.agent(0);
            agent.lacks = lacks.to_vec();
            agent.vm = VmState::Gone { reason: "this node lacks it".into(), fault: LoadFault::Node };
            life.advance(1);
            life.pass();
            return;
        }
    }
    panic!("never restored: {:?}", life.whys.last());
}

#[rstest]
#[case::an_older_qemu(MachineRecord { qemu: "10.0.2".into(), ..machine_record() }, "Incompatible", "QEMU 10.0 or newer (written by 10.0.2, here is 7.2.22)")]
#[case::a_machine_that_is_gone(MachineRecord { machine: "pc-q35-2.1".into(), ..machine_record() }, "Incompatible", "machine type pc-q35-2.1")]
#[case::too_large(MachineRecord { memory: 8 << 30, ..machine_record() }, "MemoryTooLarge", "needs 8Gi of memory, and nodes of site rennes can spare 4Gi")]
fn c3_no_slots_are_asked_for_that_could_not_restore(
    #[case] machine: MachineRecord,
    #[case] reason: &str,
    #[case] words: &str,
) {
    let mut life = lost(&machine);
    life.run(30);
    for kind in ["Ready", "Stalled"] {
        let said = life.message(kind);
        assert!(said.contains(reason) && said.contains(words), "{kind}: {said}");
    }
    let writes = life.writes;
    life.run(600);
    assert_eq!((life.effects("SubmitSlots").len(), life.writes), (1, writes), "a storm");
    // silence of the repository takes nothing back
    let known = std::mem::replace(&mut life.seen.content, crate::driver::Fact::Unknown { since: life.now });
    life.run(5);
    assert!(life.message("Stalled").contains(words), "{}", life.message("Stalled"));
    life.seen.content = known;
    // another operator brings other agents, or the site other nodes
    life.seen.setup.offer.qemu = "10.1.0".into();
    life.seen.setup.offer.machines.push("pc-q35-2.1".into());
    life.seen.site.as_mut().unwrap().max_memory = Some(8 << 30);
    life.run(30);
    let origin = life.status().origin.unwrap();
    assert_eq!((life.phase(), origin.generation), (JobPhase::Running, Some(1)), "{:?}", life.whys.last());
    assert!(origin.bad.is_empty() && life.message("Stalled").is_empty());
}

#[test]
fn c3_what_ran_under_kvm_waits_for_it() {
    let mut life = lost(&kvm());
    life.seen.setup.offer.accelerator = Accelerator::Tcg;
    life.run(30);
    assert!(life.message("Stalled").contains("the agents lack KVM"), "{}", life.message("Stalled"));
    assert!(life.message("Stalled").contains("agents.accelerator"));
    assert_eq!(requests(&life).len(), 1);
}

#[rstest]
#[case::flags(Lack::Flags(vec!["avx2".into()]), "CPU flags avx2")]
#[case::kvm(Lack::Kvm, "it lacks KVM")]
fn c3_a_node_that_lacks_something_is_left_out_and_says_nothing_against_the_generation(
    #[case] lack: Lack,
    #[case] words: &str,
) {
    let mut life = lost(&kvm());
    let tries = life.status().origin.unwrap().tries;
    refuse(&mut life, &[lack]);
    let said = life.message("Ready");
    assert!(said.contains("Incompatible") && said.contains("member 0 cannot be restored on node node-1"), "{said}");
    assert!(said.contains(words), "{said}");
    let unfit: Vec<String> = life.status().unfit.into_iter().map(|unfit| unfit.node).collect();
    assert_eq!(unfit, ["node-1"]);
    life.run(120);
    let avoided: Vec<String> = requests(&life).last().unwrap().avoid.iter().map(ToString::to_string).collect();
    assert_eq!(avoided, ["node-1"]);
    let origin = life.status().origin.unwrap();
    assert_eq!((life.phase(), origin.generation, origin.bad.len()), (JobPhase::Running, Some(1), 0));
    assert!(origin.tries <= tries.max(1), "{origin:?}");
    // it may be another machine by tomorrow
    let id = life.status().slots[0].id.clone();
    life.advance(25 * 3600);
    for summary in &mut life.content().generations {
        summary.machine = Some(kvm());
    }
    life.end_slot(&id, End::Walltime);
    life.run(60);
    assert!(requests(&life).last().unwrap().avoid.is_empty());
}

#[test]
fn c3_agents_that_cannot_restore_anywhere_are_not_tried_on_every_node() {
    let mut life = lost(&machine_record());
    // nobody knows their QEMU before
    life.seen.setup.offer = crate::store::machine::Offer::unknown(Accelerator::Kvm);
    refuse(&mut life, &[Lack::Machine("pc-q35-7.2".into())]);
    life.run(3600);
    let said = life.message("Stalled");
    assert!(said.contains("Incompatible") && said.contains("machine type pc-q35-7.2"), "{said}");
    assert_eq!(requests(&life).len(), 2);
    assert!(life.status().slots.is_empty() && life.status().origin.unwrap().bad.is_empty());
    // another leader makes the same agents
    life.seen.leader = Leadership { epoch: 2, since: life.now };
    let writes = life.writes;
    life.run(600);
    assert_eq!((requests(&life).len(), life.writes), (2, writes));
    life.seen.leader = Leadership { epoch: 3, since: life.now };
    life.seen.setup.agents = "vmdeploy:2".into();
    life.run(30);
    assert_eq!((life.phase(), life.status().origin.unwrap().generation), (JobPhase::Running, Some(1)));
}

#[test]
fn other_agents_are_heeded_however_soon_they_come() {
    let mut life = lost(&machine_record());
    life.seen.setup.offer = crate::store::machine::Offer::unknown(Accelerator::Kvm);
    refuse(&mut life, &[Lack::Machine("pc-q35-7.2".into())]);
    life.run(3);
    life.seen.setup.agents = "vmdeploy:2".into();
    life.run(60);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys.last());
}

#[rstest]
#[case::before_the_first_boot(Accelerator::Probe, None, &["cpu = 'h'"])]
#[case::kvm_is_a_must(Accelerator::Kvm, None, &["kvm = 'YES'", "cpu = 'h'"])]
#[case::emulated(Accelerator::Tcg, None, &[])]
#[case::went_under_kvm(Accelerator::Probe, Some(Accelerator::Kvm), &["kvm = 'YES'", "cpu = 'h'"])]
#[case::went_emulated(Accelerator::Probe, Some(Accelerator::Tcg), &[])]
fn a_request_is_narrowed_where_the_site_knows_how(
    #[case] configured: Accelerator,
    #[case] made: Option<Accelerator>,
    #[case] narrowed: &[&str],
) {
    let mut life = match made {
        Some(accelerator) => lost(&MachineRecord { accelerator, ..kvm() }),
        None => life(1),
    };
    life.job.spec.vm.cpu_model = "Haswell".into();
    life.seen.setup.accelerator = configured;
    let properties = &mut life.seen.site.as_mut().unwrap().properties;
    properties.kvm = Some("kvm = 'YES'".into());
    properties.cpu_models.insert("Haswell".into(), "cpu = 'h'".into());
    life.run(30);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys.last());
    assert_eq!(requests(&life).last().unwrap().narrowed, narrowed);
}

#[test]
fn what_other_jobs_found_out_of_nodes_counts_where_it_matters() {
    let mut life = lost(&kvm());
    let unfit = |node: &str, kvm, flags: &[&str]| UnfitNode {
        node: node.into(),
        since: Time(life.now),
        undeployed: false,
        kvm,
        times: 1,
        flags: flags.iter().map(|flag| (*flag).into()).collect(),
    };
    life.seen.unfit = vec![
        unfit("node-7", false, &["avx2"]),
        unfit("node-6", false, &["avx512f"]),
        unfit("node-5", true, &[]),
        // it was missing there to one job once: to this one that says nothing
        unfit("node-4", true, &[]),
        unfit("node-7", false, &["sse"]),
        unfit("node-5", true, &[]),
    ];
    life.run(30);
    let avoided: Vec<String> = requests(&life).last().unwrap().avoid.iter().map(ToString::to_string).collect();
    assert_eq!(avoided, ["node-5", "node-7"]);
}

#[test]
fn a_request_that_waits_is_renewed_for_what_is_learnt_meanwhile_but_not_at_once() {
    let mut life = lost(&kvm());
    life.prompt = false;
    life.run(5);
    life.seen.unfit = vec![UnfitNode {
        node: "node-7".into(),
        since: Time(life.now),
        undeployed: false,
        kvm: false,
        times: 1,
        flags: vec!["avx2".into()],
    }];
    let (sent, first) = (requests(&life).len(), life.status().slots[0].id.clone());
    life.run(500);
    assert_eq!((requests(&life).len(), life.phase()), (sent, JobPhase::Queued));
    assert!(!life.message("Admitted").contains("left out"), "{}", life.message("Admitted"));
    // what the job needs is not known: nothing is given up for that
    let known = std::mem::replace(&mut life.seen.content, crate::driver::Fact::Unknown { since: life.now });
    life.run(300);
    assert_eq!(requests(&life).len(), sent);
    life.seen.content = known;
    life.run(3900);
    let avoided: Vec<String> = requests(&life).last().unwrap().avoid.iter().map(ToString::to_string).collect();
    assert_eq!((requests(&life).len(), avoided), (sent + 1, vec!["node-7".to_owned()]), "renewed once");
    // the first one is given back before the second is sent, and is used no more
    let effects: Vec<&str> = life.done.iter().map(Effect::name).collect();
    assert_eq!(effects[effects.len() - 2..], ["ReleaseSlot", "SubmitSlots"]);
    assert!(life.status().slots.iter().all(|slot| slot.id != first));
    let said = life.message("Admitted");
    assert!(said.contains("left out: node-7 (lacks CPU flags avx2, as other jobs found out, until 2027-"), "{said}");
}

#[test]
fn c3_kvm_that_was_missing_once_is_taken_for_a_passing_fault() {
    let mut life = lost(&kvm());
    refuse(&mut life, &[Lack::Kvm]);
    life.prompt = false;
    life.run(60);
    let avoided = |life: &Life| requests(life).last().unwrap().avoid.len();
    let (sent, writes) = (requests(&life).len(), life.writes);
    assert_eq!((avoided(&life), life.phase()), (1, JobPhase::Queued));
    assert!(
        life.message("Admitted").contains("left out: node-1 (lacks KVM, until 2027-"),
        "{}",
        life.message("Admitted")
    );
    life.run(1500);
    assert_eq!((requests(&life).len(), life.writes), (sent, writes), "a storm");
    life.run(2200);
    assert_eq!((requests(&life).len(), avoided(&life)), (sent + 1, 0), "the node is asked for again");
    // missing there again, it is missing
    let slot = life.status().slots.last().unwrap().id.clone();
    life.start_slot(&slot);
    refuse(&mut life, &[Lack::Kvm]);
    life.run(3 * 3600);
    assert_eq!((life.status().unfit[0].times, avoided(&life)), (2, 1));
}

#[test]
fn what_an_older_version_noted_of_a_node_is_read() {
    let old: UnfitNode =
        serde_json::from_str(r#"{"node":"node-1","since":"2027-01-15T08:00:00Z","kvm":true,"flags":["avx2"]}"#)
            .unwrap();
    assert_eq!((old.kvm, old.times, old.flags.len()), (true, 1, 1));
}

#[test]
fn a_refusal_for_want_of_nodes_says_which_were_left_out() {
    let mut life = lost(&kvm());
    refuse(&mut life, &[Lack::Flags(vec!["avx2".into()])]);
    life.seen.site.as_mut().unwrap().properties.kvm = Some("kvm = 'YES'".into());
    let refused = crate::driver::site::SiteError::NotEnoughNodes("none".into());
    for _ in 0..120 {
        life.advance(1);
        let plan = life.plan();
        life.write_only(&plan);
        let asked = plan.effects.iter().find_map(|effect| match effect {
            Effect::SubmitSlots { submission, .. } => Some(*submission),
            _ => None,
        });
        match asked {
            Some(submission) => {
                let outcome = Err(refused.clone());
                life.seen.reply = Some(crate::controller::job::plan::Reply { submission, outcome });
            }
            None => life.perform(&plan),
        }
    }
    let said = life.message("Stalled");
    for words in
        ["NotEnoughNodes", "asked for only where kvm = 'YES'", "left out: node-1 (lacks CPU flags avx2, until 2027-"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
}
