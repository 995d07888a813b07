//! What is told of a workflow.

use serde_json::{Map, Value, json};

use super::workflow::{Progress, Workflow};

/// The reply to the request.
pub(super) fn begun(workflow: &Workflow) -> Value {
    let path = format!("/deployment/{}", workflow.id);
    let each =
        |what: &str, name: &String| (name.clone(), json!(format!("{path}/{what}/{name}?user={}", workflow.user)));
    let logs: Map<String, Value> = workflow.clusters.iter().map(|name| each("logs", name)).collect();
    let mut resources = json!({
        "resource": format!("{path}/"), "log": format!("{path}/logs"), "logs": logs,
        "state": format!("{path}/state"), "status": format!("{path}/status"), "error": format!("{path}/error"),
    });
    if workflow.debug {
        let debugs: Map<String, Value> = workflow.nodes.keys().map(|node| each("debugs", node)).collect();
        resources["debug"] = json!(format!("{path}/debugs"));
        resources["debugs"] = json!(debugs);
    }
    json!({"wid": workflow.id, "resources": resources})
}

fn of<'a>(workflow: &'a Workflow, wanted: impl Fn(&Progress) -> bool + 'a) -> Vec<&'a String> {
    workflow.nodes.iter().filter(|(_, progress)| wanted(progress)).map(|(node, _)| node).collect()
}

/// How it stands.
pub(super) fn poll(workflow: &Workflow) -> Value {
    let (name, version) = (&workflow.environment.fields["name"], &workflow.environment.fields["version"]);
    let owner = workflow.environment.record.as_ref().map_or(&workflow.user, |(_, _, user)| user);
    let id = if workflow.done { Value::Null } else { json!(1) };
    let time = workflow.took.unwrap_or_else(|| workflow.clock.elapsed().as_secs_f64());
    let mut poll = json!({
        "wid": workflow.id, "user": workflow.user, "done": workflow.done, "error": workflow.broken.is_some(),
        "start_time": workflow.started.as_second(),
        "environment": {"id": id, "user": owner, "name": name, "version": version},
        "time": (time * 100.0).round() / 100.0,
    });
    if workflow.broken.is_none() {
        poll["logs"] = json!(true);
        if workflow.debug {
            poll["debugs"] = json!(true);
        }
        let mut nodes = json!({
            "ok": of(workflow, |progress| progress.through),
            "ko": of(workflow, |progress| progress.state == "ko"),
        });
        if !workflow.done {
            nodes["processing"] = json!(of(workflow, |progress| !progress.through && progress.state != "ko"));
        }
        poll["nodes"] = nodes;
    }
    poll
}

/// How it stands, for those whose it is not.
pub(super) fn for_others(workflow: &Workflow) -> Value {
    json!({
        "wid": workflow.id, "user": workflow.user, "done": workflow.done, "error": workflow.broken.is_some(),
        "start_time": workflow.started.as_second(), "nodes": workflow.nodes.keys().collect::<Vec<_>>(),
    })
}

/// How its nodes stand.
pub(super) fn state(workflow: &Workflow) -> Value {
    let view = |progress: &Progress| {
        let (large, small) = progress.step.unzip();
        let mut view = json!({"macro": large, "micro": small, "state": progress.state});
        if let Some(error) = &progress.error {
            view["error"] = json!(error);
        }
        view
    };
    let own = workflow.nodes.iter().map(|(node, progress)| (node.clone(), view(progress)));
    let left_out = workflow.discarded.iter().map(|node| (node.clone(), json!({"state": "discarded"})));
    Value::Object(own.chain(left_out).collect())
}

/// How its clusters stand.
pub(super) fn status(workflow: &Workflow) -> Value {
    if workflow.done {
        return json!({});
    }
    let mut all = Map::new();
    for progress in workflow.nodes.values() {
        let cluster = &progress.cluster;
        let inside = |p: &Progress| p.cluster == *cluster;
        let failed = of(workflow, |p| inside(p) && p.state == "ko");
        let working = of(workflow, |p| inside(p) && p.state != "ko");
        let step = workflow.nodes.values().find(|p| inside(p) && p.state != "ko").and_then(|p| p.step);
        let view = match step {
            _ if working.is_empty() => json!({"KO": failed}),
            Some((large, small)) => {
                let nodes = json!({"OK": [], "KO": failed, "**": working});
                json!({large: {small: {"nodes": nodes, "time": workflow.clock.elapsed().as_secs()}}})
            }
            None => json!({}),
        };
        all.insert(cluster.clone(), view);
    }
    Value::Object(all)
}
