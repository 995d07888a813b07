//! A file in an OCI artifact: the manifest, and then the layer that is the file.
//!
//! The distribution API is spoken here and not by a library, because registries are strangers too: every answer is
//! bounded, a password goes to no address that is not encrypted unless the spec says so, and layers come as all files
//! do ([`super::download`]).

mod challenge;
mod manifest;
mod reference;

use std::{collections::BTreeMap, path::Path};

use futures::FutureExt as _;
use reqwest::{
    Client, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

pub(in crate::image) use self::reference::Reference;
use self::{challenge::Challenge, manifest::Manifest};
use super::{
    download::{Download, Fetched, OnRefusal, PAUSES},
    too_large, unanswered, web,
};
use crate::{
    driver::exchange,
    image::{FileOrder, ImportOrder, OciPlace, Place, Trouble, TroubleKind, login::Login},
};

/// Largest manifest; registries take no larger ones.
const LARGEST_MANIFEST: usize = 4 << 20;
/// Largest answer of a server of tokens.
const LARGEST_TOKEN: usize = 1 << 20;
/// What TLS says of an answer that is not encrypted.
const UNENCRYPTED: &str = "InvalidContentType";

/// Finds out which manifests the references of an order name now, and writes that into it, so that all that follows is
/// of these; those that a tag stands for, by their references.
pub(in crate::image) async fn pin(order: &mut ImportOrder) -> Result<BTreeMap<String, String>, Trouble> {
    let mut pinned: BTreeMap<String, String> = BTreeMap::new();
    for file in order.files_mut() {
        let Place::Oci(mut place) = file.place.clone() else { continue };
        // files of one artifact: at a second look its tag may stand for another one
        if place.manifest.is_none() {
            place.manifest = pinned.get(&place.reference).cloned();
        }
        if let Some(digest) = tagged(file, &place).await? {
            pinned.insert(place.reference.clone(), digest.clone());
            place.manifest = Some(digest);
            file.place = Place::Oci(place);
        }
    }
    Ok(pinned)
}

/// The manifest that a tag stands for; none where the reference says it.
async fn tagged(order: &FileOrder, place: &OciPlace) -> Result<Option<String>, Trouble> {
    let registry = Registry::new(order, place)?;
    Ok(match (&registry.reference.digest, &place.manifest) {
        (Some(_), _) => None,
        (None, Some(known)) => Some(known.clone()),
        (None, None) => Some(registry.open().await?.digest),
    })
}

/// Fetches the file to `to`.
pub(super) async fn fetch(order: &FileOrder, place: &OciPlace, to: &Path) -> Result<Fetched, Trouble> {
    let registry = Registry::new(order, place)?;
    let opened = registry.open().await?;
    let layer = opened.manifest.layer(place.file.as_deref());
    let layer = layer.map_err(|why| registry.refused(TroubleKind::Unusable, &why))?;
    if order.digest.as_ref().is_some_and(|digest| *digest != layer.digest) {
        let why = format!("its file has the digest {}: correct the digest of {}", layer.digest, order.field);
        return Err(registry.refused(TroubleKind::Digest, &why));
    }
    if layer.size > order.limit {
        return Err(too_large(&order.field, order.limit));
    }
    let url = registry.url(&format!("blobs/{}", layer.digest))?;
    // a registry's token lasts for minutes
    let renew = || async { Ok(registry.open().await?.authorization) }.boxed();
    let request = registry.request(&url, opened.authorization, layer.size);
    let fetched = Download { renew: Some(&renew), ..request }.run(to).await?;
    if fetched.0.digest != layer.digest {
        let why = format!("its layer {} comes with the digest {}", layer.digest, fetched.0.digest);
        return Err(Trouble { again: true, ..registry.refused(TroubleKind::Digest, &why) });
    }
    Ok(fetched)
}

/// The repository that an order names, at its registry.
struct Registry<'a> {
    client: Client,
    order: &'a FileOrder,
    place: &'a OciPlace,
    reference: Reference,
    base: Url,
    on_refusal: Box<OnRefusal<'a>>,
}

/// What a repository has under a name, and with what it is read.
struct Opened {
    manifest: Manifest,
    digest: String,
    authorization: Option<HeaderValue>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(alias = "access_token")]
    token: String,
}

impl<'a> Registry<'a> {
    fn new(order: &'a FileOrder, place: &'a OciPlace) -> Result<Self, Trouble> {
        let wrong = |why: String| {
            let message = format!("{:?}: {why}: correct the reference of {}", place.reference, order.field);
            Trouble::refused(TroubleKind::Fetch, message)
        };
        let reference = Reference::read(&place.reference).map_err(wrong)?;
        let scheme = if place.plain_http { "http" } else { "https" };
        let base = format!("{scheme}://{}/v2/{}/", reference.server(), reference.repository);
        let base = Url::parse(&base).map_err(|error| wrong(error.to_string()))?;
        let on_refusal = Box::new(|_: &Url, status| answered(order, place, status));
        Ok(Self { client: web::client(order.trusted.as_deref())?, order, place, reference, base, on_refusal })
    }

    fn url(&self, path: &str) -> Result<Url, Trouble> {
        self.base.join(path).map_err(|error| self.refused(TroubleKind::Fetch, &error.to_string()))
    }

    fn request<'b>(&'b self, url: &'b Url, authorization: Option<HeaderValue>, limit: u64) -> Download<'b> {
        Download {
            client: &self.client,
            url,
            authorization,
            renew: None,
            refused: &*self.on_refusal,
            field: &self.order.field,
            limit,
            pauses: PAUSES,
        }
    }

    fn refused(&self, kind: TroubleKind, why: &str) -> Trouble {
        Trouble::refused(kind, format!("{} ({}): {why}", self.place.reference, self.order.field))
    }

