//! Small files given to the guests: the text itself, or a key of a ConfigMap or Secret of the job's
//! namespace.

use std::collections::BTreeMap;

use super::{Context, Error};
use crate::api::BestEffortJob;

/// Path in the guest and content of each input; or the names of those that do not exist.
pub(super) async fn resolve(
    job: &BestEffortJob,
    ctx: &Context,
) -> Result<Result<BTreeMap<String, String>, Vec<String>>, Error> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let (mut files, mut missing) = (BTreeMap::new(), Vec::new());
    for input in &job.spec.inputs {
        let (content, what) = if let Some(text) = &input.text {
            (Some(text.clone()), String::new())
        } else if let Some(key) = &input.config_map {
            let found = ctx.view.config_value(namespace, &key.name, &key.key).await?;
            (found, format!("key {} of ConfigMap {}", key.key, key.name))
        } else if let Some(key) = &input.secret {
            let secret = ctx.view.secret(namespace, &key.name).await?;
            let bytes = secret.and_then(|secret| secret.data?.remove(&key.key));
            (bytes.and_then(|bytes| String::from_utf8(bytes.0).ok()), format!("key {} of Secret {}", key.key, key.name))
        } else {
            (None, format!("a source for {}", input.path))
        };
        match content {
            Some(content) => {
                files.insert(input.path.clone(), content);
            }
            None => missing.push(what),
        }
    }
    Ok(if missing.is_empty() { Ok(files) } else { Err(missing) })
}
