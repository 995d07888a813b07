//! What a job takes over from another one's generation (`restoreFrom`): the generation becomes its own
//! generation 0, so that it needs nothing of the other job any more (safety B11). Pure.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use crate::{
    api::{
        BestEffortJob,
        job::{RunSpec, VmSpec},
    },
    names::{Generation, Incarnation, JobUid},
};

/// The generation that was adopted. Captures are counted from 1.
pub const ADOPTED: Generation = 0;
/// The incarnation it belongs to: before the first one, so that the first fence ends adoptions.
pub const BEFORE: Incarnation = 0;

/// What guests know of themselves, as their job's spec and status had it. A job that starts from them must
/// be the same in all this.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestRecord {
    /// Size and shape of every virtual machine.
    pub vm: VmSpec,
    /// Digest of what runs in them.
    pub run: String,
    /// Their network, unless they had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<GuestNetwork>,
}

/// The network of the guests: their addresses and hardware addresses follow from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestNetwork {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// Largest packet.
    pub mtu: u32,
}

impl GuestRecord {
    /// What the guests of an accepted job know.
    pub fn of(job: &BestEffortJob) -> Self {
        let network = job.status.as_ref().and_then(|status| status.network.as_ref());
        Self {
            vm: job.spec.vm.clone(),
            run: run_digest(&job.spec.run),
            network: network
                .and_then(|network| Some(GuestNetwork { subnet: network.subnet.parse().ok()?, mtu: network.mtu })),
        }
    }
}

/// Tells one command with its environment from another. It may hold secrets: only this is kept of it.
pub fn run_digest(run: &RunSpec) -> String {
    // a plain structure is always written
    blake3::hash(&serde_json::to_vec(run).unwrap_or_default()).to_hex().to_string()
}

/// Where an adopted generation came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ancestor {
    /// The job.
    pub job: JobUid,
    /// Its generation.
    pub generation: Generation,
}

/// An order to adopt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Adoption {
    /// What is adopted.
    pub from: Ancestor,
    /// Name of the job that adopts it.
    pub job_name: String,
    /// The namespace of both.
    pub namespace: String,
}

impl Adoption {
    /// Whether a job's generation 0 is what is to be adopted; if not, why it is in the way.
    pub fn is(&self, own: &Manifest) -> Result<(), String> {
        if own.ancestor.as_ref() == Some(&self.from) {
            return Ok(());
        }
        Err("generation 0 was adopted from another one".into())
    }

    /// The manifest of the adopted generation, or why there can be none.
    pub fn manifest(&self, job: &JobUid, source: &Manifest) -> Result<Manifest, String> {
        if source.namespace != self.namespace {
            return Err(format!("generation {} is of another namespace", source.generation));
        }
        Ok(Manifest {
            job: job.clone(),
            job_name: self.job_name.clone(),
            generation: ADOPTED,
            incarnation: BEFORE,
            parent: None,
            ancestor: Some(self.from.clone()),
            ..source.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::tests::manifest;

    fn order() -> Adoption {
        let from = Ancestor { job: manifest(7).job, generation: 7 };
        Adoption { from, job_name: "again".into(), namespace: "alice".into() }
    }

    #[test]
    fn b11_the_adopted_generation_has_the_guests_and_the_cut_of_its_source() {
        let mut source = manifest(7);
        source.parent = Some(5);
        let made = order().manifest(&"77777777".into(), &source).unwrap();
        assert_eq!(made.check(), Ok(()));
        assert_eq!((made.job.0.as_str(), made.generation, made.incarnation, made.parent), ("77777777", 0, 0, None));
        assert_eq!((&made.members, &made.guests, &made.nonce), (&source.members, &source.guests, &source.nonce));
        assert_eq!(made.taken_at, source.taken_at);
    }

    #[test]
    fn d2_nothing_is_adopted_from_another_namespace() {
        let order = Adoption { namespace: "bob".into(), ..order() };
        assert!(order.manifest(&"77777777".into(), &manifest(7)).is_err());
    }

    #[test]
    fn the_digest_of_a_command_depends_on_all_of_it() {
        let run = |text: &str| run_digest(&serde_json::from_str(text).unwrap());
        let one = run(r#"{"command": ["a"], "env": {"X": "1"}}"#);
        assert_eq!(one, run(r#"{"command": ["a"], "env": {"X": "1"}, "members": "All"}"#));
        assert_ne!(one, run(r#"{"command": ["a"], "env": {"X": "2"}}"#));
    }
}
