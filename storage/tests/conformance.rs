//! openraft's own storage suite over the delta log and the state machine, on temporary directories.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use quorate_storage::log::{DeltaLog, LogOptions};
use quorate_storage::raft_types::TypeConfig;
use quorate_storage::service::Registry;
use quorate_storage::state_machine::{Flushed, State, StateMachine};
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<TypeConfig, DeltaLog, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, DeltaLog, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state-1")).unwrap();
        std::os::unix::fs::symlink("state-1", dir.path().join("state")).unwrap();
        let (log, torn) = DeltaLog::open(&dir.path().join("log"), &LogOptions::default()).unwrap();
        assert!(torn.is_empty());
        let state =
            State::new(dir.path(), Registry::new(), log.clone(), Flushed::open(dir.path()).unwrap()).unwrap();
        Ok((dir, log, StateMachine::new(state)))
    }
}

/// The suite's futures are larger than a test thread's stack when they are not optimised.
const STACK: usize = 64 << 20;

#[test]
fn openrafts_suite_passes() {
    let suite = std::thread::Builder::new().stack_size(STACK).spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Suite::test_all(Builder))
    });
    suite.unwrap().join().unwrap().unwrap();
}
