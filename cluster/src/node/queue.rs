//! What waits for the proposer: the inbox, its bounds, and what of it makes an entry.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quorate_storage::delta::{Command, MAX_DELTAS_PER_ENTRY, Outcome};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::error::{Code, NodeError};

/// Commands that wait for the proposer.
const MAX_WAITING: usize = 16_384;
/// And their bytes.
const MAX_WAITING_BYTES: usize = 64 << 20;
/// Bytes in one entry; one command alone may have more.
const MAX_ENTRY_BYTES: usize = 1 << 20;
/// An entry of so many commands does not wait for the one in flight. Smaller ones do: each costs every server several
/// hundred microseconds, however little is in it. And a crowd of twice as many clients parts in two, one half answered
/// while the other's entry is on its way to the disks: neither waits (docs/performance.md).
pub(super) const LARGE: usize = 128;
/// Before an entry is closed, the runtime goes round once more, which serves the connections that have something to say,
/// until nothing comes in a round; or in so many, while less is here than the entry before had: its clients have their
/// answers and are about to come back.
const EMPTY_ROUNDS: usize = 8;
/// Of so many requests at once, most come from clients that send the next when they have the answer. Left alone they
/// part in two halves, one answered while the other is in flight: twice the entries for as many commands, which pays
/// only where each half makes a [`LARGE`] one.
const CROWD: usize = 32;
/// So they are waited for, for so long at most.
const CROWD_PAUSE: Duration = Duration::from_millis(2);

type Result<T> = std::result::Result<T, NodeError>;

/// The proposer's inbox.
pub(super) struct Batcher {
    waiting: mpsc::Sender<Waiting>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// Commands that stay together: one client's request or batch, or what a backup sent.
pub(super) struct Waiting {
    pub(super) commands: Arc<Vec<Command>>,
    /// Came from a backup: not to be sent on, lest it go round.
    pub(super) forwarded: bool,
    pub(super) reply: oneshot::Sender<Result<Vec<Outcome>>>,
    budget: Budget,
}

/// Gives its bytes back when dropped.
struct Budget {
    bytes: usize,
    total: Arc<AtomicUsize>,
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Batcher {
    pub(super) fn new() -> (Self, mpsc::Receiver<Waiting>) {
        let (waiting, inbox) = mpsc::channel(MAX_WAITING);
        (Self { waiting, waiting_bytes: Arc::default() }, inbox)
    }

    pub(super) fn submit(
        &self,
        commands: Arc<Vec<Command>>,
        forwarded: bool,
    ) -> Result<oneshot::Receiver<Result<Vec<Outcome>>>> {
        let bytes = commands.iter().map(Command::size).sum();
        let before = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let budget = Budget { bytes, total: Arc::clone(&self.waiting_bytes) };
        let (reply, receiver) = oneshot::channel();
        let full = before + bytes > MAX_WAITING_BYTES;
        if full || self.waiting.try_send(Waiting { commands, forwarded, reply, budget }).is_err() {
            let text = "too many commands are waiting on this server; come back later";
            return Err(NodeError::not_applied(Code::Overloaded, text).retry_after(50));
        }
        Ok(receiver)
    }
}

/// What goes into the next entries.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) commands: usize,
    /// As many as the entry before had; less and less when fewer come.
    expected: usize,
    /// Requests in flight.
    in_flight: usize,
    /// As many as were in flight or waited when an entry was done; less and less when there are fewer.
    crowd: usize,
}

impl Queue {
    pub(super) fn has_room(&self) -> bool {
        self.commands < MAX_DELTAS_PER_ENTRY
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        self.commands += waiting.commands.len();
        self.waiting.push_back(waiting);
    }

    /// So many requests are done that were in flight together.
    pub(super) fn done(&mut self, requests: usize) {
        self.crowd = (self.in_flight + self.waiting.len()).max(self.crowd * 7 / 8);
        self.in_flight -= requests;
    }

    /// Takes in what belongs into the same entry as what is here. On the primary, that is worth a pause.
    pub(super) async fn gather(&mut self, inbox: &mut mpsc::Receiver<Waiting>, primary: bool) {
        self.gather_ready(inbox).await;
        if primary && self.in_flight == 0 && self.crowd >= CROWD {
            let crowd = self.await_crowd(inbox);
            // That it did not come in time is no error.
            let _ = timeout(CROWD_PAUSE, crowd).await;
        }
    }

    /// What comes while the connections that have something to say are served.
    async fn gather_ready(&mut self, inbox: &mut mpsc::Receiver<Waiting>) {
        let mut empty = 0;
        while self.has_room() {
            tokio::task::yield_now().await;
            let before = self.commands;
            self.take_in(inbox);
            empty += usize::from(self.commands == before);
            if empty > 0 && (self.commands >= self.expected || empty == EMPTY_ROUNDS) {
                return;
            }
        }
    }

