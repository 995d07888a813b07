//! Small files given to the guests: the text itself, or a key of a ConfigMap or Secret of the job's
//! namespace.

use std::collections::BTreeMap;

use super::{Context, Error, account};
use crate::{api::BestEffortJob, driver::cluster::ClusterError};

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
            let what = format!("key {} of ConfigMap {}", key.key, key.name);
            readable(ctx.view.config_value(namespace, &key.name, &key.key).await, what)?
        } else if let Some(key) = &input.secret {
            let what = format!("key {} of Secret {}", key.key, key.name);
            let (secret, what) = readable(ctx.view.secret(namespace, &key.name).await, what)?;
            let bytes = secret.and_then(|secret| secret.data?.remove(&key.key));
            (bytes.and_then(|bytes| String::from_utf8(bytes.0).ok()), what)
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

/// What was read, and how it is called if it is missing; what may not be read is missing, and says why.
fn readable<T>(read: Result<Option<T>, ClusterError>, what: String) -> Result<(Option<T>, String), ClusterError> {
    match read {
        Err(ClusterError::Forbidden(_)) => Ok((None, format!("{what} ({})", account::MAY_NOT_READ))),
        read => Ok((read?, what)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_read_is_missing_and_says_why() {
        let (found, what) = readable::<u8>(Err(ClusterError::Forbidden("no".into())), "key a".into()).unwrap();
        assert!(
            found.is_none() && what.starts_with("key a (") && what.contains("vmdeploy-credentials-reader"),
            "{what}"
        );
        assert_eq!(readable(Ok(Some(1)), "key a".into()), Ok((Some(1), "key a".into())));
        assert!(readable::<u8>(Err(ClusterError::Unreachable("x".into())), "key a".into()).is_err());
    }
}
