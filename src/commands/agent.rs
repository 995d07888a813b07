//! `vmdeploy agent`: the agent of one member on its node.

use std::{process::ExitCode, sync::Arc};

use crate::{
    agent,
    driver::repository::{ByteStore, http::HttpRepository},
    tls::{Credentials, TlsError},
};

pub use crate::agent::AgentArgs as Args;

/// Runs the agent; its exit code says how it ended.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let connect = |credentials: &Credentials, endpoint: &str, kept, pace| -> Result<Arc<dyn ByteStore>, TlsError> {
        Ok(Arc::new(HttpRepository::new(credentials, endpoint)?.keeping(kept).at(pace)))
    };
    Ok(agent::run(args, &connect)?)
}
