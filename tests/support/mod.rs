//! What the tests with real processes share: a cluster of `quorate` servers on free ports and a real disk.
//!
//! Everything waits by polling to a deadline. When a test fails, the ends of all servers' logs are shown. All
//! processes end with the [`Cluster`].

#![allow(dead_code, reason = "each test file uses a part of this")]

pub(crate) mod adder;
pub(crate) mod cli;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod mount;
pub(crate) mod netns;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod watched;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use quorate::client::{Client, ClientBuilder, MembershipChange};
use serde_json::Value;
use tempfile::TempDir;

use self::http::Http;
use self::process::Server;
use self::proxy::Proxy;

/// How long anything that a cluster does by itself may take before a test gives up. A machine that is busy with
/// other tests is slow; a healthy cluster on a free one needs less than two seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(25);

/// What a cluster is to be like.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// How many servers, all of them voters.
    pub(crate) servers: usize,
    /// Further flags of `quorate server`.
    pub(crate) flags: Vec<String>,
    /// Is there a [`Proxy`] before each server, whose URL the server advertises?
    pub(crate) proxied: bool,
    /// Servers whose directories lie elsewhere, below the given one.
    pub(crate) places: BTreeMap<String, PathBuf>,
    /// What the servers run, when it is not `quorate`.
    pub(crate) program: Option<PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { servers: 3, flags: Vec::new(), proxied: false, places: BTreeMap::new(), program: None }
    }
}

/// A running cluster: servers S1, S2, …
#[derive(Debug)]
pub(crate) struct Cluster {
    servers: BTreeMap<String, Server>,
    proxies: BTreeMap<String, Proxy>,
    flags: Vec<String>,
    pub(crate) http: Http,
    // The last to be dropped: the servers write into it.
    dir: TempDir,
}

