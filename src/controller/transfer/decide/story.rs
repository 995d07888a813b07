//! What is said of a transfer to those who look at the snapshot: how fast it is, when it will have ended, who is free,
//! and what is worth an event. Pure.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Case, Said, collect};
use crate::api::{
    Reason,
    snapshot::{FreedMember, Transfer, TransferState},
};

/// Progress is reported this often; all else at once.
const PROGRESS: SignedDuration = SignedDuration::from_secs(1);
/// How long the report that was just written counts as what everybody sees.
const ECHO: SignedDuration = SignedDuration::from_secs(3);
/// Seconds over which the rate is smoothed.
const SMOOTHED: f64 = 8.0;
/// After so many seconds without a byte there is no rate.
const STILL: f64 = 5.0;

/// What everybody sees.
fn seen(case: &Case, now: Timestamp) -> &Transfer {
    let fresh = case.written.as_ref().filter(|(at, _)| now.duration_since(*at) < ECHO);
    fresh.map_or(&case.shown, |(_, written)| written)
}

/// The transfer with its rate, its end and its freed members; `whole` if all bytes that are to be sent are in its
/// total.
pub(super) fn told(case: &Case, transfer: Transfer, whole: bool, now: Timestamp) -> Transfer {
    let since = |member: u32| case.safe_since.get(&member).copied();
    let safe = transfer.safe.iter().map(|member| FreedMember {
        member: *member,
        at: Time(since(*member).unwrap_or(now)),
        holder: None,
    });
    let said = &collect::latest(case).freed;
    let held = collect::held(&transfer).map(|(member, by)| FreedMember {
        member,
        at: said.iter().find(|freed| freed.member == member).map_or(Time(now), |freed| freed.at.clone()),
        holder: Some(by),
    });
    let mut freed: Vec<FreedMember> = safe.chain(held).collect();
    freed.sort_by_key(|freed| (freed.at.0, freed.member));
    let (rate, eta) = match &case.written {
        _ if transfer.state != TransferState::Sending || transfer.sent >= transfer.total => (None, None),
        None => (None, None),
        Some((at, before)) => pace(&transfer, before, now.duration_since(*at).as_secs_f64(), whole, now),
    };
    Transfer { rate, eta, freed, ..transfer }
}

/// The rate by what was reported `seconds` ago, and when it will have ended.
fn pace(
    transfer: &Transfer,
    before: &Transfer,
    seconds: f64,
    whole: bool,
    now: Timestamp,
) -> (Option<u64>, Option<Time>) {
    if seconds < PROGRESS.as_secs_f64() {
        return (before.rate, before.eta.clone());
    }
    // what is sent again after a failure counts from where it was
    let more = transfer.sent.saturating_sub(before.sent);
    if more == 0 {
        return if seconds < STILL { (before.rate, before.eta.clone()) } else { (None, None) };
    }
    let last = more as f64 / seconds;
    let smoothed = |known: u64| known as f64 + (last - known as f64) * (1.0 - (-seconds / SMOOTHED).exp());
    let rate = before.rate.map_or(last, smoothed).round().max(1.0);
    let left = transfer.total.saturating_sub(transfer.sent) as f64 / rate;
    let end = SignedDuration::try_from_secs_f64(left.ceil()).ok().and_then(|left| now.checked_add(left).ok());
    let end = end.and_then(|end| end.round(jiff::Unit::Second).ok());
    (Some(rate as u64), end.filter(|_| whole).map(Time))
}

/// Whether it is to be reported now.
pub(super) fn is_news(case: &Case, transfer: &Transfer, now: Timestamp) -> bool {
    let seen = seen(case, now);
    if seen == transfer {
        return false;
    }
    let Transfer { sent, total, rate, eta, .. } = seen.clone();
    let only_progress = Transfer { sent, total, rate, eta, ..transfer.clone() } == *seen;
    let lately = case.written.as_ref().is_some_and(|(at, _)| now.duration_since(*at) < PROGRESS);
    !(only_progress && lately)
}

/// What is worth an event: each member whose bytes are safe, and that all of them are there. That it failed is said by
/// whoever makes the generation void.
pub(super) fn events(case: &Case, transfer: &Transfer, now: Timestamp) -> Vec<Said> {
    let written = case.written.as_ref().map(|(_, written)| written);
    let before = [Some(&case.shown), written].into_iter().flatten();
    let known: BTreeSet<u32> = before.clone().flat_map(|transfer| &transfer.safe).copied().collect();
    let members = case.agents.len();
    let safe = transfer.safe.iter().enumerate().filter(|(_, member)| !known.contains(*member));
    let mut said: Vec<Said> = safe
        .map(|(_, member)| Said {
            action: "StoreMember",
            reason: Reason::MemberSafe,
            message: format!(
                "all bytes of member {member} are in the repository ({} of {members} members)",
                transfer.safe.len()
            ),
        })
        .collect();
    let free: BTreeSet<u32> = before.clone().flat_map(|transfer| &transfer.freed).map(|freed| freed.member).collect();
    said.extend(collect::held(transfer).filter(|(member, _)| !free.contains(member)).map(|(member, by)| Said {
        action: "CollectMember",
        reason: Reason::MemberCollected,
        message: format!("all bytes of member {member} are with member {by}, which brings them to the repository"),
    }));
    let mut before = before;
    if transfer.state == TransferState::Published && before.all(|before| before.state != TransferState::Published) {
        let took = now.duration_since(case.taken_at).as_secs();
        said.push(Said {
            action: "Store",
            reason: Reason::Transferred,
            message: format!(
                "all {} bytes of {members} members are in the repository and were read back, {took} s after the capture",
                transfer.total
            ),
        });
    }
    said
}
