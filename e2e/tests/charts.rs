//! The charts and what is rendered from them: the configuration is one the operator reads, the rights
//! are named one by one, every value is in the schema.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use e2e::agents::prepared;
use serde_json::Value;
use vmdeploy::{
    api::VmImage,
    config::{Config, SiteConfig},
    tls::Authority,
    yaml,
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| path.to_owned())
}

fn install() -> Result<Vec<Value>> {
    Ok(yaml::read_all(&read("manifests/install.yaml")?)?)
}

#[test]
fn the_rendered_configuration_is_read() -> Result<()> {
    let all = install()?;
    let map = all.iter().find(|object| object["kind"] == "ConfigMap").context("no ConfigMap")?;
    let text = map["data"]["config.yaml"].as_str().context("no config.yaml")?;
    let config = Config::read(text)?;
    ensure!(config.sites.is_empty() && config.namespace == "vmdeploy");
    ensure!(config.repository == "vmdeploy-repository.vmdeploy.svc:7443", config.repository);
    Ok(())
}

#[test]
fn the_sites_of_the_test_bed_are_read() -> Result<()> {
    let values: Value = yaml::read(&read("e2e/testbed/values.yaml")?)?;
    let sites: BTreeMap<String, SiteConfig> = serde_json::from_value(values["sites"].clone())?;
    let site = sites.get("testbed").context("no site testbed")?;
    for user in site.users.values() {
        ensure!(site.uids.contains_key(user), "{user} has no uid");
    }
    Ok(())
}

#[test]
fn rights_are_named_one_by_one() -> Result<()> {
    for role in install()?.iter().filter(|o| matches!(o["kind"].as_str(), Some("Role" | "ClusterRole"))) {
        let name = &role["metadata"]["name"];
        for rule in role["rules"].as_array().context("no rules")? {
            let text = rule.to_string();
            ensure!(!text.contains('*'), "{name}: {text}");
            let secrets = text.contains("\"secrets\"");
            // bound namespace by namespace, never for all
            let bound = name == "vmdeploy-credentials-reader" || name == "vmdeploy-claim-importer";
            ensure!(!secrets || role["kind"] == "Role" || bound, "{name}: {text}");
            ensure!(!secrets || !text.contains("\"list\"") && !text.contains("\"watch\""), "{name}: {text}");
        }
    }
    Ok(())
}

#[test]
fn every_value_is_in_the_schema() -> Result<()> {
    fn look(path: &str, value: &Value, schema: &Value) -> Result<()> {
        let properties = &schema["properties"];
        for (name, value) in value.as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            let Some(schema) = properties.get(name) else {
                ensure!(schema["additionalProperties"] != false && properties.is_null(), "{path} is not in the schema");
                continue;
            };
            look(&path, value, schema)?;
        }
        Ok(())
    }
    let values: Value = yaml::read(&read("charts/vmdeploy/values.yaml")?)?;
    let schema: Value = serde_json::from_str(&read("charts/vmdeploy/values.schema.json")?)?;
    look("values", &values, &schema)
}

/// Every metric that a panel or an alert names is one that the program has.
#[test]
fn dashboard_and_alerts_name_metrics_that_exist() -> Result<()> {
    let known = vmdeploy::metrics::Metrics::new();
    known.kills.get_or_create(&"x".into()).inc();
    known.jobs.get_or_create(&"x".into()).inc();
    known.work.get_or_create(&"x".into()).inc();
    known.bytes.get_or_create(&"x".into()).inc();
    known.show_usage(&BTreeMap::from([("x", 1)]));
    known.show_quota(&BTreeMap::from([("x", 1)]));
    known.unknown_facts.get_or_create(&"x".into()).inc();
    known.reconcile.get_or_create(&"x".into()).observe(1.0);
    let failure = vmdeploy::metrics::Failure { kind: "x".into(), reason: "x".into() };
    known.reconcile_failures.get_or_create(&failure).inc();
    known.called("x", "GET");
    let encoded = known.encode();
    for file in ["charts/vmdeploy/files/dashboard.json", "charts/vmdeploy/files/rules.yaml"] {
        let text = read(file)?;
        for part in text.split("vmdeploy_").skip(1) {
            let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
            let name = format!("vmdeploy_{}", &part[..end]);
            let sample = |line: &str| line.strip_prefix(&name).is_some_and(|rest| rest.starts_with(['{', ' ']));
            ensure!(encoded.lines().any(sample), "{file}: no metric {name}");
        }
    }
    Ok(())
}

/// The command line of the repository.
#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: vmdeploy::repository::Args,
}

