//! `quorate jobs ring`: the ring as a picture.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;

use super::show::counted;
use crate::cli::output::{CliError, Exit, Output, Printed};
use crate::cli::shown::cell;
use crate::cli::status;
use crate::client::{Client, RingView};
use crate::services::jobs::Phase;

/// So many characters stand for the ring.
const WIDTH: u32 = 64;
/// How often a watched ring is drawn.
const EVERY: Duration = Duration::from_millis(250);
/// One letter for each worker.
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789#%";

#[derive(Debug, Args)]
pub(super) struct RingArgs {
    /// Whose [default: default]
    #[arg(long)]
    queue: Option<String>,
    /// Draw it again and again, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

pub(super) async fn show(
    client: &Client,
    queue: &str,
    arguments: &RingArgs,
    output: Output,
) -> Result<Exit, CliError> {
    let queue = arguments.queue.as_deref().unwrap_or(queue);
    let mut last = None;
    loop {
        let ring = match client.jobs().ring(queue).await {
            Ok(ring) => ring,
            Err(error) if arguments.watch && error.refused().is_none() => {
                Output::note(&error.to_string());
                tokio::time::sleep(EVERY).await;
                continue;
            }
            Err(error) => return super::refused(error, output),
        };
        let picture = draw(&ring.data);
        if !arguments.watch {
            output.reply(&Printed::new(picture, ring.body))?;
            return Ok(Exit::Done);
        }
        let clear = if std::io::stdout().is_terminal() { "\u{1b}[H\u{1b}[2J" } else { "" };
        let shown = Printed::new(format!("{clear}{picture}"), ring.body.clone());
        // On a terminal times go on; elsewhere what is the same need not be said again.
        if (!clear.is_empty() || last.as_ref() != Some(&steady(&ring.data))) && !output.reply(&shown)? {
            return Ok(Exit::Done);
        }
        last = Some(steady(&ring.data));
        tokio::time::sleep(EVERY).await;
    }
}

/// The ring without what changes all the time.
fn steady(ring: &RingView) -> RingView {
    let mut ring = RingView { now_ms: 0, ..ring.clone() };
    ring.workers.iter_mut().for_each(|worker| worker.until_ms = 0);
    ring
}

fn draw(ring: &RingView) -> String {
    let secs = |ms: u64| format!("{:.1} s", ms as f64 / 1_000.0);
    let since = secs(ring.now_ms.saturating_sub(ring.since_ms));
    let mut text = format!(
        "queue {}: {}, ring {}, phase {} {}",
        cell(&ring.queue),
        counted(ring.workers.len() as u64, "worker"),
        ring.epoch,
        u8::from(ring.phase),
        ring.phase.name(),
    );
    if ring.phase != Phase::Normal {
        let left = ring.workers.iter().filter(|worker| worker.asked);
        let names: Vec<String> = left.map(|worker| cell(&worker.name)).collect();
        text += &format!(" for {since}, waiting for {}", names.join(", "));
    }
    if ring.sync_revision > 0 {
        text += &format!("; sync point: revision {}", ring.sync_revision);
    }
    text += &format!("\n\n  {}\n\n", strip(ring));
    let mut workers = status::table(&["", "worker", "owns", "lease", "done", "job", "progress"]);
    for (worker, letter) in ring.workers.iter().zip(LETTERS.chars()) {
        let share = |slots: u32| format!("{:.1} %", f64::from(slots) * 100.0 / f64::from(ring.slots));
        let owns = match (ring.phase, worker.next_slots) {
            (Phase::Synchronise, next) if next != worker.slots => {
                format!("{} -> {}", share(worker.slots), share(next))
            }
            _ => share(worker.slots),
        };
        workers.add_row([
            letter.to_string(),
            cell(&worker.name),
            owns,
            secs(worker.until_ms.saturating_sub(ring.now_ms)),
            worker.done.to_string(),
            worker.job.map(|job| job.to_string()).unwrap_or_default(),
            cell(&worker.progress),
        ]);
    }
    text + &status::trimmed(&workers)
}

/// The circle, cut open: each character stands for its first slot's owner.
fn strip(ring: &RingView) -> String {
    let owner = |slot: u32| {
        let owns = |(first, last): &(u32, u32)| (*first..=*last).contains(&slot);
        ring.workers.iter().position(|worker| worker.owns.iter().any(owns))
    };
    let letter = |at: u32| {
        owner(at * ring.slots / WIDTH).and_then(|worker| LETTERS.chars().nth(worker)).unwrap_or('.')
    };
    (0..WIDTH).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_ring_is_drawn() {
        let worker = |name: &str, owns: serde_json::Value, asked: bool| {
            json!({
                "name": name, "member": 1, "until_ms": 9_000, "job": 7, "progress": "40 %", "done": 3, "asked": asked,
                "slots": 512, "owns": owns, "next_slots": 256, "next_owns": [],
            })
        };
        let ring: RingView = serde_json::from_value(json!({
            "queue": "mails", "epoch": 2, "phase": 2, "since_ms": 3_000, "sync_revision": 17, "pending": 1, "slots": 1_024,
            "now_ms": 5_000, "workers": [worker("W1", json!([[0, 255], [512, 767]]), true), worker("W2", json!([[256, 511]]), false)],
        }))
        .unwrap();
        let picture = draw(&ring);
        let lines: Vec<&str> = picture.lines().collect();
        assert_eq!(
            lines[0],
            "queue mails: 2 workers, ring 2, phase 2 synchronise for 2.0 s, waiting for W1; sync point: revision 17"
        );
        let quarter = |letter: &str| letter.repeat(16);
        assert_eq!(lines[2].trim(), [quarter("A"), quarter("B"), quarter("A"), quarter(".")].concat());
        assert!(lines[5].contains("A") && lines[5].contains("50.0 % -> 25.0 %"), "{picture}");
        assert!(lines[5].contains("4.0 s") && lines[5].contains("40 %"), "{picture}");
    }
}
