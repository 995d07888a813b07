//! A file of a web server, as the spec names it.

use std::{path::Path, time::Duration};

use reqwest::{Certificate, Client, StatusCode, Url};

use super::{
    download::{Download, Fetched, PAUSES},
    root_cause,
};
use crate::image::{FileOrder, LoginOrder, Trouble, TroubleKind, login::Login};

/// A server that sends nothing for this long is given up.
const SILENCE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(15);

/// A client that does nothing by itself: where a request goes, and with what, is decided here. It trusts whom the
/// container image trusts, and those whose certificates are in the file `trusted`.
pub(super) fn client(trusted: Option<&Path>) -> Result<Client, Trouble> {
    Client::builder()
        .tls_certs_merge(trusted.map(certificates).transpose()?.unwrap_or_default())
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .build()
        .map_err(|error| Trouble::passing(TroubleKind::Importer, root_cause(&error)))
}

/// Reads the certificates in a file.
fn certificates(file: &Path) -> Result<Vec<Certificate>, Trouble> {
    let failed = |why: String| {
        let message = format!("failed to read the certificates of importers.ca in {}: {why}", file.display());
        Trouble::passing(TroubleKind::Importer, message)
    };
    let pem = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    Certificate::from_pem_bundle(&pem).map_err(|error| failed(root_cause(&error)))
}

/// Fetches the file at `url` to `to`.
pub(super) async fn fetch(order: &FileOrder, url: &str, to: &Path) -> Result<Fetched, Trouble> {
    let field = &order.field;
    let address = Url::parse(url).map_err(|error| {
        Trouble::refused(TroubleKind::Fetch, format!("{url:?} is no address ({error}): correct the url of {field}"))
    })?;
    let login = order.login.as_ref();
    let download = Download {
        client: &client(order.trusted.as_deref())?,
        authorization: login.map(self::login).transpose()?.and_then(|login| login.header()),
        renew: None,
        refused: &|found, status| refused(field, login, &address, found, status),
        url: &address,
        field,
        limit: order.limit,
        pauses: PAUSES,
    };
    download.run(to).await
}

/// Reads a login.
pub(super) fn login(order: &LoginOrder) -> Result<Login, Trouble> {
    Login::read(&order.file).map_err(|error| {
        let message = format!("failed to read the login of Secret {}: {error}", order.secret);
        Trouble::passing(TroubleKind::LoginMissing, message)
    })
}

/// What an answer other than success means.
fn refused(field: &str, login: Option<&LoginOrder>, asked: &Url, found: &Url, status: StatusCode) -> Trouble {
    let elsewhere = found.origin() != asked.origin();
    let who = match found.host_str().filter(|_| elsewhere) {
        Some(host) => format!("{asked} leads to {host}, which"),
        None => asked.to_string(),
    };
    let denied = matches!(status.as_u16(), 401 | 403);
    match login {
        // a Secret may be corrected without the spec
        Some(login) if denied && !elsewhere => Trouble::passing(
            TroubleKind::LoginRefused,
            format!("{who} answers {status}: correct Secret {}, which {field}.credentials names", login.secret),
        ),
        Some(_) if denied => Trouble::refused(
            TroubleKind::LoginRefused,
            format!(
                "{who} answers {status}; a login is not sent on to another server: name that address in {field}.url"
            ),
        ),
        None if denied && !elsewhere => Trouble::refused(
            TroubleKind::LoginMissing,
            format!(
                "{who} answers {status}: name a Secret with username and password, or token, in {field}.credentials, or \
                 correct the url of {field}"
            ),
        ),
        _ => {
            // a server in trouble may recover, a wrong address will not
            let again = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
            let message = format!("{who} answers {status}: correct the url of {field}");
            Trouble { again, ..Trouble::refused(TroubleKind::Fetch, message) }
        }
    }
}

#[cfg(test)]
#[path = "web_tests.rs"]
mod tests;
