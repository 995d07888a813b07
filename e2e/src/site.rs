//! What OAR says of a job, read from its REST API.

use std::env;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::testbed::TestBed;

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

/// An OAR job that there ever was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ever {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Whether it ever ran.
    pub ran: bool,
}

/// All OAR jobs that belong or have belonged to a BestEffortJob, from OAR's database.
pub fn jobs_ever(bed: &TestBed, uid: &str) -> Result<Vec<Ever>> {
    let prefix = vmdeploy::names::slot_name_prefix(&uid.into());
    let query = format!("SELECT job_id, job_name, start_time FROM jobs WHERE job_name LIKE '{prefix}%' ORDER BY 1");
    bed.run(&["sql", &query])?.lines().map(ever).collect()
}

/// A line of `psql -At`.
fn ever(line: &str) -> Result<Ever> {
    let words: Vec<&str> = line.split('|').collect();
    let [id, name, start] = words[..] else { bail!("the database said {line:?}") };
    Ok(Ever { id: id.parse()?, name: name.into(), ran: start.parse::<i64>()? > 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_database_is_a_job() {
        assert_eq!(ever("7|vmdeploy-a-1|0").unwrap(), Ever { id: 7, name: "vmdeploy-a-1".into(), ran: false });
        assert!(ever("8|vmdeploy-a-2|1764115200").unwrap().ran);
        assert!(ever("no").is_err());
    }
}
