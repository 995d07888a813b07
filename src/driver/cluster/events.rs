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

/// Longest sentence, in bytes, that the API server takes: its `NoteLengthLimit`.
const LONGEST: usize = 1024;
/// What stands for the rest of a longer one.
const MORE: &str = "...";

/// Records the events of one reporter. Only what is said again word for word is counted as a series: a recorder of kube
/// counts whatever has one type, reason and action and is about one object, and shows the first of its sentences for
/// all.
///
/// A sentence with a number in it is an event of its own each time. As many are known here as were said within
/// six minutes.
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

    /// Records an event. Of a sentence that is too long the end is left out.
    pub async fn record(&self, event: &EventRecord) -> Result<(), ClusterError> {
        let sentence = bounded(&event.message);
        let record = Event {
            type_: if event.warning { EventType::Warning } else { EventType::Normal },
            reason: event.reason.name(),
            note: Some(sentence.clone()),
            action: event.action.clone(),
            secondary: None,
        };
        self.recorder(&sentence).publish(&record, &event.about).await.map_err(|e| refused(&e))
    }

    fn recorder(&self, sentence: &str) -> Recorder {
        let mut sentences = self.sentences.lock().unwrap_or_else(PoisonError::into_inner);
        sentences.retain(|_, (said, _)| said.elapsed() < ONE_SERIES);
        let new = || (Instant::now(), Recorder::new(self.client.clone(), self.reporter.clone()));
        let known = sentences.entry(sentence.into()).or_insert_with(new);
        known.0 = Instant::now();
        known.1.clone()
    }
}

fn bounded(sentence: &str) -> String {
    if sentence.len() <= LONGEST {
        return sentence.into();
    }
    let ends = sentence.char_indices().map(|(end, _)| end);
    let end = ends.take_while(|end| *end <= LONGEST - MORE.len()).last().unwrap_or(0);
    format!("{}{MORE}", &sentence[..end])
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
        about("pi", message)
    }

    fn about(name: &str, message: &str) -> EventRecord {
        let about = ObjectReference {
            namespace: Some("team-a".into()),
            name: Some(name.into()),
            uid: Some(name.into()),
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

    #[tokio::test]
    async fn two_objects_have_events_of_their_own() {
        let sent = Arc::default();
        let events = Events::new(server(&sent), "vmdeploy-operator", None);
        for name in ["pi", "e"] {
            events.record(&about(name, "attempt 1 runs")).await.unwrap();
        }
        let sent = sent.lock().unwrap();
        let regarding: Vec<&Value> = sent.iter().map(|(_, body)| &body["regarding"]["name"]).collect();
        assert_eq!(regarding, ["pi", "e"]);
    }

    #[tokio::test]
    async fn what_is_too_long_for_the_api_server_is_cut() {
        let sent = Arc::default();
        let events = Events::new(server(&sent), "vmdeploy-operator", None);
        for message in ["x".repeat(LONGEST), "x".repeat(LONGEST + 1), format!("xx{}", "é".repeat(LONGEST))] {
            events.record(&said(&message)).await.unwrap();
        }
        let sent = sent.lock().unwrap();
        let notes: Vec<&str> = sent.iter().filter_map(|(_, body)| body["note"].as_str()).collect();
        assert_eq!(notes.iter().map(|note| note.len()).collect::<Vec<_>>(), [LONGEST, LONGEST, LONGEST - 1]);
        assert!(!notes[0].ends_with(MORE) && notes[1].ends_with("xx...") && notes[2].ends_with("é..."), "{notes:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_said_again_is_forgotten() {
        let events = Events::new(server(&Arc::default()), "vmdeploy-operator", None);
        for at in 0..100 {
            events.recorder(&format!("slot {at} was asked for"));
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        assert_eq!(events.sentences.lock().unwrap().len(), 6);
    }
}
