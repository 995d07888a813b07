//! How much a store has of each job. Blocking; changes nothing.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{
    durable::disk_error,
    store::{Outcome, Store},
};
use crate::{
    clock::Clock,
    driver::repository::{JobOwner, JobUsage, RepositoryError},
    metrics::Metrics,
    names::JobUid,
    store::{
        layout::{self, IMAGES, JOBS, MANIFEST},
        manifest::{MAX_BYTES, Manifest, is_uid},
    },
};

/// How often what there is goes into the figures.
const EVERY: Duration = Duration::from_secs(60);
/// A directory that changed so lately may have changed again within the grain of its time.
const GRAIN: Duration = Duration::from_secs(2);

/// What a store has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Of jobs.
    pub jobs: Vec<JobUsage>,
    /// Bytes of images, which all jobs share.
    pub images: u64,
}

impl Usage {
    /// Bytes by namespace; jobs without a complete generation are of none.
    pub fn namespaces(&self) -> BTreeMap<&str, u64> {
        let mut sums = BTreeMap::new();
        for job in &self.jobs {
            let namespace = job.owner.as_ref().map_or("", |owner| owner.namespace.as_str());
            *sums.entry(namespace).or_default() += job.bytes;
        }
        sums
    }
}

/// Looks at a store, served or not.
pub fn usage(root: &Path) -> io::Result<Usage> {
    let jobs = jobs(root)?.into_iter().map(|job| of_job(root, job)).collect::<io::Result<_>>()?;
    Ok(Usage { jobs, images: size(&root.join(IMAGES))? })
}

fn jobs(root: &Path) -> io::Result<Vec<JobUid>> {
    Ok(names(&root.join(JOBS))?.into_iter().map(JobUid).filter(is_uid).collect())
}

fn of_job(root: &Path, job: JobUid) -> io::Result<JobUsage> {
    let bytes = size(&root.join(JOBS).join(&job.0))?;
    Ok(JobUsage { owner: owner(root, &job)?, job, bytes })
}

/// Whose it is, as the newest manifest says that can be read.
fn owner(root: &Path, job: &JobUid) -> io::Result<Option<JobOwner>> {
    let Ok(directory) = layout::generations(job) else { return Ok(None) };
    let directory = root.join(directory);
    let mut numbers: Vec<u32> = names(&directory)?.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable_by_key(|number| std::cmp::Reverse(*number));
    for number in numbers {
        let path = directory.join(number.to_string()).join(MANIFEST);
        let small = fs::metadata(&path).is_ok_and(|found| found.len() <= MAX_BYTES as u64);
        if let Some(manifest) = small.then(|| fs::read(&path).ok()).flatten().and_then(|b| Manifest::parse(&b).ok()) {
            return Ok(Some(JobOwner::from(&manifest)));
        }
    }
    Ok(None)
}

