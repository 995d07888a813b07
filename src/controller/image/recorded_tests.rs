use std::sync::Arc;

use jiff::Timestamp;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::{
    clock::Clock,
    driver::{
        cluster::fake::FakeCluster,
        kadeploy::{
            Kadeploy,
            fake::{FakeKadeploy, Outage},
        },
    },
};

/// One server at one site, for one account.
struct OneServer(FakeKadeploy, Credentials);

/// The server for the account that the site gives the namespace.
fn given(server: FakeKadeploy) -> OneServer {
    OneServer(server, Credentials::Header { user: "alice".into() })
}

fn cluster() -> FakeCluster {
    FakeCluster::new(Clock::manual(Timestamp::UNIX_EPOCH))
}

impl Deployers for OneServer {
    fn account(&self, site: &str, credentials: &Credentials) -> Result<Arc<dyn Kadeploy>, KadeployError> {
        assert_eq!((site, credentials), ("rennes", &self.1));
        Ok(Arc::new(self.0.clone()))
    }
}

fn config() -> Config {
    let site = json!({"kind": "oar2", "url": "http://oar", "uids": {"alice": 1001}, "users": {"team": "alice"}});
    let mut deploying = site.clone();
    deploying["kadeploy"] = json!({"url": "http://kadeploy:25300"});
    serde_json::from_value(json!({
        "sites": {"bare": site, "rennes": deploying},
        "namespace": "vmdeploy", "repository": "x:1", "agents": {"image": "x"},
    }))
    .unwrap()
}

fn server() -> FakeKadeploy {
    let server = FakeKadeploy::new(Clock::manual(Timestamp::UNIX_EPOCH), &[]);
    for (name, user, version) in [("debian12-min", "deploy", 1), ("debian12-min", "deploy", 3), ("hv", "bob", 2)] {
        let environment = json!({
            "name": name, "user": user, "version": version, "arch": "x86_64", "visibility": "public",
            "image": {"file": format!("http://files.example/{name}-{version}.tgz"), "kind": "tar", "compression": "gzip"},
        });
        server.add_environment(serde_json::from_value(environment).unwrap());
    }
    server
}

fn source(source: Value) -> EnvironmentSource {
    serde_json::from_value(source).unwrap()
}

#[rstest]
#[case::newest_public_one(json!({"site": "rennes", "name": "debian12-min"}), Some(3))]
#[case::of_a_version(json!({"site": "rennes", "name": "debian12-min", "version": 1}), Some(1))]
#[case::of_a_user(json!({"site": "rennes", "name": "hv", "user": "bob"}), Some(2))]
#[tokio::test]
async fn a_name_stands_for_what_the_server_has(#[case] asked: Value, #[case] version: Option<u64>) {
    let looked = look_up(&source(asked.clone()), "team", &config(), &cluster(), &given(server())).await;
    let Looked::Found(found) = looked else { panic!("{looked:?}") };
    assert_eq!((found.name.as_str(), found.version), (asked["name"].as_str().unwrap(), version));
    let read = Environment::from_yaml(&found.description).unwrap();
    assert_eq!((read.id().user, read.version), (found.user, version));
    assert_eq!(read.other["arch"], "x86_64", "nothing of it is lost");
}

#[rstest]
#[case::site("nowhere", "team", "x", TroubleKind::Site, false, "may be: bare, rennes")]
#[case::server("bare", "team", "x", TroubleKind::Site, false, "sites.bare.kadeploy")]
#[case::account("rennes", "other", "x", TroubleKind::LoginMissing, true, "gives namespace other no account")]
#[case::environment("rennes", "team", "x", TroubleKind::Environment, true, "correct name, user and version")]
#[case::name("rennes", "team", "-x", TroubleKind::Unusable, false, "must begin with a letter")]
#[tokio::test]
async fn what_cannot_be_had_says_what_to_change(
    #[case] site: &str,
    #[case] namespace: &str,
    #[case] name: &str,
    #[case] kind: TroubleKind,
    #[case] again: bool,
    #[case] words: &str,
) {
    let asked = source(json!({"site": site, "name": name}));
    let looked = look_up(&asked, namespace, &config(), &cluster(), &given(server())).await;
    let Looked::Wrong(trouble) = looked else { panic!("{looked:?}") };
    assert_eq!((trouble.kind, trouble.again), (kind, again), "{trouble}");
    assert!(trouble.message.contains(words), "{trouble}");
}

