//! Carrying decisions out, over HTTP: one change of the membership through its primary, launches through the local
//! detectors.

use std::fmt;
use std::time::Duration;

use quorate_cluster::policy::{Change, Down, Seen};
use serde::Deserialize;
use serde_json::{Value, json};

use super::look::{Cluster, Server};
use crate::detectors::chain;

/// Longer than a server takes to give a change up.
const CHANGE_LIMIT: Duration = Duration::from_secs(40);
const LAUNCH_LIMIT: Duration = Duration::from_secs(5);

/// A change, as the primary is asked for it.
pub(super) struct Act {
    url: String,
    body: Value,
}

impl Act {
    /// The change, on the condition that membership and settings are still those that were `seen`.
    pub(super) fn new(change: &Change, seen: &Seen, cluster: &Cluster, leader: &Server) -> Self {
        let of = |op: &str, id: &u64| {
            let member = seen.members.iter().find(|member| member.id == *id);
            json!({ "op": op, "name": member.map(|member| &member.name), "node_id": id })
        };
        let (path, mut body) = match change {
            Change::Finish => ("members", json!({ "op": "finish" })),
            Change::TakeBack { name } => ("members", json!({ "op": "take_back", "name": name })),
            Change::Replace { old, new } => {
                let mut body = of("replace", old);
                body["by"] = json!(new);
                ("members", body)
            }
            Change::Promote { new } => ("members", of("promote", new)),
            Change::Demote { old } => ("members", of("demote", old)),
            Change::Remove { old } => ("members", of("remove", old)),
            Change::Transfer { to } => ("transfer", json!({ "to": of("", to)["name"] })),
        };
        body["if_membership"] = json!(cluster.membership);
        body["if_settings"] = json!(cluster.settings.revision);
        Self { url: format!("{}/v1/cluster/{path}", leader.url), body }
    }

    /// Has the primary make it.
    pub(super) async fn carry_out(self, client: reqwest::Client) -> Result<(), Failed> {
        post(&client, &self.url, &self.body, CHANGE_LIMIT).await
    }
}

/// Sets a setting.
pub(super) async fn set(
    client: &reqwest::Client,
    leader: &Server,
    name: &str,
    value: &str,
) -> Result<(), Failed> {
    let url = format!("{}/v1/cluster/settings", leader.url);
    post(client, &url, &json!({ name: value }), LAUNCH_LIMIT).await
}

/// Has a server launched by its detector, if it has not been meanwhile.
pub(super) async fn launch(client: reqwest::Client, lfd: String, down: Down, first: bool) {
    let body = json!({ "after": down.incarnation });
    if let Err(error) = post(&client, &format!("{lfd}/v1/launch"), &body, LAUNCH_LIMIT).await {
        // It is asked for again and again.
        if first {
            tracing::warn!(server = down.name, lfd, %error, "the server cannot be launched; it is tried on");
        }
    }
}

/// What a server says of a request that it refuses.
#[derive(Deserialize)]
struct Problem {
    code: String,
    detail: String,
    outcome: String,
}

/// Why something was not done, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    why: String,
    /// It was decided on what is not so any more: a new look may decide the same, and succeed.
    pub(super) outdated: bool,
}

impl Failed {
    pub(super) fn new(why: String) -> Self {
        Self { why, outdated: false }
    }

    /// Whoever was asked may be the wrong one by now.
    pub(super) fn outdated(why: String) -> Self {
        Self { why, outdated: true }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

async fn post(client: &reqwest::Client, url: &str, body: &Value, limit: Duration) -> Result<(), Failed> {
    let answer = match client.post(url).json(body).timeout(limit).send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => {
            return Err(Failed::outdated(format!("not done: {}", chain(&error))));
        }
        Err(error) => {
            return Err(Failed::outdated(format!("unknown whether it was done: {}", chain(&error))));
        }
    };
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let text = answer.text().await.unwrap_or_default();
    let problem = serde_json::from_str::<Problem>(&text);
    let passing = ["changed", "no_primary", "not_primary", "timeout"];
    let outdated = problem.as_ref().is_ok_and(|problem| passing.contains(&&*problem.code));
    let why = match problem {
        Ok(Problem { detail, outcome, .. }) if outcome == "not_applied" => format!("not done: {detail}"),
        Ok(Problem { detail, .. }) => format!("unknown whether it was done: {detail}"),
        // A detector says it in plain text.
        Err(_) if status.is_client_error() => format!("not done: {status}: {}", text.trim()),
        Err(_) => format!("unknown whether it was done: {status}: {}", text.trim()),
    };
    Err(Failed { why, outdated })
}
