//! Whose certificates are trusted, of servers of both kinds.

use std::{io, net::SocketAddr, path::Path, process::Command, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    image::{FileOrder, OciPlace, Place, StoredFile, Trouble, TroubleKind, fetch::fetch},
    tls::Authority,
};

const FILE: &str = "a disk that comes encrypted";
/// Where a process that was started for it puts the certificate of whom the container image trusts.
const OF_THE_IMAGE: &str = "VMDEPLOY_TEST_AUTHORITY_OF_THE_IMAGE";

/// Takes connections of those who trust its certificate.
struct Encrypted {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Encrypted {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (connection, peer) = self.listener.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(connection).await {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

fn authority() -> Authority {
    crate::tls::install_provider();
    Authority::create(Timestamp::now()).unwrap()
}

fn digest() -> String {
    format!("sha256:{:x}", Sha256::digest(FILE))
}

/// Where a server has the file whose certificate this authority has signed: on the web, and as an artifact.
async fn places(authority: &Authority) -> [Place; 2] {
    let own = authority.issue_name("127.0.0.1", Timestamp::now(), Duration::from_secs(3600)).unwrap();
    let certificate = CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    let listener = Encrypted { listener, acceptor: TlsAcceptor::from(Arc::new(config)) };
    let manifest = json!({"layers": [{"digest": digest(), "size": FILE.len()}]}).to_string();
    let router = Router::new()
        .route("/disk", get(|| async { FILE }))
        .route("/v2/disks/manifests/12", get(move || async move { manifest }))
        .route("/v2/disks/blobs/{digest}", get(|| async { FILE }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let artifact = OciPlace { reference: format!("{server}/disks:12"), file: None, manifest: None, plain_http: false };
    [Place::Url(format!("https://{server}/disk")), Place::Oci(artifact)]
}

/// Fetches the file by an importer that is told to trust those in a file.
async fn fetched(place: &Place, trusted: Option<&Path>) -> Result<StoredFile, Trouble> {
    let directory = tempfile::tempdir().unwrap();
    let (place, trusted) = (place.clone(), trusted.map(Path::to_owned));
    let order =
        FileOrder { field: "spec.source".into(), place, digest: Some(digest()), limit: 1 << 20, login: None, trusted };
    fetch(&order, &directory.path().join("disk")).await
}

fn file(certificates: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), certificates).unwrap();
    file
}

#[tokio::test]
async fn a_server_is_trusted_once_who_signed_its_certificate_is_named() {
    let (ours, another) = (authority(), authority());
    let both = file(&format!("{}{}", another.certificate, ours.certificate));
    let wrong = file(&another.certificate);
    for place in &places(&ours).await {
        let got = fetched(place, Some(both.path())).await.unwrap();
        assert_eq!(got, StoredFile { digest: digest(), size: FILE.len() as u64 });
        for trusted in [None, Some(wrong.path())] {
            let trouble = fetched(place, trusted).await.unwrap_err();
            // the configuration may be mended without the spec
            assert_eq!((trouble.kind, trouble.again), (TroubleKind::Fetch, true), "{trouble}");
            let (_, why) = trouble.message.split_once("invalid peer certificate: ").unwrap();
            let helps = ": put the certificate of who signed it into importers.ca of the chart's values";
            assert!(why.ends_with(helps), "{trouble}");
        }
    }
}

#[tokio::test]
async fn certificates_that_cannot_be_read_may_come_to_be_there() {
    let broken = file("-----BEGIN CERTIFICATE-----");
    for place in &places(&authority()).await {
        for trusted in [Path::new("/nowhere/trusted.crt"), broken.path()] {
            let trouble = fetched(place, Some(trusted)).await.unwrap_err();
            assert_eq!((trouble.kind, trouble.again), (TroubleKind::Importer, true), "{trouble}");
            let words = format!("failed to read the certificates of importers.ca in {}: ", trusted.display());
            assert!(trouble.message.starts_with(&words), "{trouble}");
        }
    }
}

/// Not a test: what the one below starts. It ends at once when nobody has asked for it.
#[tokio::test]
async fn with_an_authority_of_the_image() {
    let Some(of_the_image) = std::env::var_os(OF_THE_IMAGE) else { return };
    let (theirs, ours) = (authority(), authority());
    std::fs::write(of_the_image, &theirs.certificate).unwrap();
    let named = file(&ours.certificate);
    for place in [places(&theirs).await, places(&ours).await].as_flattened() {
        fetched(place, Some(named.path())).await.unwrap();
    }
}

#[test]
fn whom_the_image_trusts_stays_trusted() {
    let of_the_image = file("");
    // as those who look for the system's authorities take it, in a process of its own
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "image::fetch::web::tests::with_an_authority_of_the_image"])
        .env("SSL_CERT_FILE", of_the_image.path())
        .env(OF_THE_IMAGE, of_the_image.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
