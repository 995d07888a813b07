//! Certificates are renewed by the operator in the Secrets that pods mount; a process whose files
//! have changed ends and is started again with the new ones.

use std::{path::PathBuf, time::Duration};

use tokio_util::sync::CancellationToken;

use super::Credentials;

/// Time between two looks: the kubelet itself takes about a minute.
const INTERVAL: Duration = Duration::from_secs(30);

/// Cancels `stop` once the files in `directory` are others than `credentials`, and readable. Ends
/// when something else has cancelled it.
pub async fn stop_when_renewed(directory: PathBuf, credentials: Credentials, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let directory = directory.clone();
        match tokio::task::spawn_blocking(move || Credentials::read(&directory)).await {
            Ok(Ok(found)) if found != credentials => {
                tracing::info!("the certificate was renewed: beginning again");
                return stop.cancel();
            }
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(error)) => tracing::warn!(%error, "failed to look for a renewed certificate"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_process_ends_when_its_certificate_was_renewed_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let write = |key: &str| {
            for file in ["ca.crt", "tls.crt", "tls.key"] {
                std::fs::write(directory.path().join(file), key).unwrap();
            }
            Credentials::read(directory.path()).unwrap()
        };
        let (old, stop) = (write("old"), CancellationToken::new());
        let watch = tokio::spawn(stop_when_renewed(directory.path().into(), old, stop.clone()));
        tokio::time::sleep(INTERVAL * 3).await;
        assert!(!stop.is_cancelled());
        // half of a renewal is none
        std::fs::remove_file(directory.path().join("tls.key")).unwrap();
        tokio::time::sleep(INTERVAL * 2).await;
        assert!(!stop.is_cancelled());
        write("new");
        watch.await.unwrap();
        assert!(stop.is_cancelled());
    }
}
