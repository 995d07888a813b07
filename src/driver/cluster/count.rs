//! Counts the requests a client makes, by verb, so that "a reconcile with nothing to do asks
//! nothing" can be measured.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use hyper::{Method, Request};
use tower_layer::Layer;
use tower_service::Service;

/// Counters shared by all clones.
#[derive(Clone, Debug, Default)]
pub struct RequestCounts(Arc<Mutex<BTreeMap<String, u64>>>);

impl RequestCounts {
    /// Requests so far, by verb as Kubernetes names them (`get`, `list`, `watch`, `create`, `patch`,
    /// `update`, `delete`).
    pub fn by_verb(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All requests so far but for watches.
    pub fn without_watches(&self) -> u64 {
        self.by_verb().iter().filter(|(verb, _)| *verb != "watch").map(|(_, count)| count).sum()
    }

    fn add(&self, verb: &str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(verb.into()).or_default() += 1;
    }
}

impl<S> Layer<S> for RequestCounts {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, counts: self.clone() }
    }
}

/// A service whose requests are counted.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    counts: RequestCounts,
}

impl<S, B> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.counts.add(verb(request.method(), request.uri().path(), request.uri().query().unwrap_or_default()));
        self.inner.call(request)
    }
}

/// The verb of a request: a list and a watch differ from a get by path and query only.
fn verb(method: &Method, path: &str, query: &str) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ if query.split('&').any(|part| part == "watch=true") => "watch",
        _ if names_one_object(path) => "get",
        _ => "list",
    }
}

/// Whether a path names an object: `/api/v1/...` or `/apis/group/version/...`, then
/// `[namespaces/x/]resource/name`.
fn names_one_object(path: &str) -> bool {
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let root = if parts.first() == Some(&"apis") { 3 } else { 2 };
    parts.drain(..root.min(parts.len()));
    if parts.len() > 2 && parts[0] == "namespaces" {
        parts.drain(..2);
    }
    parts.len() >= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_told_apart() {
        let jobs = "/apis/vmdeploy.io/v1alpha1/namespaces/x/besteffortjobs";
        let all = [
            (Method::GET, jobs.to_owned(), "", "list"),
            (Method::GET, jobs.to_owned(), "watch=true&allowWatchBookmarks=true", "watch"),
            (Method::GET, format!("{jobs}/pi"), "", "get"),
            (Method::PATCH, format!("{jobs}/pi/status"), "", "patch"),
            (Method::POST, jobs.to_owned(), "", "create"),
            (Method::DELETE, format!("{jobs}/pi"), "", "delete"),
            (Method::GET, "/api/v1/pods".into(), "", "list"),
            (Method::GET, "/api/v1/namespaces".into(), "", "list"),
            (Method::GET, "/api/v1/namespaces/x".into(), "", "get"),
        ];
        for (method, path, query, expected) in all {
            assert_eq!(verb(&method, &path, query), expected, "{method} {path}?{query}");
        }
    }

    #[tokio::test]
    async fn each_request_counts_once() {
        struct Nothing;
        impl Service<Request<()>> for Nothing {
            type Response = ();
            type Error = std::convert::Infallible;
            type Future = std::future::Ready<Result<(), Self::Error>>;
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
                Poll::Ready(Ok(()))
            }
            fn call(&mut self, _: Request<()>) -> Self::Future {
                std::future::ready(Ok(()))
            }
        }
        let counts = RequestCounts::default();
        let mut service = counts.layer(Nothing);
        for uri in ["/api/v1/pods?watch=true", "/api/v1/pods", "/api/v1/pods"] {
            service.call(Request::builder().uri(uri).body(()).unwrap()).await.unwrap();
        }
        assert_eq!(counts.by_verb(), BTreeMap::from([("list".into(), 2), ("watch".into(), 1)]));
        assert_eq!(counts.without_watches(), 2);
    }
}
