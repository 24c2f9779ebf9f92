//! A membership, as its worker knows it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::client::{Event, Result, Watch};
use crate::services::jobs::{Claim, JobEvent, Phase, ReadyEvent, RingEvent, SLOTS, Standing};

/// A membership.
pub(super) struct Member {
    pub(super) id: u64,
    /// By the own clock its lease ends here, unless it is extended: counted from when the request was sent that extended
    /// it last, so earlier than the cluster thinks.
    lease_end: Instant,
    /// The phase that waits for this member.
    pub(super) asked: Option<(u64, Phase)>,
    pub(super) acknowledged: (u64, Phase),
    /// What it owns: first and last slot of each run.
    pub(super) owns: Vec<(u32, u32)>,
    pub(super) job: Option<Held>,
    /// There may be something to claim.
    pub(super) curious: bool,
    /// Up to this revision there was nothing.
    pub(super) nothing_at: u64,
    pub(super) events: Watch,
}

/// A job that this worker has.
pub(super) struct Held {
    pub(super) claim: Claim,
    pub(super) progress: watch::Receiver<String>,
    pub(super) work: JoinHandle<Result<String, String>>,
    /// What came of it, until the cluster knows.
    pub(super) outcome: Option<Result<String, String>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// All slots.
pub(super) const EVERYTHING: (u32, u32) = (0, SLOTS - 1);

impl Member {
    pub(super) fn new(standing: &Standing, sent: Instant, events: Watch) -> Self {
        let mut member = Self {
            id: standing.member,
            lease_end: sent,
            asked: None,
            acknowledged: (0, Phase::Normal),
            owns: Vec::new(),
            job: None,
            curious: true,
            nothing_at: 0,
            events,
        };
        member.stands(standing, sent);
        member
    }

    /// Takes note of how the cluster sees it, by the reply to what was sent at `sent`.
    pub(super) fn stands(&mut self, standing: &Standing, sent: Instant) {
        self.lease_end = self.lease_end.max(sent + Duration::from_millis(standing.left_ms));
        if standing.asked {
            self.is_asked((standing.epoch, standing.phase));
        }
    }

    fn is_asked(&mut self, asked: (u64, Phase)) {
        if asked.1 != Phase::Normal && asked > self.acknowledged {
            self.asked = Some(asked);
        }
    }

    /// When the lease ends, if there is a job that hangs on it.
    pub(super) fn lease_end(&self) -> Option<Instant> {
        self.job.is_some().then_some(self.lease_end)
    }

    /// Takes note of an event; gives the job that was cancelled.
    pub(super) fn saw(&mut self, event: Event) -> Option<Held> {
        match event.topic.split(':').next().unwrap_or_default() {
            "ring" => {
                if let Ok(ring) = serde_json::from_value::<RingEvent>(event.data)
                    && ring.what == "phase"
                {
                    self.is_asked((ring.epoch, ring.phase));
                }
            }
            "cancelled" => {
                let cancelled = serde_json::from_value::<JobEvent>(event.data).ok()?;
                return self.job.take_if(|held| held.claim.id == cancelled.job);
            }
            // What an empty claim has seen needs no other one.
            _ if event.position.revision <= self.nothing_at => {}
            _ => {
                if let Ok(ready) = serde_json::from_value::<ReadyEvent>(event.data) {
                    let owns = |slot| self.owns.iter().any(|(first, last)| (*first..=*last).contains(&slot));
                    self.curious |= ready.slot.is_none_or(owns);
                }
            }
        }
        None
    }
}

/// The runs of `owned` that are not in `next`.
pub(super) fn lost(owned: &[(u32, u32)], next: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let has = |runs: &[(u32, u32)], slot| runs.iter().any(|(first, last)| (*first..=*last).contains(&slot));
    let mut lost: Vec<(u32, u32)> = Vec::new();
    for slot in (0..SLOTS).filter(|slot| has(owned, *slot) && !has(next, *slot)) {
        match lost.last_mut().filter(|(_, last)| last + 1 == slot) {
            Some((_, last)) => *last = slot,
            None => lost.push((slot, slot)),
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_what_others_will_own() {
        assert_eq!(lost(&[(0, 9), (20, 29)], &[(5, 24)]), [(0, 4), (25, 29)]);
        assert_eq!(lost(&[(0, 9)], &[EVERYTHING]), []);
        assert_eq!(lost(&[EVERYTHING], &[]), [EVERYTHING]);
    }
}
