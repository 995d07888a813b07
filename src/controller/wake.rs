//! Wakes objects from outside Kubernetes: an agent's word or a change at a site leads to a pass
//! within moments, however slow polling is.
//!
//! [`wakes`] makes both ends. A wake-up of an object nobody knows yet is dropped: the object's first
//! pass is still to come.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{Stream, StreamExt};
use kube::{Resource, runtime::reflector::ObjectRef};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::Object;
use crate::names::JobUid;

/// Makes the ends of a channel of wake-ups for kind `K`.
pub fn wakes<K: Object>() -> (Waker, Wakes<K>) {
    let (sender, receiver) = unbounded_channel();
    (Waker(sender), Wakes::<K> { receiver, index: Arc::default() })
}

enum Wake {
    Uid(String),
    Name { namespace: String, name: String },
}

/// The end that wakes. Clones share it.
#[derive(Clone)]
pub struct Waker(UnboundedSender<Wake>);

impl Waker {
    /// Wakes the object with this uid.
    pub fn uid(&self, uid: &JobUid) {
        // nobody listens any more: the process is ending
        let _ = self.0.send(Wake::Uid(uid.0.clone()));
    }

    /// Wakes the object with this name.
    pub fn name(&self, namespace: &str, name: &str) {
        let _ = self.0.send(Wake::Name { namespace: namespace.into(), name: name.into() });
    }
}

/// The end that a controller listens at.
pub struct Wakes<K: Object> {
    receiver: UnboundedReceiver<Wake>,
    index: Arc<Index<K>>,
}

impl<K: Object> Wakes<K> {
    /// The woken objects, and the index that finds them by uid.
    pub(super) fn into_stream(self) -> (impl Stream<Item = ObjectRef<K>> + Send + 'static, Arc<Index<K>>) {
        let index = self.index.clone();
        let woken = UnboundedReceiverStream::new(self.receiver).filter_map(move |wake| {
            std::future::ready(match wake {
                Wake::Uid(uid) => index.find(&uid),
                Wake::Name { namespace, name } => Some(ObjectRef::new(&name).within(&namespace)),
            })
        });
        (woken, self.index)
    }
}

/// Names of the objects by uid, as far as there was a pass of them.
pub(super) struct Index<K: Resource<DynamicType = ()>>(Mutex<HashMap<String, ObjectRef<K>>>);

impl<K: Resource<DynamicType = ()>> Default for Index<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Object> Index<K> {
    /// Notes an object that a pass is made of.
    pub(super) fn known(&self, object: &K) {
        if let Some(uid) = object.meta().uid.clone() {
            let reference = ObjectRef::from_obj(object);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, reference);
        }
    }

    /// Drops an object that is gone.
    pub(super) fn forget(&self, gone: &ObjectRef<K>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, known| known != gone);
    }

    fn find(&self, uid: &str) -> Option<ObjectRef<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(uid: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some("pi".into());
        object.metadata.namespace = Some("team".into());
        object.metadata.uid = Some(uid.into());
        object
    }

    #[tokio::test]
    async fn objects_are_woken_by_uid_and_by_name() {
        let (waker, wakes) = wakes::<ConfigMap>();
        let (woken, index) = wakes.into_stream();
        index.known(&object("u1"));
        waker.uid(&"unknown".into());
        waker.uid(&"u1".into());
        waker.name("team", "e");
        drop(waker);
        let names: Vec<_> = woken.map(|o| (o.namespace.unwrap_or_default(), o.name)).collect().await;
        assert_eq!(names, [("team".to_owned(), "pi".to_owned()), ("team".into(), "e".into())]);
    }

    #[tokio::test]
    async fn objects_that_are_gone_are_not_woken() {
        let (waker, wakes) = wakes::<ConfigMap>();
        let (woken, index) = wakes.into_stream();
        index.known(&object("u1"));
        index.forget(&ObjectRef::new("pi").within("team"));
        waker.uid(&"u1".into());
        drop(waker);
        assert_eq!(woken.count().await, 0);
    }
}
