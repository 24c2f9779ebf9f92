//! A membership, as its worker knows it.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::Attempt;
use super::run::PAUSE;
use crate::client::{Client, Event, Position};
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
    /// The work of a job that is no longer this worker's, until it has ended.
    pub(super) ending: Option<Held>,
    /// There may be something to claim.
    pub(super) curious: bool,
    /// Up to this revision there was nothing.
    pub(super) nothing_at: u64,
    pub(super) events: Events,
}

/// A job that this worker has.
pub(super) struct Held {
    pub(super) claim: Claim,
    pub(super) progress: watch::Receiver<String>,
    pub(super) work: JoinHandle<Attempt>,
    /// What came of it, until the cluster knows.
    pub(super) outcome: Option<Attempt>,
}

impl Held {
    /// Ends the work, and waits until it has ended.
    pub(super) async fn end(mut self) {
        self.work.abort();
        if self.outcome.is_none() {
            // However it ended.
            let _ = (&mut self.work).await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// What may concern a worker: jobs that can be claimed, or were cancelled, and the ring. It is followed by a task, so that what
/// else a worker does leaves a connection alone that is being made.
pub(super) struct Events {
    /// None: some may have been missed.
    inbox: mpsc::Receiver<Option<Event>>,
    task: JoinHandle<()>,
}

/// Events that wait for the worker.
const WAITING: usize = 64;

impl Events {
    pub(super) fn follow(client: Client, queue: &str, from: Position) -> Self {
        let topics = ["ready", "cancelled", "ring"].map(|kind| format!("{kind}:{queue}"));
        let (events, inbox) = mpsc::channel(WAITING);
        let task = tokio::spawn(async move {
            let mut from = Some(from);
            loop {
                let mut watch = client.watch("jobs", &topics.each_ref().map(String::as_str), from.take());
                while let Ok(event) = watch.next().await {
                    if events.send(Some(event)).await.is_err() {
                        return;
                    }
                }
                // The watch begins anew; what was missed is looked for.
                if events.send(None).await.is_err() {
                    return;
                }
                sleep(PAUSE).await;
            }
        });
        Self { inbox, task }
    }

    pub(super) async fn next(&mut self) -> Option<Event> {
        // The task goes on for as long as this is there.
        self.inbox.recv().await.flatten()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All slots.
pub(super) const EVERYTHING: (u32, u32) = (0, SLOTS - 1);

impl Member {
    pub(super) fn new(standing: &Standing, sent: Instant, events: Events) -> Self {
        let mut member = Self {
            id: standing.member,
            lease_end: sent,
            asked: None,
            acknowledged: (0, Phase::Normal),
            owns: Vec::new(),
            job: None,
            ending: None,
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

    /// The token of the job that it works on; 0 for none.
    pub(super) fn token(&self) -> u64 {
        self.job.as_ref().or(self.ending.as_ref()).map_or(0, |held| held.claim.token)
    }

    /// When the lease ends, if there is a job that hangs on it.
    pub(super) fn lease_end(&self) -> Option<Instant> {
        self.job.is_some().then_some(self.lease_end)
    }

    /// Takes note of an event. True: the job that it has was cancelled.
    pub(super) fn saw(&mut self, event: Event) -> bool {
        match event.topic.split(':').next().unwrap_or_default() {
            "ring" => {
                if let Ok(ring) = serde_json::from_value::<RingEvent>(event.data)
                    && ring.what == "phase"
                {
                    self.is_asked((ring.epoch, ring.phase));
                }
            }
            "cancelled" => {
                // An event from before the claim is of an earlier attempt: a token is the revision of its claim.
                let of = |held: &Held, job: u64| {
                    held.claim.id == job && event.position.revision > held.claim.token
                };
                if let Ok(cancelled) = serde_json::from_value::<JobEvent>(event.data) {
                    return self.job.as_ref().is_some_and(|held| of(held, cancelled.job));
                }
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
        false
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
