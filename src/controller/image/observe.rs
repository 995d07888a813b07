//! What is known of an image: reads only.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    Context,
    decide::{fingerprint, wanted},
    importer,
    logins::{self, Logins},
    recorded::{self, Looked},
};
use crate::{
    api::{VmImage, image::ImportResult},
    driver::{Fact, cluster::importers::ImporterState, repository::Repository},
    image::{FileOrder, Outcome, StoredFile, Trouble},
};

/// Everything a decision is made from, besides the object and the time.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The importer that the status calls for.
    pub importer: Fact<Importer>,
    /// What an import would end with, if the repository has everything that the spec names.
    pub present: Option<Outcome>,
    /// Size of what the repository has, by digest: what the spec or the status names.
    pub stored: BTreeMap<String, Fact<u64>>,
    /// The logins that an importer would be started with, or what is wrong with them.
    pub logins: Fact<Result<Logins, Trouble>>,
    /// What the spec's environment is at its server, if that is to be looked up.
    pub environment: Option<Looked>,
}

impl Seen {
    /// The logins; none where they are not known to be right.
    pub fn logins(&self) -> Logins {
        match &self.logins {
            Fact::Known(Ok(logins)) => logins.clone(),
            Fact::Known(Err(_)) | Fact::Absent | Fact::Unknown { .. } => Logins::new(),
        }
    }
}

/// The importer.
#[derive(Clone, Debug, PartialEq)]
pub enum Importer {
    /// At work, or waiting for what the text says.
    Working(Option<String>),
    /// Waiting for what the text says, and perhaps for what an operator that ended did not make any more.
    Unfinished(String),
    /// Over.
    Ended(Outcome),
}

/// Looks. What does not answer is unknown, not an error.
pub async fn observe(image: &VmImage, context: &Context) -> Seen {
    let now = context.clock.now();
    let wanted = wanted(image);
    let mut stored = BTreeMap::new();
    for digest in wanted.digests {
        let fact = size(&*context.repository, &digest, now).await;
        stored.insert(digest, fact);
    }
    let importer = if wanted.importer {
        let (namespace, name) = importer::place(image, &context.config.namespace);
        match context.importers.state(&namespace, &name).await {
            Ok(None) => Fact::Absent,
            Ok(Some(ImporterState::Running)) => Fact::Known(Importer::Working(None)),
            Ok(Some(ImporterState::Waiting(why))) => Fact::Known(Importer::Working(Some(why))),
            Ok(Some(ImporterState::Unfinished(why))) => Fact::Known(Importer::Unfinished(why)),
            Ok(Some(ImporterState::Ended(message))) => Fact::Known(Importer::Ended(Outcome::read(message.as_deref()))),
            Err(error) => {
                tracing::debug!(%error, name, "failed to look at an importer");
                Fact::Unknown { since: now }
            }
        }
    } else {
        // nobody needs to know
        Fact::Unknown { since: now }
    };
    let present = if importer == Fact::Absent {
        let proven = proven(image, &context.view.images(), &context.config.namespace);
        present(image, &*context.repository, &proven).await
    } else {
        None
    };
    let starts = matches!(importer, Fact::Absent | Fact::Known(Importer::Unfinished(_)));
    let logins = if starts && present.is_none() {
        logins::read(image, &*context.view, now).await
    } else {
        // nobody needs to know
        Fact::Unknown { since: now }
    };
    let environment = match &image.spec.source.environment {
        Some(source) if wanted.environment => {
            let namespace = image.metadata.namespace.as_deref().unwrap_or_default();
            Some(recorded::look_up(source, namespace, &context.config, &*context.view, &*context.deployers).await)
        }
        _ => None,
    };
    Seen { importer, present, stored, logins, environment }
}

/// Digests of files that this image's namespace may have without fetching them: it has fetched them
/// before, or they are in a standard image, which is everybody's. A digest alone is no right to what
/// another namespace could fetch (safety D2).
fn proven(image: &VmImage, all: &[Arc<VmImage>], operator: &str) -> BTreeSet<String> {
    let ours = |other: &&Arc<VmImage>| {
        let namespace = other.metadata.namespace.as_deref();
        namespace == image.metadata.namespace.as_deref() || (other.spec.standard && namespace == Some(operator))
    };
    let imported = |other: &Arc<VmImage>| {
        let status = other.status.clone()?;
        let record = status.import.as_ref().filter(|record| record.result == ImportResult::Imported)?;
        (record.fingerprint == fingerprint(other)).then_some([status.digest, status.kernel, status.initrd])
    };
    all.iter().filter(ours).filter_map(imported).flatten().flatten().collect()
}

