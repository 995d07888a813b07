//! The NoCloud seed: what a guest is told at its first boot, as a small disk.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};

/// Where guests look up names.
const HOSTS: &str = "/etc/hosts";

/// What is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Names this instance: the same for the whole life of a member.
    pub instance: String,
    /// Host name.
    pub hostname: String,
    /// Hardware address of the first network card.
    pub mac: String,
    /// The second card, in the job's network.
    pub job_network: Option<JobNetwork>,
    /// Public keys for root.
    pub ssh_keys: Vec<String>,
    /// Files: path, content.
    pub files: BTreeMap<String, String>,
}

/// What a guest is told of the job's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobNetwork {
    /// Hardware address of the card.
    pub mac: String,
    /// Address and length of the prefix.
    pub address: String,
    /// Largest packet.
    pub mtu: u16,
    /// Names and addresses of all members.
    pub members: Vec<(String, String)>,
}

impl JobNetwork {
    /// The guest's `/etc/hosts`: every member by its name, and its number.
    fn hosts(&self) -> String {
        let mut lines = vec!["127.0.0.1 localhost".to_owned(), "::1 localhost ip6-localhost ip6-loopback".to_owned()];
        let members = self.members.iter().enumerate();
        lines.extend(members.map(|(n, (name, address))| format!("{address} {name} member-{n}")));
        lines.join("\n") + "\n"
    }
}

/// A seed that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("failed to make the seed: {0}")]
pub struct SeedError(String);

impl Seed {
    /// The files of the seed. YAML is written as JSON, which it contains.
    pub fn contents(&self) -> [(&'static str, String); 3] {
        let meta = json!({ "instance-id": self.instance, "local-hostname": self.hostname });
        let file =
            |path: &str, content: &str, mode: &str| json!({ "path": path, "content": content, "permissions": mode });
        let mut files: Vec<Value> = self.files.iter().map(|(path, content)| file(path, content, "0600")).collect();
        if let Some(network) = &self.job_network
            && !self.files.contains_key(HOSTS)
        {
            files.push(file(HOSTS, &network.hosts(), "0644"));
        }
        let user = json!({
            "hostname": self.hostname,
            "disable_root": false,
            "ssh_pwauth": false,
            // no user is made, and root, whose keys these are, stays as it is
            "users": [{"name": "root", "lock_passwd": false}],
            "ssh_authorized_keys": self.ssh_keys,
            "write_files": files,
        });
        let mut ethernets = json!({
            "eth0": { "match": { "macaddress": self.mac }, "set-name": "eth0", "dhcp4": true },
        });
        if let Some(job) = &self.job_network {
            ethernets["eth1"] = json!({
                "match": { "macaddress": job.mac },
                "set-name": "eth1",
                "addresses": [job.address],
                "mtu": job.mtu,
            });
        }
        let network = json!({ "version": 2, "ethernets": ethernets });
        [
            ("meta-data", format!("{meta}\n")),
            ("user-data", format!("#cloud-config\n{user}\n")),
            ("network-config", format!("{network}\n")),
        ]
    }

    /// Writes it as a disk image to `image`, with `work` as a place for its parts.
    pub async fn write(&self, work: &Path, image: &Path) -> Result<(), SeedError> {
        let wrong = |error: std::io::Error| SeedError(error.to_string());
        tokio::fs::create_dir_all(work).await.map_err(wrong)?;
        let mut paths: Vec<PathBuf> = Vec::new();
        for (name, content) in self.contents() {
            tokio::fs::write(work.join(name), content).await.map_err(wrong)?;
            paths.push(work.join(name));
        }
        let mut command = tokio::process::Command::new("genisoimage");
        command.args(["-quiet", "-volid", "cidata", "-joliet", "-rock", "-output"]).arg(image).args(&paths);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.map_err(wrong)?;
        tokio::fs::remove_dir_all(work).await.map_err(wrong)?;
        if output.status.success() {
            Ok(())
        } else {
            Err(SeedError(String::from_utf8_lossy(&output.stderr).chars().take(300).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents() {
        let seed = Seed {
            instance: "3f2b8a10-0".into(),
            hostname: "pi-0".into(),
            mac: "52:54:00:00:00:01".into(),
            job_network: Some(JobNetwork {
                mac: "02:76:c6:12:03:01".into(),
                address: "198.18.3.1/28".into(),
                mtu: 1450,
                members: vec![("pi-0".into(), "198.18.3.1".into()), ("pi-1".into(), "198.18.3.2".into())],
            }),
            ssh_keys: vec!["ssh-ed25519 AAAA alice".into()],
            files: BTreeMap::from([("/etc/job.conf".to_owned(), "a: 'b'\n\"c\"\n".to_owned())]),
        };
        let text: Vec<String> = seed.contents().map(|(name, content)| format!("{name}:\n{content}")).into();
        insta::assert_snapshot!(text.concat());
    }
}
