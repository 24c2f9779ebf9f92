//! Clients that add all the time, and the proof that each of their adds was applied once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate::client::{ClientBuilder, CounterReply, ReadLevel};
use tokio::task::JoinHandle;

use super::Cluster;

/// An add that was acknowledged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Added {
    amount: i64,
    pub(crate) reply: CounterReply,
}

/// By counter.
pub(crate) type Acknowledged = BTreeMap<String, Vec<Added>>;

/// Running clients. Each works on all counters, one request at a time, in a session of its own.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Acknowledged>>,
}

impl Load {
    pub(crate) fn start(clients: usize, counters: &[&str], builder: &ClientBuilder) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..clients)
            .map(|n| {
                let counters = counters.iter().map(ToString::to_string).collect();
                let builder = builder.clone();
                tokio::spawn(add(n, counters, builder, Arc::clone(&stop), Arc::clone(&count)))
            })
            .collect();
        Self { stop, count, clients }
    }

    /// Acknowledged adds so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until `more` further adds are acknowledged.
    pub(crate) async fn progress(&self, cluster: &Cluster, more: u64) {
        let goal = self.count() + more;
        cluster
            .until(&format!("{more} more adds are acknowledged"), async || {
                match self.clients.iter().find(|client| client.is_finished()) {
                    // A finished client has failed: its panic is on stderr.
                    Some(_) => panic!("a client of the load has ended"),
                    None if self.count() >= goal => Ok(()),
                    None => Err(format!("{} of {goal}", self.count())),
                }
            })
            .await;
    }

    /// Ends the clients and proves that each add was applied exactly once, in the order of the revisions, and that
    /// nothing else was: each reply's `previous` is the `value` of the reply before, from 0 to the end value. Returns
    /// the acknowledged adds of each counter, in the order of the revisions.
    pub(crate) async fn verify(self, cluster: &Cluster) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Acknowledged::new();
        for client in self.clients {
            for (name, added) in client.await.expect("a client of the load has failed, see above") {
                all.entry(name).or_default().extend(added);
            }
        }
        let reader = cluster.client().build().expect("a client");
        for (name, added) in &mut all {
            added.sort_by_key(|add| add.reply.revision);
            let mut value = 0;
            for Added { amount, reply } in &*added {
                assert_eq!(
                    (reply.previous, reply.value),
                    (value, value + amount),
                    "counter {name}, revision {}: after {value}, {amount} was added",
                    reply.revision
                );
                value = reply.value;
            }
            let end =
                reader.counter(name.as_str()).get(ReadLevel::Linearizable).await.expect("the end value");
            assert_eq!(end.value, value, "the end value of counter {name} against its {} adds", added.len());
        }
        all
    }
}

/// Adds until told to stop. An add that is not acknowledged within the client's patience fails the test.
async fn add(
    client: usize,
    counters: Vec<String>,
    builder: ClientBuilder,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
) -> Acknowledged {
    let connection = builder.build().expect("a client");
    let mut acknowledged = Acknowledged::new();
    // Amounts that differ, so that one add lost and another done twice cannot make up for each other.
    for n in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = &counters[(client + n) % counters.len()];
        let amount = (n * 100 + client) as i64;
        let reply = connection.counter(name).add(amount).await;
        let reply = reply.unwrap_or_else(|e| panic!("client {client}, add {n}: {e}"));
        acknowledged.entry(name.clone()).or_default().push(Added { amount, reply: reply.data });
        count.fetch_add(1, Ordering::Relaxed);
    }
    // Some sessions stay: with them, the servers' states can differ in more than the end values.
    if client.is_multiple_of(2) {
        let closed = connection.close().await;
        closed.unwrap_or_else(|e| panic!("client {client} cannot close its session: {e}"));
    }
    acknowledged
}
