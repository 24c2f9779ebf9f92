//! What a worker says, on a thread of its own: a terminal that is stopped, or a pipe that nobody reads, holds up no heartbeat.
//! What does not fit into the room before it is lost, and that is told.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::cli::output::Output;

/// So many pieces wait to be written, at most.
const WAITING: usize = 1_024;
/// So long the end waits for what is still to be written.
const REST: Duration = Duration::from_secs(2);
/// While there is no room.
const AGAIN: Duration = Duration::from_millis(10);

pub(super) enum Out {
    /// A remark for a person.
    Note(String),
    /// A line for a program.
    Line(String),
    /// What a command has written to its stderr, as it is.
    Stderr(Vec<u8>),
    End(oneshot::Sender<()>),
}

/// Clones write to the same place.
#[derive(Clone)]
pub(super) struct Log {
    out: SyncSender<Out>,
    lost: Arc<AtomicU64>,
}

impl Log {
    pub(super) fn start() -> Self {
        let (out, inbox) = sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        // It ends with the last sender, or with the process.
        std::thread::spawn(move || write(&inbox, &counted));
        Self { out, lost }
    }

    pub(super) fn write(&self, out: Out) {
        if self.out.try_send(out).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all was written, for a while.
    pub(super) async fn finish(&self) {
        let (done, written) = oneshot::channel();
        let mut end = Out::End(done);
        let ended = async {
            while let Err(TrySendError::Full(full)) = self.out.try_send(end) {
                end = full;
                sleep(AGAIN).await;
            }
            written.await
        };
        let _ = timeout(REST, ended).await;
    }
}

fn write(inbox: &Receiver<Out>, lost: &AtomicU64) {
    while let Ok(out) = inbox.recv() {
        match out {
            Out::Note(text) => Output::note(&text),
            // Jobs go on, whoever follows them.
            Out::Line(line) => drop(Output::line(&line)),
            Out::Stderr(bytes) => drop(io::stderr().write_all(&bytes)),
            Out::End(done) => {
                // Who waited may be gone.
                let _ = done.send(());
            }
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            Output::note(&format!("quorate: {lost} lines were lost: this output was not read for too long"));
        }
    }
}
