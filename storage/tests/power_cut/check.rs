//! What a cut left, against what the writers before it said.

use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use quorate_storage::node_disk::NodeDisk;
use quorate_storage::raft_types::Payload;

use crate::history::{Found, History, View};
use crate::support::{self, entry, read_all, term_of};

/// The disk as it was found, against the history.
pub(crate) async fn check(disk: &NodeDisk, history: &History) -> (View, u64) {
    assert_eq!(disk.identity, support::identity(1));
    let mut log = disk.log.clone();
    let entries = read_all(&log);
    for found in entries.iter().filter(|entry| entry.log_id.index > 0) {
        let (term, index) = (term_of(&found.log_id), found.log_id.index);
        assert_eq!(found, &entry(term, index), "the content of entry {index}");
    }
    if let Some(first) = entries.first().filter(|entry| entry.log_id.index == 0) {
        assert!(matches!(first.payload, Payload::Membership(_)));
    }
    let state = log.get_log_state().await.unwrap();
    let found = Found {
        vote: log.read_vote().await.unwrap().map_or(0, |vote| vote.leader_id.term),
        purged: state.last_purged_log_id.map(|id| id.index),
        last: state.last_log_id.map_or(0, |id| id.index),
        entries: entries.iter().map(|entry| (entry.log_id.index, term_of(&entry.log_id))).collect(),
    };
    let mut view = history.explain(&found).unwrap_or_else(|why| panic!("{why}"));

    let flush = disk.state.last_flush();
    let applied = flush.applied.as_ref().map_or(0, |id| id.index);
    let end = history.end();
    assert!(applied >= history.flushed, "flushed up to {}, found {applied}", history.flushed);
    if let Some(id) = &flush.applied {
        assert_eq!(end.terms.get(&applied), Some(&term_of(id)), "the term of the applied entry {applied}");
    }
    let model = end.model_at(applied);
    assert_eq!(
        (flush.hash, flush.revision),
        (model.hash(), model.revision),
        "the rows are not those of {applied}"
    );
    let committed = log.read_committed().await.unwrap().map_or(0, |id| id.index);
    assert!(committed <= view.last.max(applied), "committed {committed} is beyond the end");
    // A snapshot may be ahead of the log.
    view.terms.split_off(&(view.last + 1));
    view.terms.extend(end.terms.range(..=applied));
    (view, applied)
}
