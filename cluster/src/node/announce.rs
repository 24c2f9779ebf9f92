//! A server says under which addresses it can be reached, until the membership agrees, and asks whether it is a member
//! when it hears of no primary.

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
    /// A member that was elsewhere before.
    Moved,
    /// A member under these very addresses. Or none: a snapshot may be older than the place in the membership.
    Settled,
}

/// What was said at each address.
type Told = BTreeMap<String, String>;

/// Runs until the node stops.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut stop = inner.stop.subscribe();
    let mut told = BTreeMap::new();
    loop {
        let standing = inner.standing();
        let said = match standing {
            Standing::New => inner.announce(&mut told).await,
            Standing::Settled if inner.working_leader().is_some() => {
                inner.note_removal(None);
                Ok(())
            }
            Standing::Moved | Standing::Settled => inner.ask_standing(&mut told).await,
        };
        if let Err(e) = said {
            // One that is worth another attempt is not the last word. Who is in its place waits for the others.
            let last_word = e.code == Code::Refused && e.retry_after_ms.is_none();
            if last_word && !matches!(standing, Standing::Settled) {
                inner.fail(format!("this server cannot take part in its cluster: {}", e.detail));
                return;
            }
            tracing::debug!(error = %e, "announcing this server failed; trying on");
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
            Some(info) if *info != self.info => Standing::Moved,
            None if membership.nodes().next().is_none() => Standing::New,
            _ => Standing::Settled,
        }
    }

    async fn announce(&self, told: &mut Told) -> Result<(), NodeError> {
        if self.is_leader() {
            return self.announced(self.id, self.info.clone()).await;
        }
        match self.ask_anybody(&Request::Announce { node_id: self.id, info: self.info.clone() }, told).await?
        {
            Reply::Announced => Ok(()),
            _ => Err(another_question()),
        }
    }

    /// Asks whether this server is a member still, and says where it is.
    async fn ask_standing(&self, told: &mut Told) -> Result<(), NodeError> {
        if self.working_leader() == Some(self.id) {
            return self.announced(self.id, self.info.clone()).await;
        }
        let membership = *self.raft.metrics().borrow_watched().membership_config.log_id();
        let request = Request::StillMember { node_id: self.id, info: self.info.clone(), membership };
        match self.ask_anybody(&request, told).await? {
            Reply::StillMember(removal) => self.note_removal(removal),
            _ => return Err(another_question()),
        }
        Ok(())
    }

    /// Asks until one answers: the members, and those that were known when this server joined. An address may be old,
    /// and somebody else's by now: what is said there is not this cluster's word, unless no other address is left. What
    /// each said last is in `told`.
    async fn ask_anybody(&self, request: &Request, told: &mut Told) -> Result<Reply, NodeError> {
        let others = self.members().into_iter().filter(|(id, _)| *id != self.id);
        let mut peers: Vec<String> = others.map(|(_, info)| info.peer).collect();
        peers.extend(self.identity.seeds.iter().cloned());
        peers.retain(|peer| *peer != self.info.peer);
        peers.sort();
        peers.dedup();
        let mut last = NodeError::not_applied(Code::NotFound, "no peer is known");
        let mut ours = peers.len();
        for peer in &peers {
            let error = match self.lanes.dial_anew(0, peer.clone()).call(request, ATTEMPT).await {
                Ok(reply) => return Ok(reply),
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
                self.network.addresses.note(id, &info.peer);
                self.set_node(id, info).await
            }
            None => {
                self.check_name_free(&info, id)?;
                self.add_learner(id, info).await
            }
        }
    }
}

fn another_question() -> NodeError {
    NodeError::not_applied(Code::Failed, "the peer answered another question")
}
