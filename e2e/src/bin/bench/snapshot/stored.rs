//! Lives of a job of one VM on the test bed: what the second of two snapshots takes in the repository, and how long
//! all of them stop it there. The same two states are given to restic and borg with their defaults, and their
//! repositories' growth is compared.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    TestBed,
    job::{Counting, Job, nodes},
    testbed::{SERVICE_NODE, number, until},
};
use vmdeploy::{
    api::JobPhase,
    names::Generation,
    store::{
        manifest::Manifest,
        migration::{self, Page, StreamError},
    },
};

use super::WRITER;
use crate::report::{Figure, Measured, figure, install_packages};

/// Lives.
const SAMPLES: u32 = 2;
const LIMIT: Duration = Duration::from_secs(300);
/// Snapshots that are waited for; of the last two, what they take is compared.
const WARM: u32 = 7;
/// Captures on a node: in the directory that the kubelet has made for the agent's pod, of which there is one.
const FIND: &str = "find /var/lib/kubelet/pods/*/volumes/kubernetes.io~empty-dir/vm -maxdepth 1 -name 'generation-*'";
/// A capture that has begun has ended after this time.
const SETTLED: Duration = Duration::from_secs(20);
/// Bytes that are compressed together in the reference, as in the measurements that the goals are from.
const BATCH: usize = 64 << 10;
/// Level of zstd there.
const LEVEL: i32 = 1;

#[derive(Default)]
struct Samples {
    pauses: Vec<f64>,
    against_changed: Vec<f64>,
    against_restic: Vec<f64>,
    against_borg: Vec<f64>,
}

/// Measures on the test bed of the environment. A sample that fails costs only its own figures.
pub(super) async fn measure(bed: &TestBed) -> Result<Measured> {
    install_packages(&[("restic", "restic"), ("borg", "borgbackup")])?;
    let (mut samples, mut failed) = (Samples::default(), Vec::new());
    for number in 1..=SAMPLES {
        eprintln!("sample {number} of {SAMPLES} ...");
        if let Err(error) = life(bed, &mut samples).await {
            failed.push(format!("life {number}: {error:#}"));
        }
        bed.clean();
    }
    let figures = [
        figure("pause_on_test_bed_p95_ms", &samples.pauses, 0.95, "ms", None, Some("ordered by the operator")),
        figure("second_vs_changed", &samples.against_changed, 0.5, "ratio", Some(1.05), Some("with disk and output")),
        figure("second_vs_restic", &samples.against_restic, 0.5, "ratio", Some(0.9), None),
        figure("second_vs_borg", &samples.against_borg, 0.5, "ratio", Some(0.75), None),
    ];
    Ok(Measured { figures: figures.into_iter().flatten().collect::<Vec<Figure>>(), failed })
}

async fn life(bed: &TestBed, samples: &mut Samples) -> Result<()> {
    let namespace = bed.namespace("bench-snapshot").await?;
    let mut object = Counting { period: 10, ..Counting::default() }.object("write")?;
    object.spec.run.command = vec!["sh".into(), "-c".into(), WRITER.into()];
    object.spec.outputs.clear();
    let job = Job::create(bed, &namespace, &object).await?;
    job.wait_phase(JobPhase::Running, LIMIT).await?;
    until("the writer at work", LIMIT, async || Ok(job.logs(0).await?.contains("\n50 ").then_some(()))).await?;
    // old ones go: each is looked at while it is there
    let (mut pauses, mut last) = (BTreeMap::new(), 0);
    for _ in 0..WARM {
        last = job.wait_stored(last, LIMIT).await?;
        for status in job.snapshots().await?.into_iter().filter_map(|snapshot| snapshot.status) {
            pauses.extend(status.generation.zip(status.pause_ms));
        }
    }
    samples.pauses.extend(pauses.into_values().map(|ms| ms as f64));
    // the last two stay on the node
    job.correct(|spec| spec.snapshots.period = Duration::from_secs(3600).into()).await?;
    let directory = tempfile::tempdir()?;
    let (second, states) = copy(bed, &job, directory.path()).await?;
    let manifest = format!("/var/lib/vmdeploy/repository/jobs/{}/generations/{second}/manifest.json", job.uid);
    let manifest = Manifest::parse(bed.run(&["node", SERVICE_NODE, "cat", &manifest])?.as_bytes())?;
    let added = manifest.stored() as f64;
    job.delete(LIMIT).await?;

    let [before, after] = &states;
    samples.against_changed.push(added / changed(before, after)? as f64);
    samples.against_restic.push(added / restic(directory.path(), before, after)? as f64);
    samples.against_borg.push(added / borg(directory.path(), before, after)? as f64);
    Ok(())
}

