//! Who asks: by the header from an address that is trusted, or by name and password.

use std::net::IpAddr;

use axum::http::{HeaderMap, header};
use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::{Settings, reply::Refusal};

/// The user a request speaks for.
pub(crate) fn user(settings: &Settings, from: IpAddr, headers: &HeaderMap) -> Result<String, Refusal> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    // what its name begins with is told at `/auth_headers_prefix`
    let named = text(&format!("{}User", settings.prefix));
    if let Some(user) = named.filter(|_| settings.trusted.iter().any(|network| network.contains(&from))) {
        return Ok(user.into());
    }
    match (text(header::AUTHORIZATION.as_str()), named) {
        (Some(basic), _) => {
            let pair = basic.strip_prefix("Basic ").and_then(|pair| BASE64_STANDARD.decode(pair).ok());
            let pair = pair.and_then(|pair| String::from_utf8(pair).ok());
            let known = |(user, password): (&str, &str)| {
                settings.passwords.get(user).is_some_and(|known| known == password).then(|| user.to_owned())
            };
            let user = pair.as_deref().and_then(|pair| pair.split_once(':')).and_then(known);
            user.ok_or_else(|| Refusal::Nobody("Invalid authentication credentials".into()))
        }
        (None, Some(_)) => Err(Refusal::Nobody("valid methods are acl, cert, http_basic".into())),
        (None, None) => Err(Refusal::Nobody(format!(
            "no user specified in the {}User HTTP header or using the HTTP Basic Authentication method",
            settings.prefix
        ))),
    }
}
