//! The serving side: HTTP over mutual TLS, each request marked with who asks.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{Router, extract::Request, http::StatusCode, response::IntoResponse};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::CertificateDer;
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
    serve_whom(listener, credentials, router, stop, |certificate| identity(certificate).map(Peer)).await
}

/// The same for peers that `identify` knows by their certificate; each request carries what it says.
pub async fn serve_whom<P, I>(
    listener: TcpListener,
    credentials: &Credentials,
    router: Router,
    stop: CancellationToken,
    identify: I,
) -> Result<(), TlsError>
where
    P: Clone + Send + Sync + 'static,
    I: Fn(&CertificateDer<'_>) -> Option<P> + Send + Sync + 'static,
{
    let acceptor = TlsAcceptor::from(Arc::new(credentials.server_config()?));
    let identify = Arc::new(identify);
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
        let (acceptor, router, stop, identify) = (acceptor.clone(), router.clone(), stop.clone(), identify.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = connection(stream, acceptor, router, &*identify) => {}
            }
        });
    }
}

async fn connection<P: Clone + Send + Sync + 'static>(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    identify: &(dyn Fn(&CertificateDer<'_>) -> Option<P> + Send + Sync),
) {
    // without it the small messages of a barrier wait for acknowledgements
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "refused a connection"),
        Err(_) => return,
    };
    let first = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let Some(peer) = first.and_then(identify) else {
        return tracing::warn!("refused a certificate that names nobody who may ask");
    };
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
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
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
}

fn identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    certificate.valid_dns_names().find_map(|name| name.parse().ok())
}

/// The reply to a peer that may not do what it asked.
pub fn forbidden(what: &str) -> axum::response::Response {
    (StatusCode::FORBIDDEN, what.to_owned()).into_response()
}
