//! `vmdeploy repository verify|usage`: reads a store, served or not, and changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use sha2::{Digest as _, Sha256};

use super::{
    bucket::Address,
    files::Files,
    packs::{check_pack, damaged_pack},
    publish::check_file,
    recipes,
    usage::usage,
};
use crate::{
    driver::repository::JobUsage,
    names::{Generation, JobUid},
    store::{
        layout::{self, DAMAGED, GENERATIONS, IMAGES, JOBS, MANIFEST, PartName, STAGING, generation, image_name},
        manifest::{FileForm, Manifest},
        pack::{PackName, PackRef},
    },
};

/// What to look at.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Reads every published file, the packs it needs, and every image back and compares it with its manifest or
    /// its name.
    Verify(Target),
    /// Prints how much each namespace, each of its jobs and the images take, in bytes. What a job has of another one's
    /// generation that it began with counts for both, though the disk has it once where it can.
    Usage(Target),
}

/// Which store.
#[derive(clap::Args, Debug)]
pub struct Target {
    /// Directory of the store; with a bucket, where its names are written down meanwhile.
    #[arg(long, required_unless_present = "bucket")]
    root: Option<PathBuf>,
    #[command(flatten)]
    bucket: Address,
}

impl Target {
    /// Its files, and the directory in which those of a bucket are shown.
    fn open(&self) -> anyhow::Result<(Files, Option<tempfile::TempDir>)> {
        if let Some(objects) = self.bucket.objects()? {
            let within = self.root.clone().unwrap_or_else(std::env::temp_dir);
            // what a crash leaves there is cleared when the store is served next
            let staging = Some(within.join(STAGING)).filter(|staging| staging.is_dir());
            let within = staging.unwrap_or(within);
            let scratch = tempfile::tempdir_in(&within).with_context(|| {
                format!(
                    "make a directory for its names in {}: say --root with one that can be written",
                    within.display()
                )
            })?;
            return Ok((Files::of_bucket(objects, scratch.path())?, Some(scratch)));
        }
        let root = self.root.as_deref().context("say --root or --bucket")?;
        let files = Files::directory(root)?;
        // whoever serves a store makes both folders before anything is kept there
        std::fs::metadata(root).with_context(|| format!("failed to look at {}", root.display()))?;
        anyhow::ensure!(
            [JOBS, IMAGES].iter().any(|folder| root.join(folder).is_dir()),
            "{} is no store: it has neither {JOBS} nor {IMAGES}; say --root with the directory that the repository serves",
            root.display()
        );
        Ok((files, None))
    }
}

impl Command {
    /// Looks, and prints what it found. An error if anything is damaged.
    #[expect(clippy::print_stdout, reason = "a command for people")]
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Verify(target) => {
                let (files, _scratch) = target.open()?;
                let report = verify(&files)?;
                for line in &report.problems {
                    println!("DAMAGED {line}");
                }
                println!("{report}");
                anyhow::ensure!(report.problems.is_empty(), "{} problems", report.problems.len());
            }
            Self::Usage(target) => {
                let (files, _scratch) = target.open()?;
                let found = usage(files.root())?;
                for (namespace, bytes) in found.namespaces() {
                    println!("{bytes:>16}  {}", if namespace.is_empty() { "(nothing complete)" } else { namespace });
                    let named = |job: &&JobUsage| job.owner.as_ref().map_or("", |o| &o.namespace) == namespace;
                    for JobUsage { job, owner, bytes } in found.jobs.iter().filter(named) {
                        let name = owner.as_ref().map_or("-", |owner| owner.name.as_str());
                        println!("{bytes:>16}    {name}  {job}");
                    }
                }
                println!("{:>16}  {IMAGES}", found.images);
            }
        }
        Ok(())
    }
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Complete generations.
    pub generations: usize,
    /// Files their manifests name, packs these need, and images.
    pub files: usize,
    /// Bytes read.
    pub bytes: u64,
    /// What is damaged or missing.
    pub problems: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.files == 0 && self.generations == 0 && self.problems.is_empty() {
            return write!(f, "nothing is stored there");
        }
        write!(f, "{} generations, {} files, {} bytes read", self.generations, self.files, self.bytes)
    }
}

/// The packs that a job's generations need, and which of these need each.
type Needed = BTreeMap<PackName, (PackRef, BTreeSet<Generation>)>;