impl Cluster {
    /// A cluster of `n` voters, all of them ready.
    pub(crate) async fn start(n: usize) -> Self {
        Self::with(Setup { servers: n, ..Setup::default() }).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let dir = tempfile::Builder::new().prefix("cluster-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let dir = dir.expect("a directory below target/tmp");
        let (mut servers, mut proxies) = (BTreeMap::new(), BTreeMap::new());
        for name in (1..=setup.servers).map(|n| format!("S{n}")) {
            let mut server = Server::new(&name, dir.path());
            if let Some(program) = &setup.program {
                server.program.clone_from(program);
            }
            if let Some(place) = setup.places.get(&name) {
                server.data = place.join(&name);
            }
            if setup.proxied {
                let proxy = Proxy::start(server.listen.address()).await;
                server.advertise = Some(proxy.url());
                proxies.insert(name.clone(), proxy);
            }
            servers.insert(name, server);
        }
        let cluster = Self { servers, proxies, flags: setup.flags, http: Http::new(), dir };
        let names = cluster.names();
        cluster.server(&names[0]).init();
        cluster.start_server(&names[0]);
        // One that joins would ask another that is still joining, and wait some seconds for its answer.
        cluster.wait_ready(&names[0]).await;
        for name in &names[1..] {
            cluster.start_server(name);
        }
        for name in &names {
            cluster.settle(name).await;
        }
        cluster
    }

    // ---- Who and where ----

    pub(crate) fn names(&self) -> Vec<String> {
        self.servers.keys().cloned().collect()
    }

    /// The servers whose processes run, the paused ones included.
    pub(crate) fn running(&self) -> Vec<String> {
        self.servers.values().filter(|server| server.runs()).map(|server| server.name.clone()).collect()
    }

    pub(crate) fn server(&self, name: &str) -> &Server {
        self.servers.get(name).unwrap_or_else(|| panic!("there is no server {name}"))
    }

    /// For a server that is to be somebody or somewhere else when it starts again.
    pub(crate) fn server_mut(&mut self, name: &str) -> &mut Server {
        self.servers.get_mut(name).unwrap_or_else(|| panic!("there is no server {name}"))
    }

    /// One more server. It does not run yet.
    pub(crate) fn add(&mut self, name: &str) {
        self.servers.insert(name.to_owned(), Server::new(name, self.dir.path()));
    }

    /// Where the server itself listens, past its proxy.
    pub(crate) fn url(&self, name: &str) -> String {
        self.server(name).url()
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.servers.values().map(Server::url).collect()
    }

    pub(crate) fn proxy(&self, name: &str) -> &Proxy {
        self.proxies.get(name).expect("a cluster with `proxied`")
    }

    /// A client of all servers, through the proxies where there are some. Patient: with it, no outcome stays unknown
    /// only because a failover took its time.
    pub(crate) fn client(&self) -> ClientBuilder {
        let urls = match self.proxies.is_empty() {
            true => self.urls(),
            false => self.proxies.values().map(Proxy::url).collect(),
        };
        Client::builder().servers(urls).timeout(PATIENCE)
    }

    // ---- Life and death ----

    /// SIGKILL; returns when the process is gone.
    pub(crate) fn kill9(&self, name: &str) {
        self.server(name).kill9();
    }

    /// SIGKILL to all, as near to each other as one process can.
    pub(crate) fn kill9_all(&self) {
        std::thread::scope(|scope| {
            for server in self.servers.values() {
                scope.spawn(|| server.kill9());
            }
        });
    }

    /// Starts the process, with the name and the ports that it always had; returns at once.
    pub(crate) fn start_server(&self, name: &str) {
        let others = self.servers.values().filter(|server| server.name != name);
        let join: Vec<String> = others.map(|server| server.peer.address()).collect();
        self.server(name).start(&join.join(","), &self.flags);
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn restart(&self, name: &str) {
        self.start_server(name);
        self.wait_ready(name).await;
    }

    /// SIGSTOP.
    pub(crate) fn pause(&self, name: &str) {
        self.server(name).signal("STOP");
    }

    /// SIGCONT.
    pub(crate) fn resume(&self, name: &str) {
        self.server(name).signal("CONT");
    }

    /// SIGTERM, and what the process ended with.
    pub(crate) async fn terminate(&self, name: &str) -> ExitStatus {
        self.server(name).signal("TERM");
        self.ended(name).await
    }

    /// Waits for the end of a process that was told to end.
    pub(crate) async fn ended(&self, name: &str) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.server(name).ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "{name} does not end within {PATIENCE:?} after SIGTERM");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Kills it and deletes its directory. It stays down; started again, it joins as a learner with a new node id
    /// ([`Cluster::settle`] makes it a voter).
    pub(crate) fn wipe(&self, name: &str) {
        let server = self.server(name);
        server.kill9();
        std::fs::remove_dir_all(&server.data).expect("the server's directory");
    }

    // ---- Waiting ----

    /// Polls until `probe` succeeds. Fails the test after [`PATIENCE`], with the probe's last word.
    pub(crate) async fn until<T>(&self, what: &str, mut probe: impl AsyncFnMut() -> Result<T, String>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match probe().await {
                Ok(value) => return value,
                Err(error) => error,
            };
            // Shows a server that has ended by itself at once, instead of after the deadline.
            for server in self.servers.values() {
                if let Some(status) = server.ended() {
                    panic!("waiting for: {what}. {} has ended by itself, with {status}", server.name);
                }
            }
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}. The last look: {error}");
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) async fn wait_ready(&self, name: &str) {
        let url = format!("{}/readyz", self.url(name));
        self.until(&format!("{name} is ready"), async || self.http.ok(&url).await).await;
    }

    pub(crate) async fn wait_all_ready(&self) {
        for name in self.running() {
            self.wait_ready(&name).await;
        }
    }

