//! A node: one server's part in the cluster.

mod announce;
mod checkpoints;
mod clocks;
mod contacts;
mod disk;
mod incoming;
mod join;
mod lanes;
mod log_view;
mod members;
mod propose;
mod queue;
mod read;
mod reconfigure;
mod removed;
mod role;
mod serve;
mod status;
mod tasks;
mod transfer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openraft::Instant as _;
use openraft::RaftMetrics;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::type_config::alias::WatchReceiverOf;
use quorate_storage::identity::Identity;
use quorate_storage::log::LogOptions;
use quorate_storage::node_disk::{self, DiskError};
use quorate_storage::raft_types::{NodeId, NodeInfo, TypeConfig};
use quorate_storage::service::Registry;
use quorate_storage::state_machine::{Built, State, StateMachine};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, RwLock, watch};

use self::disk::DiskWatch;
pub use self::join::{JoinError, parse_cluster_id};
use self::lanes::Lanes;
pub use self::log_view::{LogPage, LoggedDelta};
use self::queue::Batcher;
use self::read::ReadIndexer;
pub use self::read::{ReadLevel, ReadPoint};
use self::removed::Strays;
pub use self::status::{ClusterStatus, MemberStatus};
use crate::clock::{Clock, LoggedClock};
use crate::error::{Code, NodeError};
use crate::message::Removal;
use crate::raft_network::{Addresses, PeerNetwork};
use crate::transport::Dial;
use crate::transport::frame::ClusterId;
use crate::transport::server::{self, Local};

type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// How fast failures are noticed.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between heartbeats. openraft's core wakes up about five times in each.
    pub heartbeat: Duration,
    /// An election begins when the greater one is over, the lease, and then a time drawn between both.
    pub election: (Duration, Duration),
}

impl Default for Timing {
    /// Failover within about half a second (docs/reliability.md).
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { heartbeat: ms(100), election: (ms(150), ms(300)) }
    }
}

/// What a node needs from outside.
pub struct NodeOptions {
    /// Its directory.
    pub dir: PathBuf,
    /// Its name and the addresses under which others reach it.
    pub info: NodeInfo,
    /// Peers to ask when the directory is empty (`host:port`).
    pub join: Vec<String>,
    /// The services.
    pub registry: Registry,
    /// Where peers connect.
    pub peer_listener: TcpListener,
    /// How to reach peers.
    pub dial: Arc<dyn Dial>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// How fast failures are noticed.
    pub timing: Timing,
    /// Free bytes below which this node, as primary, takes no writes.
    pub disk_reserve: u64,
    /// Sizes of the delta log.
    pub log: LogOptions,
    /// Entries kept behind the last flush ([`LOG_KEEP`]): a follower that lacks older ones gets a snapshot.
    pub log_keep: u64,
}

pub use self::members::CAUGHT_UP;

/// Entries that the log keeps behind a flush: for followers that are behind, and for people who read the log.
pub const LOG_KEEP: u64 = 10_000;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its directory cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It could not join.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The directory is another server's.
    #[error(
        "{dir} belongs to server {found}, not to {wanted}. Start it with --name {found}, or name the right directory"
    )]
    WrongName {
        /// The directory.
        dir: String,
        /// Whose it is.
        found: String,
        /// Who asked.
        wanted: String,
    },
    /// What the log holds cannot be applied again.
    #[error("what was not flushed cannot be applied again: {0}. Nothing that was acknowledged is lost")]
    Replay(std::io::Error),
    /// openraft refuses to start.
    #[error("the Raft node does not start: {0}")]
    Raft(String),
}

/// A running node. Clones share it.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    id: NodeId,
    cluster: ClusterId,
    identity: Identity,
    info: NodeInfo,
    raft: Raft,
    /// Kept, because each request looks at it: a new receiver costs more than the look.
    metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    state: State,
    network: PeerNetwork,
    lanes: Lanes,
    batcher: Batcher,
    /// Shared by the entries that are being written here; a transfer of leadership takes it whole, so that it finds
    /// nothing in flight whose outcome would be unknown.
    writing: RwLock<()>,
    /// Held by the one change of the membership that is being made, from its first step to its last.
    changing: Arc<Mutex<()>>,
    reads: ReadIndexer,
    /// Held by who reads a page of the log.
    log_pages: Arc<Mutex<()>>,
    clock: Arc<dyn Clock>,
    logged_clock: LoggedClock,
    timing: Timing,
    disk: DiskWatch,
    /// Everything that the log on disk says is committed has been applied again.
    recovered: AtomicBool,
    started: Instant,
    /// When the primary was heard last.
    heard: watch::Sender<Option<Instant>>,
    /// The cluster has said that this server is not a member any more.
    removed: watch::Sender<Option<Removal>>,
    /// As the primary: servers that were removed and asked.
    strays: Strays,
    /// True once the node is to stop: its tasks end.
    stop: watch::Sender<bool>,
    /// No new requests; what runs may finish.
    draining: AtomicBool,
    /// Only the primary serves clients.
    passive: AtomicBool,
    /// The checkpoint at which this server's state was found to differ from the majority's; 0 if it was not.
    differs_at: AtomicU64,
    /// The state that this server has asked for, built.
    sent_state: std::sync::Mutex<Option<Built>>,
    /// Held by who sends the whole state.
    sending_state: Mutex<()>,
    /// Held by who compares the state with the others'.
    comparing: Mutex<()>,
    /// Why the node cannot go on, once it cannot.
    failed: watch::Sender<Option<String>>,
}

