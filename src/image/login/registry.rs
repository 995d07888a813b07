//! The login at one registry, out of the file that `docker login` writes and that Secrets of the type
//! `kubernetes.io/dockerconfigjson` hold. Pure. No message quotes what is in it but names of registries.
//!
//! Names match as they do for a kubelet's `imagePullSecrets`: with or without `https://`, the parts of a host by `*`,
//! and with a path only for what lies below it; of several the most specific one counts.

use std::collections::BTreeMap;

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;

use super::Login;
use crate::image::fetch::oci::Reference;

/// The key of a Secret that holds such a file.
pub(super) const KEY: &str = ".dockerconfigjson";
/// Most registries that a message names.
const SHOWN: usize = 5;
/// What writes it has not always padded it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// All are one registry, and the second is what `docker login` and `kubectl` write for it.
const DOCKER: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "lowercase")]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// The login for the registry of this reference, or what is wrong.
pub(super) fn login(file: &[u8], reference: &str) -> Result<Login, String> {
    let reference = Reference::read(reference)?;
    // the reason would quote the text
    let read = serde_json::from_slice::<File>(file);
    let file =
        read.map_err(|at| format!("its {KEY} cannot be read as what docker login writes (line {})", at.line()))?;
    let names = file.auths.iter().map(|(name, entry)| (Name::read(name), entry));
    let found = names.filter(|(name, _)| name.means(&reference)).max_by_key(|(name, _)| name.weight());
    let registry = &reference.registry;
    let Some((_, entry)) = found else {
        let known: Vec<&str> =
            file.auths.keys().filter(|name| is_plain(name)).take(SHOWN).map(String::as_str).collect();
        let known = if known.is_empty() { String::new() } else { format!(", only for {}", known.join(", ")) };
        return Err(format!(
            "its {KEY} has no login for the registry {registry}{known}: make it with kubectl create secret \
             docker-registry --docker-server={registry}"
        ));
    };
    entry.login().map_err(|why| format!("the entry for the registry {registry} of its {KEY} {why}"))
}

impl Entry {
    fn login(&self) -> Result<Login, String> {
        if !self.registrytoken.is_empty() {
            return Ok(Login::Bearer(self.registrytoken.clone()));
        }
        let (username, password) = match self.auth.as_str() {
            "" => (self.username.clone(), self.password.clone()),
            auth => {
                let text = BASE64.decode(auth.trim()).ok().and_then(|text| String::from_utf8(text).ok());
                let pair = text.as_deref().and_then(|text| text.split_once(':'));
                let (username, password) = pair.ok_or("has an auth that is not user:password in base64")?;
                // as docker pads it
                (username.to_owned(), password.trim_matches('\0').to_owned())
            }
        };
        match (username.is_empty() || password.is_empty(), self.identitytoken.is_empty()) {
            (false, _) => Ok(Login::Basic { username, password }),
            (true, false) => Err("has only an identitytoken: give username and password, or auth".into()),
            (true, true) => Err("has neither auth nor username and password".into()),
        }
    }
}

/// For what a login is meant.
struct Name<'a> {
    host: &'a str,
    port: Option<&'a str>,
    path: &'a str,
}

impl<'a> Name<'a> {
    fn read(text: &'a str) -> Self {
        let text = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let (server, path) = text.split_once('/').unwrap_or((text, ""));
        // the version of a protocol, which docker writes
        let below = path.strip_prefix("v1").or_else(|| path.strip_prefix("v2")).filter(|rest| is_end(rest));
        let (host, port) = split_port(server);
        Self { host, port, path: below.unwrap_or(path).trim_matches('/') }
    }

    fn means(&self, reference: &Reference) -> bool {
        let (host, port) = split_port(&reference.registry);
        let same = if DOCKER.contains(&self.host) { DOCKER.contains(&host) } else { matches(self.host, host) };
        let below = || self.path.is_empty() || reference.repository.strip_prefix(self.path).is_some_and(is_end);
        same && self.port == port && below()
    }

    fn weight(&self) -> (usize, bool, usize) {
        (self.path.len(), !self.host.contains('*'), self.host.len())
    }
}

fn split_port(server: &str) -> (&str, Option<&str>) {
    server.split_once(':').map_or((server, None), |(host, port)| (host, Some(port)))
}

/// Whether a path ends there.
fn is_end(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('/')
}

