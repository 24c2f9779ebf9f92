//! The cluster itself: its status, its log, its membership.
//!
//! The status is read leniently: a field that this version does not know is kept aside in the reply's `body`, one that
//! is missing is empty. So an older client can look at a newer cluster.

use bytes::Bytes;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::transport::{Repeat, Request};
use super::{Client, DEFAULT_TIMEOUT, Reply, Result, decode, not_understood, servers};

/// What `GET /v1/cluster` tells.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClusterStatus {
    /// The cluster's identity.
    pub cluster_id: Value,
    /// `active` or `passive`.
    pub mode: Option<String>,
    /// The current term.
    pub term: Option<u64>,
    /// The name of the primary, when there is one.
    pub primary: Option<String>,
    /// Is nothing left to repair?
    pub settled: Option<bool>,
    /// Who votes and who learns.
    pub membership: Membership,
    /// Every known server.
    pub servers: Vec<ServerStatus>,
    /// The replicated settings.
    pub settings: Map<String, Value>,
    /// Who is alive, as the fault detectors see it, when they run.
    pub view: Value,
}

/// The membership of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Membership {
    /// Which log entry set it: what a guarded change names.
    pub log_id: Value,
    /// The servers that vote.
    pub voters: Vec<String>,
    /// The servers that only follow.
    pub learners: Vec<String>,
    /// Is a change half-way?
    pub joint: bool,
}

/// One server, as the cluster knows it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// Its present node id.
    pub node_id: Option<u64>,
    /// Where clients reach it.
    pub url: Option<String>,
    /// Where the other servers reach it.
    pub peer: Option<String>,
    /// `primary`, `backup`, `learner` or `witness`.
    pub role: Option<String>,
    /// What is known about its life.
    pub state: Value,
    /// Does it serve?
    pub ready: Option<bool>,
    /// The end of its log.
    pub last_log: Value,
    /// What it knows to be committed.
    pub committed: Value,
    /// What it has applied.
    pub applied: Value,
    /// The revision that it has reached.
    pub revision: Option<u64>,
    /// Its last checkpoint.
    pub checkpoint: Value,
    /// How many log entries it is behind the primary.
    pub lag: Option<u64>,
    /// Is its disk below its reserve? Then it takes no writes as the primary.
    pub disk_low: Option<bool>,
}

/// A stretch of the log.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct LogPage {
    /// The deltas, in the order of application.
    pub deltas: Vec<LoggedDelta>,
    /// The oldest revision that is still kept.
    pub oldest: Option<u64>,
    /// Where the next page begins.
    pub next: Option<u64>,
}

/// One delta of the log.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct LoggedDelta {
    /// Its revision.
    pub revision: u64,
    /// The primary's logged time, in milliseconds since 1970.
    pub time_ms: u64,
    /// The session that it belongs to, if any.
    pub session: Option<u64>,
    /// Its number in the session, if any.
    pub sequence: Option<u64>,
    /// The service.
    pub service: String,
    /// The command.
    pub command: Value,
}

/// A change of the membership, made by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MembershipChange {
    /// A learner becomes a voter.
    Promote,
    /// A voter becomes a learner.
    Demote,
    /// A server is dropped.
    Remove,
}

impl MembershipChange {
    /// The change's name, as the HTTP interface and the command line have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::Demote => "demote",
            Self::Remove => "remove",
        }
    }
}

impl Client {
    /// The state of the whole cluster, as one server sees it.
    pub async fn cluster(&self) -> Result<Reply<ClusterStatus>> {
        let reply: Reply<ClusterStatus> = self.get(vec!["v1", "cluster"], Vec::new()).await?;
        if reply.cluster_id.is_null() && reply.servers.is_empty() {
            let said = "answered with JSON that has neither `cluster_id` nor `servers`".to_owned();
            return Err(not_understood(&reply.server, said, false));
        }
        Ok(reply)
    }