#[test]
#[ignore = "needs the test bed's helm: e2e/test --e2e"]
fn the_repository_is_told_of_its_bucket() -> Result<()> {
    let values = [
        ("bucket", "jobs"),
        ("prefix", "team/production"),
        ("endpoint", "https://s3.example.org:9000"),
        ("region", "eu-west-1"),
        ("secretName", "keys"),
        ("cache", "7Gi"),
    ];
    let all = rendered(&values.map(|(name, value)| format!("repository.s3.{name}={value}")))?;
    let is_repository = |object: &&Value| object["metadata"]["name"] == "vmdeploy-repository";
    let of_kind = |kind: &str| all.iter().filter(is_repository).find(|object| object["kind"] == kind);
    let container = &of_kind("Deployment").context("no Deployment")?["spec"]["template"]["spec"]["containers"][0];
    ensure!(container["envFrom"] == serde_json::json!([{"secretRef": {"name": "keys"}}]), "{container}");
    let words = container["args"].as_array().context("no args")?.iter().filter_map(Value::as_str);
    // the first word is the name of the command
    let read = format!("{:?}", <Cli as clap::Parser>::try_parse_from(words)?.args);
    for (text, what) in [
        ("Some(\"s3://jobs/team/production\")", "bucket"),
        ("Some(\"https://s3.example.org:9000\")", "endpoint"),
        ("Some(\"eu-west-1\")", "region"),
        ("Bytes(7516192768)", "cache"),
    ] {
        ensure!(read.contains(&format!("{what}: {text}")), "no {what} {text} in {read}");
    }
    // who asks is told what is wrong with it
    ensure!(of_kind("Service").context("no Service")?["spec"]["publishNotReadyAddresses"] == true);
    Ok(())
}

