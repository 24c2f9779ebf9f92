//! Lanes to peers, by node id: for forwarded requests and for questions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use quorate_storage::raft_types::{NodeId, NodeInfo};

use crate::transport::Dial;
use crate::transport::frame::{ClusterId, Route};
use crate::transport::lane::Lane;

/// Lanes are made when first needed and replaced when the peer's address changes.
pub(super) struct Lanes {
    dial: Arc<dyn Dial>,
    cluster: ClusterId,
    node: NodeId,
    lanes: Mutex<HashMap<NodeId, Arc<Lane>>>,
}

impl Lanes {
    pub(super) fn new(dial: Arc<dyn Dial>, cluster: ClusterId, node: NodeId) -> Self {
        Self { dial, cluster, node, lanes: Mutex::default() }
    }

    /// The lane to a member.
    pub(super) fn to(&self, id: NodeId, info: &NodeInfo) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(&id).filter(|lane| lane.peer() == info.peer) {
            return Arc::clone(lane);
        }
        let lane = Arc::new(self.dial_anew(id, info.peer.clone()));
        lanes.insert(id, Arc::clone(&lane));
        lane
    }

    /// Forgets lanes to nodes that are no members any more.
    pub(super) fn retain(&self, members: impl Fn(&NodeId) -> bool) {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| members(id));
    }

    /// A lane of its own to an address, to node `id` or (0) whoever is there.
    pub(super) fn dial_anew(&self, id: NodeId, peer: String) -> Lane {
        let route = Route { cluster: self.cluster, from: self.node, to: id };
        Lane::new(Arc::clone(&self.dial), peer, route)
    }
}
