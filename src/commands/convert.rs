//! `vmdeploy convert`: what an importer does with an archive, without a cluster.

use std::{io::Write as _, path::PathBuf};

use anyhow::Context as _;

use crate::{
    api::quantity::Bytes,
    image::{
        BootPaths,
        convert::{DISK, INITRD, KERNEL, convert},
    },
};

/// Arguments of `vmdeploy convert`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Archive of a root file system, as it is or compressed by gzip, bzip2, xz or zstd.
    archive: PathBuf,
    /// Directory for disk.qcow2, vmlinuz and initrd.img.
    #[arg(long, default_value = ".")]
    to: PathBuf,
    /// Size of the disk.
    #[arg(long, default_value = "10Gi")]
    size: Bytes,
}

/// Converts, and says what was found.
pub fn run(args: &Args) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.to).with_context(|| format!("failed to make {}", args.to.display()))?;
    let conversion = convert(&args.archive, &args.to, args.size.0, &BootPaths::default())?;
    let os = conversion.os.as_deref().unwrap_or("a system without os-release");
    let log = conversion.log;
    writeln!(std::io::stdout(), "{os}\n{log}\nmade {DISK}, {KERNEL} and {INITRD} in {}", args.to.display())?;
    Ok(())
}
