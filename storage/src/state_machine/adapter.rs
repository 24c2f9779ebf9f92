//! openraft's view of the state.

use std::io;

use futures_util::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};

use super::{Built, State};
use crate::raft_types::{LogId, Outcomes, SnapshotMeta, StoredMembership, TypeConfig};
use crate::tables::base::FlushMeta;

type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotHandle>;

/// An entry of so many deltas takes a good part of a millisecond.
const LONG: usize = 256;

/// What openraft passes around as a snapshot's data.
pub enum SnapshotHandle {
    /// The last flush of a replica in this process. [`State::snapshot_file`] writes the bytes when a peer
    /// needs them.
    Flush(State),
    /// What came from the primary, built beside the state in force.
    Received(Built),
}

/// The state machine that openraft drives. Also its own snapshot builder.
#[derive(Clone)]
pub struct StateMachine {
    state: State,
}

impl StateMachine {
    /// The state machine over `state`.
    pub fn new(state: State) -> Self {
        Self { state }
    }

    fn snapshot_of(&self, meta: FlushMeta) -> Snapshot {
        let meta = SnapshotMeta { last_log_id: meta.applied, last_membership: meta.membership };
        Snapshot { meta, snapshot: SnapshotHandle::Flush(self.state.clone()) }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotHandle;

    /// To openraft, a flush is the current snapshot: it flushes and returns a handle.
    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        Ok(self.snapshot_of(self.state.flush().await?))
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.state.read(|machine| (machine.applied().cloned(), machine.membership().clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let outcomes = self.state.apply(entry.log_id, &entry.payload).await?;
            let long = outcomes.len() >= LONG;
            if let Some(responder) = responder {
                responder.send(Outcomes(outcomes));
            }
            if long {
                // Heartbeats, answers and the news of the commit do not wait for the entries behind this one.
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, _: &SnapshotMeta, snapshot: SnapshotHandle) -> io::Result<()> {
        match snapshot {
            SnapshotHandle::Received(built) => self.state.install(built).await.map(|_| ()),
            // At start, openraft offers the current snapshot if it is ahead of the state: it never is.
            SnapshotHandle::Flush(own) if own.is(&self.state) => Ok(()),
            SnapshotHandle::Flush(other) => {
                let (file, _) = other.snapshot_file().await?;
                let copy = self.state.incoming_file(0)?;
                let to = copy.clone();
                super::blocking(move || std::fs::copy(file, to)).await?;
                let built = self.state.build(copy).await?;
                self.state.install(built).await.map(|_| ())
            }
        }
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let last = self.state.last_flush();
        Ok(last.applied.is_some().then(|| self.snapshot_of(last)))
    }
}
