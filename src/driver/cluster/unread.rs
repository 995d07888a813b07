//! Objects of a kind that there are and that cannot be read: what is not in a list that a watch has
//! brought may be there all the same.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use ::kube::{
    Resource,
    core::DeserializeGuard,
    runtime::watcher::{self, Event},
};

/// Namespace and name.
type Key = (String, String);

/// The objects of one kind that cannot be read. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Unread(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    known: BTreeSet<Key>,
    /// Those of a list that is being read.
    listed: BTreeSet<Key>,
}

impl Unread {
    /// Takes note of what a watch brings.
    pub fn note<K: Resource>(&self, event: &watcher::Result<Event<DeserializeGuard<K>>>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Ok(Event::Init) => inner.listed.clear(),
            Ok(Event::InitApply(object)) => {
                if let Err(key) = read(object) {
                    inner.listed.insert(key);
                }
            }
            Ok(Event::InitDone) => inner.known = std::mem::take(&mut inner.listed),
            Ok(Event::Apply(object)) => match read(object) {
                Ok(key) => drop(inner.known.remove(&key)),
                Err(key) => drop(inner.known.insert(key)),
            },
            Ok(Event::Delete(object)) => {
                let (Ok(key) | Err(key)) = read(object);
                inner.known.remove(&key);
            }
            Err(_) => {}
        }
    }

    /// Whether there is any in a namespace.
    pub fn any_in(&self, namespace: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.iter().any(|(of, _)| of == namespace)
    }
}

/// The key of an object that could be read, or could not.
fn read<K: Resource>(object: &DeserializeGuard<K>) -> Result<Key, Key> {
    let key = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    };
    match &object.0 {
        Ok(object) => Ok(key(object.meta())),
        Err(error) => Err(key(&error.metadata)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Snapshot;

    fn object(name: &str, good: bool) -> DeserializeGuard<Snapshot> {
        let spec =
            if good { serde_json::json!({"job": "pi"}) } else { serde_json::json!({"job": ["of", "a later version"]}) };
        let object = serde_json::json!({
            "apiVersion": "vmdeploy.io/v1alpha1", "kind": "Snapshot",
            "metadata": {"name": name, "namespace": "team"}, "spec": spec,
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn what_cannot_be_read_is_remembered_until_it_can_or_is_gone() {
        let unread = Unread::default();
        unread.note::<Snapshot>(&Ok(Event::Init));
        unread.note(&Ok(Event::InitApply(object("pi-1", true))));
        unread.note(&Ok(Event::InitApply(object("pi-2", false))));
        assert!(!unread.any_in("team"), "the list is not complete");
        unread.note::<Snapshot>(&Ok(Event::InitDone));
        assert!(unread.any_in("team") && !unread.any_in("other"));
        // a list that is begun anew takes nothing back before it is complete
        unread.note::<Snapshot>(&Ok(Event::Init));
        assert!(unread.any_in("team"));
        unread.note(&Ok(Event::InitApply(object("pi-2", false))));
        unread.note::<Snapshot>(&Ok(Event::InitDone));
        assert!(unread.any_in("team"));
        unread.note(&Ok(Event::Apply(object("pi-2", true))));
        assert!(!unread.any_in("team"));
        unread.note(&Ok(Event::Apply(object("pi-1", false))));
        unread.note(&Ok(Event::Delete(object("pi-1", false))));
        assert!(!unread.any_in("team"));
    }
}
