//! Programs of Debian's packages, not changed for this, whose processes speak with each other over the job's network:
//! their nodes are taken away in the middle, once with notice and once without, and they come to the same result.
//! Only with `--all`: they need an image of their own, and minutes under emulation.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    TestBed, Turn,
    job::{Job, nodes, slot_ids},
    testbed::{PARALLEL, until},
    world::{LIFE, taken},
};
use serde_json::{Value, json};
use vmdeploy::api::{BestEffortJob, JobPhase};

use crate::master::{Person, way_in};

const LONG: Duration = Duration::from_secs(1500);

/// What HPCC is to do: a small system of equations, over two or four processes.
fn problem(members: u32) -> String {
    let (rows, columns) = if members == 4 { (2, 2) } else { (1, members) };
    let lines = [
        "input",
        "none",
        "hpl.out",
        "8",
        "1",
        "300",
        "1",
        "32",
        "0",
        "1",
        &rows.to_string(),
        &columns.to_string(),
        "16.0",
        "1",
        "2",
        "1",
        "4",
        "1",
        "2",
        "1",
        "1",
        "1",
        "1",
        "1",
        "1",
        "2",
        "64",
        "0",
        "0",
        "1",
        "8",
        "separator",
        "0",
        "1",
        "0",
        "1",
    ];
    lines.join("\n") + "\n"
}

/// Rounds of HPCC; each prints how exact its solution is, which depends on every word that was exchanged.
const ROUNDS: &str = r#"cd /root; i=0
for m in $(seq 0 $((MEMBERS - 1))); do echo "member-$m slots=1"; done > hosts
while [ $i -lt $COUNT ]; do i=$((i + 1)); rm -f hpccoutf.txt
  mpirun --allow-run-as-root --hostfile hosts -np $MEMBERS --mca btl tcp,self --mca btl_tcp_if_include eth1 \
    --mca oob_tcp_if_include eth1 --mca plm_rsh_args "-o StrictHostKeyChecking=no" hpcc || exit 1
  echo "round $i $(grep -F '||Ax-b' hpccoutf.txt | grep 'ED$' | tr -s ' ')"
done"#;

fn object(members: u32, spec: Value) -> Result<BestEffortJob> {
    let mut whole = json!({
        "members": members, "image": {"name": PARALLEL}, "vm": {"cpus": 1, "memory": "512Mi"},
        "slots": {"site": "testbed", "walltime": "1h"},
        "snapshots": {"period": "30s", "grace": "60s"},
    });
    for (key, value) in spec.as_object().context("no spec")? {
        whole[key] = value.clone();
    }
    let job = json!({"apiVersion": "vmdeploy.io/v1alpha1", "kind": "BestEffortJob", "metadata": {"name": "parallel"}, "spec": whole});
    Ok(serde_json::from_value(job)?)
}

/// A key pair for the members among themselves: public, private.
pub(crate) fn key_pair() -> Result<(String, String)> {
    let directory = std::env::temp_dir().join(format!(
        "vmdeploy-key-{}-{:x}",
        std::process::id(),
        jiff::Timestamp::now().as_nanosecond()
    ));
    std::fs::create_dir(&directory)?;
    let path = directory.join("key");
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "job", "-f"]).arg(&path).status()?;
    ensure!(made.success(), "ssh-keygen failed");
    let (public, private) = (std::fs::read_to_string(path.with_extension("pub"))?, std::fs::read_to_string(&path)?);
    std::fs::remove_dir_all(&directory)?;
    Ok((public.trim().to_owned(), private))
}

fn hpcc(members: u32, count: u32, (public, private): &(String, String)) -> Result<BestEffortJob> {
    let env = json!({"COUNT": count.to_string(), "MEMBERS": members.to_string(), "HOME": "/root"});
    object(
        members,
        json!({
            "run": {"members": "First", "command": ["sh", "-c", ROUNDS], "env": env},
            "access": {"sshKeys": [public]},
            "network": {"master": "Shared"},
            "inputs": [{"path": "/root/.ssh/id_ed25519", "text": private}, {"path": "/root/hpccinf.txt", "text": problem(members)}],
        }),
    )
}

/// Waits until a member has printed something.
async fn says(job: &Job, member: u32, words: &str) -> Result<()> {
    until(words, LONG, async || {
        let phase = job.get().await?.status.map(|status| status.phase);
        ensure!(phase != Some(JobPhase::Failed), "the job has failed: {}", job.logs(member).await.unwrap_or_default());
        Ok(job.logs(member).await.unwrap_or_default().contains(words).then_some(()))
    })
    .await
}

