//! A server says under which addresses it can be reached, until the membership agrees.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_storage::raft_types::NodeInfo;

use super::Inner;
use crate::error::{Code, NodeError};
use crate::message::{Reply, Request};
use crate::transport::lane::CallError;

const ATTEMPT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(300);

/// What the membership that this node knows says of it.
enum Standing {
    /// Nothing: there is no membership here yet, so this is a new server.
    New,
    /// A member, under these very addresses.
    Known,
    /// A member that was elsewhere before.
    Moved,
    /// There is a membership without it: it was removed, and does not come back by itself.
    Removed,
}

/// Runs until the node stops.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut stop = inner.stop.subscribe();
    let mut told_removed = false;
    let mut told = BTreeMap::new();
    loop {
        match inner.standing() {
            Standing::Known => {}
            Standing::Removed => {
                if !told_removed {
                    tracing::warn!(
                        "this server was removed from the cluster. To bring it back: stop it, empty its directory, \
                         and start it with --join"
                    );
                    told_removed = true;
                }
            }
            Standing::New | Standing::Moved => {
                if let Err(e) = inner.announce(&mut told).await {
                    // One that is worth another attempt is not the last word.
                    if e.code == Code::Refused && e.retry_after_ms.is_none() {
                        inner.fail(format!("this server cannot take part in its cluster: {}", e.detail));
                        return;
                    }
                    tracing::debug!(error = %e, "announcing this server failed; trying on");
                }
            }
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

impl Inner {
    fn standing(&self) -> Standing {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        match membership.get_node(&self.id) {
            Some(info) if *info == self.info => Standing::Known,
            Some(_) => Standing::Moved,
            None if membership.nodes().next().is_none() => Standing::New,
            None => Standing::Removed,
        }
    }

    /// Tells whoever answers: the members, and those that were known when this server joined. An address may be old,
    /// and somebody else's by now: what is said there is not this cluster's word, unless no other address is left. What
    /// each said last is in `told`.
    async fn announce(&self, told: &mut BTreeMap<String, String>) -> Result<(), NodeError> {
        if self.is_leader() {
            return self.announced(self.id, self.info.clone()).await;
        }
        let others = self.members().into_iter().filter(|(id, _)| *id != self.id);
        let mut peers: Vec<String> = others.map(|(_, info)| info.peer).collect();
        peers.extend(self.identity.seeds.iter().cloned());
        peers.retain(|peer| *peer != self.info.peer);
        peers.sort();
        peers.dedup();
        let request = Request::Announce { node_id: self.id, info: self.info.clone() };
        let mut last = NodeError::not_applied(Code::NotFound, "no peer is known");
        let mut ours = peers.len();
        for peer in &peers {
            let error = match self.lanes.dial_anew(0, peer.clone()).call(&request, ATTEMPT).await {
                Ok(Reply::Announced) => return Ok(()),
                Ok(_) => NodeError::not_applied(Code::Failed, "the peer answered another question"),
                Err(CallError::Peer(e)) => e,
                Err(e) => NodeError::not_applied(Code::NoPrimary, e.to_string()),
            };
            match error.code {
                Code::Refused => return Err(error),
                Code::Misdirected => ours -= 1,
                _ => {}
            }
            let strange = matches!(error.code, Code::Misdirected | Code::BadRequest | Code::Failed);
            if strange && told.insert(peer.clone(), error.detail.clone()).as_ref() != Some(&error.detail) {
                tracing::warn!(%peer, %error, "that address cannot be asked about this server's cluster");
            }
            last = error;
        }
        if ours == 0 && !peers.is_empty() {
            let text = format!("none of {} belongs to its cluster: {}", peers.join(", "), last.detail);
            return Err(NodeError::not_applied(Code::Refused, text));
        }
        Err(last)
    }

    /// Takes an announcement into the membership. On the primary.
    pub(super) async fn announced(&self, id: u64, info: NodeInfo) -> Result<(), NodeError> {
        match self.member(id) {
            Some(known) if known == info => Ok(()),
            Some(_) => {
                // At once: without this server there may be no majority to change the membership.
                self.addresses.note(id, &info.peer);
                self.set_node(id, info).await
            }
            None => {
                self.check_name_free(&info, id)?;
                self.add_learner(id, info).await
            }
        }
    }
}