    /// The deltas that are still kept, from a revision on. A page may hold fewer than `limit` although there are more,
    /// when they are long; after the last one comes an empty page.
    pub async fn log(&self, from: Option<u64>, limit: Option<u32>) -> Result<Reply<LogPage>> {
        let from = from.map(|from| ("from", from.to_string()));
        let limit = limit.map(|limit| ("limit", limit.to_string()));
        self.get(vec!["v1", "log"], from.into_iter().chain(limit).collect()).await
    }

    /// The revision that the server which answers has applied, with a primary or without.
    pub(crate) async fn applied_revision(&self) -> Result<Reply<u64>> {
        #[derive(Deserialize)]
        struct Status {
            revision: u64,
        }
        let reply: Reply<Status> = self.get(vec!["v1", "status"], Vec::new()).await?;
        let Reply { data, body, server, attempts } = reply;
        Ok(Reply { data: data.revision, body, server, attempts })
    }

    /// Changes the membership; with `if_membership`, only if it is still the one with that log id. A change whose
    /// reply is lost has an unknown outcome: it is not sent a second time.
    pub async fn change_membership(
        &self,
        change: MembershipChange,
        name: &str,
        if_membership: Option<&Value>,
    ) -> Result<Reply<Value>> {
        let mut body = json!({"op": change.name(), "name": name});
        if let Some(log_id) = if_membership {
            body["if_membership"] = log_id.clone();
        }
        self.change("members", &body).await
    }

    /// Hands the primary's office to another server, or to the best one when none is named; with `if_membership`, only if
    /// the membership is still the one with that log id.
    pub async fn transfer(&self, to: Option<&str>, if_membership: Option<&Value>) -> Result<Reply<Value>> {
        let mut body = to.map_or_else(|| json!({}), |to| json!({"to": to}));
        if let Some(log_id) = if_membership {
            body["if_membership"] = log_id.clone();
        }
        self.change("transfer", &body).await
    }

    /// Has a snapshot written, as a backup.
    pub async fn snapshot(&self) -> Result<Reply<Value>> {
        // It takes its time: not to be given up for another server, which would begin one too.
        self.administer("snapshot", &json!({}), Repeat::Harmful).await
    }

    /// Changes a replicated setting.
    pub async fn set_setting(&self, name: &str, value: &Value) -> Result<Reply<Value>> {
        // The same value set twice is the same value.
        self.administer("settings", &json!({ name: value }), Repeat::Harmless).await
    }

    /// A change may take long; that no server takes it, for want of a primary, is known sooner.
    async fn change(&self, what: &str, body: &Value) -> Result<Reply<Value>> {
        let body = Bytes::from(body.to_string());
        let request = Request::post(vec!["v1", "cluster", what], body, Repeat::Harmful);
        let request = Request { patience: Some(DEFAULT_TIMEOUT), ..request };
        let answer = self.inner.transport.call(&request, self.deadline()).await?;
        decode(answer, true)
    }

    async fn administer(&self, what: &str, body: &Value, repeat: Repeat) -> Result<Reply<Value>> {
        let request = Request::post(vec!["v1", "cluster", what], Bytes::from(body.to_string()), repeat);
        let answer = self.inner.transport.call(&request, self.deadline()).await?;
        decode(answer, true)
    }
}

/// Who is where, from the body of `GET /v1/cluster`.
#[derive(Debug, Default)]
pub(crate) struct Whereabouts {
    /// The primary's address.
    pub(crate) primary: Option<Url>,
    /// Every server's address and name.
    pub(crate) names: Vec<(Url, String)>,
}

#[derive(Default, Deserialize)]
struct Addresses {
    primary: Option<String>,
    #[serde(default)]
    servers: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    name: String,
    url: Option<String>,
}

impl Whereabouts {
    pub(crate) fn read(body: &[u8]) -> Self {
        let Addresses { primary, servers } = serde_json::from_slice(body).unwrap_or_default();
        let found =
            servers.into_iter().filter_map(|Address { name, url }| Some((servers::parse(&url?).ok()?, name)));
        let names: Vec<(Url, String)> = found.collect();
        let primary = names.iter().find(|(_, name)| Some(name) == primary.as_ref());
        Self { primary: primary.map(|(url, _)| url.clone()), names }
    }
}