    fn passing(&self, why: &str) -> Trouble {
        Trouble::passing(TroubleKind::Fetch, format!("{} ({}): {why}", self.place.reference, self.order.field))
    }

    /// Says what to change if that is what the registry has answered.
    fn unencrypted(&self, trouble: Trouble) -> Trouble {
        if !trouble.message.ends_with(UNENCRYPTED) {
            return trouble;
        }
        let field = &self.order.field;
        self.passing(&format!("the registry answers unencrypted: correct the reference, or set plainHttp of {field}"))
    }

    /// Reads the manifest. A login is sent only if the registry wants one.
    async fn open(&self) -> Result<Opened, Trouble> {
        let wanted = self.place.manifest.as_ref().or(self.reference.digest.as_ref());
        let url = self.url(&format!("manifests/{}", wanted.unwrap_or(&self.reference.tag)))?;
        let limit = LARGEST_MANIFEST as u64;
        let mut authorization = None;
        let reply = self.request(&url, None, limit).send(&accepted()).await;
        let mut reply = reply.map_err(|trouble| self.unencrypted(trouble))?;
        // whom it leads to is given nothing
        if reply.status() == StatusCode::UNAUTHORIZED && reply.url().origin() == url.origin() {
            authorization = self.authorization(reply.headers()).await?;
            reply = self.request(&url, authorization.clone(), limit).send(&accepted()).await?;
        }
        if !reply.status().is_success() {
            return Err((self.on_refusal)(&url, reply.status()));
        }
        let body = exchange::body(reply, LARGEST_MANIFEST).await.map_err(|why| self.passing(&why))?;
        let digest = format!("sha256:{:x}", Sha256::digest(&body));
        if wanted.is_some_and(|wanted| *wanted != digest) {
            let why = format!("the registry sends a manifest with the digest {digest}, which is another one");
            return Err(self.refused(TroubleKind::Digest, &why));
        }
        let manifest = Manifest::read(&body).map_err(|why| self.refused(TroubleKind::Unusable, &why))?;
        Ok(Opened { manifest, digest, authorization })
    }

    /// What the registry's challenge asks for.
    async fn authorization(&self, headers: &HeaderMap) -> Result<Option<HeaderValue>, Trouble> {
        let login = self.order.login.as_ref().map(web::login).transpose()?;
        let values = headers.get_all(WWW_AUTHENTICATE).into_iter().filter_map(|value| value.to_str().ok());
        match (challenge::read(values), login) {
            // a token is what a challenge leads to
            (_, Some(login @ Login::Bearer(_))) | (Some(Challenge::Basic) | None, Some(login)) => Ok(login.header()),
            (Some(Challenge::Bearer { realm, service }), login) => {
                self.token(&realm, service.as_deref(), login.as_ref().and_then(Login::header)).await.map(Some)
            }
            (Some(Challenge::Basic) | None, None) => Ok(None),
        }
    }

    /// Exchanges a login, or none, for a token that allows to read the repository.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        login: Option<HeaderValue>,
    ) -> Result<HeaderValue, Trouble> {
        let safe = |url: &Url| url.scheme() == "https" || self.place.plain_http && url.scheme() == "http";
        let Some(mut url) = Url::parse(realm).ok().filter(safe) else {
            let why = format!("the registry has its tokens asked for at {realm:?}, which is no https address");
            return Err(self.refused(TroubleKind::LoginRefused, &why));
        };
        let scope = format!("repository:{}:pull", self.reference.repository);
        url.query_pairs_mut().extend_pairs(service.map(|service| ("service", service))).append_pair("scope", &scope);
        let mut request = self.client.get(url);
        if let Some(login) = login {
            request = request.header(AUTHORIZATION, login);
        }
        // not along redirects, which would take the login elsewhere
        let reply = request.send().await.map_err(|error| self.passing(&unanswered(&error)))?;
        if !reply.status().is_success() {
            return Err((self.on_refusal)(&self.base, reply.status()));
        }
        let body = exchange::body(reply, LARGEST_TOKEN).await.map_err(|why| self.passing(&why))?;
        let token: Option<Token> = serde_json::from_slice(&body).ok();
        let header = token.and_then(|token| Login::Bearer(token.token).header());
        header.ok_or_else(|| self.passing("the registry's server of tokens sends none"))
    }
}

/// The kinds of manifest that can be told apart.
fn accepted() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(manifest::KINDS))])
}

/// What an answer other than success means.
fn answered(order: &FileOrder, place: &OciPlace, status: StatusCode) -> Trouble {
    let (reference, field) = (&place.reference, &order.field);
    match (status.as_u16(), &order.login) {
        // a Secret may be corrected without the spec
        (401 | 403, Some(login)) => Trouble::passing(
            TroubleKind::LoginRefused,
            format!(
                "{reference}: the registry answers {status}: correct Secret {}, which {field}.credentials names",
                login.secret
            ),
        ),
        (401 | 403, None) => Trouble::refused(
            TroubleKind::LoginMissing,
            format!(
                "{reference}: the registry answers {status}: correct the reference, or name a Secret with username and \
                 password, token, or .dockerconfigjson in {field}.credentials"
            ),
        ),
        (code, _) => {
            // so do some that want to be spoken to encrypted
            let or = if code == 400 && place.plain_http { ", or leave out its plainHttp" } else { "" };
            let message = format!("{reference}: the registry answers {status}: correct the reference of {field}{or}");
            let again = status.is_server_error() || matches!(code, 408 | 429);
            Trouble { again, ..Trouble::refused(TroubleKind::Fetch, message) }
        }
    }
}

#[cfg(test)]
mod tests;
