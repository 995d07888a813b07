//! What each effect brings about in the small world.

use super::*;

impl Life {
    /// What an effect brings about.
    pub(in super::super) fn work(&mut self, effect: &Effect) {
        match effect {
            Effect::AddFinalizer => self.job.metadata.finalizers = Some(vec![FINALIZER.into()]),
            Effect::RemoveFinalizer | Effect::DeleteJob => self.gone = true,
            Effect::SubmitSlots { submission, request } => {
                let ids: Vec<String> = (0..request.reservations).map(|_| self.add_slot(*submission)).collect();
                let outcome = Ok(ids.iter().map(|id| id.clone().into()).collect());
                self.seen.reply = Some(Reply { submission: *submission, outcome });
                if self.prompt {
                    for id in &ids {
                        self.start_slot(id);
                    }
                }
            }
            Effect::ReleaseSlot { id } => {
                let known = self.slots().iter().any(|slot| slot.id == *id);
                if known && !matches!(self.slot(&id.0).phase, SlotPhase::Ended(_)) {
                    self.end_slot(&id.0, End::Deleted("alice".into()));
                }
            }
            Effect::Deploy(order) => self.deploy(order),
            Effect::ForgetWorkflow { slot, id } => {
                let done = Some(id.clone()).filter(|_| !self.server.stubborn);
                self.seen.deployments.entry(slot.0.clone()).or_default().forgotten = done;
            }
            Effect::OfferToken(_) => {}
            Effect::WithdrawToken { id } => {
                let all = self.seen.tokens.values_mut().flat_map(BTreeMap::values_mut);
                all.filter(|token| token.id.as_ref() == Some(id)).for_each(|token| token.withdrawn = true);
            }
            Effect::RemoveNode { node, uid } => {
                self.seen.nodes.retain(|name, seen| name != node || seen.system.uid != *uid);
            }
            Effect::FenceRepository { incarnation } => {
                let content = self.content();
                content.fence = content.fence.max(*incarnation);
            }
            Effect::Adopt(_) => {
                if self.adopts && self.content().generations.is_empty() {
                    self.store(0, 0);
                }
            }
            Effect::CreateAgent(placement) => {
                let pod = PodSeen {
                    node: placement.node.0.clone(),
                    incarnation: placement.incarnation,
                    shows: self.status().snapshots.shown(),
                    ..PodSeen::default()
                };
                self.seen.pods.insert(placement.pod.clone(), pod);
                let state = loaded_state(UID.into(), placement.member, placement.incarnation);
                let agent = AgentSeen { state: Some(state), heard: Some(self.now), moved: None, listening: self.now };
                self.seen.agents.insert(placement.pod.clone(), agent);
            }
            Effect::DeleteAgent { pod } => {
                self.seen.pods.remove(pod);
            }
            Effect::Go { agents } => {
                for agent in agents {
                    self.seen.agents.get_mut(&agent.pod).unwrap().state.as_mut().unwrap().vm = VmState::Running;
                }
            }
            Effect::Capture(capture) => self.capture(capture),
            Effect::AbandonCapture(capture) => {
                for agent in &capture.agents {
                    let state = self.seen.agents.get_mut(&agent.pod).unwrap().state.as_mut().unwrap();
                    let Some(part) = state.capture.as_mut().filter(|part| part.nonce == capture.nonce) else {
                        continue;
                    };
                    part.state = PartState::Abandoned { reason: "given up by the coordinator".into() };
                    if state.vm == VmState::Stopped {
                        state.vm = VmState::Running;
                    }
                }
            }
            Effect::Leave { agents, code } => {
                for agent in agents {
                    let heard = self.seen.agents.get_mut(&agent.pod).unwrap();
                    if heard.heard.is_none() {
                        continue;
                    }
                    let state = heard.state.as_mut().unwrap();
                    (state.leaving, state.cleared) = (Some(*code), true);
                    state.vm = VmState::Gone { reason: "left".into(), fault: LoadFault::Unknown };
                    self.end_pod(&agent.pod);
                }
                let slots: Vec<String> = self.status().slots.iter().map(|slot| slot.id.clone()).collect();
                let end = match code {
                    LeaveCode::Done => End::Done,
                    LeaveCode::Saved => End::SavedAtPreemption,
                    LeaveCode::KeepSlot => return,
                };
                let ended = |pod: &String| self.seen.pods.get(pod).is_none_or(|pod| pod.ended.is_some());
                let on_it = |id: &String| -> Vec<String> {
                    let status = self.status();
                    let agents = status.everyone().filter_map(|member| member.agent.as_ref());
                    agents.filter(|agent| agent.slot == *id).map(|agent| agent.pod.clone()).collect()
                };
                let left: Vec<String> = slots.into_iter().filter(|id| on_it(id).iter().all(ended)).collect();
                for id in left {
                    if self.slot(&id).phase == SlotPhase::Running {
                        self.slot(&id).phase = SlotPhase::Ended(end.clone());
                    }
                }
            }
            Effect::ShowStored { pod: None, value } => {
                let shown = value.iter().map(|value| (LAST_STORED.to_owned(), value.clone())).collect();
                self.job.metadata.annotations = Some(shown);
            }
            Effect::ShowStored { pod: Some((pod, _)), value } => {
                self.seen.pods.get_mut(pod).unwrap().shows.clone_from(value);
            }
            Effect::CreateSnapshot { name, reason } => self.add_snapshot(name, *reason),
            Effect::WriteSnapshot { name, status, .. } => {
                if self.stores && status.phase == SnapshotPhase::Captured {
                    self.store(status.generation.unwrap(), status.incarnation);
                }
                let complete: Vec<u32> = self.content().generations.iter().map(|summary| summary.generation).collect();
                let snapshot = self.seen.snapshots.iter_mut().find(|snapshot| snapshot.name == *name).unwrap();
                snapshot.status = SnapshotStatus::clone(status);
                if snapshot.status.generation.is_some_and(|generation| complete.contains(&generation)) {
                    snapshot.status.phase = SnapshotPhase::Stored;
                }
            }
            Effect::DeleteSnapshot { name, .. } => {
                let generation = self.seen.snapshots.iter().find(|s| s.name == *name).unwrap().status.generation;
                self.seen.snapshots.retain(|snapshot| snapshot.name != *name);
                self.content().generations.retain(|summary| Some(summary.generation) != generation);
            }
            Effect::RemoveContent => self.seen.content = Fact::Known(JobContent::default()),
        }
    }
}
