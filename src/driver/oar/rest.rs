//! OAR 2.5 as a [`Site`], by its REST API.
//!
//! Reads facts and passes orders on; it never repeats an order by itself.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::OnceCell;

use super::{
    classify, errors,
    http::Http,
    submit::{self, DeployedSettings, SubmitSettings},
    wire::{Collection, Item, Job, Node, Submitted, Version, Whoami},
};
use crate::{
    clock::Clock,
    config::SiteConfig,
    driver::site::{Capabilities, Credentials, Glance, Site, SiteError, SlotFacts, SlotPhase, SlotRequest},
    names::{NodeName, SlotId},
};

/// Ids asked for in one request.
const IDS: usize = 100;
/// Jobs in one page of a list.
const PAGE: usize = 500;
/// Jobs that end while a list is paged through move the rest up: pages overlap by this many.
const OVERLAP: usize = 50;
/// Most pages of one list.
const PAGES: usize = 200;
/// Requests at a time for the details of many jobs.
const AT_A_TIME: usize = 4;
/// Differences of the two clocks up to this are taken for none: OAR counts in whole seconds.
const CLOCK_GRAIN: i64 = 2;

/// One account at one OAR 2.5.
pub struct OarRest {
    http: Http,
    settings: SubmitSettings,
    clock: Clock,
    /// Our clock less the server's, in seconds.
    ahead: AtomicI64,
    user: OnceCell<String>,
    /// Nodes of running jobs, which never change.
    assigned: Mutex<BTreeMap<SlotId, Vec<NodeName>>>,
}

impl OarRest {
    /// A client for one account. Nothing is asked of the site yet.
    pub fn new(site: &SiteConfig, credentials: Credentials, clock: Clock) -> Result<Self, SiteError> {
        Ok(Self {
            http: Http::new(site, credentials)?,
            settings: SubmitSettings {
                directory: site.directory.clone(),
                lease_root: site.lease_root.clone(),
                connector: site.connector.clone(),
                agent_wait: site.agent_wait.into(),
                nodes: site.nodes.clone(),
                deployed: site.kadeploy.as_ref().map(|kadeploy| DeployedSettings {
                    connector: kadeploy.connector.clone(),
                    wait: kadeploy.wait.into(),
                    join: kadeploy.join.clone(),
                }),
                launch: site.launch.clone(),
            },
            clock,
            ahead: AtomicI64::new(0),
            user: OnceCell::new(),
            assigned: Mutex::default(),
        })
    }

    /// The account's name at the site; on the first call, whether the site is one of ours to drive.
    pub async fn user(&self) -> Result<&str, SiteError> {
        let asked = self.user.get_or_try_init(|| async {
            let version: Version = self.http.get("/version.json").await?;
            if !version.oar_server_version.is_empty() {
                // a best-effort job with a notice stops the scheduler of OAR 3
                let text = format!("this is OAR {}, and only OAR 2.5 is supported", version.oar_server_version);
                return Err(SiteError::Configuration(text));
            }
            if !version.oar_version.starts_with("2.") {
                return Err(SiteError::Configuration(format!(
                    "OAR version {:?} is not supported",
                    version.oar_version
                )));
            }
            let whoami: Whoami = self.http.get("/whoami.json").await?;
            if whoami.authenticated_user.is_empty() {
                return Err(SiteError::Credentials("the site takes us for nobody".into()));
            }
            Ok(whoami.authenticated_user)
        });
        asked.await.map(String::as_str)
    }

    async fn page_through(&self, query: &str) -> Result<Vec<Item>, SiteError> {
        let mut all = Vec::new();
        for page in 0..PAGES {
            let offset = page * (PAGE - OVERLAP);
            let list: Collection<Item> =
                self.http.get(&format!("/jobs.json?{query}&limit={PAGE}&offset={offset}")).await?;
            let full = list.items.len() >= PAGE;
            all.extend(list.items);
            if !full {
                return Ok(all);
            }
        }
        Err(SiteError::Unreachable("a list without an end".into()))
    }

