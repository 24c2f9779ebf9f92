//! Who is away: said once in the log when it is noticed, and once when it is over. openraft says it at each heartbeat.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_storage::raft_types::NodeId;

use super::Inner;

/// How often it is looked.
const POLL: Duration = Duration::from_millis(200);

/// A member that is silent, as this primary sees it.
#[derive(Debug, Clone, Copy)]
struct Silent {
    since: Instant,
    told: bool,
}

/// A change that is worth a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Away,
    Back,
}

/// The members that are silent.
#[derive(Debug, Default)]
struct Contacts(BTreeMap<NodeId, Silent>);

impl Contacts {
    /// Notes whether `id` is alive. It is away when it stays silent for `patience`: a new primary, and a new member, have
    /// that long for their first contact.
    fn look(&mut self, id: NodeId, alive: bool, patience: Duration) -> Option<Change> {
        if alive {
            return self.0.remove(&id).filter(|silent| silent.told).map(|_| Change::Back);
        }
        let silent = self.0.entry(id).or_insert_with(|| Silent { since: Instant::now(), told: false });
        if silent.told || silent.since.elapsed() < patience {
            return None;
        }
        silent.told = true;
        Some(Change::Away)
    }
}

/// Watches the contact to the primary and, on the primary, to the others.
pub(super) async fn watch(inner: Arc<Inner>) {
    let mut contacts = Contacts::default();
    let mut primary = None;
    loop {
        tokio::time::sleep(POLL).await;
        let heard = inner.working_leader();
        if heard != primary {
            primary = heard;
            match primary.and_then(|id| inner.member(id)) {
                Some(info) => tracing::info!(name = %info.name, "the primary is known"),
                None => {
                    tracing::warn!("no primary is heard: an election is under way, or a majority is away")
                }
            }
        }
        if !inner.is_leader() {
            contacts = Contacts::default();
            continue;
        }
        let members = inner.members();
        contacts.0.retain(|id, _| members.contains_key(id));
        for (id, info) in &members {
            match contacts.look(*id, inner.alive(*id), inner.recent()) {
                Some(Change::Away) => {
                    tracing::warn!(name = %info.name, node_id = id, peer = %info.peer, "a member is away; it is tried on");
                }
                Some(Change::Back) => tracing::info!(name = %info.name, node_id = id, "a member is back"),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_told_away_once_and_back_once() {
        let mut contacts = Contacts::default();
        let (long, none) = (Duration::from_secs(3_600), Duration::ZERO);
        assert_eq!(contacts.look(2, true, none), None, "it was never away");
        assert_eq!(contacts.look(2, false, long), None, "not for so short a silence");
        assert_eq!(contacts.look(2, true, none), None, "nobody heard that it was away");
        assert_eq!(contacts.look(2, false, none), Some(Change::Away));
        assert_eq!(contacts.look(2, false, none), None);
        assert_eq!(contacts.look(3, false, none), Some(Change::Away), "each has its own");
        assert_eq!(contacts.look(2, true, none), Some(Change::Back));
        assert_eq!(contacts.look(2, true, none), None);
    }
}
