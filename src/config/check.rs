//! What a configuration must be beside well formed: checked once, when it is read, so that a mistake is
//! said at the start and not by a job. Pure.

use std::{
    path::{Component, Path},
    time::Duration,
};

use super::{AgentsConfig, Config, ImportersConfig, JobNetworkConfig, QuotaConfig, SiteConfig};
use crate::{
    driver::{
        agent::NODE_DIR,
        network::VXLAN_OVERHEAD,
        oar::{
            check_property,
            hold::{CONNECTOR, check_text},
        },
    },
    tls,
    yaml::{self, YamlError},
};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not one.
    #[error(transparent)]
    Text(#[from] YamlError),
    /// It says what cannot be.
    #[error("{0}")]
    Bounds(String),
}

/// Shortest and longest times of silence: agents look for a contact every few seconds.
const ISOLATION: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));
/// Shortest and longest times a hold waits for its agents.
const AGENT_WAIT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(24 * 3600));
/// Shortest and longest times that images stay which nothing names: what comes from a claim is only named once all of
/// its import is done.
const IMAGE_GRACE: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(365 * 24 * 3600));
/// Smallest quota, in MiB: three generations of the smallest guest.
const LEAST_QUOTA: u64 = 96;
/// Least room of an importer, in MiB: what the smallest systems need, with the archive that they come in.
const LEAST_SCRATCH: u64 = 1024;
/// Smallest largest packet: IPv6 needs it.
const LEAST_MTU: u16 = 1280;
/// What paths at a site and on its nodes may hold besides letters and digits.
const PATH: &str = "._/-";
/// Longest prefix of the pool of job networks: one of the smallest.
const LONGEST_POOL: u8 = 28;

impl Config {
    /// Reads a configuration and checks it.
    pub fn read(text: &str) -> Result<Self, ConfigError> {
        let config: Self = yaml::read(text)?;
        config.check().map_err(ConfigError::Bounds)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.namespace.is_empty() {
            return Err("namespace must name the operator's namespace".into());
        }
        repository_address("repository", &self.repository)?;
        self.sites.iter().try_for_each(|(name, site)| site.check(&format!("sites.{name}")))?;
        self.sites.iter().try_for_each(|(name, site)| self.agents.check_launchers(name, site))?;
        within("imageGrace", self.image_grace.into(), IMAGE_GRACE)?;
        self.agents.check()?;
        self.importers.check()?;
        self.quota.check()?;
        self.job_network.iter().try_for_each(JobNetworkConfig::check)
    }
}

pub(super) fn repository_address(field: &str, text: &str) -> Result<(), String> {
    let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    if matches!(port, Some(Ok(1..))) { Ok(()) } else { Err(format!("{field} must be host:port, not {text:?}")) }
}

pub(super) fn within(field: &str, value: Duration, (least, most): (Duration, Duration)) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let (least, most, value) = (least.as_secs(), most.as_secs(), value.as_secs());
    Err(format!("{field} must be between {least}s and {most}s, not {value}s"))
}

/// Certificates that are to be trusted must be some.
pub(super) fn authorities(field: &str, pem: Option<&str>) -> Result<(), String> {
    let read = pem.map(tls::authorities).transpose();
    read.map(drop).map_err(|error| format!("{field} must be one or more certificates, PEM: {error}"))
}

/// Whether a path is one of something in a directory.
fn is_below(path: &str, directory: &str) -> bool {
    let rest = Path::new(path).strip_prefix(directory).map(|rest| rest.components().collect::<Vec<_>>());
    rest.is_ok_and(|rest| !rest.is_empty() && rest.iter().all(|part| matches!(part, Component::Normal(_))))
}