    async fn one(&self, id: SlotId) -> Result<Option<(SlotId, SlotFacts)>, SiteError> {
        let job: Job = match self.http.get(&format!("/jobs/{id}.json")).await {
            Ok(job) => job,
            Err(SiteError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        if job.id.map(|n| n.to_string()).as_ref() != Some(&id.0) {
            return Err(SiteError::Unreachable(format!("asked for job {id}, got another answer")));
        }
        self.set_clock(job.api_timestamp);
        let nodes = if classify::has_nodes(&job.state) || classify::is_over(&job.state) && job.start_time > Some(0) {
            self.nodes_of(&id, classify::is_over(&job.state)).await?
        } else {
            Vec::new()
        };
        let facts = self.facts(&id, &job, nodes);
        Ok(Some((id, facts)))
    }

    fn facts(&self, id: &SlotId, job: &Job, nodes: Vec<NodeName>) -> SlotFacts {
        let phase = classify::phase(job, |s| self.time(s));
        let started = job.start_time.filter(|s| *s > 0 && !matches!(phase, SlotPhase::Waiting { .. }));
        SlotFacts {
            id: id.clone(),
            name: job.name.clone(),
            since: started.and_then(|s| self.time(s)),
            until: started.and_then(|s| self.time(s.saturating_add(job.walltime?))),
            notice: classify::notice(job, |s| self.time(s)),
            unreached: classify::unreached(job),
            phase,
            nodes,
        }
    }

    async fn nodes_of(&self, id: &SlotId, over: bool) -> Result<Vec<NodeName>, SiteError> {
        let known = {
            let mut assigned = self.assigned.lock().unwrap_or_else(PoisonError::into_inner);
            if over { assigned.remove(id) } else { assigned.get(id).cloned() }
        };
        if let Some(nodes) = known {
            return Ok(nodes);
        }
        let list: Collection<Node> = self.http.get(&format!("/jobs/{id}/nodes.json")).await?;
        let nodes: Vec<NodeName> = list
            .items
            .iter()
            .filter(|n| n.status == "assigned")
            .map(|n| NodeName(self.settings.nodes.get(&n.network_address).unwrap_or(&n.network_address).clone()))
            .collect();
        if !over && !nodes.is_empty() {
            self.assigned.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), nodes.clone());
        }
        Ok(nodes)
    }

    /// The ids of an array: the reply to its submission has only the first.
    async fn array(&self, first: &SlotId, request: &SlotRequest) -> Result<Vec<SlotId>, SiteError> {
        let doubt = |text: String| SiteError::Unreachable(format!("accepted as array {first}, then: {text}"));
        let items = self.page_through(&format!("array={first}")).await.map_err(|error| doubt(error.to_string()))?;
        let named = items.into_iter().filter(|item| item.name == request.name);
        let mut ids: Vec<i64> = named.filter_map(|item| item.id).collect();
        ids.sort_unstable();
        // pages overlap
        ids.dedup();
        if ids.len() != request.reservations as usize {
            return Err(doubt(format!("it has {} jobs instead of {}", ids.len(), request.reservations)));
        }
        Ok(ids.into_iter().map(|id| SlotId(id.to_string())).collect())
    }

    /// Learns how far the clocks are apart. A change within the grain is ignored, so that the same
    /// time of the server is always the same time of ours.
    fn set_clock(&self, server: Option<i64>) {
        let Some(server) = server else { return };
        let ahead = self.clock.now().as_second().saturating_sub(server);
        if (ahead - self.ahead.load(Ordering::Relaxed)).abs() > CLOCK_GRAIN {
            self.ahead.store(if ahead.abs() <= CLOCK_GRAIN { 0 } else { ahead }, Ordering::Relaxed);
        }
    }

    fn time(&self, second: i64) -> Option<Timestamp> {
        let ahead = SignedDuration::from_secs(self.ahead.load(Ordering::Relaxed));
        Timestamp::from_second(second).ok()?.checked_add(ahead).ok()
    }
}

