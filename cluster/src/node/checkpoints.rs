//! Checkpoints: the primary sets them, every server compares its state with the others' at them, and one that differs
//! from a majority has itself sent the state anew.
//!
//! Each judges itself by what a majority of the voters has. A server whose state differs has a log that is right: it goes
//! on writing and acknowledging entries, so no majority is lost; but it serves nobody, and leads only while nobody else
//! does. The state does not come as a Raft snapshot: openraft installs none that
//! its own log has passed. Nothing is applied until the tables are replaced by those of a later entry; what came behind that
//! entry meanwhile is applied from the log.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_storage::codec;
use quorate_storage::delta::{Command, SYSTEM_SERVICE};
use quorate_storage::machine::{Checkpoint, SystemCommand};
use quorate_storage::raft_types::{NodeId, NodeInfo};
use quorate_storage::state_machine::NotReplaced;

use super::{Inner, Node};
use crate::error::{Code, NodeError};
use crate::message::{NodeStatus, Reply, Request};

/// How often the others are asked while no majority of them is there.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the state is asked for: each time the primary writes a snapshot.
const REPLACE_AGAIN: Duration = Duration::from_secs(5);
/// Writing and sending a snapshot, and building tables of it.
const SEND_TIMEOUT: Duration = Duration::from_secs(300);

type Result<T> = std::result::Result<T, NodeError>;

/// What a comparison with the voters says of a server's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// A majority has the same, at the newest checkpoint here.
    Agrees,
    /// A majority has another one, at this checkpoint.
    Differs(u64),
    /// Voters differ at this checkpoint, and no majority of them agrees.
    NobodyKnows(u64),
    /// Too few have come to it yet.
    Open,
}

/// Compares `own` with what the voters have; `voters` includes this server if it votes, and has nothing for those that
/// do not answer.
fn judge(own: &[Checkpoint], voters: &[Vec<Checkpoint>]) -> Verdict {
    for mine in own.iter().rev() {
        let theirs = voters.iter().filter_map(|kept| kept.iter().find(|other| other.number == mine.number));
        let mut hashes: BTreeMap<u128, usize> = BTreeMap::new();
        theirs.for_each(|other| *hashes.entry(other.hash).or_default() += 1);
        match hashes.iter().find(|(_, count)| **count > voters.len() / 2) {
            Some((hash, _)) if *hash != mine.hash => return Verdict::Differs(mine.number),
            Some(_) if Some(mine) == own.last() => return Verdict::Agrees,
            Some(_) => return Verdict::Open,
            None if hashes.len() > 1 => return Verdict::NobodyKnows(mine.number),
            None => {}
        }
    }
    if own.is_empty() { Verdict::Agrees } else { Verdict::Open }
}

impl Node {
    /// Follows this server's checkpoints: those that are kept, oldest first.
    pub fn checkpoints(&self) -> tokio::sync::watch::Receiver<Vec<Checkpoint>> {
        self.inner.state.checkpoints()
    }
}

impl Inner {
    /// Sets a checkpoint, in an entry of its own. On the primary.
    pub(super) async fn set_checkpoint(&self) -> Result<()> {
        let command = SystemCommand::Checkpoint;
        self.log_alone(Command::sessionless(SYSTEM_SERVICE, codec::encode(&command))).await
    }

    /// Why this server serves nobody, if its state differs from the majority's.
    pub(super) fn check_agrees(&self) -> Result<()> {
        let Some(number) = self.differs() else { return Ok(()) };
        let text = format!(
            "this server's state differs from the majority's at checkpoint {number}. It serves nobody until it has been \
             sent the state anew, which it sees to; ask another one"
        );
        Err(NodeError::not_applied(Code::NotReady, text).with_primary(self.leader_url()).retry_after(500))
    }

    /// The checkpoint at which this server's state was found to differ.
    pub(super) fn differs(&self) -> Option<u64> {
        match self.differs_at.load(Ordering::Relaxed) {
            0 => None,
            number => Some(number),
        }
    }

