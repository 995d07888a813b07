//! `/environments`: descriptions of systems, and the files they name.

use std::{fs, time::Duration};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    reply::{Answer, Refusal, json},
    server::State,
    store::{Kept, Recorded},
};

/// What is kept of a description; all else is dropped without a word.
const FIELDS: [&str; 15] = [
    "name",
    "version",
    "description",
    "author",
    "visibility",
    "destructive",
    "os",
    "image",
    "preinstall",
    "postinstalls",
    "boot",
    "filesystem",
    "partition_type",
    "multipart",
    "options",
];
const COMPRESSIONS: [&str; 3] = ["gzip", "bzip2", "xz"];

/// A description as it is kept, or what is wrong with it.
pub(crate) fn normalised(description: &Value) -> Result<Value, Refusal> {
    let wrong = |why: String| Refusal::coded(7, why);
    let Value::Object(given) = description else { return Err(wrong("the description is missing".into())) };
    let mandatory = |field: &str| wrong(format!("The field '{field}' is mandatory"));
    let mut kept: Map<String, Value> =
        FIELDS.iter().filter_map(|field| Some(((*field).to_owned(), given.get(*field)?.clone()))).collect();
    kept.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()).ok_or_else(|| mandatory("name"))?;
    let image = &given.get("image").cloned().unwrap_or_default();
    image["file"].as_str().ok_or_else(|| mandatory("image/file"))?;
    let compression = image["compression"].as_str().unwrap_or("gzip");
    if !COMPRESSIONS.contains(&compression) {
        return Err(wrong(format!(
            "Error[environment description] Invalid value '{compression}', allowed values are: 'gzip', 'bzip2' or 'xz' \
             [field: image/compression]"
        )));
    }
    let os = given.get("os").and_then(Value::as_str).unwrap_or("linux");
    if image["kind"] == "tar" {
        let boot = given.get("boot").cloned().unwrap_or_default();
        let absent = match (boot["kernel"].is_string(), given.get("filesystem").is_some_and(Value::is_string)) {
            (false, _) => Some("kernel"),
            (_, false) => Some("filesystem"),
            _ => None,
        };
        if let Some(field) = absent {
            return Err(wrong(format!("The field '{field}' is mandatory for OS {os} with the 'tar' image kind")));
        }
    }
    let version = match given.get("version") {
        None | Some(Value::Null) => Some(1),
        Some(Value::String(text)) => text.parse().ok(),
        Some(other) => other.as_u64(),
    };
    kept.insert("version".into(), json!(version.ok_or_else(|| wrong("the version is no number".into()))?));
    for (field, value) in [
        ("visibility", json!("private")),
        ("destructive", json!(false)),
        ("partition_type", json!(0)),
        ("multipart", json!(false)),
    ] {
        kept.entry(field).or_insert(value);
    }
    Ok(Value::Object(kept))
}

/// The checksum of a file that the server can fetch.
pub(crate) async fn checksum(file: &str) -> Result<String, Refusal> {
    let wrong = |why: String| Refusal::coded(5, why);
    if let Some(path) = file.strip_prefix("server://") {
        let bytes = fs::read(path).map_err(|_| wrong(format!("Unable to grab the file {path}")))?;
        return Ok(format!("{:x}", Sha256::digest(bytes)));
    }
    if !file.starts_with("http") {
        return Err(Refusal::coded(
            3,
            format!(
                "There is no way to retrieve {file} from the Kadeploy server. Consider using a server:// or a http:// URL"
            ),
        ));
    }
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build();
    let reply = match client.map(|client| client.head(file)) {
        Ok(request) => request.send().await.and_then(reqwest::Response::error_for_status),
        Err(error) => Err(error),
    };
    let reply = reply.map_err(|_| wrong(format!("Unable to grab the file {file}")))?;
    let header = |name: &str| reply.headers().get(name).and_then(|value| value.to_str().ok().map(str::to_owned));
    match (header("etag"), header("last-modified"), header("content-length")) {
        (Some(etag), Some(_), Some(_)) => Ok(etag),
        _ => Err(wrong(format!("Unable to get the checksum of {file} (undefined method `[]' for nil:NilClass)"))),
    }
}

