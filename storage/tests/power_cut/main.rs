//! Power cuts: nothing that was acknowledged is lost, and the server opens unaided.
//!
//! A writer process drives the calls that openraft makes (append, vote, commit mark, truncation by a
//! new leader, purge, flush, install) in a random order on a disk whose power is then cut. The next
//! writer first checks what it finds against what the ones before it said, then works on. Some cuts
//! come while a writer is still recovering, or while it makes its directory.
//!
//! `QUORATE_CUTS=300` for a long run (`scripts/soak/power-cuts.sh`), `QUORATE_SEED=N` for the same
//! random choices again. Needs root and loop devices: otherwise it says so and passes.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod check;
mod history;
mod rig;
#[path = "../support/mod.rs"]
mod support;
mod writer;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use self::rig::Rig;
use self::support::Rng;

/// A writer that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(60);
/// Cuts on one file system before a new one is made.
const CUTS_PER_DISK: u64 = 8;

#[test]
fn nothing_acknowledged_is_lost_when_the_power_is_cut() {
    let Some(rig) = Rig::new("cuts") else { return };
    let cuts = number("QUORATE_CUTS").unwrap_or(25);
    let seed = number("QUORATE_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let mut run = Run { rig, rng: Rng(seed), journal: Vec::new(), seen: BTreeMap::new(), seed };
    run.cut_again_and_again(cuts);
    println!("power cuts: {cuts}, seed {seed}, nothing lost; {:?}", run.seen);
    for kind in ["write", "vote", "commit", "truncate", "purge", "flush", "install"] {
        assert!(run.seen.contains_key(kind), "the run had no {kind}: it shows nothing");
    }
}

/// What a killed process wrote and did not sync is in the page cache: the next one finds it, and openraft
/// acknowledges what it finds. So it must be made durable first.
#[test]
fn what_a_killed_process_left_is_made_durable_before_it_counts() {
    let Some(rig) = Rig::new("kill") else { return };
    let mut run = Run { rig, rng: Rng(1), journal: Vec::new(), seen: BTreeMap::new(), seed: 1 };
    // A server on another disk, at two moments.
    let server = run.rig.scratch().join("server");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (disk, _machine) = runtime.block_on(support::server_with(&server, 20));
    copy_synced(&server, &run.rig.mount_point().join("server"));
    let mut log = disk.log.clone();
    runtime.block_on(support::append(&mut log, (21..=200).map(|index| support::entry(1, index))));
    for file in std::fs::read_dir(server.join("log")).unwrap() {
        let file = file.unwrap();
        // Written and not synced: what a process leaves that is killed before its fdatasync.
        std::fs::copy(file.path(), run.rig.mount_point().join("server/log").join(file.file_name())).unwrap();
    }
    for life in ["after the kill", "after the power cut"] {
        let mut writer = run.start("open");
        let mut found = String::new();
        run.listen(&mut writer, None, |line| {
            line.strip_prefix("found ").inspect(|last| found.push_str(last)).is_some()
        });
        assert_eq!(found, "200", "{life}");
        run.rig.cut_the_power();
        writer.kill();
        run.rig.unmount();
        run.rig.mount().unwrap();
    }
}

fn copy_synced(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
    assert!(Command::new("sync").arg("-f").arg(to).status().unwrap().success());
}

/// The process that the tests above start, and whose power they cut.
#[test]
#[ignore = "not a test: the power-cut test runs it as a process of its own"]
fn writer_process() {
    let path = |name: &str| std::env::var_os(name).expect("set by the power-cut test").into();
    writer::run(&writer::Settings {
        dir: path("QUORATE_WRITER_DIR"),
        journal: path("QUORATE_WRITER_JOURNAL"),
        scratch: path("QUORATE_WRITER_SCRATCH"),
        seed: number("QUORATE_WRITER_SEED").unwrap(),
        task: std::env::var("QUORATE_WRITER_TASK").expect("set by the power-cut test"),
    });
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// When the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// Right after the directory has been made.
    Birth,
    /// While the writer makes the directory or opens it, checks and replays.
    Recovery,
    /// In the middle of something.
    Work,
    /// Right behind a flush or an install, with nothing behind it that syncs the log.
    Quiet,
}

struct Run {
    rig: Rig,
    rng: Rng,
    /// What the writers on this disk said since it was last checked.
    journal: Vec<String>,
    /// How many steps of each kind there were, and cuts at special moments.
    seen: BTreeMap<String, u64>,
    seed: u64,
}

impl Run {
    fn cut_again_and_again(&mut self, cuts: u64) {
        for cut in 0..cuts {
            println!("cut {cut}");
            if cut % CUTS_PER_DISK == 0 {
                self.check();
                // Writeback lets a file's length reach the disk before its bytes do.
                self.rig.renew(["data=ordered", "data=writeback"][(cut / CUTS_PER_DISK % 2) as usize]);
                self.journal.clear();
            }
            let moment = match cut % 4 {
                0 if self.journal.is_empty() && self.rng.one_in(2) => Moment::Birth,
                0 => Moment::Recovery,
                1 => Moment::Quiet,
                _ => Moment::Work,
            };
            self.cut(moment);
        }
        self.check();
    }

    /// One life of a writer, up to the cut.
    fn cut(&mut self, moment: Moment) {
        let mut writer = self.start("work");
        let pause = Duration::from_micros(self.rng.below(4_000));
        match moment {
            Moment::Birth => {
                self.listen(&mut writer, None, |line| line == "created");
            }
            Moment::Recovery => {
                let soon = Instant::now() + Duration::from_millis(1 + self.rng.below(80));
                self.listen(&mut writer, Some(soon), |line| line == "ready");
            }
            Moment::Work | Moment::Quiet => {
                let steps = 5 + self.rng.below(80);
                let mut done = 0;
                self.listen(&mut writer, None, |line| {
                    done += u64::from(line.starts_with("op "));
                    done > steps
                });
                if moment == Moment::Quiet {
                    self.listen(&mut writer, None, |line| line == "quiet");
                } else {
                    self.listen(&mut writer, Some(Instant::now() + pause), |_| false);
                }
            }
        }
        self.count(&format!("cut: {moment:?}"));
        self.rig.cut_the_power();
        writer.kill();
        while let Ok(line) = writer.lines.recv() {
            // What it says now counts as begun, not as done: after the cut, an fsync that was under way
            // can find its transaction gone and return success. With real power nobody would hear that.
            if !line.starts_with("ack ") && line != "created" {
                self.hear(line);
            }
        }
        self.rig.unmount();
        self.rig.mount().unwrap();
    }

    /// What the last cut left is checked by a writer that then ends.
    fn check(&mut self) {
        if self.journal.is_empty() {
            return;
        }
        let mut writer = self.start("check");
        let ready = self.listen(&mut writer, None, |line| line == "ready");
        assert!(ready);
        let status = writer.child.wait().unwrap();
        assert!(status.success(), "the last check ended with {status}: {}", writer.errors());
    }

    fn start(&mut self, task: &str) -> Writer {
        let scratch = self.rig.scratch();
        let journal = scratch.join("journal");
        std::fs::write(&journal, self.journal.join("\n")).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "writer_process", "--ignored", "--nocapture", "--test-threads=1"])
            // sled runs the command `sync` when it opens. That writes back every file of the machine
            // and would hide a missing fsync of ours, so it is not to be found.
            .env("PATH", "/nonexistent")
            .env("QUORATE_WRITER_DIR", self.rig.mount_point().join("server"))
            .env("QUORATE_WRITER_JOURNAL", journal)
            .env("QUORATE_WRITER_SCRATCH", scratch)
            .env("QUORATE_WRITER_TASK", task)
            .env("QUORATE_WRITER_SEED", self.rng.next().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Writer::new(command.spawn().unwrap())
    }

    /// Takes down what the writer says until `end` or the deadline; false at the deadline.
    fn listen(
        &mut self,
        writer: &mut Writer,
        deadline: Option<Instant>,
        mut end: impl FnMut(&str) -> bool,
    ) -> bool {
        loop {
            let patience =
                deadline.map_or(SILENCE, |deadline| deadline.saturating_duration_since(Instant::now()));
            match writer.lines.recv_timeout(patience) {
                Ok(line) => {
                    let ended = end(&line);
                    self.hear(line);
                    if ended {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Timeout) if deadline.is_some() => return false,
                Err(RecvTimeoutError::Timeout) => panic!("seed {}: the writer hangs", self.seed),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = writer.child.wait().unwrap();
                    let tail: Vec<&String> = self.journal.iter().rev().take(3).collect();
                    panic!(
                        "seed {}: the writer ended with {status} before its power was cut; it said {tail:?}; {}",
                        self.seed,
                        writer.errors()
                    );
                }
            }
        }
    }

    fn hear(&mut self, line: String) {
        if line.starts_with("base ") {
            self.journal.clear();
        }
        if let Some(kind) = line.strip_prefix("op ").and_then(|rest| rest.split(' ').nth(1)) {
            self.count(kind);
        }
        self.journal.push(line);
    }

    fn count(&mut self, what: &str) {
        *self.seen.entry(what.to_owned()).or_default() += 1;
    }
}

struct Writer {
    child: Child,
    lines: Receiver<String>,
}

impl Writer {
    fn new(mut child: Child) -> Self {
        let (said, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if said.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            let _ = errors.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
