//! The harness: clusters in one process. Every run of a cluster is watched ([`watch`]) and ends with
//! [`Cluster::finish`], which asserts the invariants of docs/reliability.md that can be seen from outside.

pub(crate) mod client;
pub(crate) mod clock;
pub(crate) mod net;
pub(crate) mod tally;
pub(crate) mod watch;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate_cluster::message::{MemberOp, MembersReply, MembersRequest, NodeStatus};
use quorate_cluster::node::{LOG_KEEP, Node, NodeOptions, StartError, Timing};
use quorate_storage::identity::Identity;
use quorate_storage::log::LogOptions;
use quorate_storage::machine::FIRST_NODE_ID;
use quorate_storage::node_disk::{self, DiskError};
use quorate_storage::raft_types::NodeInfo;
use quorate_storage::service::Registry;
use quorate_storage::tables::base::Base;
use quorate_storage::tables::rows::row_hash;
use quorate_storage::{FORMAT_VERSION, codec};
use tempfile::TempDir;
use tracing_subscriber::EnvFilter;

use self::clock::ManualClock;
use self::net::Net;
use self::tally::Tally;
use self::watch::Watch;

/// What a test waits for at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How a cluster is to be.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) servers: usize,
    pub(crate) timing: Timing,
    pub(crate) log_keep: u64,
}

impl Default for Options {
    /// Three servers that elect within about a second, on a machine that does other things too.
    fn default() -> Self {
        let ms = Duration::from_millis;
        let timing = Timing { heartbeat: ms(50), election: (ms(300), ms(600)) };
        Self { servers: 3, timing, log_keep: LOG_KEEP }
    }
}

impl Options {
    /// With time-outs so long that a busy machine does not cause an election.
    pub(crate) fn patient() -> Self {
        let ms = Duration::from_millis;
        let timing = Timing { heartbeat: ms(100), election: (ms(1000), ms(1500)) };
        Self { timing, ..Self::default() }
    }
}

/// The nodes that run, by name.
#[derive(Clone, Default)]
pub(crate) struct Nodes(Arc<Mutex<BTreeMap<String, Node>>>);

impl Nodes {
    pub(crate) fn all(&self) -> Vec<Node> {
        self.0.lock().unwrap().values().cloned().collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Node> {
        self.0.lock().unwrap().get(name).cloned()
    }
}

struct Server {
    dir: PathBuf,
    /// Kept open while the server is down, so that nobody else takes its port.
    listener: TcpListener,
    clock: Arc<ManualClock>,
    join: Vec<String>,
}

/// A cluster whose servers are called S1, S2, …; W is a witness.
pub(crate) struct Cluster {
    pub(crate) net: Net,
    pub(crate) nodes: Nodes,
    servers: BTreeMap<String, Server>,
    options: Options,
    watch: Watch,
    dir: TempDir,
}

impl Cluster {
    /// A cluster of one, S1.
    pub(crate) async fn single(options: Options) -> Self {
        Self::single_on(free_listener(), options).await
    }

    /// A cluster of one on a listener that is there already.
    pub(crate) async fn single_on(listener: TcpListener, options: Options) -> Self {
        // To see what the nodes say: RUST_LOG=info cargo test … -- --nocapture
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let nodes = Nodes::default();
        let watch = Watch::start(nodes.clone());
        let mut cluster = Self { net: Net::new(), nodes, servers: BTreeMap::new(), options, watch, dir };
        cluster.add_server("S1", listener);
        let identity = Identity {
            cluster_id: format!("{:032x}", rand::random::<u128>()),
            node_id: FIRST_NODE_ID,
            name: "S1".to_owned(),
            format_version: FORMAT_VERSION,
            seeds: Vec::new(),
            services: Vec::new(),
        };
        let first = cluster.info("S1");
        node_disk::create(&cluster.servers["S1"].dir, &identity, Some(first)).await.unwrap();
        cluster.start("S1").await;
        cluster.primary().await;
        cluster
    }

    /// A cluster whose servers are all voters, ready, and know it.
    pub(crate) async fn start_with(options: Options) -> Self {
        let mut cluster = Self::single(options).await;
        for number in 2..=options.servers {
            let name = format!("S{number}");
            cluster.join(&name).await;
            cluster.change(MemberOp::Promote, &name).await;
        }
        eventually("all servers are voters and ready", async || {
            let nodes = cluster.nodes.all();
            nodes.iter().all(|node| node.ready() && node.is_voter()) && cluster.same_revision()
        })
        .await;
        cluster
    }

