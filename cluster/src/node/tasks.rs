//! What a node does by itself: flushes, ticks, watching its Raft core.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_storage::codec;
use quorate_storage::delta::{Command, SYSTEM_SERVICE};
use quorate_storage::machine::SystemCommand;
use quorate_storage::tables::Damage;

use super::{Inner, checkpoints, contacts, disk, role};

/// Dirty rows are flushed after this time at the latest.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);
/// Or after so many log entries: they bound the replay after a crash, and what the log keeps.
const FLUSH_ENTRIES: u64 = 20_000;
/// So much log is kept at most behind the last flush, however few entries it has.
const LOG_BYTES: u64 = 256 << 20;
/// And so much when the disk is low.
const LOG_BYTES_LOW: u64 = 64 << 20;
/// How often it is looked. Each look wakes an idle process.
pub(super) const POLL: Duration = Duration::from_millis(200);
/// How often a primary looks whether a tick is due.
const TICK: Duration = Duration::from_millis(100);
/// A primary logs the time at least so often, so that a believable clock stays believable.
const LOG_TIME: u64 = 600_000;
/// How often a primary whose clock is not believed asks the others for theirs.
const CLOCKS: Duration = Duration::from_secs(1);
/// After this time a server that catches up asks anew how far it has to come.
const CATCH_UP: Duration = Duration::from_secs(30);

impl Inner {
    /// Sleeps until the next multiple of `period` since the start. So tasks that look again and again do so together, and an
    /// idle process wakes up once for all of them.
    pub(super) async fn pace(&self, period: Duration) {
        let periods = self.started.elapsed().as_nanos() / period.as_nanos() + 1;
        let next = period.saturating_mul(u32::try_from(periods).unwrap_or(u32::MAX));
        tokio::time::sleep_until((self.started + next).into()).await;
    }
}

/// Starts the tasks; they end when the node stops.
pub(super) fn spawn(inner: &Arc<Inner>) {
    let run = |task: futures_util::future::BoxFuture<'static, ()>| {
        let mut stop = inner.stop.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                () = task => {}
            }
        });
    };
    run(Box::pin(recover(Arc::clone(inner))));
    run(Box::pin(watch_core(Arc::clone(inner))));
    run(Box::pin(flush(Arc::clone(inner))));
    run(Box::pin(tick(Arc::clone(inner))));
    run(Box::pin(disk::watch_room(Arc::clone(inner))));
    run(Box::pin(disk::watch_syncs(Arc::clone(inner))));
    run(Box::pin(contacts::watch(Arc::clone(inner))));
    run(Box::pin(checkpoints::watch(Arc::clone(inner))));
    run(Box::pin(role::follow_mode(Arc::clone(inner))));
    run(Box::pin(role::stand_back(Arc::clone(inner))));
}

