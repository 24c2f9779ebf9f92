//! A server with an empty directory asks for a node id and makes its directory.

use std::time::{Duration, Instant};

use quorate_storage::FORMAT_VERSION;
use quorate_storage::identity::{Identity, valid_name};
use quorate_storage::node_disk::{self, DiskError};

use super::{Inner, NodeOptions};
use crate::error::{Code, NodeError};
use crate::message::{JoinReply, JoinRequest, Reply, Request};
use crate::transport::frame::{ClusterId, Route};
use crate::transport::lane::{CallError, Lane};
use crate::transport::server::hex;

/// One attempt with one peer.
/// Short: a peer that is itself still joining listens, but does not answer.
const ATTEMPT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(250);
/// A refusal is final after this time only: a server that was wiped and started again at once meets its dead
/// predecessor, whom the primary takes for alive a while longer (at least a second, see `alive`).
const REFUSED_PATIENCE: Duration = Duration::from_secs(4);

/// Why a server cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody was named to join through.
    #[error(
        "{dir} is empty, so this server must join a cluster, and --join names none. Either name peers of the \
         cluster (--join HOST:PORT,…), or make a new cluster first: quorate cluster init --name {name} --data {dir} …"
    )]
    NoPeers {
        /// The directory.
        dir: String,
        /// The server's name.
        name: String,
    },
    /// Nobody but itself was named to join through.
    #[error(
        "{dir} is empty, so this server must join a cluster, and --join names only itself ({peer}). Name another server of \
         the cluster, or make a new cluster first: quorate cluster init --name {name} --data {dir} …"
    )]
    OnlyItself {
        /// The directory.
        dir: String,
        /// The server's name.
        name: String,
        /// Its peer address.
        peer: String,
    },
    /// The cluster refuses.
    #[error("the cluster refuses to let {name} join: {cause}")]
    Refused {
        /// The server's name.
        name: String,
        /// Why.
        cause: String,
    },
    /// The directory cannot be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Joins: asks the peers in turn until one answers, then makes the directory, identity last.
pub(super) async fn join(options: &NodeOptions) -> Result<(), JoinError> {
    let name = options.info.name.clone();
    if options.join.is_empty() {
        return Err(JoinError::NoPeers { dir: options.dir.display().to_string(), name });
    }
    let peers: Vec<&String> = options.join.iter().filter(|peer| **peer != options.info.peer).collect();
    if peers.is_empty() {
        let (dir, peer) = (options.dir.display().to_string(), options.info.peer.clone());
        return Err(JoinError::OnlyItself { dir, name, peer });
    }
    if let Err(e) = check_name(&name) {
        return Err(JoinError::Refused { name, cause: e.detail });
    }
    let mut told = String::new();
    let begun = Instant::now();
    loop {
        for &peer in &peers {
            match ask(options, peer).await {
                Ok(reply) => return create(options, reply).await,
                Err(CallError::Peer(e)) if e.code == Code::Refused && begun.elapsed() >= REFUSED_PATIENCE => {
                    return Err(JoinError::Refused { name, cause: e.detail });
                }
                Err(e) => {
                    let text = e.to_string();
                    if text != told {
                        tracing::warn!(%peer, error = %text, "cannot join yet; trying on");
                        told = text;
                    }
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ask(options: &NodeOptions, peer: &str) -> Result<JoinReply, CallError> {
    let route = Route { cluster: [0; 16], from: 0, to: 0 };
    let lane = Lane::new(std::sync::Arc::clone(&options.dial), peer.to_owned(), route);
    let request =
        Request::Join(JoinRequest { info: options.info.clone(), services: options.registry.names() });
    match lane.call(&request, ATTEMPT).await? {
        Reply::Join(reply) => Ok(reply),
        _ => Err(NodeError::not_applied(Code::Failed, "the peer answered another question").into()),
    }
}

async fn create(options: &NodeOptions, reply: JoinReply) -> Result<(), JoinError> {
    let mut seeds = reply.peers;
    seeds.extend(options.join.iter().cloned());
    seeds.sort();
    seeds.dedup();
    let identity = Identity {
        cluster_id: hex(&reply.cluster),
        node_id: reply.node_id,
        name: options.info.name.clone(),
        format_version: FORMAT_VERSION,
        seeds,
        services: options.registry.names(),
    };
    node_disk::create(&options.dir, &identity, None).await?;
    tracing::info!(name = %identity.name, node_id = identity.node_id, cluster = %identity.cluster_id, "joined");
    Ok(())
}

/// The cluster id as bytes; `None` for text that is not one.
pub fn parse_cluster_id(text: &str) -> Option<ClusterId> {
    u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32).map(u128::to_be_bytes)
}

fn check_name(name: &str) -> Result<(), NodeError> {
    if valid_name(name) {
        return Ok(());
    }
    let text = format!("{name:?} is not a server's name: use letters, digits, '-', '_', '.'");
    Err(NodeError::not_applied(Code::BadRequest, text))
}

impl Inner {
    /// A replica without one of the services would differ from the others, and nobody would see it.
    fn check_services(&self, has: &[String]) -> Result<(), NodeError> {
        let mut lacks = self.state.registry().names();
        lacks.retain(|name| !has.contains(name));
        if lacks.is_empty() {
            return Ok(());
        }
        let text = format!(
            "its program lacks services that this cluster runs: {}. Start it with the program that runs the other servers",
            lacks.join(", ")
        );
        Err(NodeError::not_applied(Code::Refused, text))
    }

    /// Gives a joining server a node id. On the primary.
    pub(super) async fn admit(&self, request: JoinRequest) -> Result<JoinReply, NodeError> {
        check_name(&request.info.name)?;
        self.check_services(&request.services)?;
        self.check_name_free(&request.info, 0)?;
        let node_id = self.allocate_node_id(&request.info.name).await?;
        let peers = self.members().into_values().map(|info| info.peer).collect();
        Ok(JoinReply { cluster: self.cluster, node_id, peers })
    }
}
