//! Who the API server's front proxy is: the authority of its certificate and the names it may have.

use k8s_openapi::api::core::v1::ConfigMap;
use rustls_pki_types::CertificateDer;

/// Where a cluster says so, in `kube-system`.
pub(super) const CONFIG_MAP: &str = "extension-apiserver-authentication";

/// The front proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FrontProxy {
    /// The authority that signs its certificate, PEM.
    pub(super) authority: String,
    /// Common names it may have; any, if the list is empty.
    names: Vec<String>,
}

impl FrontProxy {
    /// Reads the cluster's own words. Without them nobody could be told from the proxy.
    pub(super) fn read(config: &ConfigMap) -> Result<Self, String> {
        let value = |key: &str| config.data.as_ref().and_then(|data| data.get(key));
        let authority = value("requestheader-client-ca-file")
            .filter(|pem| !pem.is_empty())
            .ok_or("the API server has no aggregation: requestheader-client-ca-file is not set")?;
        let names = match value("requestheader-allowed-names") {
            None => Vec::new(),
            Some(list) => serde_json::from_str(list).map_err(|e| format!("requestheader-allowed-names: {e}"))?,
        };
        Ok(Self { authority: authority.clone(), names })
    }

    /// Whether a certificate, which the authority has signed, may be the proxy's.
    pub(super) fn admits(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.names.is_empty() {
            return true;
        }
        let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return false };
        common_name(certificate.subject()).is_some_and(|name| self.names.contains(&name))
    }
}

/// The object identifier 2.5.4.3 with tag and length.
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
/// UTF8String and PrintableString.
const TEXTS: [u8; 2] = [0x0c, 0x13];

/// The common name in the DER of a subject, if there is exactly one short one.
fn common_name(subject: &[u8]) -> Option<String> {
    let mut found = subject.windows(COMMON_NAME.len()).enumerate().filter(|(_, window)| *window == COMMON_NAME);
    let (at, _) = found.next()?;
    if found.next().is_some() {
        return None;
    }
    let value = subject.get(at + COMMON_NAME.len()..)?;
    let (&[tag, length], rest) = value.split_first_chunk::<2>()?;
    // a longer form of length is longer than any name that is allowed
    if !TEXTS.contains(&tag) || length > 0x7f {
        return None;
    }
    String::from_utf8(rest.get(..usize::from(length))?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn certificate(name: &str) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn config(entries: &[(&str, &str)]) -> ConfigMap {
        let data: BTreeMap<String, String> = entries.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        ConfigMap { data: Some(data), ..ConfigMap::default() }
    }

    #[test]
    fn only_the_front_proxys_names_are_let_in() {
        let names = [("requestheader-client-ca-file", "pem"), ("requestheader-allowed-names", r#"["front-proxy"]"#)];
        let proxy = FrontProxy::read(&config(&names)).unwrap();
        assert!(proxy.admits(&certificate("front-proxy")));
        // the same authority may sign certificates of ordinary clients
        assert!(!proxy.admits(&certificate("alice")));
        assert!(!proxy.admits(&certificate("front-proxy-2")));
        assert!(!proxy.admits(&certificate("")));
    }

    #[test]
    fn a_cluster_without_aggregation_is_said() {
        assert!(FrontProxy::read(&config(&[])).unwrap_err().contains("aggregation"));
        let broken = [("requestheader-client-ca-file", "pem"), ("requestheader-allowed-names", "x")];
        assert!(FrontProxy::read(&config(&broken)).is_err());
    }
}
