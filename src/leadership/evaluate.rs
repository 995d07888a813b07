//! Who leads: a pure decision. Expiry is judged by how long this process itself has seen a Lease
//! unchanged, never by comparing clocks of two machines.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::{api::coordination::v1::LeaseSpec, apimachinery::pkg::apis::meta::v1::MicroTime};

/// A Lease as last read, and since when this process has seen it so.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Observation {
    spec: Option<LeaseSpec>,
    since: Instant,
}

impl Observation {
    /// What was just read, given what was read before.
    pub(super) fn of(spec: Option<LeaseSpec>, before: Option<Self>, now: Instant) -> Self {
        match before {
            Some(before) if before.spec == spec => before,
            _ => Self { spec, since: now },
        }
    }
}

/// What to do about the Lease.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Nobody leads: write this.
    Take(LeaseSpec),
    /// We lead: write this.
    Renew(LeaseSpec),
    /// Somebody else leads.
    Wait,
}

/// Decides. `now` is the monotonic time for expiry, `wall` only what is written for people.
pub(super) fn evaluate(seen: &Observation, me: &str, duration: Duration, now: Instant, wall: Timestamp) -> Step {
    let Some(old) = &seen.spec else {
        // a Lease that was deleted must not make the epoch begin again below what agents have seen:
        // the minutes since 1970 are more than the changes any earlier Lease can have counted
        let first = i32::try_from(wall.as_second() / 60).unwrap_or(i32::MAX / 2);
        return Step::Take(spec(me, duration, first, wall, wall));
    };
    let transitions = old.lease_transitions.unwrap_or(0);
    let holder = old.holder_identity.as_deref().unwrap_or_default();
    let valid = Duration::from_secs(old.lease_duration_seconds.and_then(|s| s.try_into().ok()).unwrap_or(0));
    if holder == me {
        let acquired = old.acquire_time.as_ref().map_or(wall, |time| time.0);
        Step::Renew(spec(me, duration, transitions, acquired, wall))
    } else if holder.is_empty() || now.saturating_duration_since(seen.since) > valid {
        Step::Take(spec(me, duration, transitions.saturating_add(1), wall, wall))
    } else {
        Step::Wait
    }
}

/// The epoch of a leadership.
pub(super) fn epoch(spec: &LeaseSpec) -> u64 {
    spec.lease_transitions.and_then(|n| n.try_into().ok()).unwrap_or(0)
}

/// The Lease without a holder, if it is ours to give up.
pub(super) fn released(spec: LeaseSpec, me: &str) -> Option<LeaseSpec> {
    (spec.holder_identity.as_deref() == Some(me)).then_some(LeaseSpec { holder_identity: None, ..spec })
}

fn spec(me: &str, duration: Duration, transitions: i32, acquired: Timestamp, renewed: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(me.into()),
        lease_duration_seconds: i32::try_from(duration.as_secs()).ok(),
        lease_transitions: Some(transitions),
        acquire_time: Some(MicroTime(acquired)),
        renew_time: Some(MicroTime(renewed)),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(15);

    fn wall() -> Timestamp {
        "2026-11-25T12:00:00Z".parse().unwrap()
    }

    fn held(by: &str, transitions: i32) -> LeaseSpec {
        spec(by, LIMIT, transitions, wall(), wall())
    }

    /// The step after having seen `spec` unchanged for some seconds.
    fn after(spec: Option<LeaseSpec>, seconds: u64) -> Step {
        let start = Instant::now();
        let seen = Observation::of(spec, None, start);
        evaluate(&seen, "me", LIMIT, start + Duration::from_secs(seconds), wall())
    }

    #[test]
    fn a_silent_leader_is_waited_for_by_our_own_clock() {
        assert_eq!(after(Some(held("other", 4)), 0), Step::Wait);
        assert_eq!(after(Some(held("other", 4)), 15), Step::Wait);
        assert_eq!(after(Some(held("other", 4)), 16), Step::Take(held("me", 5)));
    }

    #[test]
    fn each_renewal_starts_the_wait_again() {
        let start = Instant::now();
        let first = Observation::of(Some(held("other", 4)), None, start);
        let mut renewed = held("other", 4);
        renewed.renew_time = Some(MicroTime(wall() + Duration::from_secs(2)));
        let later = start + Duration::from_secs(14);
        let second = Observation::of(Some(renewed.clone()), Some(first), later);
        assert_eq!(evaluate(&second, "me", LIMIT, later + Duration::from_secs(5), wall()), Step::Wait);
        let same = Observation::of(Some(renewed), Some(second.clone()), later + Duration::from_secs(5));
        assert_eq!(same, second);
    }

    #[test]
    fn what_was_given_up_is_taken_at_once() {
        let free = released(held("other", 4), "other").unwrap();
        assert_eq!(after(Some(free), 0), Step::Take(held("me", 5)));
        assert_eq!(released(held("other", 4), "me"), None);
    }

    #[test]
    fn our_own_is_renewed_under_the_same_epoch() {
        let Step::Renew(renewed) = after(Some(held("me", 4)), 100) else { panic!("not renewed") };
        assert_eq!((epoch(&renewed), renewed.acquire_time), (4, held("me", 4).acquire_time));
    }

    #[test]
    fn a9_every_leadership_has_a_higher_epoch_than_all_before() {
        let mut highest = 0;
        let mut lease = None;
        for round in 0..20 {
            // now and then a person deletes the Lease
            if round % 7 == 6 {
                lease = None;
            }
            let start = Instant::now();
            let time = wall() + Duration::from_secs(600 * round);
            let seen = Observation::of(lease, None, start);
            let Step::Take(taken) = evaluate(&seen, &format!("p{round}"), LIMIT, start + LIMIT * 2, time) else {
                panic!("not taken")
            };
            assert!(epoch(&taken) > highest, "round {round}");
            highest = epoch(&taken);
            lease = Some(taken);
        }
    }
}