/// All files of the spec by their digests, if they are proven and the repository has them and once
/// checked the disk. What does not answer is imported, which waits for the repository; what is made of an archive is
/// known by no digest of the spec.
async fn present(image: &VmImage, repository: &dyn Repository, proven: &BTreeSet<String>) -> Option<Outcome> {
    let order = importer::order(image);
    let stored = async |file: &FileOrder| {
        let digest = file.digest.clone().filter(|digest| proven.contains(digest))?;
        let size = repository.image(&digest).await.ok()??;
        Some(StoredFile { digest, size })
    };
    let disk = stored(&order.disk).await?;
    let record = repository.disk_record(&disk.digest).await.ok()??;
    if Some(record.format) != order.format.disk() {
        return None;
    }
    let kernel = match &order.kernel {
        Some(kernel) => Some(stored(kernel).await?),
        None => None,
    };
    let initrd = match &order.initrd {
        Some(initrd) => Some(stored(initrd).await?),
        None => None,
    };
    Some(Outcome::Imported {
        disk,
        virtual_size: record.virtual_size,
        kernel,
        initrd,
        conversion: None,
        manifests: BTreeMap::new(),
    })
}

async fn size(repository: &dyn Repository, digest: &str, now: Timestamp) -> Fact<u64> {
    match repository.image(digest).await {
        Ok(Some(size)) => Fact::Known(size),
        Ok(None) => Fact::Absent,
        Err(error) => {
            tracing::debug!(%error, digest, "failed to ask for an image");
            Fact::Unknown { since: now }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::{
        api::{
            VmImageStatus,
            image::{DiskFormat, ImportRecord},
        },
        driver::repository::{ByteStore as _, DiskRecord},
    };

    fn image(namespace: &str, name: &str, standard: bool) -> VmImage {
        let text = format!(
            "apiVersion: vmdeploy.io/v1alpha1\nkind: VmImage\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{standard: {standard}, source: {{http: {{url: 'https://secret.example/{name}', digest: 'sha256:{}'}}}}}}\n",
            "1".repeat(64)
        );
        crate::yaml::read(&text).unwrap()
    }

    fn imported(mut image: VmImage, result: ImportResult) -> Arc<VmImage> {
        let at = Time(Timestamp::UNIX_EPOCH);
        image.status = Some(VmImageStatus {
            digest: Some(format!("sha256:{}", "1".repeat(64))),
            import: Some(ImportRecord { fingerprint: fingerprint(&image), result, at }),
            ..VmImageStatus::default()
        });
        Arc::new(image)
    }

    #[test]
    fn d2_a_digest_is_no_right_to_what_another_namespace_has() {
        let wanted = image("bob", "mine", false);
        let fetched = |namespace, standard| imported(image(namespace, "theirs", standard), ImportResult::Imported);
        let is_proven = |other| !proven(&wanted, &[other], "vmdeploy-system").is_empty();
        assert!(!is_proven(fetched("alice", false)));
        assert!(!is_proven(fetched("alice", true)), "only the operator's standard images are everybody's");
        assert!(!is_proven(fetched("vmdeploy-system", false)));
        assert!(is_proven(fetched("vmdeploy-system", true)));
        assert!(is_proven(fetched("bob", false)));
        assert!(!is_proven(imported(image("bob", "theirs", false), ImportResult::Failed)));
        let mut changed = fetched("bob", false).as_ref().clone();
        changed.spec.source.http.as_mut().unwrap().url = "https://other.example/".into();
        assert!(!is_proven(Arc::new(changed)), "its spec names something else by now");
    }

    #[tokio::test]
    async fn d2_what_is_not_proven_is_fetched() {
        let repository = crate::driver::repository::fake::FakeRepository::new();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("disk");
        std::fs::write(&file, [7; 5000]).unwrap();
        let digest = crate::store::layout::image_name(&<sha2::Sha256 as sha2::Digest>::digest([7; 5000]));
        let mut wanted = image("bob", "mine", false);
        wanted.spec.format = crate::api::image::ImageFormat::Raw;
        wanted.spec.source.http.as_mut().unwrap().digest.clone_from(&digest);
        repository.put_image(&digest, &file).await.unwrap();
        repository.note_disk(&digest, &DiskRecord { format: DiskFormat::Raw, virtual_size: 5000 }).await.unwrap();
        assert_eq!(present(&wanted, &repository, &BTreeSet::new()).await, None);
        let outcome = present(&wanted, &repository, &[digest].into()).await;
        assert!(matches!(outcome, Some(Outcome::Imported { virtual_size: 5000, .. })), "{outcome:?}");
    }
}