/// What may be recorded, but for the file.
pub(crate) fn admit(kept: &Kept, admin: bool, user: &str, description: &Value) -> Result<(Value, String), Refusal> {
    let fields = normalised(description)?;
    if fields["visibility"] == "public" && !admin {
        return Err(Refusal::forbidden("Only administrators can use the \"public\" tag"));
    }
    let (name, version) = (fields["name"].as_str().unwrap_or_default(), fields["version"].as_u64().unwrap_or_default());
    if find(kept, user, name, version).is_some() {
        return Err(Refusal::coded(
            10,
            format!(
                "An environment with the name {name} and the version {version} has already been recorded for the user {user}"
            ),
        ));
    }
    let file = fields["image"]["file"].as_str().unwrap_or_default().to_owned();
    Ok((fields, file))
}

fn find(kept: &Kept, user: &str, name: &str, version: u64) -> Option<usize> {
    let same = |e: &Recorded| e.user == user && e.name() == name && e.version() == version;
    kept.environments.iter().position(same)
}

/// The newest version of a user's environment, or this one.
pub(crate) fn newest<'a>(kept: &'a Kept, user: &str, name: &str, version: Option<u64>) -> Option<&'a Recorded> {
    let matches = |e: &&Recorded| e.user == user && e.name() == name && version.is_none_or(|v| e.version() == v);
    kept.environments.iter().filter(matches).max_by_key(|e| e.version())
}

/// What a list is asked for.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pub(crate) name: Option<String>,
    pub(crate) username: Option<String>,
    pub(crate) version: Option<u64>,
    pub(crate) last: bool,
}

/// `GET /environments`.
pub(crate) fn list(kept: &Kept, asking: &str, query: &Query) -> Answer {
    let visible = |e: &&Recorded| match &query.username {
        Some(user) => e.user == *user && (e.user == asking || e.fields["visibility"] != "private"),
        None => e.user == asking || e.is_public(),
    };
    let wanted = |e: &&Recorded| {
        query.name.as_deref().is_none_or(|name| e.name() == name)
            && query.version.is_none_or(|version| e.version() == version)
    };
    let all: Vec<&Recorded> = kept.environments.iter().filter(visible).filter(wanted).collect();
    let newer = |e: &Recorded| {
        all.iter().any(|other| other.user == e.user && other.name() == e.name() && other.version() > e.version())
    };
    let found: Vec<Value> = all
        .iter()
        .filter(|e| !query.last || !newer(e))
        .map(|e| {
            let mut fields = e.fields.clone();
            fields["user"] = json!(e.user);
            fields
        })
        .collect();
    if found.is_empty() && query.name.is_some() { Err(Refusal::no_record()) } else { json(&json!(found)) }
}

/// `PUT /environments/USER/NAME/VERSION`.
pub(crate) fn put(state: &mut State, path: &[&str], asking: &str, admin: bool, body: &Value) -> Answer {
    let [user, name, version] = path else { return Err(Refusal::no_record()) };
    let place = version.parse().ok().and_then(|version| find(&state.store.kept, user, name, version));
    let place = place.ok_or_else(Refusal::no_record)?;
    if !admin && asking != *user {
        return Err(Refusal::forbidden("Only administrators are allowed to modify other user's environment"));
    }
    if body["visibility"] == "public" && !admin {
        return Err(Refusal::forbidden("Only administrators can use the \"public\" tag"));
    }
    let fields = &mut state.store.kept.environments[place].fields;
    let before = fields.clone();
    if body["visibility"].is_string() {
        fields["visibility"] = body["visibility"].clone();
    }
    if body["toggle_destructive"] == true {
        fields["destructive"] = json!(before["destructive"] != true);
    }
    if *fields == before { Err(Refusal::coded(14, "")) } else { json(fields) }
}

/// `DELETE /environments/USER/NAME[/VERSION]`.
pub(crate) fn delete(state: &mut State, path: &[&str], asking: &str, admin: bool) -> Answer {
    let (user, name, version) = match path {
        [user, name] => (user, name, None),
        [user, name, version] => (user, name, Some(version.parse::<u64>().map_err(|_| Refusal::no_record())?)),
        _ => return Err(Refusal::no_record()),
    };
    let goes = |e: &Recorded| e.user == *user && e.name() == *name && version.is_none_or(|v| e.version() == v);
    let all = &mut state.store.kept.environments;
    if !all.iter().any(goes) {
        return Err(Refusal::no_record());
    }
    if !admin && asking != *user {
        return Err(Refusal::forbidden("Only administrators are allowed to delete other user's environment"));
    }
    let gone: Vec<Value> = all.iter().filter(|e| goes(e)).map(|e| e.fields.clone()).collect();
    all.retain(|e| !goes(e));
    json(&json!(gone))
}
