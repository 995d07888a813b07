//! The simulator against what a real Kadeploy 3.3.11 was recorded to answer: the same requests in the same order get
//! the same status, the same code of a refusal, and documents with the same keys. A difference is a bug of the
//! simulator.
//!
//! The recordings are those that the driver's parser is tested on, and more of them in `recorded`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    raw::{self, Account},
    simulator::Simulator,
};

const FOLDERS: [&str; 2] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/../src/driver/kadeploy/recorded"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kadeploy/recorded"),
];
/// What the simulator does not do: certificates, a database in trouble, images on web servers, power and reboots.
const NOT_SIMULATED: [&str; 10] = [
    "auth_cert_ok",
    "auth_cert_wrong_user",
    "env_create_yaml_alias",
    "env_http_noetag",
    "power_bad_status",
    "power_off_node",
    "power_status_state",
    "reboot2_node",
    "reboot_deployenv_node",
    "reboot_node",
];
/// Where the images were.
const IMAGES: &str = "/srv/kadeploy/img";
const ONE_CLUSTER: [&str; 8] = [
    "--cluster",
    "dummy=dummy-1.test,dummy-2.test,dummy-3.test,dummy-4.test",
    "--trust",
    "127.0.0.1/32",
    "--user",
    "alice:alicepw",
    "--step",
    "100",
];
const TWO_CLUSTERS: [&str; 8] = [
    "--cluster",
    "dummy=dummy-1.test,dummy-2.test,dummy-3.test,dummy-4.test",
    "--cluster",
    "netns=node-1.test,node-2.test,node-3.test,node-4.test",
    "--trust",
    "127.0.0.1/32",
    "--step",
    "100",
];
/// Requests come from elsewhere than from what is trusted.
const UNTRUSTED: [&str; 4] = ["--cluster", "dummy=dummy-1.test", "--trust", "192.0.2.1/32"];

/// A recorded request, and what is compared of its reply.
struct Recorded {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
    wid: Option<String>,
    reply: Outcome,
}

/// Status, code, and the form of the document, if it is one.
type Outcome = (u16, Option<u32>, Option<Value>);

impl Recorded {
    fn read(name: &str) -> Self {
        let paths = FOLDERS.map(|folder| format!("{folder}/{name}.http"));
        let text = paths.iter().find_map(|path| fs::read_to_string(path).ok());
        let text = text.unwrap_or_else(|| panic!("there is no recording {name}"));
        let (request, reply) = text.strip_prefix(">>> request\n").unwrap().split_once("<<< reply\n").unwrap();
        let (request, body) = request.split_once("\n\n").unwrap();
        let (line, headers) = request.split_once('\n').unwrap();
        let mut line = line.split(' ').map(str::to_owned);
        let sent = ["X-Kadeploy-User", "Authorization", "Content-Type"];
        let headers = headers.lines().map(|header| header.split_once(": ").unwrap());
        let headers = headers.filter(|(name, _)| sent.contains(name));
        let (head, document) = reply.split_once("\n\n").unwrap();
        let header = |name: &str| head.lines().find_map(|header| header.strip_prefix(name)?.strip_prefix(": "));
        let document = document_of(header("Content-Type"), document);
        Self {
            method: line.next().unwrap(),
            path: line.next().unwrap(),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            // one line end was added
            body: body.trim_end_matches('\n').to_owned(),
            wid: wid_of(document.as_ref()),
            reply: (
                head.split(' ').nth(1).unwrap().parse().unwrap(),
                header("X-Application-Error-Code").map(|code| code.parse().unwrap()),
                document.as_ref().map(form),
            ),
        }
    }
}

fn document_of(kind: Option<&str>, text: &str) -> Option<Value> {
    kind?.starts_with("application/json").then(|| serde_json::from_str(text).unwrap())
}

fn wid_of(document: Option<&Value>) -> Option<String> {
    document?.get("wid")?.as_str().map(str::to_owned)
}

/// The keys of a document. What items of a list have is taken together, however many there are.
fn form(document: &Value) -> Value {
    match document {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), form(value))).collect(),
        Value::Array(items) => {
            let forms: BTreeMap<String, Value> =
                items.iter().map(form).filter(|form| !form.is_null()).map(|form| (form.to_string(), form)).collect();
            Value::Array(forms.into_values().collect())
        }
        _ => Value::Null,
    }
}