/// The last generation that is captured and stored, and its files and those of the one before, from the node.
async fn copy(bed: &TestBed, job: &Job, to: &Path) -> Result<(Generation, [PathBuf; 2])> {
    // a capture that was under way is at its end by then
    tokio::time::sleep(SETTLED).await;
    let place = nodes(&job.get().await?).first().cloned().context("the job holds no node")?;
    let node = number(&place)?;
    let found = bed.run(&["node", node, "sh", "-c", FIND])?;
    let generation = |path: &str| path.rsplit('-').next()?.parse::<Generation>().ok();
    let mut found: Vec<(Generation, &str)> = found.lines().filter_map(|path| Some((generation(path)?, path))).collect();
    found.sort_unstable();
    let [.., before, after] = found.as_slice() else { anyhow::bail!("{found:?} on {place}: two are needed") };
    ensure!(before.0 + 1 == after.0, "{found:?} do not follow each other");
    job.wait_stored(before.0, LIMIT).await?;
    let copy = |name: &str, from: &str| -> Result<PathBuf> {
        let state = to.join(name);
        std::fs::create_dir(&state)?;
        for file in ["memory", "disk", "output"] {
            bed.save(node, &["cat", &format!("{from}/{file}")], &state.join(file))?;
        }
        Ok(state)
    };
    Ok((after.0, [copy("before", before.1)?, copy("after", after.1)?]))
}

/// Pages of a memory that have content: calls with each.
fn pages(state: &Path, mut page: impl FnMut(blake3::Hash, &[u8]) -> std::io::Result<()>) -> Result<()> {
    let skeleton = migration::read(File::open(state.join("memory"))?, |found| {
        if let Page::Data { bytes, .. } = found.content {
            page(blake3::hash(bytes), bytes).map_err(|source| StreamError::Input { offset: 0, source })?;
        }
        Ok::<_, StreamError>(())
    });
    skeleton.map(drop).context("the memory cannot be read")
}

/// Bytes of the pages that the first state does not have, compressed.
fn changed(before: &Path, after: &Path) -> Result<u64> {
    let mut known = HashSet::new();
    pages(before, |name, _| {
        known.insert(name);
        Ok(())
    })?;
    let (mut batch, mut bytes) = (Vec::with_capacity(BATCH), 0);
    let mut end = |batch: &mut Vec<u8>| -> std::io::Result<()> {
        bytes += zstd::bulk::compress(batch, LEVEL)?.len() as u64;
        batch.clear();
        Ok(())
    };
    pages(after, |name, page| {
        if known.insert(name) {
            batch.extend_from_slice(page);
        }
        if batch.len() >= BATCH { end(&mut batch) } else { Ok(()) }
    })?;
    end(&mut batch)?;
    Ok(bytes)
}

/// Bytes that a repository of restic grows by for the second state.
fn restic(directory: &Path, before: &Path, after: &Path) -> Result<u64> {
    let repository = directory.join("restic");
    let restic = |words: &[&str]| {
        let mut command = Command::new("restic");
        command.args(["--quiet", "--no-cache", "--repo"]).arg(&repository).args(words);
        command.env("RESTIC_PASSWORD", "benchmark");
        command
    };
    run(&mut restic(&["init"]))?;
    growth(directory, &repository, before, after, |_| restic(&["backup", "state"]))
}

/// The same for borg.
fn borg(directory: &Path, before: &Path, after: &Path) -> Result<u64> {
    let repository = directory.join("borg");
    let borg = |words: &[&str]| {
        let mut command = Command::new("borg");
        command.args(words).env("BORG_BASE_DIR", directory).env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        command
    };
    let place = repository.display().to_string();
    run(&mut borg(&["init", "--encryption", "none", &place]))?;
    growth(directory, &repository, before, after, |number| borg(&["create", &format!("{place}::{number}"), "state"]))
}

/// Has both states kept from the same path; what the second one added.
fn growth(
    directory: &Path,
    repository: &Path,
    before: &Path,
    after: &Path,
    keep: impl Fn(u32) -> Command,
) -> Result<u64> {
    let (state, mut sizes) = (directory.join("state"), Vec::new());
    for (number, from) in (1..).zip([before, after]) {
        std::fs::create_dir(&state)?;
        for file in std::fs::read_dir(from)? {
            let file = file?;
            std::fs::copy(file.path(), state.join(file.file_name()))?;
        }
        run(keep(number).current_dir(directory))?;
        sizes.push(size(repository)?);
        std::fs::remove_dir_all(&state)?;
    }
    let grown = sizes.last().zip(sizes.first()).and_then(|(last, first)| last.checked_sub(*first));
    grown.filter(|grown| *grown > 0).context("the repository did not grow")
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Bytes of all files below a directory.
fn size(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let data = entry.metadata()?;
        bytes += if data.is_dir() { size(&entry.path())? } else { data.len() };
    }
    Ok(bytes)
}
