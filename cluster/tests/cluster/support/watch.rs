//! Watches a cluster while it runs, for what must never be seen: two primaries in one term
//! (invariant 4), two hashes at one revision (invariant 5), logged time that goes backwards.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_cluster::message::NodeStatus;
use quorate_storage::delta::Millis;
use quorate_storage::raft_types::NodeId;
use tokio::task::JoinHandle;

use super::Nodes;

#[derive(Default)]
struct Seen {
    primaries: HashMap<u64, NodeId>,
    states: BTreeMap<u64, (u128, Millis)>,
    /// Servers whose state was damaged on purpose.
    damaged: BTreeSet<String>,
    broken: Option<String>,
}

/// The watch over one cluster.
pub(crate) struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(crate) fn start(nodes: Nodes) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let noting = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                for status in nodes.all().iter().filter_map(|node| node.status().ok()) {
                    noting.lock().unwrap().note(&status);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { seen, task }
    }

    /// A server's state is going to be damaged.
    pub(crate) fn exempt(&self, name: &str) {
        self.seen.lock().unwrap().damaged.insert(name.to_owned());
    }

    /// Ends the watch; panics if anything was wrong.
    pub(crate) async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
        let seen = self.seen.lock().unwrap();
        if let Some(broken) = &seen.broken {
            panic!("{broken}");
        }
        let mut times = seen.states.iter().map(|(revision, (_, time))| (revision, time));
        let Some((_, mut before)) = times.next() else { return };
        for (revision, time) in times {
            assert!(time >= before, "logged time goes back from {before} to {time} at revision {revision}");
            before = time;
        }
    }
}

impl Seen {
    fn note(&mut self, status: &NodeStatus) {
        if let Some(leader) = status.leader {
            let known = *self.primaries.entry(status.term).or_insert(leader);
            if known != leader {
                let text = format!(
                    "invariant 4: nodes {known} and {leader} are both primaries of term {}",
                    status.term
                );
                self.broken.get_or_insert(text);
            }
        }
        if self.damaged.contains(&status.info.name) {
            return;
        }
        let state = (status.state_hash, status.time);
        let known = *self.states.entry(status.revision).or_insert(state);
        if known != state {
            let text = format!("invariant 5: at revision {} both {known:?} and {state:?}", status.revision);
            self.broken.get_or_insert(text);
        }
    }
}