/// Waits until all that the log on disk held at the start is committed and applied, or truncated, and then until all
/// that the primary has committed by then is applied here.
async fn recover(inner: Arc<Inner>) {
    let mut metrics = inner.raft.metrics();
    let at_start = metrics.borrow_watched().last_log_index.unwrap_or(0);
    loop {
        let recovered = {
            let metrics = metrics.borrow_watched();
            let committed = metrics.cluster_committed.as_ref().map(|id| id.index);
            let applied = metrics.last_applied.as_ref().map(|id| id.index);
            let wanted = at_start.min(metrics.last_log_index.unwrap_or(0));
            committed.is_some_and(|index| index >= wanted) && applied.is_some_and(|index| index >= wanted)
        };
        if recovered {
            break;
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
    // A server that was away lacks more than its own log says. One that is far behind is not ready, lest the next one
    // be taken down for an upgrade, say.
    while let Err(error) = inner.confirmed_read(false, Instant::now() + CATCH_UP).await {
        tracing::debug!(%error, "not caught up yet");
        inner.pace(POLL).await;
    }
    inner.compare_at_start().await;
    inner.recovered.store(true, Ordering::Relaxed);
    tracing::info!("caught up with the cluster");
}

/// A Raft core that stopped by itself has met a storage error: the node cannot go on.
async fn watch_core(inner: Arc<Inner>) {
    let mut metrics = inner.raft.server_metrics();
    loop {
        let state = inner.raft.metrics().borrow_watched().running_state.clone();
        if let Err(e) = state {
            if !*inner.stop.borrow() {
                inner.fail(&e);
            }
            return;
        }
        tokio::select! {
            _ = metrics.changed() => {}
            () = inner.pace(POLL) => {}
        }
    }
}

async fn flush(inner: Arc<Inner>) {
    let mut last = Instant::now();
    loop {
        let forced = tokio::select! {
            () = inner.state.flush_wanted() => true,
            () = inner.pace(POLL) => false,
        };
        let flushed = inner.state.last_flush().applied.map_or(0, |id| id.index);
        if let Some(upto) = excess(&inner, flushed)
            && let Err(e) = inner.raft.trigger().purge_log(upto).await
        {
            inner.fail(&e);
            return;
        }
        let applied = inner.state.applied().borrow().log_id.as_ref().map_or(0, |id| id.index);
        let due =
            applied >= flushed + FLUSH_ENTRIES || (applied > flushed && last.elapsed() >= FLUSH_INTERVAL);
        if !forced && !due {
            continue;
        }
        if forced {
            // Not through openraft: its state machine may be waiting for this very flush.
            if let Err(e) = inner.state.flush().await {
                inner.fail(format!("the tables cannot be flushed: {e}"));
                return;
            }
        }
        // To openraft this is a snapshot: it purges the log behind it.
        if let Err(e) = inner.raft.trigger().snapshot().await {
            inner.fail(&e);
            return;
        }
        last = Instant::now();
    }
}

/// Up to where the log is to go, when it has more bytes than are kept. The number of entries has a bound of its own.
fn excess(inner: &Inner, flushed: u64) -> Option<u64> {
    let (log, low) = (inner.state.log(), inner.disk.is_low());
    let (bytes, most) = (log.disk_bytes(), if low { LOG_BYTES_LOW } else { LOG_BYTES });
    let (first, last) = log.range().filter(|_| bytes > most)?;
    // About half of the bytes, so that it is rare; entries differ in size.
    let kept = (last + 1 - first) * (most / 2) / bytes;
    let upto = flushed.min(last.saturating_sub(kept));
    (upto >= first).then_some(upto)
}

async fn tick(inner: Arc<Inner>) {
    let mut compared = Instant::now();
    let mut leads = Instant::now();
    loop {
        inner.pace(if inner.is_leader() { TICK } else { POLL }).await;
        if !inner.is_leader() || inner.disk.is_low() {
            leads = Instant::now();
            continue;
        }
        let looked = inner.state.read(|machine| {
            Ok((machine.next_deadline()?, machine.settings()?, machine.time(), machine.revision()))
        });
        let (deadline, settings, last, revision) = match looked {
            Ok(Ok(looked)) => looked,
            Ok(Err::<_, Damage>(damage)) => return inner.fail(damage),
            Err(e) => return inner.fail(e),
        };
        let term = inner.raft.metrics().borrow_watched().current_term;
        let mut now = inner.logged_clock.now(&*inner.clock, term, last);
        if inner.logged_clock.ahead().is_some() && compared.elapsed() >= CLOCKS {
            inner.compare_clocks(term).await;
            compared = Instant::now();
            now = inner.logged_clock.now(&*inner.clock, term, last);
        }
        let due = deadline.is_some_and(|deadline| deadline <= now) || (last > 0 && now >= last + LOG_TIME);
        if due {
            let tick = Command::sessionless(SYSTEM_SERVICE, codec::encode(&SystemCommand::Tick));
            let limit = Instant::now() + Duration::from_secs(5);
            if let Err(e) = inner.propose_once(Arc::new(vec![tick]), limit, true).await {
                tracing::debug!(error = %e, "a tick was not logged");
            }
        }
        let checkpoint = inner.state.checkpoints().borrow().last().copied();
        let since =
            checkpoint.map_or(leads.elapsed(), |at| Duration::from_millis(now.saturating_sub(at.time)));
        if settings.checkpoint_interval().is_due(checkpoint.as_ref(), revision, since)
            && let Err(e) = inner.set_checkpoint().await
        {
            tracing::debug!(error = %e, "a checkpoint was not set");
        }
    }
}
