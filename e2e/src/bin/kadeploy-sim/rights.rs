//! `/rights`: who may deploy what. Taking rights away ends that user's workflows on the node; giving a node to another
//! user does not.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    deploy,
    nodes::named,
    reply::{Answer, Refusal, json},
    server::{Server, State},
};

fn view(user: &str, nodes: &BTreeSet<String>) -> (String, Value) {
    (user.into(), Value::Object(nodes.iter().map(|node| (node.clone(), json!(["*"]))).collect()))
}

/// `GET /rights[/USER[/NODE]]`.
pub(crate) fn get(state: &State, path: &[&str]) -> Answer {
    let rights = &state.store.kept.rights;
    let found: serde_json::Map<String, Value> = rights
        .iter()
        .filter(|(user, _)| path.first().is_none_or(|wanted| wanted == user))
        .map(|(user, nodes)| {
            let nodes = nodes.iter().filter(|node| path.get(1).is_none_or(|wanted| wanted == node)).cloned().collect();
            view(user, &nodes)
        })
        .filter(|(_, nodes)| nodes.as_object().is_some_and(|nodes| !nodes.is_empty()))
        .collect();
    if found.is_empty() { Err(Refusal::no_record()) } else { json(&Value::Object(found)) }
}

/// `POST /rights`.
pub(crate) fn post(server: &Server, state: &mut State, body: &Value) -> Answer {
    let user = body["username"].as_str().ok_or_else(|| Refusal::coded(4, "Parameter 'username': mandatory"))?;
    let nodes: BTreeSet<String> = named(&server.settings, &body["nodes"])?.into_iter().collect();
    let rights = &mut state.store.kept.rights;
    let others: Vec<(String, Vec<String>)> = rights
        .iter()
        .filter(|(other, _)| *other != user)
        .map(|(other, has)| (other.clone(), has.intersection(&nodes).cloned().collect()))
        .filter(|(_, both): &(String, Vec<String>)| !both.is_empty())
        .collect();
    if body["overwrite"] == true {
        for has in rights.values_mut() {
            has.retain(|node| !nodes.contains(node));
        }
    } else if let Some((other, both)) = others.first() {
        let text = format!("Some rights are already set for user {other} on nodes {}", both.join(", "));
        return Err(Refusal::coded(11, text));
    }
    let has = rights.entry(user.into()).or_default();
    let new: BTreeSet<String> = nodes.difference(has).cloned().collect();
    has.extend(new.iter().cloned());
    rights.retain(|_, has| !has.is_empty());
    if new.is_empty() {
        Err(Refusal::coded(14, ""))
    } else {
        json(&Value::Object([view(user, &new)].into_iter().collect()))
    }
}

/// `DELETE /rights/USER[/NODE]`.
pub(crate) fn delete(server: &Server, state: &mut State, user: &str, node: Option<&str>, body: &Value) -> Answer {
    let wanted: Option<BTreeSet<String>> = match (node, &body["nodes"]) {
        (Some(node), _) => Some([node.to_owned()].into()),
        (None, Value::Null) => None,
        (None, nodes) => Some(named(&server.settings, nodes)?.into_iter().collect()),
    };
    let has = state.store.kept.rights.entry(user.into()).or_default();
    let gone: BTreeSet<String> = match wanted {
        Some(wanted) => has.intersection(&wanted).cloned().collect(),
        None => has.clone(),
    };
    has.retain(|node| !gone.contains(node));
    state.store.kept.rights.retain(|_, has| !has.is_empty());
    if gone.is_empty() {
        return Err(Refusal::coded(14, ""));
    }
    deploy::revoke(state, user, &gone);
    json(&Value::Object([view(user, &gone)].into_iter().collect()))
}
