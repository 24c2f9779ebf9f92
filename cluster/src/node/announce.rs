//! A server says under which addresses it can be reached, until the membership agrees.

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
                if let Err(e) = inner.announce().await {
                    if e.code == Code::Refused {
                        inner.fail(format!("the cluster refuses this server: {}", e.detail));
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

    /// Tells whoever answers: the members, and those that were known when this server joined.
    async fn announce(&self) -> Result<(), NodeError> {
        if self.is_leader() {
            return self.announced(self.id, self.info.clone()).await;
        }
        let mut peers: Vec<String> = self.members().into_values().map(|info| info.peer).collect();
        peers.extend(self.identity.seeds.iter().cloned());
        peers.retain(|peer| *peer != self.info.peer);
        peers.sort();
        peers.dedup();
        let request = Request::Announce { node_id: self.id, info: self.info.clone() };
        let mut last = NodeError::not_applied(Code::NotFound, "no peer is known");
        for peer in peers {
            match self.lanes.dial_anew(0, peer).call(&request, ATTEMPT).await {
                Ok(Reply::Announced) => return Ok(()),
                Ok(_) => {}
                Err(CallError::Peer(e)) if e.code == Code::Refused => return Err(e),
                Err(e) => last = NodeError::not_applied(Code::NoPrimary, e.to_string()),
            }
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
