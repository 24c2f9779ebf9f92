//! Transfers of leadership: by hand, before a change of the membership, and before stopping.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_storage::raft_types::NodeId;
use tokio::time::timeout;

use super::Inner;
use super::members::{CAUGHT_UP, POLL};
use crate::error::{Code, NodeError};

/// A transfer of leadership.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);
/// Before it, entries in flight have so long to be answered.
const QUIET_TIMEOUT: Duration = Duration::from_secs(1);

type Result<T> = std::result::Result<T, NodeError>;

impl Inner {
    /// Moves leadership to `name`, or to the best voter, and sees it arrive.
    pub(super) async fn transfer(&self, name: &str) -> Result<()> {
        let named = self.named(name);
        if !name.is_empty() && named.is_empty() {
            return Err(self.not_found(name));
        }
        if named.contains(&self.id) {
            return Ok(());
        }
        // A primary that is new has heard of nobody yet.
        let patience = Instant::now() + self.timing.election.0;
        let mut unfit = BTreeSet::new();
        let target = loop {
            if let Some(target) = self.best_target(&named, &unfit) {
                if self.is_fit(target).await {
                    break target;
                }
                unfit.insert(target);
                continue;
            }
            if Instant::now() >= patience {
                let text = match name {
                    "" => "no other voter is alive and caught up; leadership stays here".to_owned(),
                    name => {
                        format!("{name} is not a voter that is alive and caught up; leadership stays here")
                    }
                };
                return Err(NodeError::not_applied(Code::Refused, text));
            }
            tokio::time::sleep(POLL).await;
        };
        // Without a majority nothing in flight ends: then it is not waited for.
        let _quiet = timeout(QUIET_TIMEOUT, self.writing.write()).await;
        if let Err(e) = self.raft.trigger().transfer_leader(target).await {
            self.fail(&e);
            return Err(NodeError::not_applied(Code::Failed, e.to_string()));
        }
        let deadline = Instant::now() + TRANSFER_TIMEOUT;
        while self.leader() != Some(target) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = "leadership did not arrive in time; an election decides now. `quorate cluster status` shows \
                            who leads";
                return Err(NodeError::unknown(Code::Timeout, text));
            }
            self.leader_may_change(left.min(POLL)).await;
        }
        Ok(())
    }

    /// Whether a server could serve as the primary, on its own word: its state may differ, say.
    async fn is_fit(&self, id: NodeId) -> bool {
        let Some(info) = self.member(id) else { return false };
        self.ask_status(id, &info).await.is_some_and(|status| status.differs_at.is_none())
    }

    /// The live voter with the least lag, among `named` if there are any; else no witness, and nobody `unfit`.
    fn best_target(&self, named: &BTreeSet<NodeId>, unfit: &BTreeSet<NodeId>) -> Option<NodeId> {
        let metrics = self.raft.metrics();
        let matched: BTreeMap<NodeId, u64> = {
            let metrics = metrics.borrow_watched();
            let replication = metrics.replication.as_ref()?;
            replication.iter().filter_map(|(id, matched)| Some((*id, matched.as_ref()?.index))).collect()
        };
        let last = metrics.borrow_watched().last_log_index.unwrap_or(0);
        let witness = |id: &NodeId| self.member(*id).is_some_and(|info| info.witness);
        let eligible = |id: &NodeId| {
            *id != self.id
                && !unfit.contains(id)
                && if named.is_empty() { !witness(id) } else { named.contains(id) }
                && self.alive(*id)
                && !self.disk.is_low_on(*id)
                && matched.get(id).is_some_and(|at| last.saturating_sub(*at) <= CAUGHT_UP)
        };
        self.voters().into_iter().filter(eligible).max_by_key(|id| matched.get(id).copied())
    }

    /// Before stopping: moves leadership, so that nobody has to wait for an election.
    pub(super) async fn hand_over(&self, limit: Duration) {
        if !self.is_leader() || self.voters().len() < 2 {
            return;
        }
        match timeout(limit, self.transfer("")).await {
            Ok(Ok(())) => tracing::info!(to = ?self.leader(), "leadership handed over"),
            Ok(Err(e)) => tracing::warn!(error = %e, "leadership could not be handed over"),
            Err(_) => tracing::warn!("leadership was not handed over in time"),
        }
    }

    /// A primary that is to go hands leadership over first; the new one carries the change out.
    pub(super) async fn leave_leadership(&self, leaving: &BTreeSet<NodeId>) -> Result<()> {
        if !leaving.contains(&self.id) {
            return Ok(());
        }
        self.transfer("").await?;
        Err(self.not_primary())
    }
}
