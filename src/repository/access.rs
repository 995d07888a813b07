//! Who may do what. Pure: decided from the peer's certificate, the request and the ticket.

use crate::{
    names::{Generation, Identity, Incarnation, JobUid, MemberIndex},
    store::ticket::Ticket,
};

/// What a peer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action<'a> {
    /// To see what there is of a job, or its parts under way.
    Look,
    /// To read manifests and parts of a job.
    Restore(&'a JobUid),
    /// To raise the fence, retire or adopt a generation, remove a job, say which images are needed.
    Rule,
    /// To note parts and publish.
    Publish,
    /// To read an image.
    ReadImage,
    /// To store an image.
    WriteImage,
    /// To read a job's result.
    ReadOutput,
}

/// Whether the peer may.
pub(super) fn may(peer: &Identity, action: Action<'_>) -> bool {
    match (peer, action) {
        (Identity::Operator, Action::Publish) => false,
        (Identity::Operator, _)
        | (Identity::Kget, Action::Look | Action::Publish | Action::Restore(_))
        | (Identity::Importer, Action::WriteImage)
        | (Identity::Agent { .. }, Action::ReadImage) => true,
        (Identity::Agent { job, .. }, Action::Restore(wanted)) => job == wanted,
        (
            Identity::Repository | Identity::Kget | Identity::Importer | Identity::Launcher | Identity::Agent { .. },
            _,
        ) => false,
    }
}

/// The incarnation in whose name an agent may write this part: certificate, ticket and request must
/// agree in everything (safety D1).
pub(super) fn may_write_part(
    peer: &Identity,
    ticket: &Ticket,
    wanted: (&JobUid, Generation, MemberIndex),
) -> Result<Incarnation, String> {
    let Identity::Agent { job, member, incarnation } = peer else {
        return Err(format!("{peer} writes no parts"));
    };
    if (&ticket.job, ticket.generation, ticket.member) != wanted {
        return Err("the ticket is for another part".into());
    }
    // the part of a member that has left its node comes from the one that was given it
    let bearer = ticket.bearer.unwrap_or(ticket.member);
    if (job, *member, *incarnation) != (&ticket.job, bearer, ticket.incarnation) {
        return Err(format!("the ticket is not for {peer}"));
    }
    Ok(*incarnation)
}

/// The incarnation in whose name an agent may write a result of this member.
pub(super) fn may_write_output(peer: &Identity, wanted: (&JobUid, MemberIndex)) -> Result<Incarnation, String> {
    match peer {
        Identity::Agent { job, member, incarnation } if (job, *member) == wanted => Ok(*incarnation),
        other => Err(format!("{other} may not write a result of member {} of job {}", wanted.1, wanted.0)),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn job() -> JobUid {
        "3f2b8a10".into()
    }

    fn agent(job: &str, member: MemberIndex, incarnation: Incarnation) -> Identity {
        Identity::Agent { job: job.into(), member, incarnation }
    }

    fn ticket() -> Ticket {
        Ticket {
            job: job(),
            generation: 7,
            member: 1,
            incarnation: 2,
            expires: jiff::Timestamp::MAX,
            most: None,
            quota: None,
            bearer: None,
        }
    }

    #[rstest]
    #[case::own(agent("3f2b8a10", 1, 2), 7, 1, true)]
    #[case::another_job(agent("ffffffff", 1, 2), 7, 1, false)]
    #[case::another_member(agent("3f2b8a10", 0, 2), 7, 1, false)]
    #[case::an_older_incarnation(agent("3f2b8a10", 1, 1), 7, 1, false)]
    #[case::a_later_incarnation(agent("3f2b8a10", 1, 3), 7, 1, false)]
    #[case::another_generation(agent("3f2b8a10", 1, 2), 8, 1, false)]
    #[case::another_members_part(agent("3f2b8a10", 1, 2), 7, 0, false)]
    #[case::nobody_elses(Identity::Operator, 7, 1, false)]
    fn d1_a_part_needs_certificate_and_ticket(
        #[case] peer: Identity,
        #[case] generation: Generation,
        #[case] member: MemberIndex,
        #[case] allowed: bool,
    ) {
        assert_eq!(may_write_part(&peer, &ticket(), (&job(), generation, member)).is_ok(), allowed);
    }

    #[test]
    fn d1_a_part_that_another_one_brings_is_taken_from_that_one_only() {
        let carried = Ticket { bearer: Some(3), ..ticket() };
        let may = |member, incarnation, wanted| {
            may_write_part(&agent("3f2b8a10", member, incarnation), &carried, (&job(), 7, wanted)).is_ok()
        };
        assert!(may(3, 2, 1));
        assert!(!may(1, 2, 1), "its own agent has another ticket");
        assert!(!may(2, 2, 1) && !may(3, 1, 1) && !may(3, 2, 3), "nor anybody or anything else");
        assert!(may_write_part(&agent("ffffffff", 3, 2), &carried, (&job(), 7, 1)).is_err());
    }

    #[test]
    fn d1_agents_see_their_own_job_and_images_only() {
        let own = agent("3f2b8a10", 0, 1);
        assert!(may(&own, Action::Restore(&job())) && may(&own, Action::ReadImage));
        assert!(!may(&own, Action::Restore(&"ffffffff".into())));
        for refused in [Action::Look, Action::Rule, Action::Publish, Action::WriteImage, Action::ReadOutput] {
            assert!(!may(&own, refused), "{refused:?}");
        }
        assert!(may_write_output(&own, (&job(), 0)).is_ok());
        assert!(may_write_output(&own, (&job(), 1)).is_err());
        assert!(may_write_output(&own, (&"ffffffff".into(), 0)).is_err());
    }

    #[test]
    fn only_the_operator_rules_and_only_kget_publishes() {
        let uid = job();
        let all = [Identity::Operator, Identity::Kget, Identity::Importer, Identity::Repository, Identity::Launcher];
        let who = |action| all.iter().filter(|peer| may(peer, action)).cloned().collect::<Vec<_>>();
        assert_eq!(who(Action::Rule), [Identity::Operator]);
        assert_eq!(who(Action::Publish), [Identity::Kget]);
        assert_eq!(who(Action::Restore(&uid)), [Identity::Operator, Identity::Kget]);
        assert_eq!(who(Action::WriteImage), [Identity::Operator, Identity::Importer]);
    }
}
