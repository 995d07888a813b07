//! Waits until the API server serves our kinds: a controller that starts before its CRDs waits and
//! says so, instead of crashing.

use std::time::Duration;

use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{GROUP, VERSION},
    health::Readiness,
};

/// The readiness check this module reports.
pub const CHECK: &str = "crds";

const INTERVAL: Duration = Duration::from_secs(2);

/// Returns once all `kinds` are served; false if it was told to stop before.
pub async fn wait(client: &Client, kinds: &[&str], readiness: &Readiness, stop: &CancellationToken) -> bool {
    loop {
        // the API server ends requests that it does not answer; discovery is small
        let missing = match client.list_api_group_resources(&format!("{GROUP}/{VERSION}")).await {
            Ok(list) => missing(kinds, list.resources.iter().map(|r| r.kind.as_str())),
            // a group that is not there has no error of the API's own
            Err(kube::Error::Api(status)) if status.code == 404 => missing(kinds, std::iter::empty()),
            Err(error) => Some(error.to_string()),
        };
        let Some(missing) = missing else {
            readiness.ready(CHECK);
            return true;
        };
        readiness.not_ready(CHECK, missing);
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

fn missing<'a>(kinds: &[&str], served: impl Iterator<Item = &'a str>) -> Option<String> {
    let served: Vec<&str> = served.collect();
    let missing: Vec<&str> = kinds.iter().filter(|kind| !served.contains(*kind)).copied().collect();
    (!missing.is_empty()).then(|| format!("the API server does not serve {} of {GROUP}/{VERSION}", missing.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let kinds = ["BestEffortJob", "VmImage"];
        assert_eq!(missing(&kinds, ["VmImage", "BestEffortJob", "Snapshot"].into_iter()), None);
        let text = missing(&kinds, ["BestEffortJob"].into_iter()).unwrap();
        assert_eq!(text, "the API server does not serve VmImage of vmdeploy.io/v1alpha1");
    }
}