/// Reads every published file back.
pub fn verify(files: &Files) -> io::Result<Report> {
    let mut report = Report::default();
    for job in files.list(Path::new(JOBS))? {
        let mut needed = Needed::new();
        let generations = Path::new(JOBS).join(&job).join(GENERATIONS);
        for number in files.list(&generations)? {
            let Some(bytes) = files.read(&generations.join(&number).join(MANIFEST))? else { continue };
            report.generations += 1;
            match Manifest::parse(&bytes) {
                Ok(manifest) => verify_generation(files, &manifest, &mut needed, &mut report),
                Err(error) => report.problems.push(format!("{job}/{number}: {error}")),
            }
        }
        verify_packs(files, &JobUid(job), &needed, &mut report);
    }
    verify_images(files, &mut report)?;
    Ok(report)
}

fn verify_images(files: &Files, report: &mut Report) -> io::Result<()> {
    for name in files.list(Path::new(IMAGES))? {
        let path = Path::new(IMAGES).join(&name);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some(DAMAGED) => report.problems.push(format!(
                "{IMAGES}/{name} was put aside: the operator imports it again if the source of its VmImage still has \
                 it"
            )),
            // what is known of an image
            Some(_) => {}
            None => {
                report.files += 1;
                let mut hasher = Sha256::new();
                report.bytes += io::copy(&mut files.original(&path)?.0, &mut hasher)?;
                if image_name(&hasher.finalize()) != format!("sha256:{name}") {
                    report.problems.push(format!(
                        "{IMAGES}/{name} is not what its name says: move it away, and the operator imports it again"
                    ));
                }
            }
        }
    }
    Ok(())
}

fn verify_generation(files: &Files, manifest: &Manifest, needed: &mut Needed, report: &mut Report) {
    let Ok(directory) = generation(&manifest.job, manifest.generation) else { return };
    for part in &manifest.members {
        for file in &part.files {
            let name = PartName::of_file(manifest.incarnation, part.index, file).to_string();
            let path = directory.join(name);
            report.files += 1;
            let checked = match file.form {
                FileForm::Whole => check_file(files, &path, file).map(|_| Vec::new()),
                FileForm::Recipe => recipes::check(files, &path, file).map(|(_, packs)| packs),
            };
            match checked {
                Ok(packs) => {
                    report.bytes += file.stored;
                    for pack in packs {
                        let of = needed.entry(pack.name).or_insert_with(|| (pack, BTreeSet::new()));
                        of.1.insert(manifest.generation);
                    }
                }
                Err(error) => report.problems.push(error.to_string()),
            }
        }
    }
}

/// Reads each pack once, however many files need it.
fn verify_packs(files: &Files, job: &JobUid, needed: &Needed, report: &mut Report) {
    for (name, (pack, generations)) in needed {
        let (Ok(path), Ok(aside)) = (layout::pack(job, *name), damaged_pack(job, *name)) else { return };
        report.files += 1;
        let wrong = match check_pack(files.original(&path).map(|(opened, _)| opened), *name, false) {
            Ok((found, _)) if found == *pack => {
                report.bytes += u64::from(pack.stored);
                continue;
            }
            Ok(_) => "has another length than its recipes say".to_owned(),
            Err(trouble) if trouble.is_absence() && files.at(&aside).exists() => "was put aside".to_owned(),
            Err(trouble) if trouble.is_absence() => "is missing".to_owned(),
            Err(trouble) => format!("is damaged: {trouble}"),
        };
        let generations: Vec<String> = generations.iter().map(ToString::to_string).collect();
        report.problems.push(format!("{job}: pack {name} {wrong}; needed by generations {}", generations.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(root: &Path) -> anyhow::Result<(Files, Option<tempfile::TempDir>)> {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            target: Target,
        }
        let cli: Cli = clap::Parser::try_parse_from([Path::new("verify"), Path::new("--root"), root])?;
        cli.target.open()
    }

    #[test]
    fn only_a_store_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        for (root, says) in [("absent", "failed to look at"), (".", "is no store")] {
            let said = format!("{:#}", opened(&directory.path().join(root)).unwrap_err());
            assert!(said.contains(says), "{said}");
        }
        std::fs::create_dir(directory.path().join(JOBS)).unwrap();
        let (files, _) = opened(directory.path()).unwrap();
        assert_eq!(verify(&files).unwrap().to_string(), "nothing is stored there");
    }
}
