//! Removal from the membership, seen from both sides.
//!
//! A server that was removed gets no entries any more, so its view of the cluster stays as it was, and it may never see
//! the entry that removed it. The primary sends it word, once; and it asks as soon as it hears of no primary. When it
//! has been answered it serves nothing; it goes on running, because it may be taken back with what it has.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_storage::raft_types::{LogId, NodeId, NodeInfo};

use super::members::{POLL, show_log_id};
use super::{Inner, Node};
use crate::error::{Code, NodeError};
use crate::message::Removal;

/// Who has not asked for so long does not run any more.
const STRAY_FOR: Duration = Duration::from_secs(10);
/// One that was removed a moment ago has asked by then.
const STRAY_SOON: Duration = Duration::from_secs(2);
/// So many are remembered.
const MAX_STRAYS: usize = 64;

type Result<T> = std::result::Result<T, NodeError>;

/// Servers that were removed, still run, and ask the primary.
#[derive(Default)]
pub(super) struct Strays(Mutex<BTreeMap<NodeId, (NodeInfo, Instant)>>);

impl Strays {
    fn note(&self, id: NodeId, info: NodeInfo) {
        let mut strays = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        strays.retain(|_, (_, at)| at.elapsed() < STRAY_FOR);
        if strays.len() < MAX_STRAYS || strays.contains_key(&id) {
            strays.insert(id, (info, Instant::now()));
        }
    }

    /// It is a member again.
    fn forget(&self, id: NodeId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// The names of all that have asked lately.
    pub(super) fn names(&self) -> Vec<String> {
        let strays = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = strays.values().filter(|(_, at)| at.elapsed() < STRAY_FOR);
        recent.map(|(info, _)| info.name.clone()).collect()
    }

    /// The last server of that name.
    fn named(&self, name: &str) -> Option<(NodeId, NodeInfo)> {
        let strays = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |(info, at): &(NodeInfo, Instant)| info.name == name && at.elapsed() < STRAY_FOR;
        strays.iter().rev().find(|(_, stray)| named(stray)).map(|(id, (info, _))| (*id, info.clone()))
    }
}

impl Node {
    /// Whether the cluster has said that this server is not a member any more.
    pub fn is_removed(&self) -> bool {
        self.inner.removed.borrow().is_some()
    }
}

impl Inner {
    /// Tells a server whether it is a member, and notes a new address. On the primary.
    ///
    /// A committed membership without a place for it is proof when nothing later that it knows can be committed any
    /// more: what is committed here has passed that (Ongaro 2014, §3.6.3). Should it be taken back later, it hears from
    /// the primary. So it does no harm if this one was deposed meanwhile.
    pub(super) async fn still_member(
        &self,
        id: NodeId,
        info: NodeInfo,
        known: Option<LogId>,
    ) -> Result<Option<Removal>> {
        if self.member(id).is_some() {
            self.announced(id, info).await?;
            return Ok(None);
        }
        let removal = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let committed = &metrics.committed_membership_config;
            if metrics.local_committed < known || committed.membership().get_node(&id).is_some() {
                let text = "the primary does not know yet which membership holds; ask again";
                return Err(NodeError::not_applied(Code::NoPrimary, text).retry_after(100));
            }
            let others = committed.membership().nodes().filter(|(other, _)| **other != self.id);
            let mut urls = vec![self.info.url.clone()];
            urls.extend(others.map(|(_, info)| info.url.clone()));
            Removal { membership: show_log_id(committed.log_id().as_ref()), urls }
        };
        self.strays.note(id, info);
        Ok(Some(removal))
    }

    /// Makes a removed server that still runs a learner again, with what it has, if the membership is still the one that
    /// the caller saw. On the primary. Gives the membership's log id.
    pub(super) async fn take_back(&self, name: &str, seen: LogId) -> Result<LogId> {
        let patience = Instant::now() + STRAY_SOON;
        let (id, info) = loop {
            match self.strays.named(name) {
                Some(stray) => break stray,
                None if Instant::now() >= patience => return Err(self.not_found(name)),
                None => tokio::time::sleep(POLL).await,
            }
        };
        if self.member(id).is_some() {
            // Asked for twice.
            self.strays.forget(id);
            return Ok(seen);
        }
        self.check_name_free(&info, id)?;
        tracing::info!(node_id = id, %name, peer = %info.peer, "taking a removed server back");
        let back = ChangeMembers::AddNodes(BTreeMap::from([(id, info)]));
        let taken = self.submit(back, true, Some(seen)).await?;
        self.strays.forget(id);
        Ok(taken)
    }

    /// Notes what the cluster says of this server.
    pub(super) fn note_removal(&self, removal: Option<Removal>) {
        let before = self.removed.send_replace(removal);
        match (before, self.removed_error()) {
            (None, Some(error)) => tracing::warn!("{error}"),
            (Some(_), None) => tracing::info!("this server is a member of the cluster again"),
            _ => {}
        }
    }

    /// What a server that was removed answers.
    pub(super) fn removed_error(&self) -> Option<NodeError> {
        let removed = self.removed.borrow();
        let Removal { membership, urls } = removed.as_ref()?;
        let name = &self.info.name;
        let text = format!(
            "this server, {name}, was removed from the cluster (membership {membership} is without it) and serves \
             nothing. Ask {}. To take it back with its data: quorate cluster promote {name}. Or stop it, delete its data \
             directory, and start it with --join: it joins under a new node id",
            urls.join(" or ")
        );
        let error = NodeError::not_applied(Code::NotReady, text);
        Some(error.with_primary(urls.first().cloned()).retry_after(1000))
    }
}
