//! `vmdeploy crds`: writes the CustomResourceDefinitions.

use std::{fs, io::Write, path::PathBuf};

use anyhow::Context as _;

use crate::api::crds::{all, file_name, file_text};

/// Arguments of `vmdeploy crds`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory for one file per kind, made if it is not there; standard output if absent.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Writes the definitions where the arguments say.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(directory) = &args.out {
        fs::create_dir_all(directory).with_context(|| format!("failed to make {}", directory.display()))?;
    }
    for crd in all() {
        let text = file_text(&crd)?;
        match &args.out {
            Some(directory) => {
                let path = directory.join(file_name(&crd));
                fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
            }
            None => std::io::stdout().write_all(text.as_bytes())?,
        }
    }
    Ok(())
}
