//! The operator's own certificate authority.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::{Credentials, TlsError};
use crate::names::Identity;

/// How long an authority lasts.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks of nodes differ: certificates are valid a little before they are made.
const CLOCK_SLACK: Duration = Duration::from_secs(300);

/// Signs the certificates of all parts of one installation. PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl std::fmt::Debug for Authority {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// Makes a new one.
    pub fn create(now: jiff::Timestamp) -> Result<Self, TlsError> {
        Self::of_key(KeyPair::generate()?, now)
    }

    /// The one with this key: what it has signed at any time is good to whoever else makes it.
    pub fn of_key(key: KeyPair, now: jiff::Timestamp) -> Result<Self, TlsError> {
        let mut params = params(Vec::new(), now, AUTHORITY_LIFETIME)?;
        params.distinguished_name.push(DnType::CommonName, "vmdeploy");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Issues a certificate that speaks for `identity` for `lifetime`.
    pub fn issue(
        &self,
        identity: &Identity,
        now: jiff::Timestamp,
        lifetime: Duration,
    ) -> Result<Credentials, TlsError> {
        self.issue_name(&identity.to_string(), now, lifetime)
    }

    /// Issues a certificate for a DNS name: for those who know us by no identity of ours.
    pub fn issue_name(&self, name: &str, now: jiff::Timestamp, lifetime: Duration) -> Result<Credentials, TlsError> {
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, KeyPair::from_pem(&self.key)?)?;
        let key = KeyPair::generate()?;
        let mut params = params(vec![name.to_owned()], now, lifetime)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(Credentials { ca: self.certificate.clone(), certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn params(names: Vec<String>, now: jiff::Timestamp, lifetime: Duration) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let now = std::time::SystemTime::from(now);
    params.not_before = (now - CLOCK_SLACK).into();
    params.not_after = (now + lifetime).into();
    Ok(params)
}
