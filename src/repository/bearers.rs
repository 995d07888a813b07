//! Who brings a part. A collector that was given up may not know it yet: what its ticket lets it bring ends when the
//! part's own agent brings some of it with a later one, so that it replaces nothing of that. Held in memory: after a
//! start of the repository the next file or pack of the own agent says it again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;

use crate::{
    names::{Generation, JobUid, MemberIndex},
    store::ticket::Ticket,
};

type Part = (JobUid, Generation, MemberIndex);

/// Until when the latest ticket is valid with which each part's own agent has brought something.
#[derive(Clone, Debug, Default)]
pub struct Bearers(Arc<Mutex<HashMap<Part, Timestamp>>>);

impl Bearers {
    /// Whether whoever has this ticket may bring its part still, or why not. `brings` if it does so now: one that gives
    /// its part to a collector asks the repository as well, and that ends nothing.
    pub(super) fn admit(&self, ticket: &Ticket, brings: bool, now: Timestamp) -> Result<(), String> {
        let part = (ticket.job.clone(), ticket.generation, ticket.member);
        let mut own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = own.get(&part).copied();
        match ticket.bearer {
            Some(bearer) if latest.is_some_and(|latest| latest > ticket.expires) => {
                Err(format!("member {} sends its part itself again: member {bearer} brings it no more", ticket.member))
            }
            Some(_) => Ok(()),
            None if !brings => Ok(()),
            None => {
                if latest.is_none() {
                    own.retain(|_, until| *until > now);
                }
                own.insert(part, latest.map_or(ticket.expires, |latest| latest.max(ticket.expires)));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn b15_a_collector_that_was_given_up_brings_nothing_after_the_parts_own_agent() {
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        let ticket = |seconds: i64, bearer| Ticket {
            job: "j".into(),
            generation: 4,
            member: 2,
            incarnation: 1,
            expires: start + SignedDuration::from_secs(seconds),
            most: None,
            quota: None,
            bearer,
        };
        let bearers = Bearers::default();
        let admitted = |ticket: &Ticket| bearers.admit(ticket, true, start).is_ok();
        assert!(admitted(&ticket(10, None)), "it has been told to get ready");
        assert!(admitted(&ticket(12, Some(1))), "then another one takes its part");
        bearers.admit(&ticket(13, None), false, start).unwrap();
        assert!(admitted(&ticket(12, Some(1))), "to whom it gives its part it only asks questions");
        assert!(admitted(&ticket(14, None)), "which is given up");
        assert!(admitted(&ticket(10, None)), "an own request may come late");
        assert!(!admitted(&ticket(12, Some(1))) && !admitted(&ticket(13, Some(3))));
        assert!(admitted(&Ticket { member: 3, ..ticket(12, Some(1)) }), "another part");
        // what has expired is not known for ever
        let later = start + SignedDuration::from_secs(20);
        bearers.admit(&Ticket { generation: 5, ..ticket(30, None) }, true, later).unwrap();
        assert_eq!(bearers.0.lock().unwrap().len(), 1);
    }
}
