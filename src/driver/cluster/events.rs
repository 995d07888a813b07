//! Events about objects, for people.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::time::Instant;

use super::{ClusterError, EventRecord, kube::refused};

/// For so long after it was last said the same is one more of a series, as with the recorders of kube.
const ONE_SERIES: Duration = Duration::from_secs(360);

/// Records the events of one reporter. Only what is said again word for word is counted as a series: a recorder of kube
/// counts whatever has one reason and one action, and shows the first of its sentences for all.
#[derive(Clone)]
pub struct Events {
    client: Client,
    reporter: Reporter,
    /// A recorder for each sentence, and when it was last said.
    sentences: Arc<Mutex<HashMap<String, (Instant, Recorder)>>>,
}

impl Events {
    /// Records as `controller`, through `client`.
    pub fn new(client: Client, controller: &str, instance: Option<String>) -> Self {
        Self { client, reporter: Reporter { controller: controller.into(), instance }, sentences: Arc::default() }
    }

    /// Records an event.
    pub async fn record(&self, event: &EventRecord) -> Result<(), ClusterError> {
        let record = Event {
            type_: if event.warning { EventType::Warning } else { EventType::Normal },
            reason: event.reason.name(),
            note: Some(event.message.clone()),
            action: event.action.clone(),
            secondary: None,
        };
        self.recorder(&event.message).publish(&record, &event.about).await.map_err(|e| refused(&e))
    }

    fn recorder(&self, sentence: &str) -> Recorder {
        let mut sentences = self.sentences.lock().unwrap_or_else(PoisonError::into_inner);
        sentences.retain(|_, (said, _)| said.elapsed() < ONE_SERIES);
        let new = || Recorder::new(self.client.clone(), self.reporter.clone());
        let (said, recorder) = sentences.entry(sentence.into()).or_insert_with(|| (Instant::now(), new()));
        *said = Instant::now();
        recorder.clone()
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::Method};
    use k8s_openapi::api::core::v1::ObjectReference;
    use serde_json::Value;

    use super::*;
    use crate::api::Reason;

    /// An API server that keeps what it is sent.
    fn server(sent: &Arc<Mutex<Vec<(Method, Value)>>>) -> Client {
        let sent = sent.clone();
        let keep = move |method: Method, body: String| {
            sent.lock().unwrap().push((method, serde_json::from_str(&body).unwrap()));
            // patches answer with the whole object; what is in it does not matter
            let object = r#"{"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "pi.1"}}"#;
            async move { ([("content-type", "application/json")], object) }
        };
        Client::new(Router::new().fallback(keep), "team-a")
    }

    fn said(message: &str) -> EventRecord {
        let about = ObjectReference {
            namespace: Some("team-a".into()),
            name: Some("pi".into()),
            uid: Some("uid".into()),
            ..ObjectReference::default()
        };
        let (reason, action) = (Reason::SlotsRequested, "slots are waited for".into());
        EventRecord { about, warning: false, reason, action, message: message.into() }
    }

    #[tokio::test]
    async fn only_what_is_said_again_word_for_word_is_counted() {
        let sent = Arc::default();
        let events = Events::new(server(&sent), "vmdeploy-operator", None);
        for message in ["slot 7 was asked for", "slot 8 was asked for", "slot 7 was asked for"] {
            events.record(&said(message)).await.unwrap();
        }
        let sent = sent.lock().unwrap();
        let methods: Vec<&Method> = sent.iter().map(|(method, _)| method).collect();
        assert_eq!(methods, [Method::POST, Method::POST, Method::PATCH]);
        let notes: Vec<&str> = sent.iter().filter_map(|(_, body)| body["note"].as_str()).collect();
        assert_eq!(notes[..2], ["slot 7 was asked for", "slot 8 was asked for"]);
        assert_eq!(sent[2].1["series"]["count"], 2, "{:?}", sent[2]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_said_again_is_forgotten() {
        let events = Events::new(server(&Arc::default()), "vmdeploy-operator", None);
        for at in 0..100 {
            events.recorder(&format!("slot {at} was asked for"));
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        assert!(events.sentences.lock().unwrap().len() <= 6);
    }
}
