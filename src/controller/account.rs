//! The account of a namespace at a site: from the Secret a job names, or from the site's configuration.
//!
//! A job can spend only what its own namespace has been given.

use k8s_openapi::api::core::v1::Secret;

use crate::{
    config::{SiteConfig, certificate_user},
    driver::{
        cluster::{ClusterError, ClusterView},
        site::Credentials,
    },
};

/// The account that the site's configuration gives a namespace.
pub(super) fn configured(site: &SiteConfig, namespace: &str) -> Option<Credentials> {
    let user = site.users.get(namespace).or(site.default_account.as_ref().map(|account| &account.user))?;
    Some(Credentials::Header { user: user.clone() })
}

/// What a person is told where the operator may not read what a job or an image names.
pub(super) const MAY_NOT_READ: &str = "the operator may not read it: bind ClusterRole vmdeploy-credentials-reader to \
     its service account in this namespace (the chart's jobNamespaces does)";

/// A Secret that somebody has named, or what to change.
pub(super) async fn read(
    view: &dyn ClusterView,
    namespace: &str,
    secret: &str,
) -> Result<Result<Secret, String>, ClusterError> {
    match view.secret(namespace, secret).await {
        Ok(Some(found)) => Ok(Ok(found)),
        Ok(None) => Ok(Err(format!("there is no Secret {secret} in namespace {namespace}"))),
        Err(ClusterError::Forbidden(_)) => Ok(Err(format!("Secret {secret}: {MAY_NOT_READ}"))),
        Err(error) => Err(error),
    }
}

/// The account in a Secret, or what is wrong with it.
pub(super) fn from_secret(name: &str, secret: &Secret) -> Result<Credentials, String> {
    let read = |key: &str| {
        let bytes = &secret.data.as_ref()?.get(key)?.0;
        String::from_utf8(bytes.clone()).ok().map(|text| text.trim_end_matches('\n').to_owned())
    };
    match (read("username"), read("password"), read("tls.crt"), read("tls.key")) {
        (Some(username), Some(password), _, _) => Ok(Credentials::Basic { username, password }),
        (_, _, Some(certificate), Some(key)) => Ok(Credentials::Certificate { certificate, key }),
        _ => Err(format!("Secret {name} has neither username and password nor tls.crt and tls.key")),
    }
}

/// The account's user at the site, or what is missing.
pub(super) fn user(site: &SiteConfig, credentials: &Credentials) -> Result<String, String> {
    match credentials {
        Credentials::Header { user } => Ok(user.clone()),
        Credentials::Basic { username, .. } => Ok(username.clone()),
        Credentials::Certificate { .. } => certificate_user(site).map(str::to_owned),
    }
}

/// Numeric id of the account's user on the nodes, who owns the lease there; or what is missing.
pub(super) fn owner(site: &SiteConfig, credentials: &Credentials) -> Result<u32, String> {
    let user = user(site, credentials)?;
    site.uids
        .get(&user)
        .copied()
        .ok_or_else(|| format!("the site's configuration has no numeric id (uids) for user {user}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(keys: &[(&str, &str)]) -> Secret {
        let data = keys.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect();
        Secret { data: Some(data), ..Secret::default() }
    }

    #[test]
    fn secrets_give_an_account_or_say_what_they_lack() {
        let basic = from_secret("a", &secret(&[("username", "alice"), ("password", "x\n")]));
        assert_eq!(basic, Ok(Credentials::Basic { username: "alice".into(), password: "x".into() }));
        assert!(matches!(
            from_secret("a", &secret(&[("tls.crt", "c"), ("tls.key", "k")])),
            Ok(Credentials::Certificate { .. })
        ));
        let text = from_secret("oar-alice", &secret(&[("username", "alice")])).unwrap_err();
        assert!(text.contains("oar-alice") && text.contains("password"), "{text}");
    }

    #[test]
    fn a_namespace_gets_its_own_user_only() {
        let text = "kind: oar2\nurl: http://x\nuids: {alice: 1000}\nusers: {team: alice}\n";
        let site: SiteConfig = crate::yaml::read(text).unwrap();
        assert_eq!(configured(&site, "team"), Some(Credentials::Header { user: "alice".into() }));
        assert_eq!(configured(&site, "other"), None);
        assert_eq!(owner(&site, &Credentials::Header { user: "alice".into() }), Ok(1000));
        assert!(owner(&site, &Credentials::Header { user: "bob".into() }).unwrap_err().contains("bob"));
    }
}