    /// Compares this server's state with the others', and notes what came of it.
    async fn compare(&self, own: &[Checkpoint]) -> Verdict {
        // One after the other, lest an older answer have the last word.
        let _alone = self.comparing.lock().await;
        let (voters, members) = (self.voters(), self.members());
        let asked = voters.iter().map(async |id| match members.get(id) {
            Some(_) if *id == self.id => own.to_vec(),
            Some(info) => self
                .ask_status(*id, info)
                .await
                .map_or_else(Vec::new, |NodeStatus { checkpoints, .. }| checkpoints),
            None => Vec::new(),
        });
        let verdict = judge(own, &join_all(asked).await);
        match verdict {
            Verdict::Differs(number) if self.differs_at.swap(number, Ordering::Relaxed) == 0 => {
                tracing::error!(
                    checkpoint = number,
                    "this server's state differs from the majority's: it serves nobody until it has been sent the state anew"
                );
            }
            Verdict::Agrees if self.differs_at.swap(0, Ordering::Relaxed) != 0 => {
                tracing::info!("this server's state agrees with the majority's again");
                // What came too late to be used would keep its room on the disk.
                self.sent_state.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
            _ => {}
        }
        verdict
    }

    /// Compares for the first time, before this server answers reads.
    pub(super) async fn compare_at_start(&self) {
        let own = self.state.checkpoints().borrow().clone();
        self.compare(&own).await;
    }

    /// Has this server sent the state anew, and replaces its own.
    async fn replace_state(&self) -> Result<()> {
        if self.is_leader() {
            return self.transfer("").await;
        }
        let leader = self.working_leader();
        let Some((id, info)) = leader.and_then(|id| Some((id, self.member(id)?))) else {
            return Err(self.no_primary());
        };
        let failed = |text: String| NodeError::not_applied(Code::Failed, text);
        // What is applied to a wrong state helps nobody, and the one that comes is to be a later one.
        let above = self.state.skip().await.map_or(0, |id| id.index);
        let result = self.fetch_state(id, &info, above).await;
        // Also when it failed: what waits to be applied keeps the log from being purged.
        if let Err(e) = self.state.resume().await {
            self.fail(&e);
        }
        result.map_err(failed)
    }

    async fn fetch_state(&self, id: NodeId, info: &NodeInfo, above: u64) -> std::result::Result<(), String> {
        let answer = self.lanes.to(id, info).call(&Request::SendState { above }, SEND_TIMEOUT).await;
        let built = self.sent_state.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (answer, built) {
            (Ok(Reply::StateSent), Some(built)) => {
                let replaced = self.state.replace(built).await;
                replaced.map_err(|e| {
                    if let NotReplaced::Broken(_) = &e {
                        self.fail(&e);
                    }
                    e.to_string()
                })
            }
            (Ok(Reply::StateSent), None) => {
                Err("the primary has sent it, and it did not come here".to_owned())
            }
            (Ok(_), _) => Err("the primary answered another question".to_owned()),
            (Err(e), _) => Err(e.to_string()),
        }
    }

    /// Sends a member the whole state, at a later entry than `above`. On the primary.
    pub(super) async fn send_state(&self, to: NodeId, above: u64) -> Result<()> {
        self.check_agrees()?;
        let Some(info) = self.member(to).filter(|_| self.is_leader()) else {
            return Err(self.not_primary());
        };
        let Ok(_alone) = self.sending_state.try_lock() else {
            let text = "the primary is sending its state already";
            return Err(NodeError::not_applied(Code::Overloaded, text).retry_after(1_000));
        };
        let limit = Instant::now() + Duration::from_secs(5);
        let applied = || self.state.applied().borrow().log_id.as_ref().map_or(0, |id| id.index);
        while applied() <= above {
            let tick = Command::sessionless(SYSTEM_SERVICE, codec::encode(&SystemCommand::Tick));
            self.propose_once(Arc::new(vec![tick]), limit, true).await?;
        }
        tracing::info!(name = %info.name, "sending the whole state to a server whose own differs");
        let vote = self.raft.metrics().borrow_watched().vote;
        let sent = self.network.link(to, &info, false).send_snapshot(vote, &self.state, Request::State).await;
        sent.map(drop).map_err(|e| NodeError::not_applied(Code::Failed, e.to_string()))
    }
}

/// Watches whether this server's state is the others'.
pub(super) async fn watch(inner: Arc<Inner>) {
    let mut checkpoints = inner.state.checkpoints();
    let mut told = 0;
    loop {
        let own = checkpoints.borrow_and_update().clone();
        match inner.compare(&own).await {
            Verdict::Agrees => {
                if checkpoints.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Verdict::Differs(_) => {
                if let Err(error) = inner.replace_state().await {
                    tracing::warn!(%error, "the state was not sent anew; it is tried on");
                    tokio::time::sleep(REPLACE_AGAIN).await;
                }
            }
            Verdict::NobodyKnows(number) if number != told => {
                told = number;
                tracing::error!(
                    checkpoint = number,
                    "the servers' states differ and no majority agrees, so nobody can say which is right: compare them \
                     (`quorate cluster status`), and wipe those that are wrong"
                );
            }
            Verdict::NobodyKnows(_) | Verdict::Open => {}
        }
        let _ = tokio::time::timeout(AGAIN, checkpoints.changed()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(hashes: &[(u64, u128)]) -> Vec<Checkpoint> {
        let checkpoint = |&(number, hash)| Checkpoint { number, revision: number * 10, time: 0, hash };
        hashes.iter().map(checkpoint).collect()
    }

    fn verdict(own: &[(u64, u128)], others: &[&[(u64, u128)]]) -> Verdict {
        let voters: Vec<_> = others.iter().chain([&own]).map(|hashes| kept(hashes)).collect();
        judge(&kept(own), &voters)
    }

    #[test]
    fn a_majority_says_what_is_right() {
        assert_eq!(verdict(&[], &[&[], &[]]), Verdict::Agrees);
        assert_eq!(verdict(&[(1, 7)], &[]), Verdict::Agrees);
        assert_eq!(verdict(&[(1, 7)], &[&[(1, 7)], &[]]), Verdict::Agrees);
        assert_eq!(verdict(&[(1, 7)], &[&[(1, 7)], &[(1, 8)]]), Verdict::Agrees);
        assert_eq!(verdict(&[(1, 7)], &[&[(1, 8)], &[(1, 8)]]), Verdict::Differs(1));
    }

    #[test]
    fn without_one_nobody_is_wrong() {
        assert_eq!(verdict(&[(1, 7)], &[&[(1, 8)]]), Verdict::NobodyKnows(1));
        assert_eq!(verdict(&[(1, 7)], &[&[(1, 8)], &[(1, 9)]]), Verdict::NobodyKnows(1));
        assert_eq!(verdict(&[(1, 7)], &[&[(1, 8)], &[]]), Verdict::NobodyKnows(1));
        assert_eq!(verdict(&[(1, 7)], &[&[], &[]]), Verdict::Open);
    }

    #[test]
    fn servers_are_compared_by_the_newest_that_a_majority_has() {
        assert_eq!(verdict(&[(1, 7), (2, 7)], &[&[(1, 7)], &[(1, 7)]]), Verdict::Open);
        assert_eq!(verdict(&[(1, 7), (2, 7)], &[&[(1, 8)], &[(1, 8)]]), Verdict::Differs(1));
        assert_eq!(verdict(&[(1, 7), (2, 7)], &[&[(1, 8), (2, 7)], &[(1, 8)]]), Verdict::Agrees);
        assert_eq!(verdict(&[(1, 7)], &[&[(1, 8), (2, 8)], &[(1, 8), (2, 8)]]), Verdict::Differs(1));
        // What they had in common is gone there.
        assert_eq!(verdict(&[(1, 7)], &[&[(9, 8)], &[(9, 8)]]), Verdict::Open);
    }
}
