//! Hands out subnets of the pool and numbers of VXLANs, without giving one to two jobs.
//!
//! What is in a job's status is taken. What was offered to a job is kept for it until it is there, or
//! for some time: two jobs that are accepted at once are offered different subnets.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ipnet::Ipv4Net;
use jiff::Timestamp;

use super::network;
use crate::{
    api::BestEffortJob,
    driver::agent::VNI_LIMIT,
    names::{Incarnation, JobUid},
};

/// An offer that is in no status by then has lapsed: the job was changed, or is gone.
const OFFER_LASTS: Duration = Duration::from_secs(600);

/// The allocator. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Networks(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    offers: BTreeMap<JobUid, (Ipv4Net, Timestamp)>,
    /// Of each job: the incarnation that has begun, and the number for the next one.
    vnis: BTreeMap<JobUid, (Incarnation, u32)>,
    next_vni: Option<u32>,
}

impl Networks {
    /// A subnet for a job, the same one when asked again; none if the pool has no room.
    pub fn subnet(
        &self,
        job: &JobUid,
        members: u32,
        pool: Ipv4Net,
        jobs: &[Arc<BestEffortJob>],
        now: Timestamp,
    ) -> Option<Ipv4Net> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lasts = |at: &Timestamp| Duration::try_from(now.duration_since(*at)).is_ok_and(|age| age < OFFER_LASTS);
        inner.offers.retain(|_, (_, at)| lasts(at));
        if let Some((offered, at)) = inner.offers.get_mut(job)
            && offered.prefix_len() == network::prefix(members)
        {
            *at = now;
            return Some(*offered);
        }
        inner.offers.remove(job);
        let mut taken: BTreeSet<Ipv4Net> = inner.offers.values().map(|(net, _)| *net).collect();
        let others = jobs.iter().filter(|other| other.metadata.uid.as_deref() != Some(job.0.as_str()));
        taken
            .extend(others.filter_map(|other| other.status.as_ref()?.network.as_ref()?.subnet.parse::<Ipv4Net>().ok()));
        let taken: Vec<Ipv4Net> = taken.into_iter().collect();
        let hash = blake3::hash(job.0.as_bytes());
        let seed = hash.as_bytes().iter().take(8).fold(0u64, |seed, byte| seed << 8 | u64::from(*byte));
        let subnet = network::free(pool, members, seed, &taken)?;
        inner.offers.insert(job.clone(), (subnet, now));
        Some(subnet)
    }

    /// A number for the VXLAN of the incarnation after this one: in no status, and offered for nothing
    /// else in this life of the operator. The count begins with the time and goes on by one for each
    /// incarnation, of which there are fewer than seconds: an operator that has just started does not
    /// repeat the numbers of the one before.
    pub fn vni(
        &self,
        job: &JobUid,
        incarnation: Incarnation,
        jobs: impl FnOnce() -> Vec<Arc<BestEffortJob>>,
        now: Timestamp,
    ) -> u32 {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, vni)) = inner.vnis.get(job).filter(|(of, _)| *of == incarnation) {
            return *vni;
        }
        let used: BTreeSet<u32> =
            jobs().iter().filter_map(|job| Some(job.status.as_ref()?.network.as_ref()?.vni)).collect();
        let started = u32::try_from(now.as_second().rem_euclid(i64::from(VNI_LIMIT))).unwrap_or_default();
        let mut vni = inner.next_vni.unwrap_or(started);
        // 0 is no number; there are far more numbers than jobs
        while vni == 0 || used.contains(&vni) {
            vni = (vni + 1) % VNI_LIMIT;
        }
        inner.next_vni = Some((vni + 1) % VNI_LIMIT);
        inner.vnis.insert(job.clone(), (incarnation, vni));
        vni
    }

    /// Forgets a job that is gone; a number that was offered to it is not offered again.
    pub fn forget(&self, job: &JobUid) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.offers.remove(job);
        inner.vnis.remove(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{BestEffortJobStatus, job_status::NetworkStatus};

    fn job(uid: &str, subnet: &str, vni: u32) -> Arc<BestEffortJob> {
        let spec = serde_json::json!({"run": {"command": ["true"]}, "slots": {"site": "rennes", "walltime": "1h"}});
        let mut job = BestEffortJob::new(uid, serde_json::from_value(spec).unwrap());
        job.metadata.uid = Some(uid.into());
        let network = NetworkStatus { subnet: subnet.into(), mtu: 1450, vni, port: 4789, way_in: None };
        job.status = Some(BestEffortJobStatus { network: Some(network), ..BestEffortJobStatus::default() });
        Arc::new(job)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn jobs_created_at_once_get_different_subnets() {
        let (networks, pool) = (Networks::default(), "198.18.0.0/26".parse().unwrap());
        let uids: Vec<JobUid> = (0..4).map(|n| JobUid(format!("uid-{n}"))).collect();
        // none of them is in a status yet
        let got: BTreeSet<_> = uids.iter().map(|uid| networks.subnet(uid, 2, pool, &[], at(1)).unwrap()).collect();
        assert_eq!(got.len(), 4);
        assert_eq!(networks.subnet(&"late".into(), 2, pool, &[], at(2)), None, "the pool is full");
        let again = networks.subnet(&uids[2], 2, pool, &[], at(3)).unwrap();
        assert!(got.contains(&again), "asked again, the same");
        // the offers lapse; what is in a status does not
        let kept = [job("uid-0", "198.18.0.0/28", 1)];
        let late = networks.subnet(&"late".into(), 2, pool, &kept, at(1000)).unwrap();
        assert_ne!(late.to_string(), "198.18.0.0/28");
    }

    #[test]
    fn a1_no_number_of_a_network_comes_twice() {
        let networks = Networks::default();
        let used = [job("a", "198.18.0.0/28", 1001), job("b", "198.18.0.16/28", 1002)];
        let pi = JobUid::from("pi");
        let got: Vec<u32> = (0..3).map(|n| networks.vni(&pi, n, || used.to_vec(), at(1000))).collect();
        assert_eq!(got, [1000, 1003, 1004]);
        let wrapped = Networks::default();
        let late = at(i64::from(VNI_LIMIT) - 1);
        let got: Vec<u32> = (0..2).map(|n| wrapped.vni(&pi, n, || used.to_vec(), late)).collect();
        assert_eq!(got, [VNI_LIMIT - 1, 1]);
    }

    #[test]
    fn a1_the_next_leader_repeats_no_number() {
        let networks = Networks::default();
        let jobs: Vec<JobUid> = (0..5).map(|n| JobUid(format!("uid-{n}"))).collect();
        // many passes, and two incarnations of each, within ten seconds
        let mut before = BTreeSet::new();
        for pass in 0..1000 {
            for job in &jobs {
                before.insert(networks.vni(job, pass / 500, Vec::new, at(1000 + i64::from(pass / 100))));
            }
        }
        assert_eq!(before.len(), 10);
        let next = Networks::default();
        let after: BTreeSet<u32> = jobs.iter().map(|job| next.vni(job, 2, Vec::new, at(1010))).collect();
        assert!(before.is_disjoint(&after), "{before:?} {after:?}");
    }
}
