//! Jobs on real processes.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod deaths;
mod workers;

use std::process::{Child, Command, Stdio};

use quorate::client::{Client, RingView};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::Cluster;
use crate::support::cli::{Run, quorate};

/// A command that goes on until its worker is gone, however that ended.
const STAY: [&str; 3] = ["sh", "-c", "while kill -0 $PPID; do sleep 0.1; done"];

/// `quorate jobs work`, killed at the end.
struct Worker(Child);

impl Worker {
    fn start(cluster: &Cluster, queue: &str, name: &str, lease: &str, command: &[&str]) -> Self {
        let servers = cluster.urls().join(",");
        let mut worker = Command::new(env!("CARGO_BIN_EXE_quorate"));
        worker.args(["jobs", "work", "--queue", queue, "--name", name, "--lease", lease, "--quiet"]);
        worker.args(["--servers", &servers, "--"]).args(command);
        Self(worker.stderr(Stdio::null()).spawn().expect("quorate can be run"))
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("a signal to a child of ours");
    }

    fn kill9(&mut self) {
        self.0.kill().expect("SIGKILL to a child of ours");
        self.0.wait().expect("the end of a child of ours");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn jobs(cluster: &Cluster, words: &[&str]) -> Run {
    let servers = cluster.urls().join(",");
    quorate([&["jobs"], words, &["--timeout", "20s", "--servers", &servers]].concat()).await
}

fn client(cluster: &Cluster) -> Client {
    cluster.client().build().expect("a client")
}

async fn ring(
    cluster: &Cluster,
    client: &Client,
    queue: &str,
    what: &str,
    wanted: impl Fn(&RingView) -> bool,
) -> RingView {
    cluster
        .until(what, async || {
            let ring = client.jobs().ring(queue).await.map_err(|error| error.to_string())?.data;
            if wanted(&ring) { Ok(ring) } else { Err(format!("{ring:?}")) }
        })
        .await
}
