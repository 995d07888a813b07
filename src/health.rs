//! What a kubelet and a monitoring system ask of a process: `/healthz`, `/readyz`, `/metrics`, on a
//! plain port. Serves facts that others have reported; checks nothing by itself.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse, routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::{self, Metrics};

/// Named checks of a process; it is ready once all of them hold. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, Result<(), String>>>>);

impl Readiness {
    /// Begins with the named checks, none of which holds yet.
    pub fn expecting<const N: usize>(checks: [&str; N]) -> Self {
        let readiness = Self::default();
        for check in checks {
            readiness.not_ready(check, "not yet");
        }
        readiness
    }

    /// The check holds.
    pub fn ready(&self, check: &str) {
        self.set(check, Ok(()));
    }

    /// The check does not hold, and why.
    pub fn not_ready(&self, check: &str, why: impl Into<String>) {
        self.set(check, Err(why.into()));
    }

    fn set(&self, check: &str, state: Result<(), String>) {
        let mut checks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if checks.get(check) != Some(&state) {
            match &state {
                Ok(()) => tracing::info!(check, "ready"),
                Err(why) => tracing::info!(check, why, "not ready"),
            }
            checks.insert(check.to_owned(), state);
        }
    }

    /// One line per check, and whether all hold.
    pub fn report(&self) -> (bool, String) {
        let checks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = checks.iter().map(|(check, state)| match state {
            Ok(()) => format!("[ok] {check}\n"),
            Err(why) => format!("[not ready] {check}: {why}\n"),
        });
        (checks.values().all(Result::is_ok), lines.collect())
    }
}

/// Serves until `stop` is cancelled. A port that is taken is an error at once.
pub async fn serve(
    address: SocketAddr,
    readiness: Readiness,
    metrics: Metrics,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    axum::serve(listener, router(readiness, metrics)).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// The three pages.
pub fn router(readiness: Readiness, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(figures))
        .with_state((readiness, metrics))
}

type Facts = State<(Readiness, Metrics)>;

async fn readyz(State((readiness, _)): Facts) -> impl IntoResponse {
    let (ready, text) = readiness.report();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

async fn figures(State((_, metrics)): Facts) -> impl IntoResponse {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn started(readiness: &Readiness, metrics: &Metrics) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(readiness.clone(), metrics.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    #[tokio::test]
    async fn a_process_is_ready_once_every_check_holds() {
        crate::tls::install_provider();
        let readiness = Readiness::expecting(["crds", "leader"]);
        let base = started(&readiness, &Metrics::new()).await;
        let ask = async || {
            let reply = reqwest::get(format!("{base}/readyz")).await.unwrap();
            (reply.status().as_u16(), reply.text().await.unwrap())
        };
        readiness.ready("leader");
        readiness.not_ready("crds", "VmImage is not established");
        assert_eq!(ask().await, (503, "[not ready] crds: VmImage is not established\n[ok] leader\n".into()));
        readiness.ready("crds");
        assert_eq!(ask().await.0, 200);
        readiness.not_ready("leader", "lost");
        assert_eq!(ask().await.0, 503);
        assert_eq!(reqwest::get(format!("{base}/healthz")).await.unwrap().status(), 200);
    }

    #[tokio::test]
    async fn metrics_are_served_as_openmetrics() {
        crate::tls::install_provider();
        let metrics = Metrics::new();
        metrics.called("kubernetes", "PATCH");
        let base = started(&Readiness::default(), &metrics).await;
        let reply = reqwest::get(format!("{base}/metrics")).await.unwrap();
        assert_eq!(reply.headers()["content-type"], metrics::CONTENT_TYPE);
        assert!(
            reply.text().await.unwrap().contains("vmdeploy_api_calls_total{system=\"kubernetes\",verb=\"PATCH\"} 1")
        );
    }
}
