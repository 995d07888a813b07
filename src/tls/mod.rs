//! Mutual TLS among operator, kget, repository, importers and agents.
//!
//! Everybody's certificate is signed by the operator's own authority and says in one DNS name who
//! it speaks for ([`Identity`]). Names are resolved by nobody: a client connects to the address it
//! was given and demands the identity it expects there.

mod authority;
mod renewal;
mod serve;

pub use authority::Authority;
pub use renewal::stop_when_renewed;
pub use serve::{Peer, forbidden, serve, serve_whom};

use std::{fmt, net::SocketAddr, path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::names::Identity;

/// What goes wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("failed to read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Not a certificate or key.
    #[error("not a usable certificate or key: {0}")]
    Pem(String),
    /// A certificate cannot be made.
    #[error("failed to make a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    /// The parts do not go together.
    #[error("failed to set TLS up: {0}")]
    Setup(String),
}

/// A certificate, its key, and the authority it trusts. All PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Certificate of the authority.
    pub ca: String,
    /// Own certificate.
    pub certificate: String,
    /// Own key.
    pub key: String,
}

impl fmt::Debug for Credentials {
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Reads `ca.crt`, `tls.crt` and `tls.key` of a directory, as a mounted Secret has them.
    pub fn read(directory: &Path) -> Result<Self, TlsError> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read_to_string(&path).map_err(|source| TlsError::Read { path: path.display().to_string(), source })
        };
        Ok(Self { ca: read("ca.crt")?, certificate: read("tls.crt")?, key: read("tls.key")? })
    }

    fn own(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|e| TlsError::Pem(e.to_string()))?;
        Ok((certificates(&self.certificate)?, key))
    }

    /// The side that connects.
    pub fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let (chain, key) = self.own()?;
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::Setup(e.to_string()))?
            .with_root_certificates(authorities(&self.ca)?)
            .with_client_auth_cert(chain, key)
            .map_err(|e| TlsError::Setup(e.to_string()))
    }

    /// The side that is connected to; refuses peers without a certificate of the authority.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let (chain, key) = self.own()?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities(&self.ca)?), provider())
            .build()
            .map_err(|e| TlsError::Setup(e.to_string()))?;
        ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::Setup(e.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|e| TlsError::Setup(e.to_string()))
    }

    /// An HTTP client that reaches `peer`, and only it, at `endpoint` (`host:port`). Requests go to
    /// [`base_url`] of the same peer. No overall time limit is set: each request sets its own.
    pub fn http_client(&self, peer: &Identity, endpoint: &str) -> Result<reqwest::Client, TlsError> {
        reqwest::Client::builder()
            .tls_backend_preconfigured(self.client_config()?)
            .no_proxy()
            .http1_only()
            .connect_timeout(std::time::Duration::from_secs(3))
            .dns_resolver(Pinned { name: peer.to_string(), endpoint: endpoint.into() })
            .build()
            .map_err(|e| TlsError::Setup(e.to_string()))
    }
}

/// Address of requests to `peer`; where they go is up to the client.
pub fn base_url(peer: &Identity) -> String {
    format!("https://{peer}")
}

/// Makes the process's cryptography known to libraries that look for a default.
pub fn install_provider() {
    // a second call finds the first one's provider in place, which is the same
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The authorities whose certificates a text has, one or more.
pub fn authorities(pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|e| TlsError::Pem(e.to_string()))?;
    }
    Ok(roots)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|e| TlsError::Pem(e.to_string()))?;
    if all.is_empty() { Err(TlsError::Pem("no certificate in it".into())) } else { Ok(all) }
}

/// Resolves the one name of a peer to the endpoint it was found at, and no other name.
struct Pinned {
    name: String,
    endpoint: String,
}

impl reqwest::dns::Resolve for Pinned {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let (wanted, endpoint) = (name.as_str() == self.name, self.endpoint.clone());
        Box::pin(async move {
            if !wanted {
                return Err("this client reaches one peer only".into());
            }
            let found: Vec<SocketAddr> = tokio::net::lookup_host(endpoint).await?.collect();
            Ok(Box::new(found.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

#[cfg(test)]
mod tests;
