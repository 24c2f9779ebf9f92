//! What a client does beside its caller: again and again, or for as long as somebody wants it.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::Client;

/// A task in the background. It ends when this is dropped.
#[derive(Debug)]
#[must_use = "the task ends when this is dropped"]
pub struct Background(JoinHandle<()>);

impl Background {
    /// Has the task ended by itself?
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// Runs `task` in the background. It needs a Tokio runtime.
    pub fn in_background(&self, task: impl Future<Output = ()> + Send + 'static) -> Background {
        Background(tokio::spawn(task))
    }

    /// Does something every `period`, beginning at once; one time after the other, so that a slow one makes the next one late and
    /// not two at a time. It needs a Tokio runtime.
    pub fn every<F, T>(&self, period: Duration, mut task: F) -> Background
    where
        F: FnMut(Self) -> T + Send + 'static,
        T: Future<Output = ()> + Send,
    {
        let client = self.clone();
        self.in_background(async move {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                interval.tick().await;
                task(client.clone()).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_background_task_goes_on_until_it_is_dropped() {
        let client = Client::builder().build().unwrap();
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        let background = client.every(Duration::from_secs(1), move |_| {
            let count = Arc::clone(&counted);
            async move {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_eq!(count.load(Ordering::Relaxed), 3);
        assert!(!background.is_finished());
        drop(background);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(count.load(Ordering::Relaxed), 3);
    }
}