impl Node {
    /// Opens the directory, or joins a cluster with an empty one, and starts.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(options: NodeOptions) -> Result<Self, StartError> {
        if !node_disk::inhabited(&options.dir)? {
            join::join(&options).await?;
        }
        let (dir, registry, log) = (options.dir.clone(), options.registry.clone(), options.log.clone());
        // It reads all tables: whoever asks this process meanwhile whether it is alive is not to wait for that.
        let disk = tokio::task::spawn_blocking(move || node_disk::open(&dir, registry, &log))
            .await
            .map_err(|e| StartError::Raft(e.to_string()))??;
        if disk.identity.name != options.info.name {
            return Err(StartError::WrongName {
                dir: options.dir.display().to_string(),
                found: disk.identity.name,
                wanted: options.info.name,
            });
        }
        let cluster = parse_cluster_id(&disk.identity.cluster_id)
            .ok_or_else(|| StartError::Raft("the cluster id is not one".to_owned()))?;
        let id = disk.identity.node_id;
        let addresses = Addresses::default();
        let network = PeerNetwork { dial: Arc::clone(&options.dial), addresses, cluster, node: id };
        let config = raft_config(&options, &disk.identity.cluster_id)?;
        let state = disk.state;
        state.keep_free(options.disk_reserve);
        state.replay().await.map_err(StartError::Replay)?;
        let raft = Raft::new(id, config, network.clone(), disk.log, StateMachine::new(state.clone()))
            .await
            .map_err(|e| StartError::Raft(e.to_string()))?;
        // Its metrics are empty until it runs: a server that was removed would take itself for a new one, and join.
        raft.with_raft_state(|_| ()).await.map_err(|e| StartError::Raft(e.to_string()))?;

        let (batcher, commands) = Batcher::new();
        let (reads, read_requests) = ReadIndexer::new();
        let inner = Arc::new(Inner {
            metrics: raft.metrics(),
            id,
            cluster,
            identity: disk.identity,
            info: options.info,
            network,
            lanes: Lanes::new(options.dial, cluster, id),
            disk: DiskWatch::new(options.dir, options.disk_reserve),
            raft,
            state,
            batcher,
            writing: RwLock::default(),
            changing: Arc::default(),
            reads,
            log_pages: Arc::default(),
            clock: options.clock,
            logged_clock: LoggedClock::default(),
            timing: options.timing,
            recovered: AtomicBool::new(false),
            started: Instant::now(),
            heard: watch::Sender::new(None),
            removed: watch::Sender::new(None),
            strays: Strays::default(),
            stop: watch::Sender::new(false),
            draining: AtomicBool::new(false),
            passive: AtomicBool::new(false),
            differs_at: AtomicU64::new(0),
            sent_state: std::sync::Mutex::default(),
            sending_state: Mutex::default(),
            comparing: Mutex::default(),
            failed: watch::Sender::new(None),
        });
        // Before it serves anybody.
        inner.read_mode().map_err(|e| StartError::Raft(e.detail))?;
        let local = Local { cluster, node: id };
        let handler = Arc::new(serve::PeerHandler::new(Arc::clone(&inner)));
        tokio::spawn(server::serve(options.peer_listener, local, handler, inner.stop.subscribe()));
        tokio::spawn(propose::run(Arc::clone(&inner), commands));
        tokio::spawn(read::run(Arc::clone(&inner), read_requests));
        tasks::spawn(&inner);
        tokio::spawn(announce::run(Arc::clone(&inner)));
        Ok(Self { inner })
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.inner.info.name
    }

    /// The state, for queries and watches. Ask [`Node::read_point`] first.
    pub fn state(&self) -> &State {
        &self.inner.state
    }

    /// Returns when the node can no longer go on, with the cause.
    pub async fn failed(&self) -> String {
        let mut failed = self.inner.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or_default(),
            Err(_) => "the node is gone".to_owned(),
        }
    }

    /// Notes that the node cannot go on: a damaged row, say.
    pub fn fail(&self, cause: impl ToString) {
        self.inner.fail(cause);
    }

    /// Takes no new requests; says so from now on.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Relaxed);
    }

    /// Whether [`Node::drain`] was called.
    pub fn draining(&self) -> bool {
        self.inner.draining.load(Ordering::Relaxed)
    }

    /// Moves leadership to another server if there is one that can take it, within `limit`.
    pub async fn hand_over(&self, limit: Duration) {
        self.inner.hand_over(limit).await;
    }

    /// Hands leadership over, flushes, and stops.
    pub async fn shutdown(&self) {
        self.drain();
        self.inner.hand_over(Duration::from_secs(2)).await;
        if let Err(e) = self.inner.state.close().await {
            tracing::warn!(error = %e, "the last flush failed; the log replays at the next start");
        }
        self.inner.stop.send_replace(true);
        if let Err(e) = self.inner.raft.shutdown().await {
            tracing::warn!(error = %e, "the Raft node did not stop cleanly");
        }
    }

    /// Stops at once, as a crash would, but for what the process's end alone releases. For tests.
    pub async fn abandon(&self) {
        self.inner.stop.send_replace(true);
        let _ = self.inner.raft.shutdown().await;
    }
}

