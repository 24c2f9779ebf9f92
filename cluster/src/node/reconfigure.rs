//! Membership changes as openraft makes them: one at a time, in two steps (Ongaro 2014, §4.3), and each
//! to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, PreconditionFailed, RaftError};
use openraft::raft::Precondition;
use quorate_storage::raft_types::{LogId, NodeId, NodeInfo, TypeConfig};
use tokio::time::timeout;

use super::Inner;
use super::members::show_log_id;
use crate::error::{Code, NodeError};

/// A change, both its steps.
pub(super) const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

type Change = ChangeMembers<NodeId, NodeInfo>;
type Result<T> = std::result::Result<T, NodeError>;

impl Inner {
    pub(super) async fn add_learner(&self, id: NodeId, info: NodeInfo) -> Result<()> {
        tracing::info!(node_id = id, name = %info.name, peer = %info.peer, "adding a learner");
        self.submit(Change::AddNodes(BTreeMap::from([(id, info)])), true, None).await.map(drop)
    }

    pub(super) async fn set_node(&self, id: NodeId, info: NodeInfo) -> Result<()> {
        tracing::info!(node_id = id, name = %info.name, peer = %info.peer, url = %info.url, "a server has moved");
        self.submit(Change::SetNodes(BTreeMap::from([(id, info)])), true, None).await.map(drop)
    }

    /// Finishes a change that a primary left behind between its two steps: until then the voters are those of both
    /// memberships. `seen` is the membership's log id as the caller saw it; gives what it is now.
    pub(super) async fn finish_half_done(&self, seen: LogId) -> Result<LogId> {
        let stored = self.raft.metrics().borrow_watched().membership_config.clone();
        let (Some(joint), [_, .., target]) =
            (*stored.log_id(), stored.membership().get_joint_config().as_slice())
        else {
            return Ok(seen);
        };
        if seen != joint {
            return Err(changed(Some(joint)));
        }
        let membership = stored.membership();
        let leaving: BTreeSet<NodeId> = membership.voter_ids().filter(|id| !target.contains(id)).collect();
        self.check_quorum(target).await?;
        self.leave_leadership(&leaving).await?;
        // Who was to be removed stays as a learner, which does no harm. But what a wiped server was before goes.
        let name = |id: &NodeId| membership.get_node(id).map(|info| &info.name);
        let replaced = leaving.into_iter().filter(|old| target.iter().any(|new| name(new) == name(old)));
        let finish = vec![Change::ReplaceAllVoters(target.clone()), Change::RemoveNodes(replaced.collect())];
        self.submit(Change::Batch(finish), true, Some(joint)).await
    }

    /// One change, with its compare-and-set and time limit. Gives its log id.
    pub(super) async fn submit(
        &self,
        change: Change,
        retain: bool,
        condition: Option<LogId>,
    ) -> Result<LogId> {
        // A primary that was just elected is told to forward to nobody until its first entry is in.
        let term = self.raft.metrics().borrow_watched().current_term;
        self.caught_up_with(term).await?;
        let Ok(alone) = Arc::clone(&self.changing).try_lock_owned() else {
            return Err(in_progress("it is not committed yet"));
        };
        tracing::info!(?change, "changing the membership");
        let preconditions: Vec<Precondition<TypeConfig>> = condition
            .map(|id| Precondition::LastMembershipLogId { last_membership_log_id: Some(id) })
            .into_iter()
            .collect();
        let raft = self.raft.clone();
        // The second step is sent by whoever waits for the first. A caller goes away when its client does, or when its
        // time is up; half a change must not be left behind then.
        let change = tokio::spawn(async move {
            let _alone = alone;
            let result = raft.change_membership_if(change, retain, preconditions).await;
            if let Err(error) = &result {
                tracing::info!(%error, "the membership was not changed");
            }
            result
        });
        match timeout(CHANGE_TIMEOUT, change).await {
            Ok(Ok(Ok(done))) => Ok(done.log_id),
            Ok(Ok(Err(e))) => Err(self.change_error(e, condition)),
            Ok(Err(e)) => Err(NodeError::unknown(Code::Failed, format!("the change broke off: {e}"))),
            Err(_) => Err(change_timed_out()),
        }
    }

    fn change_error(
        &self,
        error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>,
        condition: Option<LogId>,
    ) -> NodeError {
        match error {
            RaftError::Fatal(e) => {
                self.fail(&e);
                NodeError::unknown(Code::Failed, e.to_string())
            }
            RaftError::APIError(ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(e),
            )) => in_progress(e),
            RaftError::APIError(ClientWriteError::ChangeMembershipError(e)) => {
                NodeError::not_applied(Code::Refused, e.to_string()).retry_after(500)
            }
            // The second step has a condition of its own: what fails that has been half done.
            RaftError::APIError(ClientWriteError::PreconditionFailed(
                PreconditionFailed::LastMembershipLogIdMismatch { expected, actual },
            )) if expected == condition => changed(actual),
            RaftError::APIError(e) => {
                let text = format!("{e}. The change may have been made: look at `quorate cluster members`");
                NodeError::unknown(Code::NoPrimary, text)
            }
        }
    }
}

fn in_progress(cause: impl std::fmt::Display) -> NodeError {
    let text = format!("another change of the membership is under way: {cause}");
    NodeError::not_applied(Code::Changed, text).retry_after(500)
}

/// The compare-and-set failed: the membership's log id is `now`.
pub(super) fn changed(now: Option<LogId>) -> NodeError {
    let now = show_log_id(now.as_ref());
    let text = format!("the membership has changed: its log id is {now} now. Look again, and decide again");
    NodeError::not_applied(Code::Changed, text)
}

fn change_timed_out() -> NodeError {
    let text = format!(
        "the change was not committed within {CHANGE_TIMEOUT:?}; it may yet be: look at `quorate cluster members`"
    );
    NodeError::unknown(Code::Timeout, text)
}
