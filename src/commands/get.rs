//! `vmdeploy get`: a file that a member has kept.

use std::{
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tempfile::TempPath;
use tokio::fs::File;

use super::member::{Member, cluster, copy};
use crate::subresources::paths;

/// Arguments of `vmdeploy get`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, or JOB/INDEX for another member than 0.
    member: Member,
    /// Path of the file in the guest, as in spec.outputs.
    path: String,
    /// Namespace; that of the kubeconfig if absent.
    #[arg(short, long)]
    namespace: Option<String>,
    /// File to write; standard output if absent.
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// Fetches the file.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let (client, namespace) = cluster(args.namespace.as_deref()).await?;
    let path = paths::output(&namespace, &args.member.job, args.member.index, &args.path);
    match &args.output {
        None => copy(&client, path, &mut tokio::io::stdout()).await,
        Some(to) => {
            let failed = || format!("failed to write {}", to.display());
            let mut pending = Pending::new(to).with_context(failed)?;
            copy(&client, path, &mut pending.file).await?;
            pending.keep().with_context(failed)
        }
    }
}

/// A file that takes its name once it is whole; what had the name before stays until then.
struct Pending {
    file: File,
    /// Where it is meanwhile, and its name; none if it is written to as it comes.
    beside: Option<(TempPath, PathBuf)>,
}

impl Pending {
    fn new(name: &Path) -> io::Result<Self> {
        // a terminal, a pipe or a device stays what it is
        if name.metadata().is_ok_and(|known| !known.is_file()) {
            return Ok(Self { file: std::fs::File::options().write(true).open(name)?.into(), beside: None });
        }
        // what a link leads to is replaced, not the link
        let name = name.canonicalize().unwrap_or_else(|_| name.to_owned());
        let directory = name.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // as many rights as other new files have
        let rights = Permissions::from_mode(0o666);
        let (file, path) = tempfile::Builder::new().permissions(rights).tempfile_in(directory)?.into_parts();
        Ok(Self { file: file.into(), beside: Some((path, name)) })
    }

    fn keep(self) -> io::Result<()> {
        self.beside.map_or(Ok(()), |(path, name)| Ok(path.persist(name)?))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    async fn written(name: &Path, text: &str) -> Pending {
        let mut pending = Pending::new(name).unwrap();
        pending.file.write_all(text.as_bytes()).await.unwrap();
        pending.file.flush().await.unwrap();
        pending
    }

    #[tokio::test]
    async fn a_file_stays_as_it_was_until_the_new_one_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("result");
        for (before, text) in [(None, "first"), (Some("first"), "second")] {
            drop(written(&name, "half").await);
            assert_eq!(std::fs::read_to_string(&name).ok().as_deref(), before);
            written(&name, text).await.keep().unwrap();
            assert_eq!(std::fs::read_to_string(&name).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn what_a_link_leads_to_is_replaced_and_a_device_is_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let (name, link) = (directory.path().join("result"), directory.path().join("link"));
        std::fs::write(&name, "old").unwrap();
        std::os::unix::fs::symlink(&name, &link).unwrap();
        written(&link, "new").await.keep().unwrap();
        assert_eq!(std::fs::read_to_string(&name).unwrap(), "new");
        assert!(link.is_symlink());
        let device = written(Path::new("/dev/null"), "gone").await;
        assert!(device.beside.is_none());
        device.keep().unwrap();
    }
}
