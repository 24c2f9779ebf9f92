//! What a node says of itself, and what it learns of the others.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_storage::machine::Settings;
use quorate_storage::raft_types::{NodeId, NodeInfo};

use super::members::show_log_id;
use super::{Inner, Node};
use crate::error::{Code, NodeError};
use crate::message::{NodeStatus, Reply, Request};

/// A peer that does not answer within this time is shown as away.
const ASK: Duration = Duration::from_millis(500);
/// How often it is looked for a primary while there is none.
const PRIMARY_POLL: Duration = Duration::from_millis(20);

/// The cluster as one server sees it.
#[derive(Debug, Clone)]
pub struct ClusterStatus {
    /// The cluster's id, 32 hexadecimal digits.
    pub cluster_id: String,
    /// The term.
    pub term: u64,
    /// The primary's name.
    pub primary: Option<String>,
    /// Every change is finished and every member is ready: the next loss may come.
    pub settled: bool,
    /// The membership's log id, `term-index`.
    pub membership: String,
    /// A change of the voters is half done.
    pub joint: bool,
    /// The members.
    pub members: Vec<MemberStatus>,
    /// The settings.
    pub settings: Settings,
}

/// One member.
#[derive(Debug, Clone)]
pub struct MemberStatus {
    /// Its node id.
    pub node_id: NodeId,
    /// Its name and addresses.
    pub info: NodeInfo,
    /// Whether it votes.
    pub voter: bool,
    /// What it says; `None` when it does not answer.
    pub status: Option<NodeStatus>,
}

impl Node {
    /// This server's own status.
    ///
    /// # Errors
    /// When the state is unusable.
    pub fn status(&self) -> Result<NodeStatus, NodeError> {
        self.inner.status()
    }

    /// Caught up, and with a primary.
    pub fn ready(&self) -> bool {
        self.check_ready().is_ok()
    }

    /// The same, with the reason why not.
    ///
    /// # Errors
    /// When it is not ready.
    pub fn check_ready(&self) -> Result<(), NodeError> {
        self.inner.check_ready()
    }

    /// Waits until there is a primary to turn to, at most `limit`.
    ///
    /// # Errors
    /// When there is none by then, and at once when this server has not caught up or is no member: another one may
    /// have a primary. Nothing was applied.
    pub async fn await_primary(&self, limit: Duration) -> Result<(), NodeError> {
        let end = Instant::now() + limit;
        while self.inner.working_leader().is_none() {
            self.inner.readable()?;
            if Instant::now() >= end {
                return Err(self.inner.no_primary());
            }
            self.inner.leader_may_change(PRIMARY_POLL).await;
        }
        Ok(())
    }

    /// Whether this server is the primary.
    pub fn is_primary(&self) -> bool {
        self.inner.is_leader()
    }

    /// Whether the primary alone serves clients.
    pub fn is_passive(&self) -> bool {
        self.inner.passive.load(Ordering::Relaxed)
    }

    /// Whether this server is a witness.
    pub fn is_witness(&self) -> bool {
        self.inner.info.witness
    }

    /// The names of all members.
    pub fn member_names(&self) -> Vec<String> {
        self.inner.members().into_values().map(|info| info.name).collect()
    }

    /// Whether this server votes.
    pub fn is_voter(&self) -> bool {
        self.inner.voters().contains(&self.inner.id)
    }

    /// The cluster's id, 32 hexadecimal digits.
    pub fn cluster_id(&self) -> &str {
        &self.inner.identity.cluster_id
    }

    /// The primary's name, if known.
    pub fn primary_name(&self) -> Option<String> {
        self.inner.working_leader().and_then(|id| self.inner.member(id)).map(|info| info.name)
    }

    /// The primary's URL, if known.
    pub fn primary_url(&self) -> Option<String> {
        self.inner.leader_url()
    }

