//! Certificates are renewed by the operator in the Secrets that pods mount; a process whose files
//! have changed ends and is started again with the new ones.

use std::{path::Path, time::Duration};

use super::Credentials;

/// Time between two looks: the kubelet itself takes about a minute.
const INTERVAL: Duration = Duration::from_secs(30);

/// Returns when the files in `directory` are others than `credentials`, and readable.
pub async fn renewed(directory: &Path, credentials: &Credentials) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let directory = directory.to_owned();
        let found = tokio::task::spawn_blocking(move || Credentials::read(&directory)).await;
        match found {
            Ok(Ok(found)) if found != *credentials => return tracing::info!("the certificate was renewed"),
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(error)) => tracing::warn!(%error, "failed to look for a renewed certificate"),
        }
    }
}