    pub(crate) async fn start_three() -> Self {
        Self::start_with(Options::default()).await
    }

    fn add_server(&mut self, name: &str, listener: TcpListener) {
        let dir = self.dir.path().join(name);
        let join = self.servers.keys().map(|name| self.address(name)).collect();
        let clock = Arc::new(ManualClock::default());
        self.servers.insert(name.to_owned(), Server { dir, listener, clock, join });
    }

    /// Starts a new server; returns when the others know it, as a learner.
    pub(crate) async fn join(&mut self, name: &str) {
        self.add_server(name, free_listener());
        self.start(name).await;
        eventually("the new server is ready", async || self.node(name).ready()).await;
    }

    /// The same, for one that was told of an old address too, where a stranger is by now.
    pub(crate) async fn join_misled(&mut self, name: &str, stranger: &str) {
        self.net.place("stranger", stranger);
        self.add_server(name, free_listener());
        self.servers.get_mut(name).unwrap().join.push(stranger.to_owned());
        self.start(name).await;
        eventually("the new server is ready", async || self.node(name).ready()).await;
    }

    /// Gives a server that is down another address.
    pub(crate) fn move_server(&mut self, name: &str) {
        self.servers.get_mut(name).unwrap().listener = free_listener();
    }

    /// Empties the directory of a server that is down.
    pub(crate) fn wipe(&mut self, name: &str) {
        std::fs::remove_dir_all(&self.servers[name].dir).unwrap();
        let join = self.servers.keys().filter(|other| *other != name).map(|other| self.address(other));
        self.servers.get_mut(name).unwrap().join = join.collect();
    }

    /// Starts a server on the directory that it has.
    pub(crate) async fn start(&self, name: &str) {
        self.try_start(name).await.unwrap_or_else(|e| panic!("{name} does not start: {e}"));
    }