/// Whether a host's parts are those of a pattern, in each of which one `*` stands for anything.
fn matches(pattern: &str, host: &str) -> bool {
    let part = |(pattern, part): (&str, &str)| match pattern.split_once('*') {
        None => pattern.eq_ignore_ascii_case(part),
        Some((head, tail)) => part.len() >= head.len() + tail.len() && part.starts_with(head) && part.ends_with(tail),
    };
    pattern.split('.').count() == host.split('.').count() && pattern.split('.').zip(host.split('.')).all(part)
}

/// Whether a name can be shown: nobody's password is in it.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b".:/*_-".contains(&b)) && name.matches(':').count() <= 2
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    const IMAGE: &str = "registry.example.org:5000/team/disks:12";

    fn ask(auths: Value, reference: &str) -> Result<Login, String> {
        login(json!({ "auths": auths }).to_string().as_bytes(), reference)
    }

    fn named(password: &str) -> Value {
        json!({"username": "me", "password": password})
    }

    #[rstest]
    #[case::as_kubectl_writes_it(json!({"username": "me", "password": "s3cret", "email": "a@b", "auth": "bWU6czNjcmV0"}))]
    #[case::as_docker_writes_it(json!({"auth": "bWU6czNjcmV0"}))]
    #[case::padded(json!({"auth": "bWU6czNjcmV0AAA=\n"}))]
    #[case::not_padded(json!({"auth": "bWU6czNjcmV0AAA"}))]
    #[case::by_hand(named("s3cret"))]
    fn a_login_is_read(#[case] entry: Value) {
        let wanted = Login::Basic { username: "me".into(), password: "s3cret".into() };
        assert_eq!(ask(json!({"registry.example.org:5000": entry}), IMAGE), Ok(wanted));
    }

    #[rstest]
    #[case::host("registry.example.org/team/disks:12", &["other.example.org", "registry.example.org:5000", "registry.example.org"])]
    #[case::port(IMAGE, &["registry.example.org", "registry.example.org:5000"])]
    #[case::address(IMAGE, &["https://registry.example.org:5000/v2/"])]
    #[case::pattern(IMAGE, &["*.org:5000", "*.example.com:5000", "reg*.example.org:5000"])]
    #[case::no_pattern_before_the_name(IMAGE, &["*.example.org:5000", "registry.example.org:5000"])]
    #[case::below_a_path(IMAGE, &["registry.example.org:5000", "registry.example.org:5000/te", "registry.example.org:5000/team"])]
    #[case::docker("docker.io/team/disks:12", &["docker.example.org", "https://index.docker.io/v1/"])]
    fn the_most_specific_name_counts(#[case] reference: &str, #[case] names: &[&str]) {
        let (last, others) = names.split_last().unwrap();
        let mut auths: serde_json::Map<String, Value> = others.iter().map(|n| ((*n).into(), named("no"))).collect();
        auths.insert((*last).into(), named("yes"));
        let wanted = Login::Basic { username: "me".into(), password: "yes".into() };
        assert_eq!(ask(auths.into(), reference), Ok(wanted));
    }

    #[rstest]
    #[case::another(json!({"a.example.org": named("s3cret"), "me:s3cret@b": named("s3cret")}),
        "no login for the registry registry.example.org:5000, only for a.example.org: make")]
    #[case::none(json!({}), "no login for the registry registry.example.org:5000: make it with kubectl")]
    #[case::another_shape(json!({"registry.example.org:5000": "s3cret"}), "cannot be read")]
    #[case::no_base64(json!({"registry.example.org:5000": {"auth": "me:s3cret"}}), "not user:password in base64")]
    #[case::no_pair(json!({"registry.example.org:5000": {"auth": "czNjcmV0"}}), "not user:password in base64")]
    #[case::empty(json!({"registry.example.org:5000": {}}), "neither auth nor username")]
    #[case::half(json!({"registry.example.org:5000": {"username": "s3cret"}}), "neither auth nor username")]
    #[case::identity(json!({"registry.example.org:5000": {"identitytoken": "s3cret"}}), "only an identitytoken")]
    fn what_is_wrong_is_said_without_the_secret(#[case] auths: Value, #[case] words: &str) {
        let why = ask(auths, IMAGE).unwrap_err();
        assert!(why.contains(words) && !why.contains("s3cret"), "{why}");
        assert!(login(b"{\"auths\": s3cret", IMAGE).unwrap_err().contains("(line 1)"));
    }
}
