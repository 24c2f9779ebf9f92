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
    /// not two at a time; a period is a millisecond at least. It needs a Tokio runtime.
    pub fn every<F, T>(&self, period: Duration, mut task: F) -> Background
    where
        F: FnMut(Self) -> T + Send + 'static,
        T: Future<Output = ()> + Send,
    {
        let client = self.clone();
        self.in_background(async move {
            let mut interval = interval(period.max(Duration::from_millis(1)));
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
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_background_task_goes_on_until_it_is_dropped() {
        let client = Client::builder().build().unwrap();
        let (sender, mut times) = mpsc::unbounded_channel();
        let background = client.every(Duration::from_millis(5), move |_| {
            let sender = sender.clone();
            async move { sender.send(()).unwrap() }
        });
        for _ in 0..3 {
            times.recv().await.unwrap();
        }
        assert!(!background.is_finished());
        drop(background);
        // It has let go of its end: nothing runs any more.
        while times.recv().await.is_some() {}
    }
}
