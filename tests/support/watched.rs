//! A cluster under its detectors: a global one, and a local one for each server, which launches it.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{Http, Reply};
use super::netns::Net;
use super::process::{Port, Server};
use super::{PATIENCE, POLL};

/// A detector's process.
#[derive(Debug)]
pub(crate) struct Role {
    name: String,
    port: Port,
    pub(crate) words: Vec<String>,
    /// The network namespace that it runs in, with all that it launches.
    namespace: Option<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Role {
    fn new(name: &str, dir: &Path) -> Self {
        let log = dir.join(format!("{name}.log"));
        let (port, words) = (Port::reserve(), Vec::new());
        Self { name: name.to_owned(), port, words, namespace: None, log, child: None }
    }

    /// To a machine of its own.
    fn move_to(&mut self, net: &Net, machine: u8) {
        self.namespace = Some(net.name(machine).to_owned());
        self.port.host = net.host(machine);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.port.address())
    }

    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("a log file");
        let program = env!("CARGO_BIN_EXE_quorate");
        let mut command = match &self.namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, program]);
                command
            }
        };
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("QUORATE_")) {
            command.env_remove(key);
        }
        command.args(&self.words).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("the log file twice")).stderr(log);
        self.child = Some(command.spawn().expect("quorate can be run"));
    }

    /// SIGKILL; returns when the process is gone.
    pub(crate) fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("SIGKILL to a child of ours");
            child.wait().expect("the end of a child of ours");
        }
    }

    /// SIGTERM, and what the process ended with.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        signal("TERM", child.id());
        child.wait().expect("the end of a child of ours")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status();
    assert!(status.expect("kill can be run").success(), "kill -{name} {pid}");
}

/// Servers S1, S2, … with their detectors LFD1, LFD2, … and a GFD.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) gfd: Role,
    /// Not started.
    pub(crate) rm: Role,
    /// Another manager; not started.
    pub(crate) second_rm: Role,
    pub(crate) lfds: Vec<Role>,
    pub(crate) servers: Vec<Server>,
    pub(crate) http: Http,
    dir: TempDir,
}

impl Watched {
    /// `n` servers, all of them alive in the view. `flags` are the local detectors'.
    pub(crate) async fn start(n: usize, flags: &[&str]) -> Self {
        Self::start_in(n, flags, None).await
    }

    /// The same on machines of their own: the first ones are the servers', `gfd` that of the global detector. The manager
    /// is where the test is.
    pub(crate) async fn start_on(net: &Net, n: usize, gfd: u8) -> Self {
        Self::start_in(n, &[], Some((net, gfd))).await
    }