    /// Asks all members how they are.
    ///
    /// # Errors
    /// When the state is unusable, or when this server was removed: it knows no more who they are.
    pub async fn cluster_status(&self) -> Result<ClusterStatus, NodeError> {
        let inner = &self.inner;
        if let Some(removed) = inner.removed_error() {
            return Err(removed);
        }
        let voters = inner.voters();
        let members = inner.members();
        let asked = members.iter().map(|(id, info)| inner.ask_status(*id, info));
        let statuses = join_all(asked).await;
        let members: Vec<MemberStatus> = members
            .into_iter()
            .zip(statuses)
            .map(|((node_id, info), status)| MemberStatus {
                node_id,
                info,
                voter: voters.contains(&node_id),
                status,
            })
            .collect();
        let settings = inner.settings()?;
        let leader = inner.working_leader();
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let config = &metrics.membership_config;
        let joint = config.membership().get_joint_config().len() > 1;
        let committed = metrics.committed_membership_config.log_id() == config.log_id();
        let primary = leader.and_then(|id| config.membership().get_node(&id));
        let all_ready =
            members.iter().all(|member| member.status.as_ref().is_some_and(|status| status.ready));
        Ok(ClusterStatus {
            cluster_id: inner.identity.cluster_id.clone(),
            term: metrics.current_term,
            primary: primary.map(|info| info.name.clone()),
            settled: primary.is_some() && committed && !joint && all_ready,
            membership: show_log_id(config.log_id().as_ref()),
            joint,
            members,
            settings,
        })
    }
}

impl Inner {
    /// The cluster's settings, as far as this server has applied them.
    pub(super) fn settings(&self) -> Result<Settings, NodeError> {
        let settings = self.state.read(|machine| machine.settings());
        settings
            .map_err(|e| e.to_string())
            .and_then(|settings| settings.map_err(|e| e.to_string()))
            .map_err(|e| NodeError::not_applied(Code::Failed, e))
    }

    fn check_ready(&self) -> Result<(), NodeError> {
        self.readable()?;
        if self.draining.load(Ordering::Relaxed) {
            return Err(NodeError::not_applied(Code::ShuttingDown, "this server is stopping"));
        }
        if let Some(time) = self.hang() {
            let text = format!("this server's disk hangs: a sync of its log has not ended for {time:.0?}");
            return Err(NodeError::not_applied(Code::NotReady, text));
        }
        match self.working_leader() {
            Some(_) => Ok(()),
            None => Err(self.no_primary()),
        }
    }

    pub(super) async fn ask_status(&self, id: NodeId, info: &NodeInfo) -> Option<NodeStatus> {
        if id == self.id {
            return self.status().ok();
        }
        match self.lanes.to(id, info).call(&Request::Status, ASK).await {
            Ok(Reply::Status(status)) => Some(*status),
            _ => None,
        }
    }

    pub(super) fn status(&self) -> Result<NodeStatus, NodeError> {
        let (revision, state_hash, time, dirty, applied) = self
            .state
            .read_hashed(|machine, state_hash| {
                let applied = machine.applied().map_or(0, |id| id.index);
                (machine.revision(), state_hash, machine.time(), machine.rows().dirty_bytes(), applied)
            })
            .map_err(|e| self.broken(&e))?;
        // Before the guard below: a second one while a writer waits would deadlock.
        let (ready, leader) = (self.check_ready().is_ok(), self.working_leader());
        let (strays, heard_of) = match self.is_leader() {
            true => {
                let heard = self.members().into_keys().filter(|id| self.alive(*id));
                (self.strays.names(), heard.collect())
            }
            false => Default::default(),
        };
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics.heartbeat.clone().unwrap_or_default();
        Ok(NodeStatus {
            node_id: self.id,
            info: self.info.clone(),
            term: metrics.current_term,
            // It was asked for before the term, and may have been another term's.
            leader: leader.filter(|leader| metrics.current_leader == Some(*leader)),
            ready,
            last_log: metrics.last_log_index.unwrap_or(0),
            committed: metrics.cluster_committed.as_ref().map_or(0, |id| id.index),
            applied,
            revision,
            state_hash,
            time,
            flushed: self.state.last_flush().revision,
            dirty_bytes: dirty as u64,
            log_bytes: self.state.log().disk_bytes(),
            disk_free: self.disk.free(),
            disk_low: self.disk.is_low(),
            clock_ahead_ms: self.logged_clock.ahead(),
            uptime_secs: self.started.elapsed().as_secs(),
            silent_ms: heard
                .into_iter()
                .map(|(id, at)| (id, at.map(|at| at.elapsed().as_millis() as u64)))
                .collect(),
            heard: heard_of,
            strays,
            checkpoints: self.state.checkpoints().borrow().clone(),
            differs_at: self.differs(),
        })
    }
}