/// The job's nodes are taken; it runs again elsewhere.
async fn moved(bed: &TestBed, job: &Job, attempt: u32) -> Result<()> {
    let before = job.get().await?;
    taken(bed, &nodes(&before)).await?;
    job.wait("other slots", LIFE, |job| {
        let status = job.status.as_ref()?;
        let other = slot_ids(job).iter().all(|id| !slot_ids(&before).contains(id));
        (status.attempt >= attempt && status.phase == JobPhase::Running && other).then_some(())
    })
    .await
}

/// The first kill comes with notice; slots asked for from then on are taken without.
async fn twice(bed: &TestBed, job: &Job, member: u32, second: &str) -> Result<()> {
    job.wait_stored(0, LIFE).await?;
    job.correct(|spec| spec.snapshots.grace = Duration::ZERO.into()).await?;
    moved(bed, job, 2).await?;
    says(job, member, second).await?;
    let stored = job.get().await?.status.and_then(|status| status.snapshots.last_stored).unwrap_or_default();
    job.wait_stored(stored, LIFE).await?;
    moved(bed, job, 3).await
}

/// What rounds found, without their numbers.
fn results(log: &str) -> Vec<String> {
    log.lines()
        .filter_map(|line| line.strip_prefix("round ")?.split_once(' '))
        .map(|(_, found)| found.to_owned())
        .collect()
}

/// Every member's own ssh server is reached from outside the cluster, and known by the same key as before.
async fn hosts_answer(job: &Job, person: &Person, members: u32) -> Result<()> {
    let way = way_in(job).await?;
    for member in 0..members {
        let name = format!("parallel-{member}");
        let reply = person.on_member(&way, &name, "hostname")?;
        ensure!(reply.status.success() && reply.stdout == format!("{name}\n").into_bytes(), "{reply:?}");
    }
    Ok(())
}

pub(crate) async fn equations(members: u32) -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let namespace = bed.parallel_namespace("equations").await?;
    let keys = key_pair()?;
    let rounds = 4;
    let job = Job::create(&bed, &namespace, &hpcc(members, rounds, &keys)?).await?;
    says(&job, 0, "round 1 ").await?;
    let person = Person::new("equations", &keys.1)?;
    hosts_answer(&job, &person, members).await?;
    twice(&bed, &job, 0, "round 2 ").await?;
    hosts_answer(&job, &person, members).await?;
    job.wait_phase(JobPhase::Succeeded, LONG).await?;
    // the first round ended before anything was taken away
    let found = results(&job.logs(0).await?);
    let right = found.first().context("no round")?;
    ensure!(right.contains("PASSED"), "undisturbed: {right}");
    ensure!(found.len() == rounds as usize && found.iter().all(|one| one == right), "{found:?} instead of {right}");
    job.delete(LIFE).await
}

/// Member 0 is the database; member 1 fills a table in one transaction that stays open all the time.
const DATABASE: &str = r#"if [ "$(hostname | sed 's/.*-//')" = 0 ]; then
  d=/etc/postgresql/15/main; mkdir -p /var/run/postgresql; chown postgres /var/run/postgresql
  echo "listen_addresses = '*'" >> $d/postgresql.conf; echo "host all all 198.18.0.0/15 trust" >> $d/pg_hba.conf
  pg_ctlcluster 15 main start || exit 1
  su postgres -c "createdb job; psql -q job -c 'create table t (n int)'" || exit 1
  until [ "$(su postgres -c "psql -tA job -c 'select count(*) from t'")" = $COUNT ]; do sleep 2; done
  echo "rows $(su postgres -c "psql -tA job -c 'select count(*), sum(n), count(distinct xmin::text) from t'")"
  exit
fi
until psql -q -h member-0 -U postgres job -c 'select n from t' > /dev/null 2>&1; do sleep 1; done
( echo 'begin;'; n=0
  while [ $n -lt $COUNT ]; do n=$((n + 1)); echo "insert into t values ($n) returning 'row ' || n;"; sleep 0.5; done
  echo 'commit;' ) | psql -tAq -v ON_ERROR_STOP=1 -h member-0 -U postgres job"#;

/// A database session whose transaction stays open through both kinds of kill.
pub(crate) async fn transaction() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let namespace = bed.parallel_namespace("database").await?;
    let count = 150;
    let run = json!({"members": "All", "command": ["sh", "-c", DATABASE], "env": {"COUNT": count.to_string()}});
    let job = Job::create(&bed, &namespace, &object(2, json!({"run": run}))?).await?;
    says(&job, 1, "row 20\n").await?;
    twice(&bed, &job, 1, "row 80\n").await?;
    job.wait_phase(JobPhase::Succeeded, LONG).await?;
    let (log, wanted) = (job.logs(0).await?, format!("rows {count}|{}|1", count * (count + 1) / 2));
    ensure!(log.contains(&wanted), "{log} instead of {wanted}");
    job.delete(LIFE).await
}
