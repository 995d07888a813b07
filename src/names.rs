//! Names and numbers that travel between processes: newtypes, and the deterministic names derived
//! from a job.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
    };
}

text_name!(
    /// Id of a slot at its site (OAR: the job id).
    SlotId
);
text_name!(
    /// Name of a node in Kubernetes.
    NodeName
);
text_name!(
    /// Uid of a BestEffortJob.
    JobUid
);

impl JobUid {
    /// The first eight characters without hyphens: part of names that people read.
    pub fn short(&self) -> String {
        self.0.chars().filter(char::is_ascii_alphanumeric).take(8).collect()
    }
}

/// Number of an incarnation: one coherent start or restore of a job.
pub type Incarnation = u32;
/// Number of a generation: one coherent cut of a job.
pub type Generation = u32;
/// Index of a member.
pub type MemberIndex = u32;

/// A hardware address, written `02:00:00:00:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.map(|byte| format!("{byte:02x}"));
        f.write_str(&bytes.join(":"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no hardware address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no hardware address")]
pub struct NotAMac(pub String);

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
            .collect();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| NotAMac(text.into()))
    }
}

/// The prefix of the names of a job's slots at the site.
pub fn slot_name_prefix(job: &JobUid) -> String {
    format!("vmdeploy-{}-", job.short())
}

/// The name of a submission at the site; only characters that are safe in OAR's SQL and shells.
pub fn slot_name(job: &JobUid, submission: u32) -> String {
    format!("{}{submission}", slot_name_prefix(job))
}

/// The submission number in a slot's name, if it is one of the job's.
pub fn submission_of(job: &JobUid, name: &str) -> Option<u32> {
    name.strip_prefix(&slot_name_prefix(job))?.parse().ok()
}

/// The name of a member's agent pod in the operator's namespace.
pub fn agent_pod_name(job: &JobUid, member: MemberIndex, incarnation: Incarnation) -> String {
    format!("{}{member}-{incarnation}", agent_prefix(job))
}

/// How the names of all agents of a job begin.
pub fn agent_prefix(job: &JobUid) -> String {
    format!("agent-{}-", job.short())
}

/// The name of the Snapshot object of a generation the operator takes by itself. The part of the uid
/// tells it from one that an earlier job of the same name has left behind.
pub fn snapshot_name(job: &str, uid: &JobUid, generation: Generation) -> String {
    let job: String = job.chars().take(230).collect();
    format!("{}-{}-{generation}", job.trim_end_matches(['.', '-']), uid.short())
}

/// Name of the lease directory of a slot on a node.
pub fn lease_directory(job: &JobUid, slot: &SlotId) -> String {
    format!("{}-{slot}", job.short())
}

/// Who a certificate speaks for. Written as a DNS name in the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The operator.
    Operator,
    /// The transfer controller.
    Kget,
    /// The repository.
    Repository,
    /// An importer of an image.
    Importer,
    /// What starts agents on a node that has no kubelet.
    Launcher,
    /// The agent of one member of one incarnation of a job.
    Agent {
        /// Uid of the job.
        job: JobUid,
        /// The member.
        member: MemberIndex,
        /// The incarnation.
        incarnation: Incarnation,
    },
}

/// The domain of the names in our certificates; resolved by nobody.
const DOMAIN: &str = "vmdeploy.internal";

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => write!(f, "operator.{DOMAIN}"),
            Self::Kget => write!(f, "kget.{DOMAIN}"),
            Self::Repository => write!(f, "repository.{DOMAIN}"),
            Self::Importer => write!(f, "importer.{DOMAIN}"),
            Self::Launcher => write!(f, "launcher.{DOMAIN}"),
            Self::Agent { job, member, incarnation } => {
                write!(f, "i{incarnation}.m{member}.j{job}.agent.{DOMAIN}")
            }
        }
    }
}

/// A name that belongs to nobody of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} names no part of vmdeploy")]
pub struct UnknownIdentity(pub String);

impl FromStr for Identity {
    type Err = UnknownIdentity;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let wrong = || UnknownIdentity(name.into());
        let local = name.strip_suffix(DOMAIN).and_then(|n| n.strip_suffix('.')).ok_or_else(wrong)?;
        let parts: Vec<&str> = local.split('.').collect();
        match parts.as_slice() {
            ["operator"] => Ok(Self::Operator),
            ["kget"] => Ok(Self::Kget),
            ["repository"] => Ok(Self::Repository),
            ["importer"] => Ok(Self::Importer),
            ["launcher"] => Ok(Self::Launcher),
            [incarnation, member, job, "agent"] => Ok(Self::Agent {
                incarnation: number(incarnation, 'i').ok_or_else(wrong)?,
                member: number(member, 'm').ok_or_else(wrong)?,
                job: JobUid(job.strip_prefix('j').ok_or_else(wrong)?.into()),
            }),
            _ => Err(wrong()),
        }
    }
}

fn number(text: &str, mark: char) -> Option<u32> {
    text.strip_prefix(mark)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid() -> JobUid {
        "3f2b8a10-9c1d-4e5f-8a7b-112233445566".into()
    }

    #[test]
    fn slot_names_are_found_again() {
        let name = slot_name(&uid(), 7);
        assert_eq!(name, "vmdeploy-3f2b8a10-7");
        assert_eq!(submission_of(&uid(), &name), Some(7));
        assert_eq!(submission_of(&"ffffffff-0".into(), &name), None);
        assert_eq!(submission_of(&uid(), "vmdeploy-3f2b8a10-x"), None);
    }

    #[test]
    fn b12_snapshots_of_two_jobs_of_one_name_have_different_names() {
        assert_eq!(snapshot_name("pi", &uid(), 7), "pi-3f2b8a10-7");
        assert_ne!(snapshot_name("pi", &uid(), 7), snapshot_name("pi", &"ffffffff-0".into(), 7));
        let long = snapshot_name(&format!("{}.{}", "a".repeat(229), "b".repeat(23)), &uid(), u32::MAX);
        assert!(long.len() <= 253 && long.starts_with(&format!("{}-3f2b", "a".repeat(229))), "{long}");
    }

    #[test]
    fn identities_survive_writing_and_reading() {
        let all = [
            Identity::Operator,
            Identity::Kget,
            Identity::Repository,
            Identity::Importer,
            Identity::Launcher,
            Identity::Agent { job: uid(), member: 3, incarnation: 12 },
        ];
        for identity in all {
            assert_eq!(identity.to_string().parse(), Ok(identity));
        }
        for wrong in [
            "",
            "operator",
            "x.vmdeploy.internal",
            "i1.m1.agent.vmdeploy.internal",
            "i-1.m1.jx.agent.vmdeploy.internal",
        ] {
            assert!(wrong.parse::<Identity>().is_err());
        }
    }
}