#[tokio::test]
async fn silence_says_nothing_of_what_is_there() {
    let server = server();
    server.set_outage(Outage::All);
    let asked = source(json!({"site": "rennes", "name": "x"}));
    let looked = look_up(&asked, "team", &config(), &cluster(), &given(server)).await;
    assert!(matches!(&looked, Looked::Silent(why) if why.contains("x at site rennes")), "{looked:?}");
}

#[tokio::test]
async fn the_account_may_be_one_of_the_namespaces_own() {
    let asked = source(json!({"site": "rennes", "name": "hv", "credentials": {"name": "bob"}}));
    let cluster = cluster();
    let account = Credentials::Basic { username: "bob".into(), password: "s3cret".into() };
    let server = OneServer(server(), account);
    let looked = look_up(&asked, "other", &config(), &cluster, &server).await;
    assert!(matches!(&looked, Looked::Wrong(trouble) if trouble.message.contains("no Secret bob")), "{looked:?}");
    // "bob" and "s3cret" in base64
    let secret = json!({"metadata": {"name": "bob", "namespace": "other"}, "data": {"username": "Ym9i", "password": "czNjcmV0"}});
    cluster.put_secret(serde_json::from_value(secret).unwrap());
    let looked = look_up(&asked, "other", &config(), &cluster, &server).await;
    assert!(matches!(looked, Looked::Found(_)), "{looked:?}");
}

/// What is found of an environment with this file, where the site has some of its server's on the web.
async fn looked(file: &str, more: Value) -> Looked {
    let mut config = config();
    let kadeploy = config.sites.get_mut("rennes").unwrap().kadeploy.as_mut().unwrap();
    kadeploy.files = [("server:///grid5000/".to_owned(), "https://files.example/g5k/".to_owned())].into();
    let server = FakeKadeploy::new(Clock::manual(Timestamp::UNIX_EPOCH), &[]);
    let environment = json!({
        "name": "std", "user": "deploy", "version": 1, "visibility": "public",
        "image": {"file": file, "kind": "tar", "compression": "gzip"},
    });
    server.add_environment(serde_json::from_value(environment).unwrap());
    let mut asked = json!({"site": "rennes", "name": "std"});
    for (field, value) in more.as_object().unwrap() {
        asked[field] = value.clone();
    }
    look_up(&source(asked), "team", &config, &cluster(), &given(server)).await
}

#[rstest]
#[case::on_the_server("server:///grid5000/images/std.tgz", json!({}), Some("https://files.example/g5k/images/std.tgz"))]
#[case::nobody_says("server:///home/std.tgz", json!({}), None)]
#[case::on_the_web("https://mine.example/std.tgz", json!({}), None)]
#[case::on_a_claim("server:///grid5000/std.tgz", json!({"claim": {"name": "images", "path": "std.tgz"}}), None)]
#[case::the_users_own(
    "server:///grid5000/../std.tgz",
    json!({"http": {"url": "https://mine.example/std.tgz", "digest": "sha256:0"}}),
    None
)]
#[tokio::test]
async fn a_file_of_the_server_is_fetched_from_where_the_site_has_it_on_the_web(
    #[case] file: &str,
    #[case] more: Value,
    #[case] web: Option<&str>,
) {
    let looked = looked(file, more).await;
    let Looked::Found(found) = looked else { panic!("{looked:?}") };
    let read = Environment::from_yaml(&found.description).unwrap();
    assert_eq!(read.image.file, web.unwrap_or(file));
    let was = format!("# image.file was {file}; sites.rennes.kadeploy.files says");
    assert_eq!(found.description.starts_with(&was), web.is_some(), "{}", found.description);
}

#[tokio::test]
async fn a_path_that_leads_upwards_is_none_on_the_web() {
    let looked = looked("server:///grid5000/../etc/std.tgz", json!({})).await;
    let Looked::Wrong(trouble) = looked else { panic!("{looked:?}") };
    assert_eq!((trouble.kind, trouble.again), (TroubleKind::Unusable, false), "{trouble}");
    for words in ["std at site rennes", "server:///grid5000/../etc/std.tgz", "none of them . or ..", "http or claim"] {
        assert!(trouble.message.contains(words), "{trouble}");
    }
}