    /// Waits until the server is a ready voter; promotes it when it has joined as a learner.
    pub(crate) async fn settle(&self, name: &str) {
        let client = self.client().servers(self.running().iter().map(|name| self.url(name)));
        let client = client.build().expect("a client");
        self.until(&format!("{name} is a ready voter"), async || {
            let status = self.status(name).await?;
            match status["role"].as_str() {
                Some("primary" | "backup") => {}
                _ => {
                    let change = client.change_membership(MembershipChange::Promote, name, None).await;
                    return Err(format!("promoting it: {:?}", change.map(|reply| reply.body)));
                }
            }
            self.http.ok(&format!("{}/readyz", self.url(name))).await.map(drop)
        })
        .await;
    }

    /// Waits until the log of `name` begins after `revision`: who lacks that much gets a snapshot from it. A flush,
    /// behind which the log is purged, comes after some seconds when something is written.
    pub(crate) async fn until_purged(&self, name: &str, revision: u64) {
        let url = format!("{}/v1/log?limit=1", self.url(name));
        self.until(&format!("the log of {name} begins after revision {revision}"), async || {
            match self.http.json(&url).await?["oldest"].as_u64() {
                Some(oldest) if oldest > revision => Ok(()),
                oldest => Err(format!("its oldest revision is {oldest:?}")),
            }
        })
        .await;
    }

    // ---- Looking ----

    /// How many snapshots the server has begun to install, by its log.
    pub(crate) fn snapshots(&self, name: &str) -> usize {
        self.server(name).log().matches("installing a snapshot").count()
    }

    /// `GET /v1/status` of one server.
    pub(crate) async fn status(&self, name: &str) -> Result<Value, String> {
        self.http.json(&format!("{}/v1/status", self.url(name))).await
    }

    /// The primary's name, on the word of the server that is it: a server that was deposed and does not know yet
    /// does not count, since the newest term decides.
    pub(crate) async fn primary(&self) -> String {
        self.until("there is a primary", async || {
            let mut newest: Option<(u64, String)> = None;
            for name in self.running() {
                let Ok(status) = self.status(&name).await else { continue };
                let term = status["term"].as_u64().unwrap_or(0);
                let is_newer = newest.as_ref().is_none_or(|(other, _)| *other < term);
                if status["role"] == "primary" && status["ready"] == true && is_newer {
                    newest = Some((term, name));
                }
            }
            newest.map(|(_, name)| name).ok_or_else(|| "none says it is one".to_owned())
        })
        .await
    }

    /// A server that runs and is not the primary.
    pub(crate) async fn backup(&self) -> String {
        let primary = self.primary().await;
        self.running().into_iter().find(|name| *name != primary).expect("a second server that runs")
    }

    /// Waits until all servers have the same revision, and fails if two of them ever had another state at one
    /// revision. Nothing may be writing meanwhile. Returns the revision.
    pub(crate) async fn equal_hashes(&self) -> u64 {
        let names = self.names();
        let mut seen: BTreeMap<u64, (String, String)> = BTreeMap::new();
        self.until("all servers have the same revision", async || {
            let mut revisions = BTreeMap::new();
            for name in &names {
                let status = self.status(name).await?;
                let revision = status["revision"].as_u64().ok_or_else(|| format!("{name}: {status}"))?;
                let hash = status["state_hash"].as_str().ok_or_else(|| format!("{name}: {status}"))?;
                let (first, other) = seen.entry(revision).or_insert_with(|| (name.clone(), hash.to_owned()));
                assert_eq!(hash, other, "{name} and {first} have different states at revision {revision}");
                revisions.insert(name.clone(), revision);
            }
            let first = revisions.values().next().copied().unwrap_or(0);
            match revisions.values().all(|revision| *revision == first) {
                true => Ok(first),
                false => Err(format!("{revisions:?}")),
            }
        })
        .await
    }
}

impl Drop for Cluster {
    #[allow(clippy::print_stderr, reason = "the test runner shows it with the failure")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            for server in self.servers.values() {
                eprintln!("{}", server.tail());
            }
        }
    }
}
