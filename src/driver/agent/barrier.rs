//! The rules of a member's part in a capture: which order is obeyed, which is a repetition, which is
//! refused, and when the guest runs on by itself. Pure: the supervisor and the double both use it.
//!
//! Time is a duration since any fixed start. Nobody resumes before everybody has stopped: the
//! coordinator sees to that; here it is seen to that no guest stands still for ever (B3) and that no
//! part of another cut gets into a generation (B2).

use std::time::Duration;

use jiff::Timestamp;

use super::{AgentError, Authority, CaptureOrder, CapturePart, PartState, STAY_DOWN_WITHIN};
use crate::{
    names::{Generation, Incarnation},
    store::manifest::MemberPart,
};

/// What is to be done for an order that is obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    /// The work of the step.
    Work,
    /// Nothing: it is done or being done already.
    Nothing,
    /// Let the guest run on.
    Resume,
}

/// A member's part in captures.
#[derive(Debug)]
pub struct Barrier {
    incarnation: Incarnation,
    max_pause: Duration,
    epoch: u64,
    /// The same of those who order uploads, who lead by a Lease of their own.
    uploads: u64,
    highest: Generation,
    part: Option<CapturePart>,
    resume: bool,
    /// When the guest, standing still, runs on by itself.
    deadline: Option<Duration>,
    stopped: Option<Duration>,
    stay: Option<Duration>,
}

fn refused<T>(why: impl Into<String>) -> Result<T, AgentError> {
    Err(AgentError::Refused(why.into()))
}

impl Barrier {
    /// Makes the rules for one incarnation.
    pub fn new(incarnation: Incarnation, max_pause: Duration) -> Self {
        Self {
            incarnation,
            max_pause,
            epoch: 0,
            uploads: 0,
            highest: 0,
            part: None,
            resume: true,
            deadline: None,
            stopped: None,
            stay: None,
        }
    }

    /// The part of the newest capture.
    pub fn part(&self) -> Option<&CapturePart> {
        self.part.as_ref()
    }

    /// Whether the guest stands still because of a capture.
    pub fn holds_guest(&self) -> bool {
        self.stopped.is_some()
    }

    /// Whether the guest runs on after the cut that was ordered.
    pub fn resumes(&self) -> bool {
        self.resume
    }

    /// Refuses what is older than anything seen (A9), or meant for another incarnation.
    pub fn admit(&mut self, authority: Authority) -> Result<(), AgentError> {
        if authority.incarnation != self.incarnation {
            return refused(format!("incarnation {} is not {}", authority.incarnation, self.incarnation));
        }
        if !self.leads(authority.epoch) {
            return refused(format!("epoch {} is older than {}", authority.epoch, self.epoch));
        }
        Ok(())
    }

    /// Whether nobody of a later epoch was heard than the one who speaks now.
    pub fn leads(&mut self, epoch: u64) -> bool {
        self.epoch = self.epoch.max(epoch);
        self.epoch == epoch
    }

    /// Refuses an upload for another incarnation, or ordered by a kget that no longer leads (A9).
    pub fn admit_kget(&mut self, epoch: u64, incarnation: Incarnation) -> Result<(), AgentError> {
        if incarnation != self.incarnation {
            return refused(format!("incarnation {incarnation} is not {}", self.incarnation));
        }
        if epoch < self.uploads {
            return Err(AgentError::Superseded(format!("epoch {epoch} is older than {}", self.uploads)));
        }
        self.uploads = epoch;
        Ok(())
    }

    fn same(&mut self, order: &CaptureOrder) -> Result<&mut CapturePart, AgentError> {
        self.admit(order.authority)?;
        match &mut self.part {
            Some(part) if part.nonce == order.nonce && part.generation == order.generation => Ok(part),
            _ => refused("no capture with this nonce was prepared"),
        }
    }

    /// Step 1.
    pub fn prepare(&mut self, order: &CaptureOrder) -> Result<Todo, AgentError> {
        self.admit(order.authority)?;
        if let Some(part) = &self.part {
            if part.nonce == order.nonce && part.generation == order.generation {
                return match &part.state {
                    PartState::Abandoned { reason } => refused(format!("abandoned: {reason}")),
                    _ => Ok(Todo::Nothing),
                };
            }
            if self.stopped.is_some() || part.state == PartState::Writing {
                return refused(format!("generation {} is being captured", part.generation));
            }
        }
        if order.generation <= self.highest {
            return refused(format!("generation {} was used before", order.generation));
        }
        self.highest = order.generation;
        self.resume = order.resume;
        self.stay = None;
        self.part = Some(CapturePart {
            generation: order.generation,
            nonce: order.nonce.clone(),
            state: PartState::Prepared,
            stopped_at: None,
            pause_ms: None,
            bytes: 0,
            record: None,
        });
        Ok(Todo::Work)
    }