/// When the directories of a job changed last: with each file that comes or goes. What is in a file never
/// changes, but for the index of the blocks, which grows with the packs.
fn changes(root: &Path, job: &JobUid) -> io::Result<Vec<(PathBuf, SystemTime)>> {
    let own = root.join(JOBS).join(&job.0);
    let mut places = Vec::new();
    for name in names(&own)? {
        let path = own.join(name);
        let inner = names(&path).unwrap_or_default();
        places.extend(inner.iter().filter(|name| name.parse::<u32>().is_ok()).map(|name| path.join(name)));
        places.push(path);
    }
    // the index comes and goes in the job's own
    places.push(own);
    let mut seen = Vec::new();
    for path in places {
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => seen.push((path, found.modified()?)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(seen)
}

/// What was found last of each job, and when its directories had changed by then.
#[derive(Default)]
pub(super) struct Known(Mutex<HashMap<JobUid, Found>>);

struct Found {
    changes: Vec<(PathBuf, SystemTime)>,
    usage: JobUsage,
}

impl Store {
    /// How much it has of each job. What has not changed is not looked at again.
    pub fn usage(&self, now: Timestamp) -> Outcome<Vec<JobUsage>> {
        let root = self.root.at(Path::new(""));
        let settled = SystemTime::from(now).checked_sub(GRAIN);
        let mut all = Vec::new();
        for job in jobs(&root).map_err(|e| disk_error(&e))? {
            let last = {
                let known = self.known.0.lock().unwrap_or_else(PoisonError::into_inner);
                known.get(&job).map(|found| (found.changes.clone(), found.usage.clone()))
            };
            let looked = changes(&root, &job).and_then(|changes| match &last {
                Some((before, usage)) if *before == changes => Ok((changes, usage.clone())),
                _ => of_job(&root, job.clone()).map(|usage| (changes, usage)),
            });
            let (changes, usage) = match looked {
                Ok(found) => found,
                // one that cannot be read keeps nobody from knowing of the others
                Err(error) => {
                    tracing::warn!(%job, %error, "failed to see what a job has");
                    all.extend(last.map(|(_, usage)| usage));
                    continue;
                }
            };
            all.push(usage.clone());
            let is_settled = changes.iter().all(|(_, at)| settled.is_some_and(|settled| *at < settled));
            let mut known = self.known.0.lock().unwrap_or_else(PoisonError::into_inner);
            if is_settled {
                known.insert(job, Found { changes, usage });
            } else {
                known.remove(&job);
            }
        }
        let there: std::collections::HashSet<&JobUid> = all.iter().map(|usage| &usage.job).collect();
        self.known.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|job, _| there.contains(job));
        Ok(all)
    }
}

/// Shows what namespaces have, now and again.
pub(super) async fn keep_showing(store: Arc<Store>, clock: Clock, metrics: Metrics, stop: CancellationToken) {
    let mut turns = tokio::time::interval(EVERY);
    while stop.run_until_cancelled(turns.tick()).await.is_some() {
        let (store, now) = (store.clone(), clock.now());
        let found = tokio::task::spawn_blocking(move || store.usage(now)).await;
        match found.unwrap_or_else(|error| Err(RepositoryError::Unreachable(error.to_string()))) {
            Ok(jobs) => metrics.show_usage(&Usage { jobs, images: 0 }.namespaces()),
            Err(error) => tracing::warn!(%error, "failed to see what the jobs have"),
        }
    }
}

fn size(path: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for name in names(path)? {
        let entry = path.join(name);
        // a file may go while its directory is being read
        sum += match fs::symlink_metadata(&entry) {
            Ok(found) if found.is_dir() => size(&entry)?,
            Ok(found) => found.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
    }
    Ok(sum)
}

/// The names in a directory, sorted; none if it is not there.
pub(super) fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = match fs::read_dir(path) {
        Ok(entries) => entries
            .filter_map(|entry| entry.map(|e| e.file_name().into_string().ok()).transpose())
            .collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{repository::durable::AllSteps, store::manifest::tests::manifest};

    fn store(root: &Path) -> Store {
        let store = Store::open(root, Box::new(AllSteps), Timestamp::now()).unwrap();
        let generation = root.join(layout::generation(&manifest(7).job, 7).unwrap());
        fs::create_dir_all(&generation).unwrap();
        fs::write(generation.join(MANIFEST), serde_json::to_vec(&manifest(7)).unwrap()).unwrap();
        fs::create_dir_all(root.join("jobs/other/packs")).unwrap();
        fs::write(root.join("jobs/other/packs/a"), [0; 1000]).unwrap();
        fs::write(root.join("images/b"), [0; 50]).unwrap();
        store
    }

    #[test]
    fn c2_all_bytes_of_a_job_count_and_its_namespace_is_that_of_its_manifest() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let found = usage(root.path()).unwrap();
        let length = serde_json::to_vec(&manifest(7)).unwrap().len() as u64;
        let owner = JobOwner { namespace: "alice".into(), name: "pi".into() };
        assert_eq!(found.jobs[0], JobUsage { job: manifest(7).job, owner: Some(owner), bytes: length });
        assert_eq!(found.jobs[1], JobUsage { job: "other".into(), owner: None, bytes: 1000 });
        assert_eq!((found.images, found.namespaces()), (50, BTreeMap::from([("", 1000), ("alice", length)])));
        assert_eq!(store.usage(Timestamp::now()).unwrap(), found.jobs);
    }

    #[test]
    fn a_job_that_cannot_be_read_keeps_nobody_from_knowing_of_the_others() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let before = store.usage(Timestamp::now()).unwrap();
        fs::write(root.path().join("jobs/broken"), "no directory").unwrap();
        assert_eq!(store.usage(Timestamp::now()).unwrap(), before);
    }

    #[test]
    fn what_has_not_changed_is_not_looked_at_again_and_what_has_is() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let later = Timestamp::now() + Duration::from_secs(60);
        let bytes = |at| store.usage(at).unwrap()[1].bytes;
        assert_eq!(bytes(later), 1000);
        // as no file of a store ever does
        fs::write(root.path().join("jobs/other/packs/a"), [0; 5]).unwrap();
        assert_eq!(bytes(later), 1000, "it was looked at again");
        fs::write(root.path().join("jobs/other/packs/b"), [0; 7]).unwrap();
        assert_eq!(bytes(later), 12);
        fs::create_dir_all(root.path().join("jobs/other/generations/1")).unwrap();
        assert_eq!(bytes(later), 12);
        fs::write(root.path().join("jobs/other/generations/1/x"), [0; 100]).unwrap();
        assert_eq!(bytes(later), 112);
        let index = root.path().join(layout::blocks(&"other".into()).unwrap());
        fs::write(&index, [0; 3]).unwrap();
        assert_eq!(bytes(later), 115);
        fs::remove_file(&index).unwrap();
        assert_eq!(bytes(later), 112, "an index that is gone still counts");
    }

    #[test]
    fn what_has_only_just_changed_is_looked_at_again() {
        let root = tempfile::tempdir().unwrap();
        // before it changed, however long that was ago
        let now = Timestamp::now();
        let store = store(root.path());
        let bytes = || store.usage(now).unwrap()[1].bytes;
        assert_eq!(bytes(), 1000);
        fs::write(root.path().join("jobs/other/packs/a"), [0; 5]).unwrap();
        assert_eq!(bytes(), 5);
    }
}