impl Inner {
    fn fail(&self, cause: impl ToString) {
        if *self.stop.borrow() {
            // Told to stop: what was under way meets a Raft core that has ended, as it should.
            return;
        }
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            if first {
                let cause = cause.to_string();
                tracing::error!(%cause, "this server cannot go on");
                *failed = Some(cause);
            }
            first
        });
    }

    fn leader(&self) -> Option<NodeId> {
        self.metrics.borrow_watched().current_leader
    }

    fn is_leader(&self) -> bool {
        self.leader() == Some(self.id)
    }

    /// The primary, if there was contact lately. To openraft a primary that died, or lost its majority, is the
    /// leader until there is another one.
    fn working_leader(&self) -> Option<NodeId> {
        let leader = self.leader()?;
        let in_contact = match leader == self.id {
            true => self.quorum_age().is_none_or(|age| age < self.recent()),
            false => self.heard.borrow().is_some_and(|at| at.elapsed() < self.recent()),
        };
        in_contact.then_some(leader)
    }

    /// As primary: when a majority was heard last. `None` if it has not been yet.
    fn quorum_age(&self) -> Option<Duration> {
        let metrics = self.metrics.borrow_watched();
        if metrics.membership_config.membership().voter_ids().all(|id| id == self.id) {
            return Some(Duration::ZERO);
        }
        metrics.last_quorum_acked.as_ref().map(|at| at.elapsed())
    }

    /// Who was silent for so long is taken for away.
    fn recent(&self) -> Duration {
        (self.timing.election.1 * 3).max(Duration::from_secs(1))
    }

    /// The membership's entry for `id`.
    fn member(&self, id: NodeId) -> Option<NodeInfo> {
        let metrics = self.metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&id).cloned()
    }

    fn leader_url(&self) -> Option<String> {
        self.leader().and_then(|id| self.member(id)).map(|info| info.url)
    }

    /// What to say when no primary is known.
    fn no_primary(&self) -> NodeError {
        if let Some(removed) = self.removed_error() {
            return removed;
        }
        let text = "no primary is known: an election is under way, or a majority of the voters is away. `quorate \
                    cluster status` shows who answers";
        NodeError::not_applied(Code::NoPrimary, text).retry_after(100)
    }
}

fn raft_config(options: &NodeOptions, cluster: &str) -> Result<Arc<openraft::Config>, StartError> {
    let timing = &options.timing;
    let ms = |duration: Duration| duration.as_millis() as u64;
    let config = openraft::Config {
        cluster_name: cluster.to_owned(),
        heartbeat_interval: ms(timing.heartbeat),
        election_timeout_min: ms(timing.election.0),
        election_timeout_max: ms(timing.election.1),
        enable_pre_vote: Some(true),
        // A primary that hears nobody, but is heard, would keep the others from electing one that works.
        quorum_loss_probe_interval: Some(ms(timing.election.1) * 2),
        // Unsafe when apply is not durable: the leader would serve before it has applied its log.
        enable_leader_restore: Some(false),
        // Flushes are asked for by `tasks`, which knows what is dirty.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: options.log_keep,
        // Not in smaller steps than this, unless less is kept.
        purge_batch_size: options.log_keep.clamp(1, 1_024),
        max_payload_entries: 512,
        replication_lag_threshold: 100_000,
        api_batch_linger_ms: 0,
        ..Default::default()
    };
    config.validate().map(Arc::new).map_err(|e| StartError::Raft(e.to_string()))
}
