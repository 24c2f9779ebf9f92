//! The view in the cluster's status, asked of the global fault detector when somebody wants to see it.

use std::time::Duration;

use reqwest::Url;
use serde_json::Value;

/// Longer than it takes on a network; a status is not to wait for a detector that is away.
const ASK: Duration = Duration::from_millis(300);

/// Where the view is had.
#[derive(Debug, Clone)]
pub(crate) struct ViewSource {
    client: reqwest::Client,
    url: Url,
}

impl ViewSource {
    /// From the global detector at `url`.
    pub(crate) fn new(client: reqwest::Client, url: Url) -> Self {
        Self { client, url }
    }

    /// The view as JSON; null when it cannot be had.
    pub(super) async fn get(&self) -> Value {
        let asked = async {
            let answer = self.client.get(self.url.join("v1/view").ok()?).timeout(ASK).send().await.ok()?;
            answer.error_for_status().ok()?.json().await.ok()
        };
        asked.await.unwrap_or(Value::Null)
    }
}