    /// Until nearly all are back who were here when the last entry was done, or enough for a large entry.
    async fn await_crowd(&mut self, inbox: &mut mpsc::Receiver<Waiting>) {
        while self.waiting.len() < self.crowd * 7 / 8 && self.commands < LARGE {
            let Some(waiting) = inbox.recv().await else { return };
            self.push(waiting);
            self.take_in(inbox);
        }
    }

    fn take_in(&mut self, inbox: &mut mpsc::Receiver<Waiting>) {
        while self.has_room()
            && let Ok(waiting) = inbox.try_recv()
        {
            self.push(waiting);
        }
    }

    /// The first that wait, up to an entry's bounds; forwarded and own commands do not mix.
    pub(super) fn take_batch(&mut self) -> Vec<Waiting> {
        let (mut bytes, mut commands) = (0, 0);
        let forwarded = self.waiting.front().is_some_and(|first| first.forwarded);
        let fits = |waiting: &&Waiting| {
            bytes += waiting.budget.bytes;
            commands += waiting.commands.len();
            // One alone may have more.
            let first = commands == waiting.commands.len();
            waiting.forwarded == forwarded
                && (first || bytes <= MAX_ENTRY_BYTES && commands <= MAX_DELTAS_PER_ENTRY)
        };
        let count = self.waiting.iter().take_while(fits).count();
        let batch: Vec<Waiting> = self.waiting.drain(..count).collect();
        let taken: usize = batch.iter().map(|waiting| waiting.commands.len()).sum();
        self.commands -= taken;
        self.in_flight += batch.len();
        self.expected = taken.max(self.expected * 7 / 8);
        batch
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    struct Proposer {
        batcher: Batcher,
        inbox: mpsc::Receiver<Waiting>,
        queue: Queue,
    }

    impl Proposer {
        /// After an entry of `crowd` requests is done.
        fn after(crowd: usize) -> Self {
            let (batcher, inbox) = Batcher::new();
            let mut proposer = Self { batcher, inbox, queue: Queue::default() };
            proposer.come(crowd, 1);
            let batch = proposer.queue.take_batch();
            assert_eq!(batch.len(), crowd);
            proposer.queue.done(crowd);
            proposer.queue.expected = 0;
            proposer
        }

        /// So many requests come, of so many commands each.
        fn come(&mut self, requests: usize, commands: usize) {
            for _ in 0..requests {
                send(&self.batcher, commands);
            }
            self.queue.take_in(&mut self.inbox);
        }

        /// How long it gathers.
        async fn gather(&mut self, primary: bool) -> Duration {
            let begun = Instant::now();
            self.queue.gather(&mut self.inbox, primary).await;
            begun.elapsed()
        }
    }

    fn send(batcher: &Batcher, commands: usize) {
        let commands = vec![Command::sessionless("none", vec![1]); commands];
        // Nobody waits for the reply.
        drop(batcher.submit(Arc::new(commands), false).expect("room"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_is_waited_for_until_nearly_all_are_back() {
        let mut proposer = Proposer::after(40);
        proposer.come(20, 1);
        let batcher = std::mem::replace(&mut proposer.batcher, Batcher::new().0);
        tokio::spawn(async move {
            sleep(CROWD_PAUSE / 2).await;
            (0..15).for_each(|_| send(&batcher, 1));
        });
        assert_eq!(proposer.gather(true).await, CROWD_PAUSE / 2);
        assert_eq!(proposer.queue.waiting.len(), 35);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_waited_for_no_longer_than_it_is_worth() {
        let mut proposer = Proposer::after(40);
        proposer.come(20, 1);
        assert_eq!(proposer.gather(true).await, CROWD_PAUSE);
        // It is a crowd no more when it stays away.
        for _ in 0..8 {
            let batch = proposer.queue.take_batch();
            proposer.queue.done(batch.len());
            proposer.come(1, 1);
        }
        assert_eq!(proposer.gather(true).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_else_is_waited_for() {
        let mut few = Proposer::after(CROWD - 1);
        few.come(1, 1);
        assert_eq!(few.gather(true).await, Duration::ZERO);
        let mut backup = Proposer::after(40);
        backup.come(1, 1);
        assert_eq!(backup.gather(false).await, Duration::ZERO);
        let mut large = Proposer::after(40);
        large.come(1, LARGE);
        assert_eq!(large.gather(true).await, Duration::ZERO);
        let mut busy = Proposer::after(40);
        busy.come(1, 1);
        assert_eq!(busy.queue.take_batch().len(), 1);
        busy.come(1, 1);
        assert_eq!(busy.gather(true).await, Duration::ZERO);
    }
}
