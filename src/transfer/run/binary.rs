//! This program itself: what it is known by, and how it is passed on.

use std::{fs, fs::File, io, path::PathBuf};

use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::wire::Binary;

/// The file that runs, also if it was replaced under its name.
const RUNNING: &str = "/proc/self/exe";

/// What runs here.
pub(super) fn known() -> io::Result<Binary> {
    Ok(Binary::from(&fs::metadata(RUNNING)?))
}

/// Where it is.
pub(super) fn path() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// Its length and SHA-256 digest, which every node's shell can compute.
pub(super) fn digest() -> io::Result<(u64, String)> {
    let mut file = File::open(RUNNING)?;
    let mut hash = Sha256::new();
    let length = io::copy(&mut file, &mut hash)?;
    Ok((length, format!("{:x}", hash.finalize())))
}

/// Sends it.
pub(super) async fn pass(to: &mut (impl tokio::io::AsyncWrite + Unpin)) -> io::Result<()> {
    let mut file = tokio::fs::File::open(RUNNING).await?;
    tokio::io::copy(&mut file, to).await?;
    to.flush().await
}

/// Sends it on a connection that asked for it.
pub(super) async fn answer(mut to: TcpStream) -> io::Result<()> {
    pass(&mut to).await?;
    to.shutdown().await
}