impl SiteConfig {
    fn check(&self, field: &str) -> Result<(), String> {
        if !(self.url.starts_with("http://") || self.url.starts_with("https://")) {
            return Err(format!("{field}.url must begin with http:// or https://, not {:?}", self.url));
        }
        authorities(&format!("{field}.ca"), self.ca.as_deref())?;
        let texts = [
            ("connector", Some(&self.connector), CONNECTOR),
            ("directory", self.directory.as_ref(), PATH),
            ("leaseRoot", Some(&self.lease_root), PATH),
        ];
        texts.into_iter().try_for_each(|(what, text, allowed)| {
            let checked = text.map_or(Ok(()), |text| check_text(what, text, allowed));
            checked.map_err(|error| format!("{field}.{what}: {error}"))
        })?;
        if !is_below(&self.lease_root, NODE_DIR) {
            return Err(format!(
                "{field}.leaseRoot must be below {NODE_DIR}, which agents' pods mount, not {:?}",
                self.lease_root
            ));
        }
        let default = self.default_account.iter().map(|account| ("defaultAccount".to_owned(), &account.user));
        let users = self.users.iter().map(|(namespace, user)| (format!("users.{namespace}"), user));
        if let Some((what, user)) = users.chain(default).find(|(_, user)| !self.uids.contains_key(*user)) {
            return Err(format!(
                "{field}.uids must have the numeric id on the nodes of {user:?}, whom {field}.{what} names"
            ));
        }
        within(&format!("{field}.isolation"), self.isolation.into(), ISOLATION)?;
        within(&format!("{field}.agentWait"), self.agent_wait.into(), AGENT_WAIT)?;
        if self.max_memory.is_some_and(|most| most.as_mebibytes() < 32) {
            return Err(format!("{field}.maxMemory must be at least 32Mi: no guest has less"));
        }
        self.kadeploy.iter().try_for_each(|kadeploy| kadeploy.check(&format!("{field}.kadeploy")))?;
        self.launch.iter().try_for_each(|launch| launch.check(&format!("{field}.launch")))?;
        let models = self.properties.cpu_models.iter();
        let models = models.map(|(model, property)| (format!("{field}.properties.cpuModels.{model}"), property));
        let kvm = self.properties.kvm.iter().map(|property| (format!("{field}.properties.kvm"), property));
        kvm.chain(models).try_for_each(|(field, property)| {
            check_property(property).map_err(|error| format!("{field}, {property:?}: {error}"))
        })
    }
}

impl QuotaConfig {
    fn check(&self) -> Result<(), String> {
        let named = self.namespaces.iter().map(|(name, bytes)| (format!("quota.namespaces.{name}"), bytes));
        let mut all = named.chain(self.default.iter().map(|bytes| ("quota.default".to_owned(), bytes)));
        match all.find(|(_, bytes)| bytes.as_mebibytes() < LEAST_QUOTA) {
            Some((field, bytes)) => Err(format!("{field} must be at least {LEAST_QUOTA}Mi, not {bytes}: no job fits")),
            None => Ok(()),
        }
    }
}

impl ImportersConfig {
    fn check(&self) -> Result<(), String> {
        if self.scratch.as_mebibytes() < LEAST_SCRATCH {
            return Err(format!("importers.scratch must be at least {LEAST_SCRATCH}Mi, not {}", self.scratch));
        }
        authorities("importers.ca", self.ca.as_deref())
    }
}

