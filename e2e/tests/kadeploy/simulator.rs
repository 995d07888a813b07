//! A simulator of one test's own.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::raw::{Address, PREFIX};

/// The clusters and accounts of most tests, and the pace.
const USUAL: [&str; 10] = [
    "--cluster",
    "one=node-1.test,node-2.test,node-3.test",
    "--cluster",
    "two=other-1.test,other-2.test",
    "--trust",
    "127.0.0.1/32",
    "--user",
    "carol:secret",
    "--step",
    "600",
];

/// The password of the users of a simulator that has TLS.
pub(crate) const PASSWORD: &str = "s3cret";

/// A running simulator. It ends with this.
pub(crate) struct Simulator {
    directory: TempDir,
    arguments: Vec<String>,
    child: Mutex<Child>,
    pub(crate) address: Address,
}

impl Simulator {
    pub(crate) fn start() -> Self {
        Self::with(&USUAL)
    }

    /// Makes the image of its environment another one, or the first again.
    pub(crate) fn spoil(&self, spoilt: bool) {
        let image = if spoilt { "another image" } else { "an image" };
        fs::write(self.files().join("hv.tgz"), image).unwrap();
    }

    /// One with these clusters, accounts and times.
    pub(crate) fn with(arguments: &[&str]) -> Self {
        Self::begin(tempfile::tempdir().unwrap(), owned(arguments), PREFIX, None)
    }

    /// One with a certificate that it has made for itself, users with a password, and headers of another name.
    pub(crate) fn secure() -> Self {
        const OTHER_PREFIX: &str = "X-Remote-";
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap();
        let pin = format!("sha256:{:x}", Sha256::digest(certificate.der()));
        let mut arguments = owned(&USUAL);
        arguments.extend(owned(&["--prefix", OTHER_PREFIX]));
        for user in ["alice", "bob", "oar"] {
            arguments.extend(["--user".to_owned(), format!("{user}:{PASSWORD}")]);
        }
        arguments.push("--tls".to_owned());
        for (name, text) in [("tls.crt", certificate.pem()), ("tls.key", key.serialize_pem())] {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            arguments.push(path.to_str().unwrap().to_owned());
        }
        Self::begin(directory, arguments, OTHER_PREFIX, Some(pin))
    }

    fn begin(directory: TempDir, arguments: Vec<String>, prefix: &str, pin: Option<String>) -> Self {
        let (child, url) = spawn(&directory, &arguments, "127.0.0.1:0");
        let address = Address { url, prefix: prefix.to_owned(), pin };
        Self { directory, arguments, child: Mutex::new(child), address }
    }

    /// Kills it, and starts it again where it was.
    pub(crate) fn restart(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let (_, listens) = self.address.url.split_once("://").unwrap();
        let (new, url) = spawn(&self.directory, &self.arguments, listens);
        assert_eq!(url, self.address.url);
        *child = new;
    }

    /// Makes deployments of a node fail, or no longer.
    pub(crate) fn break_node(&self, node: &str, broken: bool) {
        let fault = json!({node: {"does": "fail", "error": "Unreachable after the reboot"}});
        self.plan(&json!({"nodes": if broken { fault } else { json!({}) }}));
    }

    /// What goes wrong from now on.
    pub(crate) fn plan(&self, faults: &Value) {
        let (path, new) = (self.directory.path().join("faults"), self.directory.path().join("faults.new"));
        fs::write(&new, faults.to_string()).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&self) -> Option<i32> {
        self.child.lock().unwrap().wait().unwrap().code()
    }

    /// Where its files are.
    pub(crate) fn files(&self) -> PathBuf {
        self.directory.path().to_owned()
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn spawn(directory: &TempDir, arguments: &[String], listen: &str) -> (Child, String) {
    let file = |name: &str| directory.path().join(name);
    let mut child = Command::new(env!("CARGO_BIN_EXE_kadeploy-sim"))
        .args(["--dummy", "--listen", listen])
        .args(arguments)
        .arg("--state")
        .arg(file("state"))
        .arg("--faults")
        .arg(file("faults"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().to_owned())
}
