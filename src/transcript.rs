//! The lines that an operator follows, on stdout, beside the log on stderr. Times are UTC, as in the log.

use std::fmt::{Arguments, Display};
use std::io::Write as _;
use std::sync::LazyLock;
use std::sync::mpsc::{SyncSender, sync_channel};

use quorate_cluster::clock::{Clock as _, SystemClock};

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

    fn timed(self, mark: impl Display, text: Arguments<'_>) {
        if self.on {
            print(format_args!("[{}] [{mark}] {text}", time_of_day()));
        }
    }
}

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
    let _ = WRITER.try_send(line.to_string());
}

/// HH:MM:SS
fn time_of_day() -> String {
    let seconds = SystemClock.wall() / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