impl AgentsConfig {
    /// On a node they have one port each.
    fn check_launchers(&self, name: &str, site: &SiteConfig) -> Result<(), String> {
        let Some(launch) = &site.launch else { return Ok(()) };
        let (port, first) = (u32::from(launch.port), u32::from(self.port_first));
        if (first..first + 2 * u32::from(self.port_count)).contains(&port) {
            return Err(format!("sites.{name}.launch.port, {port}, is one of the agents': see agents.portFirst"));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        // as many again for the ways in
        let last = u32::from(self.port_first) + (2 * u32::from(self.port_count)).saturating_sub(1);
        if self.port_first < 1024 || self.port_count == 0 || last > u32::from(u16::MAX) {
            return Err(format!(
                "agents.portFirst and twice agents.portCount must give ports from 1024 to 65535, not twice {} from {} on",
                self.port_count, self.port_first
            ));
        }
        if self.shared_images.as_ref().is_some_and(|shared| shared.claim.is_empty()) {
            return Err("agents.sharedImages.claim must name a PersistentVolumeClaim".into());
        }
        if self.image.is_empty() {
            return Err("agents.image must name a container image".into());
        }
        if !matches!(self.image_pull_policy.as_str(), "Always" | "IfNotPresent" | "Never") {
            return Err(format!(
                "agents.imagePullPolicy must be Always, IfNotPresent or Never, not {:?}",
                self.image_pull_policy
            ));
        }
        if self.image_pull_secrets.iter().any(|secret| secret.name.is_empty()) {
            return Err("agents.imagePullSecrets must name Secrets, each as {name: ...}".into());
        }
        if self.milli_cpu_per_cpu == 0 {
            return Err("agents.milliCpuPerCpu must be more than 0: guests would not run".into());
        }
        Ok(())
    }
}

impl JobNetworkConfig {
    fn check(&self) -> Result<(), String> {
        let most = u16::MAX - VXLAN_OVERHEAD;
        if !(LEAST_MTU..=most).contains(&self.mtu) {
            return Err(format!("jobNetwork.mtu must be between {LEAST_MTU} and {most}, not {}", self.mtu));
        }
        if self.port == 0 {
            return Err("jobNetwork.port must not be 0".into());
        }
        if self.pool.prefix_len() > LONGEST_POOL {
            return Err(format!("jobNetwork.pool must be a /{LONGEST_POOL} or larger, not {}", self.pool));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const GOOD: &str = r"
namespace: vmdeploy-system
repository: repository.vmdeploy-system:7700
agents: {image: 'registry.example/vmdeploy:1', portFirst: 17700, portCount: 64}
jobNetwork: {pool: 198.18.0.0/15, port: 14789, mtu: 1450}
sites:
  rennes: {kind: oar2, url: 'http://oar.example:6668/oarapi', uids: {oar: 1000}, isolation: 2m, agentWait: 5m}
";

    #[test]
    fn what_is_right_is_read() {
        Config::read(GOOD).unwrap();
        assert!(matches!(Config::read("sites: 1"), Err(ConfigError::Text(_))));
    }

    #[test]
    fn authorities_may_be_several() {
        let authority = || crate::tls::Authority::create(jiff::Timestamp::now()).unwrap().certificate;
        let importers = serde_json::json!({"ca": authority() + &authority()});
        let config = Config::read(&format!("{GOOD}importers: {importers}\n")).unwrap();
        assert_eq!(config.importers.ca.as_deref(), importers["ca"].as_str());
    }

    #[test]
    fn the_chart_takes_no_ports_that_are_refused_here() {
        let schema = include_str!("../../charts/vmdeploy/values.schema.json");
        let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
        let bound =
            |name: &str, which: &str| schema["properties"]["agents"]["properties"][name][which].as_u64().unwrap();
        let read = |first: u64, count: u64| {
            Config::read(
                &GOOD.replace("portFirst: 17700, portCount: 64", &format!("portFirst: {first}, portCount: {count}")),
            )
        };
        let (least, least_count) = (bound("portFirst", "minimum"), bound("portCount", "minimum"));
        let (most, most_count) = (bound("portFirst", "maximum"), bound("portCount", "maximum"));
        for (first, count) in [(least, least_count), (least, most_count), (most, least_count), (most, most_count)] {
            assert!(read(first, count).is_ok(), "{first} {count}");
        }
        // and the bounds are no narrower than they need be
        assert!(read(most + 1, most_count).is_err() && read(least - 1, 1).is_err());
    }

    #[rstest]
    #[case::no_port("vmdeploy-system:7700", "vmdeploy-system", "repository must be host:port")]
    #[case::no_namespace("namespace: vmdeploy-system", "namespace: ''", "namespace must name")]
    #[case::too_many_ports("portCount: 64", "portCount: 60000", "not twice 60000 from 17700 on")]
    #[case::no_ports("portCount: 64", "portCount: 0", "agents.portCount")]
    #[case::a_port_of_root("portFirst: 17700", "portFirst: 80", "from 1024 to 65535")]
    #[case::pull("portCount: 64", "imagePullPolicy: Sometimes", "Always, IfNotPresent or Never")]
    #[case::no_login("portCount: 64", "imagePullSecrets: [{name: ''}]", "agents.imagePullSecrets must name")]
    #[case::no_time("portCount: 64", "milliCpuPerCpu: 0", "would not run")]
    #[case::small_pool("198.18.0.0/15", "198.18.0.0/30", "must be a /28 or larger")]
    #[case::small_packets("mtu: 1450", "mtu: 100", "between 1280 and 65485, not 100")]
    #[case::network_port("port: 14789", "port: 0", "jobNetwork.port")]
    #[case::url("http://oar.example", "oar.example", "sites.rennes.url must begin with http://")]
    #[case::authority("isolation: 2m", "ca: /etc/ca.crt", "sites.rennes.ca must be one or more certificates, PEM")]
    #[case::deployments_authority(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', ca: ''}",
        "sites.rennes.kadeploy.ca must be one or more certificates, PEM"
    )]
    #[case::importers_authority(
        "agents:",
        "importers: {ca: ca.crt}\nagents:",
        "importers.ca must be one or more certificates, PEM: not a usable certificate or key: no certificate in it"
    )]
    #[case::half_an_authority(
        "agents:",
        "importers: {ca: '-----BEGIN CERTIFICATE-----'}\nagents:",
        "importers.ca must be one or more certificates, PEM"
    )]
    #[case::at_once("isolation: 2m", "isolation: 1s", "sites.rennes.isolation must be between 5s and 3600s, not 1s")]
    #[case::for_ever("agentWait: 5m", "agentWait: 48h", "sites.rennes.agentWait")]
    #[case::lease_root("isolation: 2m", "leaseRoot: leases", "leaseRoot must be below /var/lib/vmdeploy, which")]
    #[case::lease_elsewhere("isolation: 2m", "leaseRoot: /srv/leases", "not \"/srv/leases\"")]
    #[case::lease_beside("isolation: 2m", "leaseRoot: /var/lib/vmdeploy/../x", "leaseRoot must be below")]
    #[case::lease_of_all("isolation: 2m", "leaseRoot: /var/lib/vmdeploy/", "leaseRoot must be below")]
    #[case::lease_text("isolation: 2m", "leaseRoot: '/var/lib/vmdeploy/$x'", "may hold only letters, digits and ._/-")]
    #[case::connects("isolation: 2m", "connector: 'oarsh;id'", "rennes.connector: connector \"oarsh;id\" may hold")]
    #[case::directory("isolation: 2m", "directory: '~alice'", "rennes.directory: directory \"~alice\" may hold only")]
    #[case::no_id("isolation: 2m", "users: {team: alice}", "\"alice\", whom sites.rennes.users.team names")]
    #[case::no_id_of_all("isolation: 2m", "defaultAccount: {user: x}", "\"x\", whom sites.rennes.defaultAccount names")]
    #[case::memory("isolation: 2m", "maxMemory: 1Mi", "sites.rennes.maxMemory")]
    #[case::property(
        "isolation: 2m",
        "properties: {kvm: 'f(1)'}",
        "sites.rennes.properties.kvm, \"f(1)\": property may"
    )]
    #[case::deployment(
        "isolation: 2m",
        "kadeploy: {url: 'kadeploy:25300'}",
        "sites.rennes.kadeploy.url must begin with http"
    )]
    #[case::pin(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', pin: 'sha256:1'}",
        "kadeploy.pin must be sha256: and 64"
    )]
    #[case::two_trusts("isolation: 2m", "kadeploy: {url: 'https://k', pin: x, ca: y}", "takes ca or pin, not both")]
    #[case::header(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', headerPrefix: 'X: '}",
        "kadeploy.headerPrefix may hold letters"
    )]
    #[case::program(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', partitionField: timeout_reboot_kexec}",
        "kadeploy.partitionField must be the name of the field"
    )]
    #[case::partition("isolation: 2m", "kadeploy: {url: 'https://k', partition: 'a b'}", "kadeploy.partition may hold")]
    #[case::keys(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', keys: '/home/{user}/keys'}",
        "kadeploy.keys: the address of the ssh keys must be"
    )]
    #[case::connector(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', connector: 'ssh;id'}",
        "kadeploy.connector: connector \"ssh;id\" may hold only letters, digits, blanks and ._/-="
    )]
    #[case::files(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', files: {'/grid5000/': 'https://f/'}}",
        "sites.rennes.kadeploy.files: \"/grid5000/\" must begin with server:///"
    )]
    #[case::part_of_a_name(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', files: {'server:///grid5000': 'https://f/'}}",
        "\"server:///grid5000\" must begin with server:/// and end with /"
    )]
    #[case::upwards(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', files: {'server:///../': 'https://f/'}}",
        "with plain names between them"
    )]
    #[case::no_web(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', files: {'server:///a/': 'ftp://f/'}}",
        "kadeploy.files: what \"server:///a/\" is on the web must begin with http:// or https://"
    )]
    #[case::no_directory(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', files: {'server:///a/': 'https://f/a'}}",
        "and end with /, and have no user"
    )]
    #[case::no_host(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', files: {'server:///a/': 'https:///a/'}}",
        "on the web must begin with http"
    )]
    #[case::password(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', files: {'server:///a/': 'https://alice:s3cret@f/'}}",
        "no user, query or fragment"
    )]
    #[case::wait(
        "isolation: 2m",
        "kadeploy: {url: 'https://k', wait: 1s}",
        "kadeploy.wait must be between 10s and 86400s, not 1s"
    )]
    #[case::launcher("isolation: 2m", "launch: {command: 'sudo vmdeploy; id'}", "launch.command: command \"sudo")]
    #[case::key("isolation: 2m", "launch: {command: vmdeploy, keyFile: '$HOME/key'}", "launch.keyFile: keyFile")]
    #[case::launchers("isolation: 2m", "launch: {command: vmdeploy, port: 80}", "launch.port must be from 1024")]
    #[case::launchers_and_agents(
        "isolation: 2m",
        "launch: {command: vmdeploy, port: 17827}",
        "launch.port, 17827, is one of the agents'"
    )]
    #[case::no_secret("isolation: 2m", "launch: {command: vmdeploy, secret: ''}", "launch.secret must name a Secret")]
    #[case::seen_from_there(
        "isolation: 2m",
        "launch: {command: vmdeploy, repository: here}",
        "launch.repository must be host:port, not \"here\""
    )]
    #[case::shared("agents: {", "agents: {sharedImages: {claim: ''}, ", "sharedImages.claim must name")]
    #[case::quota("agents:", "quota: {default: 1Mi}\nagents:", "quota.default must be at least 96Mi, not 1Mi")]
    #[case::scratch(
        "agents:",
        "importers: {scratch: 1Mi}\nagents:",
        "importers.scratch must be at least 1024Mi, not 1Mi"
    )]
    #[case::quota_of_one("agents:", "quota: {namespaces: {team-a: 0}}\nagents:", "quota.namespaces.team-a")]
    #[case::of_a_model("isolation: 2m", "properties: {cpuModels: {x: 'a;b'}}", "properties.cpuModels.x")]
    fn what_cannot_be_is_said_with_its_name(#[case] from: &str, #[case] to: &str, #[case] message: &str) {
        assert!(GOOD.contains(from));
        let error = Config::read(&GOOD.replacen(from, to, 1)).unwrap_err();
        assert!(matches!(&error, ConfigError::Bounds(_)), "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
}