    async fn start_in(n: usize, flags: &[&str], net: Option<(&Net, u8)>) -> Self {
        let dir = tempfile::Builder::new().prefix("watched-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let dir = dir.expect("a directory below target/tmp");
        let path = dir.path();
        let mut gfd = Role::new("GFD", path);
        if let Some((net, machine)) = net {
            gfd.move_to(net, machine);
        }
        gfd.words = words(&["gfd", "--listen", &gfd.port.address(), "--transcript"]);
        let manager = |name| {
            let mut rm = Role::new(name, path);
            rm.words = words(&["rm", "--listen", &rm.port.address(), "--gfd", &gfd.port.address()]);
            rm
        };
        let (rm, second_rm) = (manager("RM"), manager("RM2"));
        let mut servers: Vec<Server> = (1..=n).map(|n| Server::new(&format!("S{n}"), path)).collect();
        let mut lfds: Vec<Role> = (1..=n).map(|n| Role::new(&format!("LFD{n}"), path)).collect();
        if let Some((net, _)) = net {
            for ((machine, lfd), server) in (1..).zip(&mut lfds).zip(&mut servers) {
                lfd.move_to(net, machine);
                server.move_to(net.host(machine));
            }
        }
        for (lfd, server) in lfds.iter_mut().zip(&servers) {
            let (listen, gfd) = (lfd.port.address(), gfd.port.address());
            lfd.words = words(&["lfd", "--name", &lfd.name, "--listen", &listen, "--gfd", &gfd]);
            lfd.words.extend(words(flags));
            lfd.words.extend(words(&["--", "server", "--join", &servers[0].peer.address()]));
            lfd.words.extend(server.identity());
        }
        servers[0].init();
        let mut watched = Self { gfd, rm, second_rm, lfds, servers, http: Http::new(), dir };
        watched.gfd.start();
        watched.lfds.iter_mut().for_each(Role::start);
        for n in 0..watched.servers.len() {
            watched.until_state(n, "alive").await;
        }
        watched
    }

    /// The same with a manager, whose first words are those of a cluster in a hurry: it waits for one second only.
    pub(crate) async fn start_managed(n: usize, flags: &[&str]) -> Self {
        let mut watched = Self::start(n, &[]).await;
        watched.set("stabilization", "1s").await;
        watched.rm.words.extend(words(flags));
        watched.rm.start();
        watched
    }

    /// Adds a witness W, with a detector of its own.
    pub(crate) async fn add_witness(&mut self) {
        self.add_witness_in(None).await;
    }

    /// The same on a machine of its own.
    pub(crate) async fn add_witness_on(&mut self, net: &Net, machine: u8) {
        self.add_witness_in(Some((net, machine))).await;
    }

    async fn add_witness_in(&mut self, place: Option<(&Net, u8)>) {
        let path = self.dir.path();
        let (mut server, mut lfd) = (Server::new("W", path), Role::new("LFDW", path));
        if let Some((net, machine)) = place {
            lfd.move_to(net, machine);
            server.move_to(net.host(machine));
        }
        let (listen, gfd) = (lfd.port.address(), self.gfd.port.address());
        lfd.words = words(&["lfd", "--name", &lfd.name, "--listen", &listen, "--gfd", &gfd, "--", "server"]);
        lfd.words.extend(words(&["--role", "witness", "--join", &self.servers[0].peer.address()]));
        lfd.words.extend(server.identity());
        lfd.start();
        self.servers.push(server);
        self.lfds.push(lfd);
        self.until_state(self.servers.len() - 1, "alive").await;
    }

    /// Sets a setting, through S1.
    pub(crate) async fn set(&self, name: &str, value: &str) {
        self.until_ready(0).await;
        let url = format!("{}/v1/cluster/settings", self.servers[0].url());
        let set = self.http.post(&url, &json!({ name: value })).await.expect("an answer of S1");
        assert_eq!(set.status, 200, "{set:?}");
    }

    /// The cluster as the first of its servers tells it that knows a primary.
    pub(crate) async fn cluster(&self) -> Result<Value, String> {
        let mut last = "nobody answers".to_owned();
        for server in &self.servers {
            match self.http.json(&format!("{}/v1/cluster", server.url())).await {
                Ok(cluster) if cluster["primary"].is_string() => return Ok(cluster),
                Ok(cluster) => last = cluster.to_string(),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Waits until exactly these servers vote, all members are ready, and nothing is half done; gives the cluster.
    pub(crate) async fn until_voters(&self, names: &[&str]) -> Value {
        self.until(&format!("the voters are {names:?}"), async || {
            let cluster = self.cluster().await?;
            let mut voters = strings(&cluster["membership"]["voters"]);
            voters.sort();
            if voters == names && cluster["settled"] == true { Ok(cluster) } else { Err(cluster.to_string()) }
        })
        .await
    }

    /// What the manager shows.
    pub(crate) async fn manager(&self) -> Result<Value, String> {
        self.http.json(&format!("{}/v1/rm", self.rm.url())).await
    }

    /// Kills the `n`th server, and nobody is to launch it.
    pub(crate) async fn kill_and_hold(&self, n: usize) {
        assert_eq!(self.say(n, "hold", json!({})).await.status, 200);
        self.signal(n, "KILL");
        self.until_state(n, "dead").await;
    }

    /// Has the `n`th server launched that was held.
    pub(crate) async fn release(&self, n: usize) {
        assert_eq!(self.say(n, "launch", json!({})).await.status, 200);
    }

    /// Polls until `probe` succeeds. Fails the test after [`PATIENCE`], with the probe's last word.
    pub(crate) async fn until<T>(&self, what: &str, mut probe: impl AsyncFnMut() -> Result<T, String>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match probe().await {
                Ok(value) => return value,
                Err(error) => {
                    assert!(
                        Instant::now() < deadline,
                        "not within {PATIENCE:?}: {what}. The last look: {error}"
                    );
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The view as the GFD has it.
    pub(crate) async fn view(&self) -> Result<Value, String> {
        self.http.json(&format!("{}/v1/view", self.gfd.url())).await
    }

    /// What the view says of the `n`th server.
    pub(crate) async fn member(&self, n: usize) -> Result<Value, String> {
        let view = self.view().await?;
        let name = &self.servers[n].name;
        let members = view["members"].as_array().ok_or("no members")?;
        let member = members.iter().find(|member| member["name"] == **name);
        member.cloned().ok_or_else(|| format!("{name} is not in {view}"))
    }

    /// Waits until the view says so of the `n`th server.
    pub(crate) async fn until_state(&self, n: usize, state: &str) -> Value {
        self.until(&format!("S{} is {state}", n + 1), async || {
            let member = self.member(n).await?;
            if member["state"] == state { Ok(member) } else { Err(member.to_string()) }
        })
        .await
    }

    /// Waits until the `n`th server is caught up and knows a primary.
    pub(crate) async fn until_ready(&self, n: usize) {
        let url = format!("{}/readyz", self.servers[n].url());
        self.until(&format!("S{} is ready", n + 1), async || self.http.ok(&url).await).await;
    }

    /// `POST` to the `n`th server's detector.
    pub(crate) async fn say(&self, n: usize, what: &str, fields: Value) -> Reply {
        let url = format!("{}/v1/{what}", self.lfds[n].url());
        self.http.post(&url, &fields).await.expect("an answer of the detector")
    }

    /// Has the `n`th server launched, after the given incarnation.
    pub(crate) async fn launch(&self, n: usize, after: &Value) -> Reply {
        self.say(n, "launch", json!({ "after": after })).await
    }

    /// The processes of the `n`th server: one, or none while it is down.
    pub(crate) fn pids(&self, n: usize) -> Vec<u32> {
        pids_with(&self.servers[n].data.display().to_string())
    }

    /// Sends a signal to the `n`th server's process.
    pub(crate) fn signal(&self, n: usize, name: &str) {
        let pids = self.pids(n);
        assert_eq!(pids.len(), 1, "one process of S{}", n + 1);
        signal(name, pids[0]);
    }

    fn tails(&self) -> String {
        let roles = self.lfds.iter().chain([&self.gfd, &self.rm, &self.second_rm]);
        roles
            .map(|role| {
                let log = role.log();
                let lines: Vec<&str> = log.lines().collect();
                format!("--- {}:\n{}\n", role.name, lines[lines.len().saturating_sub(25)..].join("\n"))
            })
            .collect()
    }
}

impl Drop for Watched {
    #[allow(clippy::print_stderr, reason = "the test runner shows it with the failure")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tails());
        }
        self.rm.kill9();
        self.second_rm.kill9();
        self.gfd.kill9();
        self.lfds.iter_mut().for_each(Role::kill9);
        // Servers outlive their detectors. This directory is this test's alone, so what names it is, too.
        for pid in pids_with(&self.dir.path().display().to_string()) {
            let _ = Command::new("kill").args(["-KILL".to_owned(), pid.to_string()]).status();
        }
    }
}

pub(crate) fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// The running servers whose command line has `text` in it; their detectors' have it too, and are none.
fn pids_with(text: &str) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        // A process that has ended meanwhile, or is a zombie, has none.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(text) && line.split(' ').nth(1) == Some("server")
    })
    .collect()
}
