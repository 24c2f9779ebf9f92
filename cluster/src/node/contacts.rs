//! Who is away: said once in the log when it is noticed, and once when it is over. openraft says it at each heartbeat.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_storage::raft_types::{NodeId, NodeInfo};

use super::Inner;
use super::tasks::POLL;
use crate::message::Request;
use crate::transport::lane::CallError;

/// How often it is asked who answers in the place of a member that is away.
const ASK_AGAIN: Duration = Duration::from_secs(5);
const ASK_LIMIT: Duration = Duration::from_secs(1);

/// A member that is silent, as this primary sees it.
#[derive(Debug)]
struct Silent {
    since: Instant,
    /// When it was told that it is away, or looked again why.
    looked: Option<Instant>,
    /// What was told.
    cause: Option<String>,
}

/// A change that is worth a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Away,
    /// It was told that it is away; it may be time to say more.
    AwayStill,
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
            return self.0.remove(&id).and_then(|silent| silent.looked).map(|_| Change::Back);
        }
        let new = || Silent { since: Instant::now(), looked: None, cause: None };
        let silent = self.0.entry(id).or_insert_with(new);
        let (since, wait, change) = match silent.looked {
            None => (silent.since, patience, Change::Away),
            Some(looked) => (looked, ASK_AGAIN, Change::AwayStill),
        };
        if since.elapsed() < wait {
            return None;
        }
        silent.looked = Some(Instant::now());
        Some(change)
    }

    /// Whether this cause was not told yet. Remembers it.
    fn is_news(&mut self, id: NodeId, cause: &str) -> bool {
        let Some(silent) = self.0.get_mut(&id) else { return false };
        silent.cause.replace(cause.to_owned()).as_deref() != Some(cause)
    }
}

impl Inner {
    /// Why a member is away. An error: what answers in its place.
    async fn why_away(&self, id: NodeId, info: &NodeInfo) -> std::result::Result<String, String> {
        match self.lanes.to(id, info).call(&Request::Status, ASK_LIMIT).await {
            Ok(_) => Ok("it answers questions, but takes no entries".to_owned()),
            Err(CallError::Peer(error)) => Err(error.to_string()),
            Err(error) => Ok(error.to_string()),
        }
    }

    async fn tell_away(&self, contacts: &mut Contacts, id: NodeId, info: &NodeInfo, change: Change) {
        let (name, peer) = (&info.name, &info.peer);
        let cause = self.why_away(id, info).await;
        if change == Change::Away {
            let (Ok(cause) | Err(cause)) = &cause;
            tracing::warn!(%name, node_id = id, %peer, %cause, "a member is away; it is tried on");
        }
        // Whether it is silent in this way or in that is no news.
        if let Err(cause) = &cause
            && contacts.is_news(id, cause)
            && change == Change::AwayStill
        {
            tracing::warn!(%name, node_id = id, %peer, %cause, "another one answers in the place of a member");
        }
    }
}

/// Watches the contact to the primary and, on the primary, to the others.
pub(super) async fn watch(inner: Arc<Inner>) {
    let mut contacts = Contacts::default();
    let mut primary = None;
    loop {
        inner.pace(POLL).await;
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
                Some(change @ (Change::Away | Change::AwayStill)) => {
                    inner.tell_away(&mut contacts, *id, info, change).await;
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
        contacts.0.get_mut(&2).unwrap().looked = Some(Instant::now() - ASK_AGAIN);
        assert_eq!(contacts.look(2, false, none), Some(Change::AwayStill));
        assert!(contacts.is_news(2, "another") && !contacts.is_news(2, "another"));
        assert_eq!(contacts.look(2, true, none), Some(Change::Back));
        assert_eq!(contacts.look(2, true, none), None);
    }
}
