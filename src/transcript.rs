//! The lines that an operator follows, on stdout, beside the log on stderr. Times are UTC, as in the log.

use std::fmt::{Arguments, Display};
use std::io::Write as _;
use std::sync::LazyLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use quorate_cluster::clock::{Clock as _, SystemClock};
use quorate_cluster::node::Node;
use quorate_storage::machine::Checkpoint;
use serde_json::Value;
use tokio::time::timeout;

/// `--transcript`, or nothing but what a role prints anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transcript {
    /// Whether everything is printed.
    pub on: bool,
}

impl Transcript {
    /// Who a role takes for alive; printed always.
    pub fn members(self, role: &str, names: &[String]) {
        let plural = if names.len() == 1 { "member" } else { "members" };
        let list = if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
        print(format_args!("{role}: {} {plural}{list}", names.len()));
    }

    /// A server serves, and votes; printed always.
    pub fn ready(self, name: &str) {
        print(format_args!("{name} is ready"));
    }

    /// A heartbeat goes out.
    pub fn heartbeat_sent(self, count: u64, from: &str, to: &str) {
        self.timed(count, format_args!("{from} sending heartbeat to {to}"));
    }

    /// A heartbeat has come.
    pub fn heartbeat_received(self, count: u64, by: &str, from: &str) {
        self.timed(count, format_args!("{by} receives heartbeat from {from}"));
    }

    /// A request was carried out, with a reply that has the state before and after it.
    pub(crate) fn processed(self, server: &str, reply: &Value, request: impl FnOnce() -> String) {
        let after = reply.get("value").or_else(|| reply.get("text"));
        if let (true, Some(before), Some(after)) = (self.on, reply.get("previous"), after) {
            let request = request();
            print(format_args!("my_state_{server} = {before} before processing {request}"));
            print(format_args!("my_state_{server} = {after} after processing {request}"));
        }
    }

    /// A client's request goes out to a server, each time that it does.
    pub(crate) fn sent(self, client: &str, server: &str, number: u64) {
        self.message("Sent", client, server, number, "request");
    }

    /// Its reply is there. A refusal is none.
    pub(crate) fn received(self, client: &str, server: &str, number: u64) {
        self.message("Received", client, server, number, "reply");
    }

    fn message(self, what: &str, client: &str, server: &str, number: u64, kind: &str) {
        if self.on {
            // At once: a client's end waits for no other thread, and nobody is held up but itself.
            let line =
                one_line(format_args!("[{}] {what} <{client}, {server}, {number}, {kind}>", time_of_day()));
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    }

    /// Tells what a server is, when it is ready, and its checkpoints, for as long as it runs.
    pub(crate) async fn follow(self, node: Node) {
        if !self.on {
            return;
        }
        let name = node.name();
        let mut checkpoints = node.checkpoints();
        let mut told = checkpoints.borrow().last().map_or(0, |last| last.number);
        let (mut was, mut was_ready) = (None, false);
        loop {
            let mode = if node.is_passive() { "passive" } else { "active" };
            let now = (mode, if node.is_primary() { "primary" } else { "backup" });
            let ready = node.ready();
            if ready && !was_ready {
                self.ready(name);
            }
            was_ready = ready;
            // Neither says anything about a witness.
            if ready && !node.is_witness() && was.replace(now) != Some(now) {
                self.timed(now.0, format_args!("[{}] {name}", now.1));
            }
            let kept = checkpoints.borrow_and_update().clone();
            kept.iter().filter(|at| at.number > told).for_each(|at| self.checkpoint(&node, at));
            told = kept.last().map_or(told, |last| last.number);
            if let Ok(Err(_)) = timeout(LOOK, checkpoints.changed()).await {
                return;
            }
        }
    }

    /// The primary logs a checkpoint, which comes to the others with the log.
    fn checkpoint(self, node: &Node, checkpoint: &Checkpoint) {
        let name = node.name();
        let mark = format!("checkpoint {}", checkpoint.number);
        let hash = checkpoint.hash;
        if node.is_primary() {
            for other in node.member_names().iter().filter(|other| *other != name) {
                self.timed(&mark, format_args!("[{hash:032x}] {name} sending checkpoint to {other}"));
            }
        } else if let Some(primary) = node.primary_name() {
            self.timed(&mark, format_args!("[{hash:032x}] {name} receives checkpoint from {primary}"));
        }
    }

    fn timed(self, mark: impl Display, text: Arguments<'_>) {
        if self.on {
            print(format_args!("[{}] [{mark}] {text}", time_of_day()));
        }
    }
}

/// How often it is looked what a server is.
const LOOK: Duration = Duration::from_millis(100);

/// Characters of a line; the rest is cut off.
const LINE_MAX: usize = 1_000;

/// Lines that wait to be written.
const WAITING: usize = 1_024;

/// Hands a line to a thread of its own: a terminal that is held up, or a pipe that nobody reads, is not to hold up a
/// server. What does not fit meanwhile is left out, and a pipe that was closed stops nothing.
fn print(line: Arguments<'_>) {
    static WRITER: LazyLock<SyncSender<String>> = LazyLock::new(|| {
        let (lines, waiting) = sync_channel::<String>(WAITING);
        std::thread::spawn(move || {
            let mut out = std::io::stdout();
            for line in waiting {
                let _ = writeln!(out, "{line}").and_then(|()| out.flush());
            }
        });
        lines
    });
    let _ = WRITER.try_send(one_line(line));
}

/// What clients wrote may be part of it.
fn one_line(line: Arguments<'_>) -> String {
    line.to_string().chars().take(LINE_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// HH:MM:SS
fn time_of_day() -> String {
    let seconds = SystemClock.wall() / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