#[test]
#[ignore = "needs the test bed's helm: e2e/test --e2e"]
fn bytes_may_be_numbers() -> Result<()> {
    for (written, read) in [("0", "0"), ("53687091200", "53687091200"), ("50Gi", "50Gi")] {
        let rendered = rendered(&[format!("agents.captureCache={written}")])?;
        let map = rendered.iter().find(|object| object["kind"] == "ConfigMap").context("no ConfigMap")?;
        let text = map["data"]["config.yaml"].as_str().context("no config.yaml")?;
        ensure!(text.contains(&format!("captureCache: \"{read}\"")), "{text}");
        Config::read(text)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs the test bed's helm: e2e/test --e2e"]
fn standard_images_are_offered_to_all() -> Result<()> {
    let environment = ["site=rennes", "name=debian12-min", "version=2026112700"];
    let mut settings: Vec<String> =
        environment.iter().map(|field| format!("standardImages[0].spec.source.environment.{field}")).collect();
    settings.extend(
        ["name=debian12-min", "spec.format=tar", "spec.standard=false"].map(|s| format!("standardImages[0].{s}")),
    );
    settings.extend(
        ["name=alpine", "spec.source.oci.reference=r.example/alpine:3"].map(|s| format!("standardImages[1].{s}")),
    );
    let all = rendered(&settings)?;
    let images: Vec<_> = all.into_iter().filter(|object| object["kind"] == "VmImage").collect();
    ensure!(images.len() == 2, "{images:?}");
    for image in images {
        let image: VmImage = serde_json::from_value(image)?;
        image.validate_cel().map_err(|errors| anyhow::anyhow!("{errors}"))?;
        ensure!(image.spec.standard && image.metadata.namespace.as_deref() == Some("default"), "{image:?}");
    }
    for (wrong, words) in [("name=debian", "spec"), ("name=Debian", "name"), ("spec.source.http.url=x", "name")] {
        let refused = rendered(&[format!("standardImages[0].{wrong}")]).expect_err(wrong).to_string();
        ensure!(refused.contains("standardImages") && refused.contains(words), "{wrong}: {refused}");
    }
    Ok(())
}

/// Only a site whose nodes are deployed gives the operator the right to take nodes out of the cluster.
#[test]
#[ignore = "needs the test bed's helm: e2e/test --e2e"]
fn nodes_are_removed_only_where_they_are_deployed() -> Result<()> {
    let site = ["kind=oar2", "url=http://oar", "uids.alice=1000"].map(|setting| format!("sites.rennes.{setting}"));
    let server = ["url=http://kadeploy:25300", "wait=10m", "leaseOwner=1000"];
    let server = server.map(|setting| format!("sites.rennes.kadeploy.{setting}"));
    for (settings, expected) in [(site.to_vec(), false), ([&site[..], &server[..]].concat(), true)] {
        let all = rendered(&settings)?;
        let role =
            |object: &&Value| object["kind"] == "ClusterRole" && object["metadata"]["name"] == "vmdeploy-operator";
        let rules = all.iter().find(role).context("no ClusterRole")?["rules"].as_array().context("no rules")?;
        let nodes = rules.iter().find(|rule| rule["resources"] == serde_json::json!(["nodes"])).context("no nodes")?;
        ensure!(nodes["verbs"].to_string().contains("delete") == expected, "{nodes}");
    }
    Ok(())
}

/// What deployed nodes join the cluster by is there only where they are to.
#[test]
#[ignore = "needs the test bed's helm: e2e/test --e2e"]
fn tokens_and_short_certificates_are_only_where_nodes_join_by_them() -> Result<()> {
    let site = ["kind=oar2", "url=http://oar", "uids.alice=1000", "kadeploy.url=http://kadeploy:25300"];
    let long = ["kadeploy.join.secret=launch-keys", "kadeploy.join.shortCertificates=false"];
    let cases: [(&[&str], bool, bool); 3] = [(&[], false, false), (&long[..1], true, true), (&long, true, false)];
    for (settings, joins, short) in cases {
        let settings = site.iter().chain(settings).map(|setting| format!("sites.rennes.{setting}")).collect::<Vec<_>>();
        let all = rendered(&settings)?;
        let has = |kind: &str| all.iter().any(|object| object["kind"] == kind);
        let in_tokens = all.iter().any(|object| object["metadata"]["namespace"] == "kube-system");
        ensure!(in_tokens == joins, "{settings:?}: rights in kube-system");
        ensure!(
            has("MutatingAdmissionPolicy") == short && has("MutatingAdmissionPolicyBinding") == short,
            "{settings:?}"
        );
        let map = all.iter().find(|object| object["kind"] == "ConfigMap").context("no ConfigMap")?;
        let config = Config::read(map["data"]["config.yaml"].as_str().context("no config.yaml")?)?;
        let kadeploy = config.sites["rennes"].kadeploy.clone().context("no kadeploy")?;
        ensure!(kadeploy.join.is_some_and(|join| join.short_certificates) == short, "{settings:?}");
        // what its API server cannot do is said, and what to change
        match rendered_for("1.33.0", &settings) {
            Err(error) if short => ensure!(error.to_string().contains("join.shortCertificates to false"), "{error}"),
            other => ensure!(other.is_ok() != short, "{settings:?}"),
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs the test bed's helm: e2e/test --e2e"]
fn every_setting_of_agents_can_be_set() -> Result<()> {
    let all = rendered(&["agents.sharedImages.claim=images", "imagePullSecrets[0].name=login"].map(str::to_owned))?;
    let map = all.iter().find(|object| object["kind"] == "ConfigMap").context("no ConfigMap")?;
    let told: Value = yaml::read(map["data"]["config.yaml"].as_str().context("no config.yaml")?)?;
    let config = Config::read(map["data"]["config.yaml"].as_str().context("no config.yaml")?)?;
    ensure!(config.agents.pull_secrets().is_some_and(|secrets| secrets[0].name == "login"), "agents have no login");
    let known = serde_json::to_value(config.agents)?;
    for setting in known.as_object().context("no settings")?.keys() {
        ensure!(!told["agents"][setting].is_null(), "agents.{setting} is what its default says");
    }
    Ok(())
}

#[test]
#[ignore = "needs the test bed's helm: e2e/test --e2e"]
fn authorities_of_importers_arrive_line_by_line() -> Result<()> {
    let authority = || anyhow::Ok(Authority::create(jiff::Timestamp::now())?.certificate);
    let ca = authority()? + &authority()?;
    let all = rendered(&[format!("importers.ca={ca}")])?;
    let map = all.iter().find(|object| object["kind"] == "ConfigMap").context("no ConfigMap")?;
    let config = Config::read(map["data"]["config.yaml"].as_str().context("no config.yaml")?)?;
    ensure!(config.importers.ca.as_ref() == Some(&ca), "{:?}", config.importers);
    Ok(())
}

#[test]
#[ignore = "needs the test bed's helm: e2e/test --e2e"]
fn shared_images_are_told_to_the_operator() -> Result<()> {
    for (settings, claim) in [(vec![], None), (vec!["agents.sharedImages.claim=images".to_owned()], Some("images"))] {
        let all = rendered(&settings)?;
        let map = all.iter().find(|object| object["kind"] == "ConfigMap").context("no ConfigMap")?;
        let config = Config::read(map["data"]["config.yaml"].as_str().context("no config.yaml")?)?;
        let told = config.agents.shared_images.map(|shared| shared.claim);
        ensure!(told.as_deref() == claim, "{told:?}");
    }
    Ok(())
}

/// What the chart renders with these settings.
fn rendered(settings: &[String]) -> Result<Vec<Value>> {
    rendered_for("1.36.0", settings)
}

/// The same, for a release of Kubernetes.
fn rendered_for(kubernetes: &str, settings: &[String]) -> Result<Vec<Value>> {
    let mut helm = Command::new(std::env::var_os("HELM").map_or_else(|| prepared("helm"), |helm| Ok(helm.into()))?);
    helm.args(["template", "vmdeploy"]).arg(root().join("charts/vmdeploy")).args(["--kube-version", kubernetes]);
    helm.args(settings.iter().flat_map(|setting| ["--set", setting]));
    let output = helm.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(yaml::read_all(&String::from_utf8(output.stdout)?)?)
}

#[test]
#[ignore = "needs the test bed's helm: e2e/test --e2e"]
fn manifests_are_current() -> Result<()> {
    let output = Command::new(root().join("e2e/manifests")).arg("--check").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}
