//! Who serves clients: all servers in active mode, the primary alone in passive mode, a witness never.
//!
//! A witness replicates and votes, so that two data servers can lose one. It leads only when nobody else can: when it
//! alone has all that was committed. Then it brings the others up to date and hands leadership over.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::tasks::POLL;
use super::{Inner, Node};
use crate::error::{Code, NodeError};

/// For so long a mode that was read counts as the cluster's.
const LOOK: Duration = Duration::from_millis(50);
/// Before a witness tries again to give leadership up.
const AGAIN: Duration = Duration::from_secs(1);

type Result<T> = std::result::Result<T, NodeError>;

impl Node {
    /// Whether clients are served here. In passive mode an election is waited for, at most `limit`.
    ///
    /// # Errors
    /// When another server is to be asked, with the primary's address if it is known. Nothing was applied.
    pub async fn check_serves(&self, limit: Duration) -> Result<()> {
        let inner = &self.inner;
        // One that is not ready knows where it stands a moment later, and others are ready now.
        inner.readable()?;
        if inner.info.witness {
            return Err(
                inner.not_serving("this server is a witness, which serves no clients: ask another one")
            );
        }
        if !inner.passive.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.await_primary(limit).await?;
        match inner.is_leader() {
            true => Ok(()),
            false => Err(inner
                .not_serving("the cluster is in passive mode, and this server is a backup: ask the primary")),
        }
    }

    /// The same, as it is known now.
    pub fn serves(&self) -> bool {
        !self.inner.info.witness && (!self.inner.passive.load(Ordering::Relaxed) || self.inner.is_leader())
    }
}

impl Inner {
    fn not_serving(&self, text: &str) -> NodeError {
        NodeError::not_applied(Code::NotServing, text).with_primary(self.leader_url())
    }

    /// Takes the mode over from the settings.
    pub(super) fn read_mode(&self) -> Result<()> {
        let passive = self.settings()?.passive();
        if self.passive.swap(passive, Ordering::Relaxed) != passive {
            tracing::info!(mode = if passive { "passive" } else { "active" }, "the cluster's mode");
        }
        Ok(())
    }
}

/// Follows the mode. What is under way when it changes ends as it began: exactly once goes by sessions, not by modes.
pub(super) async fn follow_mode(inner: Arc<Inner>) {
    let mut applied = inner.state.applied();
    loop {
        // A state that cannot be read ends the node elsewhere.
        if inner.read_mode().is_err() || applied.changed().await.is_err() {
            return;
        }
        // Each entry changes the revision, and few the mode.
        tokio::time::sleep(LOOK).await;
    }
}

/// Keeps a witness from leading, and a server whose state differs. Either may have to: when it alone has what was committed.
pub(super) async fn stand_back(inner: Arc<Inner>) {
    let mut leaderless: Option<Instant> = None;
    let mut stood_back = false;
    loop {
        if !inner.info.witness && inner.differs().is_none() {
            if std::mem::take(&mut stood_back) {
                inner.raft.runtime_config().elect(true);
            }
            inner.pace(POLL).await;
            continue;
        }
        stood_back = true;
        let stands = match inner.working_leader() {
            Some(_) => {
                leaderless = None;
                false
            }
            // The others try first: it takes the election that nobody wins.
            None => leaderless.get_or_insert_with(Instant::now).elapsed() >= inner.timing.election.1 * 3,
        };
        inner.raft.runtime_config().elect(stands);
        if inner.is_leader()
            && let Err(error) = inner.transfer("").await
        {
            tracing::info!(%error, "this server leads until another one can");
            // Each attempt holds up the writes for a moment.
            tokio::time::sleep(AGAIN).await;
        }
        inner.leader_may_change(POLL).await;
    }
}