/// The id of a slot as it stands in a path.
fn checked(id: &SlotId) -> Result<&SlotId, SiteError> {
    let number = !id.0.is_empty() && id.0.bytes().all(|b| b.is_ascii_digit());
    if number { Ok(id) } else { Err(SiteError::Bug(format!("{id:?} is no id of OAR"))) }
}

fn glances(items: Vec<Item>) -> BTreeMap<SlotId, Glance> {
    let glance = |item: Item| {
        let running = classify::has_nodes(&item.state);
        Some((SlotId(item.id?.to_string()), Glance { name: item.name, state: item.state, running }))
    };
    items.into_iter().filter_map(glance).collect()
}

#[async_trait]
impl Site for OarRest {
    fn capabilities(&self) -> Capabilities {
        Capabilities { notice: true, per_member: true }
    }

    async fn submit(&self, request: &SlotRequest) -> Result<Vec<SlotId>, SiteError> {
        let body = submit::submission(request, &self.settings).map_err(|e| SiteError::Refused(e.to_string()))?;
        self.user().await?;
        let reply: Submitted = self.http.post("/jobs.json", &body).await?;
        let id = reply.id.filter(|id| *id > 0).map(|id| SlotId(id.to_string()));
        let id = id.ok_or_else(|| SiteError::Unreachable("the site accepted the request without an id".into()))?;
        if request.reservations > 1 {
            return self.array(&id, request).await;
        }
        // the API has been seen to say yes too easily
        match self.http.get::<Job>(&format!("/jobs/{id}.json")).await {
            Err(SiteError::NotFound(text)) => Err(SiteError::Unreachable(format!("accepted as {id}, then: {text}"))),
            Ok(job) if job.name != request.name => {
                Err(SiteError::Unreachable(format!("accepted as {id}, which is the job {:?}", job.name)))
            }
            // the id is known, whatever is wrong with reading now
            Ok(_) | Err(_) => Ok(vec![id]),
        }
    }

    async fn look_up(&self, prefix: &str, since: Option<Timestamp>) -> Result<BTreeMap<SlotId, Glance>, SiteError> {
        let user = self.user().await?;
        let mut items = self.page_through(&format!("user={user}")).await?;
        if let Some(since) = since {
            let ahead = self.ahead.load(Ordering::Relaxed);
            let from = since.as_second().saturating_sub(ahead).saturating_sub(60);
            let to = self.clock.now().as_second().saturating_sub(ahead).saturating_add(3600);
            items.extend(self.page_through(&format!("user={user}&from={from}&to={to}")).await?);
        }
        items.retain(|item| item.owner == user && item.name.starts_with(prefix));
        Ok(glances(items))
    }

    async fn glance(&self, ids: &[SlotId]) -> Result<BTreeMap<SlotId, Glance>, SiteError> {
        self.user().await?;
        let mut found = BTreeMap::new();
        for page in ids.chunks(IDS) {
            let ids: Vec<&str> = page.iter().map(|id| checked(id).map(|id| id.0.as_str())).collect::<Result<_, _>>()?;
            let list: Collection<Item> = self.http.get(&format!("/jobs.json?ids={}", ids.join(":"))).await?;
            found.extend(glances(list.items));
        }
        Ok(found)
    }

    async fn status(&self, ids: &[SlotId]) -> Result<BTreeMap<SlotId, SlotFacts>, SiteError> {
        self.user().await?;
        let ids: Vec<SlotId> = ids.iter().map(|id| checked(id).cloned()).collect::<Result<_, _>>()?;
        let reads: Vec<_> = ids.into_iter().map(|id| self.one(id)).collect();
        let found: Vec<_> = stream::iter(reads).buffer_unordered(AT_A_TIME).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn release(&self, id: &SlotId) -> Result<(), SiteError> {
        let (status, body) = self.http.delete(&format!("/jobs/{}.json", checked(id)?)).await?;
        if status.is_success() || (status.as_u16() == 400 && errors::already_over(&String::from_utf8_lossy(&body))) {
            return Ok(());
        }
        Err(errors::classify(status.as_u16(), &body))
    }
}