    pub(crate) async fn try_start(&self, name: &str) -> Result<(), StartError> {
        self.net.place(name, &self.address(name));
        let deadline = Instant::now() + PATIENCE;
        loop {
            // On its own, because unoptimised futures of this size fill the stack of a test that is nested deeply.
            match tokio::spawn(Node::start(self.node_options(name))).await.unwrap() {
                Ok(node) => {
                    self.nodes.0.lock().unwrap().insert(name.to_owned(), node);
                    return Ok(());
                }
                // What an abandoned node left running holds the files a moment longer.
                Err(StartError::Disk(DiskError::InUse(_))) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn node_options(&self, name: &str) -> NodeOptions {
        let (server, listener) = (&self.servers[name], self.listener(name));
        NodeOptions {
            dir: server.dir.clone(),
            info: self.info(name),
            join: server.join.clone(),
            registry: Registry::new().with(Tally),
            peer_listener: tokio::net::TcpListener::from_std(listener).unwrap(),
            dial: self.net.dial_from(name),
            clock: Arc::clone(&server.clock) as _,
            timing: self.options.timing,
            disk_reserve: 0,
            log: LogOptions { chunk_bytes: 1 << 20, cache_bytes: 16 << 20 },
            log_keep: self.options.log_keep,
        }
    }

    /// Kills a server: no flush, no farewell.
    pub(crate) async fn kill(&self, name: &str) {
        let node = self.nodes.0.lock().unwrap().remove(name);
        self.net.place(name, "nowhere");
        if let Some(node) = node {
            node.abandon().await;
        }
    }

    /// Changes a number of the test service in the tables of a server that is down, so that nothing but a comparison with
    /// the others tells. From then on its hashes are not watched.
    pub(crate) fn damage(&self, name: &str, key: &str, value: u64) {
        self.watch.exempt(name);
        let state = self.dir(name).join("state");
        damage(&state, key.as_bytes(), value);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.servers.keys().cloned().collect()
    }

    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.servers[name].dir.clone()
    }

    pub(crate) fn clock(&self, name: &str) -> &ManualClock {
        &self.servers[name].clock
    }

    pub(crate) fn address(&self, name: &str) -> String {
        self.servers[name].listener.local_addr().unwrap().to_string()
    }

    /// Where a server listens, for somebody else to listen there.
    pub(crate) fn listener(&self, name: &str) -> TcpListener {
        self.servers[name].listener.try_clone().unwrap()
    }

    pub(crate) fn info(&self, name: &str) -> NodeInfo {
        let peer = self.address(name);
        NodeInfo { name: name.to_owned(), url: format!("http://{name}"), peer, witness: name == "W" }
    }

    pub(crate) fn node(&self, name: &str) -> Node {
        self.nodes.get(name).unwrap_or_else(|| panic!("{name} is down"))
    }

    pub(crate) fn status(&self, name: &str) -> NodeStatus {
        self.node(name).status().unwrap()
    }

    /// The ready primary of the highest term that any running server knows of.
    pub(crate) async fn primary(&self) -> String {
        self.primary_among(&self.names()).await
    }

    /// The same, as far as `names` know.
    pub(crate) async fn primary_among<S: AsRef<str>>(&self, names: &[S]) -> String {
        let mut found = None;
        eventually("there is a primary", async || {
            let running = names.iter().filter_map(|name| self.nodes.get(name.as_ref()));
            let statuses: Vec<NodeStatus> = running.filter_map(|node| node.status().ok()).collect();
            let term = statuses.iter().map(|status| status.term).max();
            let mut primaries = statuses.iter().filter(|s| s.ready && s.leader == Some(s.node_id));
            found = primaries.find(|s| Some(s.term) == term).map(|s| s.info.name.clone());
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// All running servers that are not `name`.
    pub(crate) fn others(&self, name: &str) -> Vec<String> {
        let nodes = self.nodes.0.lock().unwrap();
        nodes.keys().filter(|other| *other != name).cloned().collect()
    }

    /// Carries a membership operation out, through the first server that runs.
    pub(crate) async fn change(&self, op: MemberOp, name: &str) -> MembersReply {
        let request = MembersRequest::new(op, name.to_owned());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let any = self.nodes.all().remove(0);
            match any.change_members(request.clone(), deadline).await {
                Ok(reply) => return reply,
                Err(e) if Instant::now() < deadline && e.retry_after_ms.is_some() => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(e) => panic!("{op:?} {name}: {e}"),
            }
        }
    }

    fn same_revision(&self) -> bool {
        let statuses: Vec<_> = self.nodes.all().iter().map(|node| node.status().unwrap()).collect();
        let same = |status: &NodeStatus| {
            status.revision == statuses[0].revision
                && status.last_log == statuses[0].last_log
                && status.applied == status.last_log
        };
        statuses.iter().all(same)
    }

    /// Heals the network, and waits until all running servers have all there is.
    pub(crate) async fn converge(&self) {
        self.net.heal();
        self.primary().await;
        eventually("all running servers have the same log, applied", async || self.same_revision()).await;
        let statuses: Vec<_> = self.nodes.all().iter().map(|node| node.status().unwrap()).collect();
        let hashes: Vec<_> = statuses.iter().map(|s| (s.revision, s.state_hash)).collect();
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "invariant 5, equal hashes: {statuses:#?}");
    }

    /// The end of every test: all converge, and nothing that was seen on the way broke an invariant.
    pub(crate) async fn finish(self) {
        self.converge().await;
        self.watch.stop().await;
        for node in self.nodes.all() {
            node.abandon().await;
        }
    }
}

fn damage(state: &Path, key: &[u8], value: u64) {
    let base = Base::open(state).unwrap();
    let mut meta = base.meta().unwrap().unwrap();
    let mut rows = base.range(Bound::Unbounded, Bound::Unbounded).map(Result::unwrap);
    let of_key = |row: &[u8]| row.windows(key.len()).any(|part| part == key);
    let (row, old) = rows.find(|(row, _)| of_key(row)).expect("it is flushed");
    drop(rows);
    let new = codec::encode(&value);
    meta.hash = meta.hash.wrapping_sub(row_hash(&row, &old)).wrapping_add(row_hash(&row, &new));
    base.flush([(&row, Some(&new[..]))].into_iter(), &meta).unwrap();
    base.close();
}

fn free_listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// Polls until `test` holds.
pub(crate) async fn eventually(what: &str, mut test: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !test().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asserts that `test` holds, again and again, for as long as `time`.
pub(crate) async fn throughout(what: &str, time: Duration, mut test: impl FnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(test(), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A deadline for one request.
pub(crate) fn within(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}
