//! With what an importer names itself to a web server. It is read from a Secret, lies in a file that only the
//! importer's pod has, and is in no order, log, status or event.

mod registry;

use std::{collections::BTreeMap, fmt, path::Path};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::header::HeaderValue;
use serde::{Deserialize, Serialize};

/// A login.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Login {
    /// A user with a password.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// What allows whoever has it.
    Bearer(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

impl Login {
    /// The login in a Secret's data, or what is wrong with it; for the OCI artifact `artifact`, if it is for one.
    pub fn from_data(data: &BTreeMap<String, Vec<u8>>, artifact: Option<&str>) -> Result<Self, String> {
        let text = |key: &str| -> Option<Result<String, String>> {
            let text = String::from_utf8(data.get(key)?.clone()).map(|text| text.trim_end_matches('\n').to_owned());
            let plain = |text: &String| !text.is_empty() && !text.contains(char::is_control);
            Some(text.ok().filter(plain).ok_or_else(|| format!("its {key} is not one line of text")))
        };
        let login = match (text("username"), text("password"), text("token"), data.get(registry::KEY)) {
            (Some(username), Some(password), None, None) => Self::Basic { username: username?, password: password? },
            (None, None, Some(token), None) => Self::Bearer(token?),
            (None, None, None, Some(file)) => match artifact {
                Some(artifact) => registry::login(file, artifact)?,
                None => {
                    let key = registry::KEY;
                    return Err(format!("its {key} is for registries: give username and password, or token"));
                }
            },
            _ => {
                let registry = if artifact.is_some() { format!(", or {}", registry::KEY) } else { String::new() };
                return Err(format!("it takes either username and password, or token{registry}"));
            }
        };
        match &login {
            Self::Basic { username, .. } if username.contains(':') => Err("its username must not hold a colon".into()),
            Self::Bearer(token) if !token.bytes().all(|b| b.is_ascii_graphic()) => {
                Err("its token has characters that no token has".into())
            }
            _ => Ok(login),
        }
    }

    /// Reads the file that [`Login::to_file`] has written.
    pub(super) fn read(path: &Path) -> std::io::Result<Self> {
        // the reason would quote the text
        serde_json::from_slice(&std::fs::read(path)?).map_err(|_| std::io::Error::other("it is no login"))
    }

    /// As it is given to an importer.
    pub fn to_file(&self) -> String {
        // plain data: writing it as text does not fail
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The value of the header `Authorization`; none of a text that no header can have.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let text = match self {
            Self::Basic { username, password } => {
                format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")))
            }
            Self::Bearer(token) => format!("Bearer {token}"),
        };
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn data(keys: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        keys.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect()
    }

    #[test]
    fn a_login_is_read_and_shown_to_nobody() {
        let basic = Login::from_data(&data(&[("username", "alice"), ("password", "s3cret:é\n")]), None).unwrap();
        let bearer = Login::from_data(&data(&[("token", "s3cret")]), None).unwrap();
        assert_eq!(bearer.header().unwrap(), "Bearer s3cret");
        for login in [basic, bearer] {
            let header = login.header().unwrap();
            assert!(header.is_sensitive());
            assert!(!format!("{login:?}{header:?}").contains("s3cret"));
            assert_eq!(serde_json::from_str::<Login>(&login.to_file()).unwrap(), login);
        }
    }

    #[rstest]
    #[case::nothing(&[("key", "x")], "either username and password, or token")]
    #[case::half(&[("username", "x")], "either username and password, or token")]
    #[case::both(&[("username", "x"), ("password", "x"), ("token", "x")], "either username and password, or token")]
    #[case::empty(&[("token", "\n")], "one line")]
    #[case::lines(&[("username", "x"), ("password", "s3cret\nX-Header: y")], "one line")]
    #[case::colon(&[("username", "x:y"), ("password", "x")], "colon")]
    #[case::spaces(&[("token", "s3cret s3cret")], "characters")]
    #[case::of_a_registry(&[(".dockerconfigjson", "{}")], "is for registries")]
    fn what_is_no_login_is_refused_without_being_told(#[case] keys: &[(&str, &str)], #[case] words: &str) {
        let why = Login::from_data(&data(keys), None).unwrap_err();
        assert!(why.contains(words) && !why.contains("s3cret"), "{why}");
    }

    #[test]
    fn a_registry_takes_what_docker_login_writes() {
        let file = |entry: &str| format!(r#"{{"auths": {{"registry.example.org": {entry}}}}}"#);
        let ask = |keys: &[(&str, &str)]| Login::from_data(&data(keys), Some("registry.example.org/disks:12"));
        let wanted = Login::Basic { username: "me".into(), password: "s3cret".into() };
        assert_eq!(ask(&[(".dockerconfigjson", &file(r#"{"auth": "bWU6czNjcmV0"}"#))]), Ok(wanted));
        let refused = |keys: &[(&str, &str)]| ask(keys).unwrap_err();
        let colon = file(r#"{"username": "a:b", "password": "s3cret"}"#);
        assert!(refused(&[(".dockerconfigjson", &colon)]).contains("must not hold a colon"));
        let spaces = file(r#"{"registrytoken": "s3cret\n"}"#);
        assert!(refused(&[(".dockerconfigjson", &spaces)]).contains("characters that no token has"));
        for keys in [&[(".dockerconfigjson", "{}"), ("token", "x")][..], &[]] {
            assert!(refused(keys).contains("or token, or .dockerconfigjson"));
        }
    }
}
