//! What the manager shows: what it sees, what it would do next and why, and what a client needs to begin.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use quorate_cluster::detect::accrual::Health;
use quorate_cluster::detect::view::View;
use quorate_cluster::policy::{Plan, Seen};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::look::Cluster;

/// What `GET /v1/rm` shows, as of the last look.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Shown {
    dry_run: bool,
    cluster_id: Option<String>,
    mode: Option<String>,
    primary: Option<String>,
    term: Option<u64>,
    membership: Option<String>,
    settled: bool,
    settings: Value,
    settings_revision: Option<u64>,
    view_revision: Option<u64>,
    /// What the view says of each server.
    view: BTreeMap<String, Health>,
    members: Vec<Member>,
    /// Servers that are to be launched.
    launch: Vec<String>,
    /// The next change of the membership.
    next: Option<Next>,
    /// What is wanted and cannot be done yet.
    waits: Vec<String>,
    /// What a person wants so.
    notes: Vec<String>,
    /// The change under way.
    pub(super) doing: Option<String>,
    /// What came of the last one.
    pub(super) last: Option<String>,
    #[serde(skip)]
    servers: Vec<Value>,
}

#[derive(Debug, Clone, Serialize)]
struct Next {
    change: String,
    why: String,
}

/// For how long, in milliseconds.
#[derive(Debug, Clone, Serialize)]
struct Member {
    name: String,
    node_id: u64,
    voter: bool,
    witness: bool,
    steady_ms: Option<u64>,
    silent_ms: Option<u64>,
    view_dead_ms: Option<u64>,
}

impl Shown {
    /// Before the first look.
    pub(super) fn new(dry_run: bool) -> Self {
        Self { dry_run, ..Self::default() }
    }

    /// Shows what was just seen and thought.
    pub(super) fn update(
        &mut self,
        cluster: Option<&Cluster>,
        view: Option<&View>,
        seen: &Seen,
        plan: &Plan,
    ) {
        let settings = cluster.map(|cluster| &cluster.settings);
        let ms = |time: Option<Duration>| time.map(|time| time.as_millis() as u64);
        let members = seen.members.iter().map(|member| Member {
            name: member.name.clone(),
            node_id: member.id,
            voter: member.voter,
            witness: member.witness,
            steady_ms: ms(member.steady),
            silent_ms: ms(member.silent),
            view_dead_ms: ms(member.view_dead),
        });
        let next = plan.change.as_ref();
        let servers = cluster.into_iter().flat_map(|cluster| &cluster.servers);
        *self = Self {
            dry_run: self.dry_run,
            cluster_id: cluster.map(|cluster| cluster.cluster_id.clone()),
            mode: settings.and_then(|settings| settings.values.get("mode").cloned()),
            primary: cluster.and_then(|cluster| cluster.primary.clone()),
            term: cluster.map(|cluster| cluster.term),
            membership: cluster.map(|cluster| cluster.membership.clone()),
            settled: cluster.is_some_and(|cluster| cluster.settled) && plan.is_settled(),
            settings: json!(settings.map(|settings| &settings.values)),
            settings_revision: settings.map(|settings| settings.revision),
            view_revision: view.map(|view| view.revision),
            view: view
                .into_iter()
                .flat_map(|view| &view.members)
                .map(|member| (member.name.clone(), member.state))
                .collect(),
            members: members.collect(),
            launch: plan.launch.iter().map(|down| down.name.clone()).collect(),
            next: next.map(|(change, why)| Next { change: seen.describe(change), why: why.clone() }),
            waits: plan.waits.clone(),
            notes: plan.notes.clone(),
            doing: self.doing.take(),
            last: self.last.take(),
            servers: servers
                .map(|server| json!({ "name": server.name, "url": server.url, "ready": server.ready }))
                .collect(),
        };
    }
}

pub(super) struct Shared {
    pub(super) shown: watch::Receiver<Shown>,
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/rm", get(show))
        .route("/v1/hello", get(hello))
        .route("/healthz", get(async || "ok\n"))
        .with_state(shared)
}

/// `GET /v1/rm`
async fn show(State(shared): State<Arc<Shared>>) -> Json<Shown> {
    Json(shared.shown.borrow().clone())
}

/// `GET /v1/hello`: where a client goes.
async fn hello(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let shown = shared.shown.borrow();
    let primary = shown.servers.iter().find(|server| server["name"].as_str() == shown.primary.as_deref());
    Json(json!({
        "mode": shown.mode,
        "ready": primary.is_some_and(|primary| primary["ready"] == true),
        "primary": primary,
        "servers": shown.servers,
    }))
}
