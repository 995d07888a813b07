//! The way in: open, or closed with what is wrong.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use tower_service::Service as _;

use super::Failure;
use crate::{
    driver::repository::{
        RepositoryError,
        wire::{PROTOCOL, VERSION},
    },
    repository::bucket::Moment,
};

/// So long it is certain that a bucket is this repository's: less than another one waits before it serves it.
const CERTAIN: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Behind {
    router: Option<Router>,
    closed: Option<RepositoryError>,
    /// When it was certain last that all behind it still is this repository's, if that is to be asked.
    confirmed: Option<Moment>,
}

impl Behind {
    fn way(&self) -> Result<Router, RepositoryError> {
        match (&self.closed, &self.router) {
            // nobody may have run for long: this is no matter of who asks the bucket
            (None, Some(_)) if self.confirmed.is_some_and(|at| at.elapsed() > CERTAIN) => {
                Err(RepositoryError::Unreachable("it is not certain any more that its bucket still is its own".into()))
            }
            (None, Some(router)) => Ok(router.clone()),
            (Some(why), _) => Err(why.clone()),
            (None, None) => Err(RepositoryError::Unreachable("it is opening its store".into())),
        }
    }
}

/// The way in. Clones share it.
#[derive(Clone, Default)]
pub(in crate::repository) struct Gate(Arc<RwLock<Behind>>);

impl Gate {
    fn change(&self, change: impl FnOnce(&mut Behind)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Whoever comes is told this.
    pub(in crate::repository) fn close(&self, why: RepositoryError) {
        self.change(|behind| behind.closed = Some(why));
    }

    /// Whoever comes is let in again, for as long as what was confirmed then is certain.
    pub(in crate::repository) fn open(&self, confirmed: Moment) {
        self.change(|behind| (behind.closed, behind.confirmed) = (None, Some(confirmed)));
    }

    /// This is behind it from now on: for good, or if it is certain since then.
    pub(in crate::repository) fn serve(&self, router: Router, confirmed: Option<Moment>) {
        self.change(|behind| *behind = Behind { router: Some(router), closed: None, confirmed });
    }

    /// What serves it.
    pub(in crate::repository) fn router(&self) -> Router {
        Router::new().fallback(pass).with_state(self.clone())
    }
}

async fn pass(State(Gate(behind)): State<Gate>, request: Request) -> Response {
    let to = behind.read().unwrap_or_else(PoisonError::into_inner).way();
    match to {
        Ok(mut router) => match router.as_service::<Body>().call(request).await {
            Ok(reply) => reply,
            Err(never) => match never {},
        },
        Err(why) => {
            let mut reply = Failure(why).into_response();
            reply.headers_mut().insert(PROTOCOL, VERSION.into());
            reply
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;

    use super::*;

    #[tokio::test]
    async fn who_comes_too_early_is_told_what_is_waited_for() {
        let gate = Gate::default();
        let ask = async || {
            let mut router = gate.router();
            let reply = router.as_service().call(Request::get("/a").body(Body::empty()).unwrap()).await.unwrap();
            let status = reply.status().as_u16();
            let body = axum::body::to_bytes(reply.into_body(), 1 << 16).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap())
        };
        assert_eq!(ask().await.0, 503);
        gate.close(RepositoryError::Unreachable("its bucket: there is no such bucket".into()));
        let (status, text) = ask().await;
        assert!(status == 503 && text.contains("no such bucket"), "{text}");
        gate.serve(Router::new().route("/a", get(|| async { "here" })), None);
        assert_eq!(ask().await, (200, "here".into()));
        gate.close(RepositoryError::Unreachable("away".into()));
        assert_eq!(ask().await.0, 503);
        gate.open(Moment::now());
        assert_eq!(ask().await.0, 200);
        // whoever was to ask again has not run
        gate.open(Moment::now().before(CERTAIN + Duration::from_secs(1)));
        let (status, text) = ask().await;
        assert!(status == 503 && text.contains("not certain any more"), "{text}");
        gate.open(Moment::now().before(CERTAIN / 2));
        assert_eq!(ask().await.0, 200);
    }
}
