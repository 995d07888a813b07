//! Importers of the simulated world: what one was started for is in the repository once it has ended.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::World;
use crate::{
    api::VmImageStatus,
    driver::cluster::{
        ClusterError,
        fake::FakeCluster,
        importers::{ImporterState, Importers},
    },
    image::{ImportOrder, Outcome, StoredFile},
};

type Key = (String, String);

/// All importers. Clones share them.
#[derive(Clone)]
pub(super) struct FakeImporters {
    cluster: FakeCluster,
    all: Arc<Mutex<BTreeMap<Key, Importer>>>,
}

struct Importer {
    order: ImportOrder,
    ended: Option<String>,
}

impl FakeImporters {
    pub(super) fn new(cluster: FakeCluster) -> Self {
        Self { cluster, all: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Importer>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many were started so far.
    pub(super) fn started(&self) -> usize {
        self.lock().len()
    }
}

impl World {
    /// Lets the importers that work come to their end.
    pub(super) fn import(&self) {
        for importer in self.importers.lock().values_mut().filter(|importer| importer.ended.is_none()) {
            let digest = importer.order.disk.digest.clone().expect("the digest of an image from the web");
            self.repository.add_image(&digest, 1 << 30);
            let disk = StoredFile { digest, size: 1 << 30 };
            let outcome = Outcome::Imported {
                disk,
                virtual_size: 4 << 30,
                kernel: None,
                initrd: None,
                conversion: None,
                manifests: BTreeMap::new(),
            };
            importer.ended = Some(serde_json::to_string(&outcome).expect("an outcome as text"));
        }
    }
}

#[async_trait]
impl Importers for FakeImporters {
    async fn state(&self, namespace: &str, name: &str) -> Result<Option<ImporterState>, ClusterError> {
        let all = self.lock();
        let found = all.get(&(namespace.to_owned(), name.to_owned()));
        Ok(found.map(|importer| match &importer.ended {
            Some(message) => ImporterState::Ended(Some(message.clone())),
            None => ImporterState::Running,
        }))
    }

    async fn start(&self, job: &Job, _: Option<&Secret>) -> Result<(), ClusterError> {
        let key = (job.metadata.namespace.clone().unwrap_or_default(), job.metadata.name.clone().unwrap_or_default());
        let container = job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()?.containers.first());
        let arguments = container.and_then(|container| container.args.clone()).unwrap_or_default();
        let order = arguments.iter().skip_while(|argument| *argument != "--order").nth(1);
        let order = order.and_then(|text| serde_json::from_str(text).ok()).expect("an importer's order");
        self.lock().entry(key).or_insert(Importer { order, ended: None });
        Ok(())
    }

    async fn remove(&self, namespace: &str, name: &str) -> Result<(), ClusterError> {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
        Ok(())
    }

    async fn patch_image_status(&self, image: &ObjectMeta, status: &VmImageStatus) -> Result<(), ClusterError> {
        self.cluster.set_image_status(image, status)
    }
}
