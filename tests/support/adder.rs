//! One client that counts what it was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate::client::{Client, ReadLevel};

/// A client that adds 1 all the time.
pub(crate) struct Adder {
    stop: Arc<AtomicBool>,
    added: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
    client: Client,
}

impl Adder {
    pub(crate) fn start(urls: Vec<String>) -> Self {
        let client = Client::builder().servers(urls).timeout(Duration::from_secs(30));
        let client = client.attempt_timeout(Duration::from_millis(300)).build().expect("a client");
        let (stop, added) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let task = tokio::spawn({
            let (stop, added, client) = (Arc::clone(&stop), Arc::clone(&added), client.clone());
            async move {
                while !stop.load(Ordering::Relaxed) {
                    client.counter("hits").add(1).await.expect("it is patient");
                    added.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
        Self { stop, added, task, client }
    }

    pub(crate) fn added(&self) -> u64 {
        self.added.load(Ordering::Relaxed)
    }

    /// Every add that was acknowledged is in the counter, once.
    pub(crate) async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the adds");
        let value = self.client.counter("hits").get(ReadLevel::Linearizable).await.expect("a value").value;
        assert_eq!(value, self.added.load(Ordering::Relaxed) as i64);
    }
}
