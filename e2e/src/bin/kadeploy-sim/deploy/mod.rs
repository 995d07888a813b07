//! `/deployment`: workflows, in memory only.

mod machine;
mod run;
mod steps;
mod view;
mod workflow;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

pub(crate) use self::workflow::Workflow;
use crate::{
    environments,
    nodes::named,
    reply::{self, Answer, Refusal},
    server::{Asked, Server, State},
};

/// `/deployment` and what is below it.
pub(crate) async fn routed(server: &Arc<Server>, method: &Method, asked: &Asked<'_>) -> Answer {
    match (method.as_str(), &asked.path[1..]) {
        ("POST", []) => post(server, asked).await,
        ("GET", []) => {
            let state = server.state();
            let own = state.workflows.values().filter(|workflow| workflow.user == asked.user);
            reply::json(&own.map(view::poll).collect())
        }
        ("DELETE", [id]) => delete(server, asked, id),
        ("GET", [id, rest @ ..]) => {
            let mut state = server.state();
            let workflow = state.workflows.get_mut(*id).ok_or_else(|| Refusal::coded(1, ""))?;
            let own = workflow.user == asked.user || asked.admin;
            match rest {
                [] if own => reply::json(&view::poll(workflow)),
                [] => reply::json(&view::for_others(workflow)),
                _ if !own => Err(Refusal::forbidden("You do not the rights to perform this operation")),
                ["state"] => reply::json(&view::state(workflow)),
                ["status"] => reply::json(&view::status(workflow)),
                ["error"] => match &workflow.broken {
                    Some(refusal) => Err(refusal.clone()),
                    None => reply::text(""),
                },
                // what is read is gone
                ["logs", ..] => reply::text(&std::mem::take(&mut workflow.logs)),
                ["debugs", ..] => reply::text(""),
                _ => Err(Refusal::NotFound(rest.join("/"))),
            }
        }
        _ => Err(Refusal::Method("POST,PUT,GET,HEAD")),
    }
}

async fn post(server: &Arc<Server>, asked: &Asked<'_>) -> Answer {
    let body = &asked.body;
    let nodes = named(&server.settings, &body["nodes"])?;
    if body["environment"].is_null() {
        return Err(Refusal::Crash("undefined method `multipart' for nil:NilClass"));
    }
    let key = body["ssh_authorized_keys"].as_str().map(str::to_owned);
    let environment = environment(server, asked, &body["environment"], key).await?;
    let mut state = server.state();
    let rights = state.store.kept.rights.get(&asked.user);
    if !asked.admin && !nodes.iter().all(|node| rights.is_some_and(|has| has.contains(node))) {
        return Err(Refusal::coded(6, ""));
    }
    if body["dry_run"] == true {
        return reply::text("");
    }
    let (free, discarded): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| {
        let marked = state.store.kept.nodes.get(node).is_some_and(|known| {
            let age = Timestamp::now().duration_since(known.since);
            known.state == "deploying" && age < SignedDuration::from_secs(server.settings.purge.as_secs() as i64)
        });
        !marked || body["force"] == true
    });
    for node in &free {
        let name = environment.record.clone();
        state.store.mark(node, "deploying", &asked.user, name);
    }
    let debug = body["debug"] == true;
    let workflow = Workflow::new(&server.settings, &asked.user, environment, free, discarded, debug)
        .map_err(|error| Refusal::Plain(500, error.to_string()))?;
    let reply = view::begun(&workflow);
    let id = workflow.id.clone();
    state.workflows.insert(id.clone(), workflow);
    let task = tokio::spawn(run::run(server.clone(), id.clone()));
    if let Some(workflow) = state.workflows.get_mut(&id) {
        workflow.task = Some(task);
    }
    reply::json(&reply)
}

/// What is put on the nodes.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    pub(crate) fields: Value,
    /// What it is called in the nodes' records; nothing if it came along.
    pub(crate) record: Option<(String, u64, String)>,
    /// What its image was when it was recorded.
    pub(crate) checksum: String,
    /// Where the ssh keys for it are.
    pub(crate) key: Option<String>,
}

async fn environment(
    server: &Arc<Server>,
    asked: &Asked<'_>,
    given: &Value,
    key: Option<String>,
) -> Result<Environment, Refusal> {
    if given["kind"] == "anonymous" {
        let mut described = given.clone();
        if let Value::Object(fields) = &mut described {
            fields.entry("name").or_insert(json!("anonymous"));
        }
        let fields = environments::normalised(&described)?;
        let file = fields["image"]["file"].as_str().unwrap_or_default();
        let checksum = environments::checksum(file).await?;
        return Ok(Environment { fields, record: None, checksum, key });
    }
    let user = given["user"].as_str().unwrap_or(&asked.user);
    let name = given["name"].as_str().unwrap_or_default();
    let version = given["version"].as_u64().or_else(|| given["version"].as_str().and_then(|v| v.parse().ok()));
    let none = || Refusal::coded(7, format!("the environment {name}, of {user} does not exist"));
    let state = server.state();
    let found = environments::newest(&state.store.kept, user, name, version).ok_or_else(none)?;
    if user != asked.user && !asked.admin && found.fields["visibility"] == "private" {
        return Err(none());
    }
    let record = Some((found.name().to_owned(), found.version(), user.to_owned()));
    Ok(Environment { fields: found.fields.clone(), record, checksum: found.checksum.clone(), key })
}

/// Cancels a workflow, or forgets it.
fn delete(server: &Arc<Server>, asked: &Asked<'_>, id: &str) -> Answer {
    let mut state = server.state();
    match state.workflows.get(id) {
        None => return Err(Refusal::Method("POST,PUT,GET,HEAD")),
        Some(workflow) if workflow.user != asked.user && !asked.admin => {
            return Err(Refusal::forbidden("You do not the rights to perform this operation"));
        }
        Some(_) => end(&mut state, id),
    }
    reply::json(&json!({"wid": id}))
}

/// Ends a workflow where it stands: its commands are killed, its nodes aborted.
fn end(state: &mut State, id: &str) {
    if let Some(workflow) = state.workflows.remove(id) {
        for node in workflow.unfinished() {
            state.store.mark(&node, "aborted", &workflow.user, None);
        }
    }
}

/// Ends a user's workflows on nodes to which the rights are gone.
pub(crate) fn revoke(state: &mut State, user: &str, nodes: &BTreeSet<String>) {
    let hit = |workflow: &Workflow| {
        workflow.user == user && !workflow.done && workflow.nodes.keys().any(|node| nodes.contains(node))
    };
    let ids: Vec<String> = state.workflows.values().filter(|workflow| hit(workflow)).map(|w| w.id.clone()).collect();
    for id in ids {
        end(state, &id);
    }
}

/// What a step takes at least.
async fn pause(length: Duration) {
    tokio::time::sleep(length).await;
}