    /// Step 2.
    pub fn stop(&mut self, order: &CaptureOrder) -> Result<Todo, AgentError> {
        match &self.same(order)?.state {
            PartState::Prepared => Ok(Todo::Work),
            PartState::Stopped | PartState::Writing | PartState::Captured => Ok(Todo::Nothing),
            PartState::Abandoned { reason } => refused(format!("abandoned: {reason}")),
        }
    }

    /// The guest is being stopped: whatever becomes of that, it stands still until it is known to run.
    pub fn stopping(&mut self, now: Duration) {
        self.stopped = Some(now);
    }

    /// The guest stands still now.
    pub fn stopped(&mut self, now: Duration, at: Timestamp) {
        self.stopped = Some(now);
        self.deadline = Some(now + self.max_pause);
        if let Some(part) = &mut self.part {
            part.state = PartState::Stopped;
            part.stopped_at = Some(at);
        }
    }

    /// Step 3.
    pub fn cut(&mut self, order: &CaptureOrder) -> Result<Todo, AgentError> {
        let same = order.resume == self.resume;
        match &self.same(order)?.state {
            _ if !same => refused("the capture was prepared for another end"),
            PartState::Stopped => {
                self.deadline = None;
                Ok(Todo::Work)
            }
            PartState::Writing | PartState::Captured => Ok(Todo::Nothing),
            PartState::Prepared => refused("the guest was not stopped for this capture"),
            PartState::Abandoned { reason } => refused(format!("abandoned: {reason}")),
        }
    }

    /// The overlay is switched and the memory is being written.
    pub fn writing(&mut self) {
        if let Some(part) = &mut self.part {
            part.state = PartState::Writing;
        }
    }

    /// All bytes of a generation are on local disk; its part then. One that was given up meanwhile stays
    /// void, and says nothing of the capture that came after it.
    pub fn captured(
        &mut self,
        now: Duration,
        generation: Generation,
        record: MemberPart,
        bytes: u64,
    ) -> Option<CapturePart> {
        let part = self.part.as_mut().filter(|part| part.generation == generation)?;
        if part.state != PartState::Writing {
            return None;
        }
        part.state = PartState::Captured;
        part.record = Some(record);
        part.bytes = bytes;
        if self.stopped.is_some() {
            self.deadline = Some(now + self.stay.unwrap_or(STAY_DOWN_WITHIN));
        }
        Some(part.clone())
    }

    /// Everybody is captured.
    pub fn stay_down(&mut self, order: &CaptureOrder, limit: Duration, now: Duration) -> Result<Todo, AgentError> {
        if let PartState::Abandoned { reason } = &self.same(order)?.state {
            return refused(format!("abandoned: {reason}"));
        }
        if self.stopped.is_none() {
            return refused("the guest has resumed");
        }
        self.stay = Some(limit);
        if self.part.as_ref().is_some_and(|part| part.state == PartState::Captured) {
            self.deadline = Some(now + limit);
        }
        Ok(Todo::Nothing)
    }

    /// Gives the capture up. One that is not known here is refused ever after.
    pub fn abandon(&mut self, order: &CaptureOrder, reason: &str) -> Result<Todo, AgentError> {
        self.admit(order.authority)?;
        if self.same(order).is_err() {
            self.highest = self.highest.max(order.generation);
            return Ok(Todo::Nothing);
        }
        Ok(self.give_up(order.generation, reason))
    }

    /// Makes the part of a generation void, for whatever reason. A guest that stands still for another
    /// one is left alone.
    pub fn give_up(&mut self, generation: Generation, reason: &str) -> Todo {
        let Some(part) = self.part.as_mut().filter(|part| part.generation == generation) else {
            return Todo::Nothing;
        };
        self.deadline = None;
        if !matches!(part.state, PartState::Abandoned { .. }) {
            part.state = PartState::Abandoned { reason: reason.into() };
        }
        if self.stopped.is_some() { Todo::Resume } else { Todo::Nothing }
    }

    /// Whether the guest must run on by itself now.
    pub fn tick(&mut self, now: Duration) -> Todo {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return Todo::Nothing;
        }
        self.deadline = None;
        match &mut self.part {
            Some(part) if part.state == PartState::Stopped => {
                part.state = PartState::Abandoned { reason: "the barrier's time is over".into() };
            }
            _ => {}
        }
        Todo::Resume
    }

    /// The guest runs again.
    pub fn resumed(&mut self, now: Duration) {
        self.deadline = None;
        if let (Some(stopped), Some(part)) = (self.stopped.take(), &mut self.part) {
            part.pause_ms = Some(u64::try_from(now.saturating_sub(stopped).as_millis()).unwrap_or(u64::MAX));
        }
    }
}

#[cfg(test)]
#[path = "barrier_tests.rs"]
mod tests;
