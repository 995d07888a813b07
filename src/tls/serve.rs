//! The serving side: HTTP over mutual TLS, each request marked with who asks.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{Router, extract::Request, http::StatusCode, response::IntoResponse};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Credentials, TlsError};
use crate::names::Identity;

/// A peer that says nothing for this long while connecting is dropped.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Extension of every request: who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer(pub Identity);

/// Serves `router` until `stop` is cancelled. Peers without a certificate of the authority, or whose
/// certificate names nobody of ours, are refused before any handler runs.
pub async fn serve(
    listener: TcpListener,
    credentials: &Credentials,
    router: Router,
    stop: CancellationToken,
) -> Result<(), TlsError> {
    let acceptor = TlsAcceptor::from(Arc::new(credentials.server_config()?));
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // out of descriptors, mostly: the next accept may do better
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = connection(stream, acceptor, router) => {}
            }
        });
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router) {
    // without it the small messages of a barrier wait for acknowledgements
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "refused a connection"),
        Err(_) => return,
    };
    let Some(peer) = identity(stream.get_ref().1.peer_certificates()) else {
        return tracing::warn!("refused a certificate that names no part of vmdeploy");
    };
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer.clone()));
        let router = router.clone();
        async move {
            use tower_service::Service;
            let mut router = router;
            let reply = match router
                .as_service::<axum::body::Body>()
                .call(Request::from(request.map(axum::body::Body::new)))
                .await
            {
                Ok(reply) => reply,
                Err(never) => match never {},
            };
            Ok::<_, Infallible>(reply)
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
}

fn identity(chain: Option<&[rustls_pki_types::CertificateDer<'static>]>) -> Option<Identity> {
    let first = chain?.first()?;
    let certificate = webpki::EndEntityCert::try_from(first).ok()?;
    certificate.valid_dns_names().find_map(|name| name.parse().ok())
}

/// The reply to a peer that may not do what it asked.
pub fn forbidden(what: &str) -> axum::response::Response {
    (StatusCode::FORBIDDEN, what.to_owned()).into_response()
}
