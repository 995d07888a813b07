//! What OAR says of a job, read from its REST API.

use std::env;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// A job at OAR.
#[derive(Clone, Debug, Deserialize)]
pub struct OarJob {
    /// Its name.
    pub name: Option<String>,
    /// Its state.
    pub state: String,
    /// When it began to run, in seconds of the epoch; 0 until known.
    pub start_time: i64,
    /// When it ended; 0 until known.
    pub stop_time: i64,
    /// What happened to it, in no order.
    #[serde(default)]
    pub events: Vec<OarEvent>,
}

/// Something that happened to a job.
#[derive(Clone, Debug, Deserialize)]
pub struct OarEvent {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// When, in seconds of the epoch.
    pub date: i64,
}

impl OarJob {
    /// Reads a job.
    pub async fn read(id: &str) -> Result<Self> {
        let base = env::var("OAR_API_URL").context("OAR_API_URL is not set: use testbed env")?;
        let request = reqwest::Client::new().get(format!("{base}/jobs/{id}.json")).header("X-REMOTE-IDENT", "vmdeploy");
        Ok(request.send().await?.error_for_status()?.json().await?)
    }

    /// When the first event of a type happened.
    pub fn first(&self, kind: &str) -> Option<i64> {
        self.events.iter().filter(|event| event.kind == kind).map(|event| event.date).min()
    }
}

/// Names of the unfinished jobs at OAR that belong to a BestEffortJob.
pub async fn unfinished(uid: &str) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Page {
        items: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        name: Option<String>,
        state: String,
    }
    let base = env::var("OAR_API_URL").context("OAR_API_URL is not set: use testbed env")?;
    let request = reqwest::Client::new().get(format!("{base}/jobs.json")).header("X-REMOTE-IDENT", "vmdeploy");
    let page: Page = request.send().await?.error_for_status()?.json().await?;
    let prefix = vmdeploy::names::slot_name_prefix(&uid.into());
    let ours = page.items.into_iter().filter(|item| !matches!(item.state.as_str(), "Terminated" | "Error"));
    Ok(ours.filter_map(|item| item.name).filter(|name| name.starts_with(&prefix)).collect())
}
