//! A deployment at work.

use std::sync::Arc;

use futures::future::join_all;

use super::{
    machine, pause,
    steps::{DUMMY, REAL, Step},
    workflow::{Progress, Workflow},
};
use crate::{
    environments,
    faults::{self, Does, Faults},
    reply::Refusal,
    server::Server,
};

/// What the original gives up after, in steps.
const PATIENCE: u32 = 600;

/// Does all steps, then tells how the nodes ended.
pub(super) async fn run(server: Arc<Server>, id: String) {
    pause(server.settings.step / 2).await;
    if let Some(broken) = begin(&server, &id).await {
        finish(&server, &id, Some(broken));
        return;
    }
    let steps: &[Step] = if server.settings.deployer.is_some() { &REAL } else { &DUMMY };
    for step in steps {
        let faults = match faults::read(server.settings.faults.as_deref()) {
            Ok(faults) => faults,
            Err(error) => {
                finish(&server, &id, Some(Refusal::Plain(500, format!("the plan of faults: {error}"))));
                return;
            }
        };
        if faults.dies.as_deref() == Some(step.1) {
            std::process::exit(137);
        }
        let nodes = at_work(&server, &id);
        with(&server, &id, |workflow| workflow.log(&format!("  {}", step.1)));
        join_all(nodes.iter().map(|node| one(&server, &id, node, *step, &faults))).await;
    }
    for node in at_work(&server, &id) {
        set(&server, &id, &node, |progress| {
            (progress.step, progress.state, progress.through) = (None, "ok", true);
        });
    }
    // the last node is through a while before the workflow is over
    pause(server.settings.step).await;
    finish(&server, &id, None);
}

/// Looks at the image, as it is now; the workflow breaks if it is not what was recorded.
async fn begin(server: &Server, id: &str) -> Option<Refusal> {
    let (file, recorded, none) = with(server, id, |workflow| {
        let file = workflow.environment.fields["image"]["file"].as_str().unwrap_or_default().to_owned();
        workflow.log(&format!("Grab the tarball file {file}"));
        (file, workflow.environment.checksum.clone(), workflow.nodes.is_empty())
    })?;
    if none {
        return Some(Refusal::coded(14, "All the nodes have been discarded ..."));
    }
    match environments::checksum(&file).await {
        Err(refusal) => Some(refusal),
        Ok(now) if now != recorded => {
            let text = format!("Checksum of the file '{file}' does not match (an update is necessary)");
            Some(Refusal::coded(5, text))
        }
        Ok(_) => None,
    }
}

/// A step on a node.
async fn one(server: &Server, id: &str, node: &str, (large, small, order): Step, faults: &Faults) {
    let waits = small == "wait_reboot";
    set(server, id, node, |progress| {
        progress.step = Some((large, small));
        progress.state = if waits { "reboot_in_progress" } else { "ok" };
    });
    let fault = faults.nodes.get(node).filter(|fault| fault.step.as_deref().is_none_or(|step| step == small));
    let done = match fault {
        Some(fault) if fault.does == Does::Hang => {
            pause(server.settings.step * PATIENCE).await;
            Err("Unreachable after the reboot".into())
        }
        Some(fault) => Err(fault.error.clone()),
        None => match (order, &server.settings.deployer) {
            (Some(order), Some(deployer)) => {
                let Some((file, key)) = with(server, id, |w| {
                    let file = w.environment.fields["image"]["file"].as_str().unwrap_or_default().to_owned();
                    (file, w.environment.key.clone())
                }) else {
                    return;
                };
                let image = file.strip_prefix("server://").unwrap_or(&file);
                machine::order(deployer, order, node, image, key.as_deref()).await
            }
            _ => {
                pause(server.settings.step).await;
                Ok(())
            }
        },
    };
    set(server, id, node, |progress| match done {
        Ok(()) => progress.state = if waits { "rebooted" } else { "ok" },
        Err(error) => {
            progress.state = "ko";
            progress.error = Some(format!("{large}-{small}: {error}"));
        }
    });
}

fn with<T>(server: &Server, id: &str, look: impl FnOnce(&mut Workflow) -> T) -> Option<T> {
    server.state().workflows.get_mut(id).map(look)
}

fn set(server: &Server, id: &str, node: &str, change: impl FnOnce(&mut Progress)) {
    with(server, id, |workflow| workflow.nodes.get_mut(node).map(change));
}

fn at_work(server: &Server, id: &str) -> Vec<String> {
    let working = |workflow: &mut Workflow| {
        workflow.nodes.iter().filter(|(_, progress)| progress.state != "ko").map(|(node, _)| node.clone()).collect()
    };
    with(server, id, working).unwrap_or_default()
}

/// Writes the nodes' records, and that it is over.
fn finish(server: &Server, id: &str, broken: Option<Refusal>) {
    let mut state = server.state();
    let Some(workflow) = state.workflows.get_mut(id) else { return };
    workflow.finish(broken);
    workflow.log("End of deployment");
    let (user, record, broke) = (workflow.user.clone(), workflow.environment.record.clone(), workflow.broken.is_some());
    let ends: Vec<(String, bool)> =
        workflow.nodes.iter().map(|(node, progress)| (node.clone(), progress.state == "ko")).collect();
    for (node, failed) in ends {
        let (word, record) = match (broke, failed) {
            // the node was not touched
            (true, _) => ("aborted", None),
            (false, true) => ("deploy_failed", record.clone()),
            (false, false) => ("deployed", record.clone()),
        };
        state.store.mark(&node, word, &user, record);
    }
    if let Err(error) = state.store.save() {
        eprintln!("kadeploy-sim: {error:#}");
        std::process::exit(1);
    }
}