/// A simulator in the place of the real one.
struct Stage {
    simulator: Simulator,
    /// Its ids of workflows, by those in the recordings.
    ids: BTreeMap<String, String>,
    replayed: BTreeSet<String>,
    differences: Vec<String>,
}

impl Stage {
    fn new(arguments: &'static [&'static str]) -> Self {
        let simulator = Simulator::with(arguments);
        Self { simulator, ids: BTreeMap::new(), replayed: BTreeSet::new(), differences: Vec::new() }
    }

    /// Writes an image, which is another one with another text.
    fn image(&self, name: &str, text: &str) {
        fs::write(self.simulator.files().join(name), text).unwrap();
    }

    /// A recorded text as it is for the simulator.
    fn own(&self, text: &str) -> String {
        let text = text.replace(IMAGES, &self.simulator.files().display().to_string());
        self.ids.iter().fold(text, |text, (recorded, own)| text.replace(recorded, own))
    }

    /// Sends recorded requests, and notes what is answered otherwise.
    async fn replay(&mut self, names: &[&str]) {
        for name in names {
            let Recorded { method, path, headers, body, wid, reply } = Recorded::read(name);
            let mut request = raw::request(&self.simulator.address, &Account::Nobody, &method, &self.own(&path));
            for (name, value) in &headers {
                request = request.header(name.as_str(), value.as_str());
            }
            if !body.is_empty() {
                request = request.body(self.own(&body));
            }
            let answer = raw::send(request).await;
            let document = document_of(answer.header("content-type"), &answer.text);
            let given = (answer.status, answer.code, document.as_ref().map(form));
            if given != reply {
                self.differences.push(format!("{name}: recorded {reply:?}, simulated {given:?}"));
            }
            if let (Some(recorded), Some(own)) = (wid, wid_of(document.as_ref())) {
                self.ids.insert(recorded, own);
            }
            self.replayed.insert((*name).to_owned());
        }
    }

    /// Asks for what was not recorded.
    async fn ask(&self, user: &str, method: &str, path: &str, body: Option<&Value>) -> Value {
        let reply = raw::ask(&self.simulator.address, &Account::Header(user.into()), method, path, body).await;
        assert_eq!(reply.status, 200, "{method} {path}: {reply:?}");
        reply.json()
    }

    /// Begins a deployment whose request was not recorded, on a node, with more fields. A recording is about it.
    async fn begin(&mut self, recording: &str, node: &str, environment: &str, more: Value) {
        let mut body = json!({"nodes": [node], "environment": {"name": environment, "user": "alice"}});
        for (field, value) in more.as_object().unwrap() {
            body[field.as_str()] = value.clone();
        }
        let begun = self.ask("alice", "POST", "/deployment", Some(&body)).await;
        self.ids.insert(workflow(recording), wid_of(Some(&begun)).unwrap());
    }

    /// How a workflow stands that a recording is about.
    async fn look(&self, recording: &str, below: &str) -> Value {
        let path = self.own(&format!("/deployment/{}{below}", workflow(recording)));
        self.ask("alice", "GET", &path, None).await
    }

    async fn until_over(&self, recording: &str) {
        for _ in 0..600 {
            if self.look(recording, "").await["done"] == true {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the workflow of {recording} does not end");
    }

    async fn until_begun(&self, recording: &str, node: &str) {
        for _ in 0..600 {
            if !self.look(recording, "/state").await[node]["macro"].is_null() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the workflow of {recording} does not begin");
    }
}

/// The workflow that a recorded request is about.
fn workflow(recording: &str) -> String {
    Recorded::read(recording).path.split('/').nth(2).unwrap().to_owned()
}

fn hangs(node: &str) -> Value {
    json!({"nodes": {node: {"does": "hang"}}})
}

fn fails(node: &str) -> Value {
    json!({"nodes": {node: {"does": "fail", "error": "Unreachable after the reboot"}}})
}

async fn one_cluster() -> Stage {
    let mut stage = Stage::new(&ONE_CLUSTER);
    stage.image("fake.tgz", "an image");
    stage.replay(&["version", "auth_prefix", "clusters", "auth_none", "auth_acl", "auth_basic_bad"]).await;
    stage.replay(&["auth_basic_from_net", "auth_basic_ok", "path_unknown", "method_bad", "node_unknown"]).await;
    stage.replay(&["nodes_unset", "rights_not_admin", "rights_get_empty", "rights_post", "rights_post_again"]).await;
    stage.replay(&["rights_conflict", "rights_overwrite", "rights_get_all", "rights_get_alice"]).await;
    stage.replay(&["rights_get_carol", "rights_post_unknown_node", "rights_delete_bob"]).await;
    stage.replay(&["rights_delete_bob_again", "rights_post_alice2", "rights_get_alice2"]).await;

    stage.replay(&["env_list_empty", "env_get_missing", "env_create", "env_create_dup", "env_create_v2"]).await;
    stage.replay(&["env_create_nofile", "env_create_zstd", "env_create_nokernel", "env_create_local_noclient"]).await;
    stage.replay(&["env_create_public_notadmin", "env_create_public_admin", "env_create_extra_fields"]).await;
    stage.replay(&["env_list", "env_list_last", "env_get_name", "env_get_user", "env_get_path"]).await;

    stage.replay(&["dep_no_nodes", "dep_bad_node", "dep_bad_env", "dep_missing_env", "dep_no_rights"]).await;
    stage.replay(&["bad_json", "dep_dry_run", "dep_int_version"]).await;
    // for as long as it is looked at
    stage.simulator.plan(&hangs("dummy-1.test"));
    stage.replay(&["dep_create"]).await;
    stage.until_begun("dep_poll_0", "dummy-1.test").await;
    stage.replay(&["dep_poll_0", "dep_state_mid", "dep_status_mid", "dep_poll_other_user"]).await;
    stage.replay(&["dep_logs_other_user", "dep_busy_nodes", "dep_same_nodes"]).await;
    stage.until_over("dep_same_nodes_poll").await;
    stage.replay(&["dep_same_nodes_poll", "dep_same_nodes_error", "dep_list", "dep_delete_err"]).await;
    stage.replay(&["dep_delete"]).await;
    stage.simulator.plan(&json!({}));
    stage.replay(&["dep_create"]).await;
    stage.until_over("dep_poll_done").await;
    stage.replay(&["dep_poll_done", "dep_state_done", "dep_status_done", "dep_error_done", "dep_logs"]).await;
    stage.replay(&["dep_logs_again", "dep_logs_cluster", "dep_node_after", "dep_nodes_after"]).await;
    stage.replay(&["dep_delete", "dep_get_deleted", "dep_delete_again", "anon_create"]).await;
    stage.until_over("anon_poll").await;
    stage.replay(&["anon_poll", "anon_node"]).await;
    stage.begin("overwrite_rights_poll", "dummy-1.test", "hva", json!({})).await;
    stage.replay(&["overwrite_rights_midrun"]).await;
    stage.until_over("overwrite_rights_poll").await;
    stage.replay(&["overwrite_rights_poll"]).await;

    stage.replay(&["env_put_visibility", "env_put_nothing", "env_put_noversion"]).await;
    stage.replay(&["env_delete_other", "env_delete", "env_delete_again"]).await;
    stage
}

async fn two_clusters() -> Stage {
    let mut stage = Stage::new(&TWO_CLUSTERS);
    for image in ["fake.tgz", "rootfs.tar.gz", "gone.tgz", "changed.tgz", "corrupt.tgz", "nokernel.tgz"] {
        stage.image(image, "an image");
    }
    let nodes = ["dummy-1.test", "dummy-2.test", "node-1.test", "node-2.test", "node-4.test"];
    stage.ask("oar", "POST", "/rights", Some(&json!({"username": "alice", "nodes": nodes}))).await;
    stage.replay(&["env_create", "env_create_extra_fields", "real_env_create"]).await;
    stage.replay(&["env_gone", "env_changed", "env_corrupt", "env_nokernel"]).await;
    stage.replay(&["dep_create", "real_create"]).await;
    stage.until_over("dep_poll_done").await;
    stage.until_over("real_poll_done").await;
    stage.replay(&["real_poll_done", "real_state_done", "real_nodes"]).await;

    stage.simulator.plan(&fails("node-2.test"));
    stage.replay(&["partial_create"]).await;
    stage.until_over("partial_poll_done").await;
    stage.replay(&["partial_poll_done", "partial_state_done", "partial_nodes"]).await;
    stage.simulator.plan(&hangs("dummy-1.test"));
    stage.replay(&["multi_create", "multi_poll_mid"]).await;
    let path = stage.own(&format!("/deployment/{}", workflow("multi_poll_mid")));
    stage.ask("alice", "DELETE", &path, None).await;
    stage.simulator.plan(&fails("node-4.test"));
    stage.replay(&["multi_create"]).await;
    stage.until_over("multi_poll").await;
    stage.replay(&["multi_poll", "multi_state"]).await;

    stage.simulator.plan(&hangs("node-1.test"));
    stage.begin("cancel_before", "node-1.test", "debian12-hv", json!({})).await;
    stage.replay(&["cancel_before", "cancel_delete", "cancel_after", "cancel_node"]).await;
    stage.begin("revoke_poll", "node-1.test", "debian12-hv", json!({})).await;
    stage.replay(&["revoke_rights", "revoke_poll", "revoke_node", "revoke_then_deploy"]).await;
    stage.ask("oar", "POST", "/rights", Some(&json!({"username": "alice", "nodes": ["node-1.test"]}))).await;
    stage.begin("restart_poll", "node-1.test", "debian12-hv", json!({})).await;
    stage.simulator.restart();
    stage.simulator.plan(&json!({}));
    stage.replay(&["restart_poll", "restart_list", "restart_node"]).await;
    stage.begin("restart_redeploy_poll", "node-1.test", "hva", json!({})).await;
    stage.until_over("restart_redeploy_poll").await;
    stage.replay(&["restart_redeploy_poll", "restart_redeploy_error"]).await;
    stage.begin("force_poll", "node-1.test", "hva", json!({"force": true})).await;
    stage.until_over("force_poll").await;
    stage.replay(&["force_poll"]).await;

    fs::remove_file(stage.simulator.files().join("gone.tgz")).unwrap();
    stage.begin("fail_gone_poll", "node-1.test", "gone", json!({})).await;
    stage.until_over("fail_gone_poll").await;
    stage.replay(&["fail_gone_poll", "fail_gone_error", "fail_gone_nodes"]).await;
    stage.image("changed.tgz", "another image");
    stage.begin("fail_changed_poll", "node-1.test", "changed", json!({})).await;
    stage.until_over("fail_changed_poll").await;
    stage.replay(&["fail_changed_poll", "fail_changed_error"]).await;
    stage.simulator.plan(&fails("node-1.test"));
    stage.begin("fail_corrupt_poll", "node-1.test", "corrupt", json!({})).await;
    stage.until_over("fail_corrupt_poll").await;
    stage.replay(&["fail_corrupt_poll", "fail_corrupt_state", "fail_corrupt_node"]).await;
    stage.begin("fail_nokernel_poll", "node-1.test", "nokernel", json!({})).await;
    stage.until_over("fail_nokernel_poll").await;
    stage.replay(&["fail_nokernel_poll", "fail_nokernel_state", "fail_nokernel_node"]).await;
    stage
}

async fn untrusted() -> Stage {
    let mut stage = Stage::new(&UNTRUSTED);
    stage.replay(&["auth_untrusted"]).await;
    stage
}

#[tokio::test]
async fn the_simulator_answers_as_the_real_one_did() {
    let (one, two, untrusted) = tokio::join!(one_cluster(), two_clusters(), untrusted());
    let stages = [one, two, untrusted];
    let differences: Vec<&String> = stages.iter().flat_map(|stage| &stage.differences).collect();
    assert!(differences.is_empty(), "{differences:#?}");
    for folder in FOLDERS {
        for entry in fs::read_dir(folder).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            let Some(name) = file.strip_suffix(".http") else { continue };
            let replayed = stages.iter().any(|stage| stage.replayed.contains(name));
            assert!(replayed != NOT_SIMULATED.contains(&name), "{name}: replayed {replayed}");
        }
    }
}
