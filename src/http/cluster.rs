//! Status, membership, log, probes.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::Uri;
use axum::response::{IntoResponse as _, Response};
use quorate_cluster::error::NodeError;
use quorate_cluster::message::{MemberOp, MembersRequest, NodeStatus};
use quorate_cluster::node::MemberStatus;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout_at;

use super::problem::Problem;
use super::{Answer, App, CHANGE_TIMEOUT, Shared, deadline, primary, to_json};

const LOG_LIMIT: usize = 100;
const MAX_LOG_LIMIT: usize = 1000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogParams {
    from: Option<u64>,
    limit: Option<usize>,
}

/// `GET /v1/log`
pub(super) async fn log(State(app): Shared, Query(params): Query<LogParams>) -> Answer {
    let limit = params.limit.unwrap_or(LOG_LIMIT).clamp(1, MAX_LOG_LIMIT);
    let page = app.node.log_page(params.from.unwrap_or(1), limit).await?;
    let deltas: Vec<Value> = page
        .deltas
        .into_iter()
        .map(|delta| {
            json!({
                "revision": delta.revision, "time_ms": delta.time, "session": delta.session,
                "sequence": delta.sequence, "service": delta.service, "command": delta.command,
            })
        })
        .collect();
    to_json(&json!({ "deltas": deltas, "oldest": page.oldest, "next": page.next }))
}

/// `GET /v1/status`
pub(super) async fn status(State(app): Shared) -> Answer {
    let status = app.node.status()?;
    let voter = app.node.is_voter();
    let mut body = describe(&status, voter, app.node.is_primary());
    if app.node.is_removed() {
        body["role"] = json!("removed");
    }
    body["cluster_id"] = json!(app.node.cluster_id());
    body["primary"] = json!(app.node.primary_name());
    body["version"] = json!(env!("CARGO_PKG_VERSION"));
    body["clock_ahead_ms"] = json!(status.clock_ahead_ms);
    body["time_ms"] = json!(status.time);
    body["pid"] = json!(std::process::id());
    body["incarnation"] = json!(app.said.incarnation);
    to_json(&body)
}

/// What a server says of itself, as both status pages show it.
fn describe(status: &NodeStatus, voter: bool, primary: bool) -> Value {
    json!({
        "name": status.info.name,
        "node_id": status.node_id,
        "url": status.info.url,
        "peer": status.info.peer,
        "role": role(status, voter, primary),
        "state": if status.differs_at.is_some() { "differs" } else { "alive" },
        "ready": status.ready,
        "term": status.term,
        "last_log": status.last_log,
        "committed": status.committed,
        "applied": status.applied,
        "revision": status.revision,
        "state_hash": format!("{:032x}", status.state_hash),
        "checkpoint": status.checkpoints.last().map(|last| json!({
            "number": last.number,
            "revision": last.revision,
            "state_hash": format!("{:032x}", last.hash),
        })),
        "flushed": status.flushed,
        "dirty_bytes": status.dirty_bytes,
        "log_bytes": status.log_bytes,
        "disk_free": status.disk_free,
        "disk_low": status.disk_low,
        "uptime_secs": status.uptime_secs,
    })
}

fn role(status: &NodeStatus, voter: bool, primary: bool) -> &'static str {
    match (status.info.witness, primary, voter) {
        (true, _, _) => "witness",
        (_, true, _) => "primary",
        (_, _, true) => "backup",
        _ => "learner",
    }
}

/// `GET /v1/cluster`
pub(super) async fn cluster(State(app): Shared) -> Answer {
    let view = async {
        match &app.said.view {
            Some(view) => view.get().await,
            None => Value::Null,
        }
    };
    let (status, view) = tokio::join!(app.node.cluster_status(), view);
    let status = status?;
    let names = |voter: bool| -> Vec<&str> {
        status.members.iter().filter(|m| m.voter == voter).map(|m| m.info.name.as_str()).collect()
    };
    let head = status.members.iter().filter_map(|m| m.status.as_ref()).map(|s| s.last_log).max().unwrap_or(0);
    let leader = status.members.iter().find_map(|m| m.status.as_ref()?.leader);
    let primary = status.members.iter().find(|member| Some(member.node_id) == leader);
    let primary = primary.and_then(|member| member.status.as_ref());
    let servers = status.members.iter().map(|member| {
        let mut shown = server(member, leader, head);
        shown["voter"] = json!(member.voter);
        shown["heard"] = json!(primary.map(|primary| primary.heard.contains(&member.node_id)));
        shown["silent_ms"] = json!(primary.and_then(|primary| primary.silent_ms.get(&member.node_id)));
        shown
    });
    let servers: Vec<Value> = servers.collect();
    to_json(&json!({
        "cluster_id": status.cluster_id,
        "mode": status.settings.values.get("mode"),
        "term": status.term,
        "primary": status.primary,
        "settled": status.settled,
        "membership": {
            "log_id": status.membership,
            "voters": names(true),
            "learners": names(false),
            "joint": status.joint,
        },
        "servers": servers,
        "strays": primary.map(|primary| &primary.strays),
        "settings": status.settings.values,
        "settings_revision": status.settings.revision,
        "view": view,
    }))
}

fn server(member: &MemberStatus, leader: Option<u64>, head: u64) -> Value {
    let primary = leader == Some(member.node_id);
    match &member.status {
        Some(status) => {
            let mut server = describe(status, member.voter, primary);
            server["lag"] = json!(head.saturating_sub(status.applied));
            server
        }
        None => json!({
            "name": member.info.name,
            "node_id": member.node_id,
            "url": member.info.url,
            "peer": member.info.peer,
            "role": match (member.info.witness, member.voter) {
                (true, _) => "witness",
                (_, true) => "backup",
                _ => "learner",
            },
            "state": "away",
            "ready": false,
            "last_log": Value::Null,
            "committed": Value::Null,
            "applied": Value::Null,
            "revision": Value::Null,
            "checkpoint": Value::Null,
            "lag": Value::Null,
        }),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    op: String,
    #[serde(default)]
    name: String,
    if_membership: Option<String>,
    node_id: Option<u64>,
    by: Option<u64>,
    if_settings: Option<u64>,
}

/// A transfer changes no membership and has an address of its own, with its own fields.
fn member_op(name: &str) -> Result<MemberOp, Problem> {
    match name {
        "promote" => Ok(MemberOp::Promote),
        "demote" => Ok(MemberOp::Demote),
        "remove" => Ok(MemberOp::Remove),
        "replace" => Ok(MemberOp::Replace),
        "finish" => Ok(MemberOp::Finish),
        "take_back" => Ok(MemberOp::TakeBack),
        "transfer" => Err(Problem::bad_request(
            "a transfer of leadership is no change of the membership: POST /v1/cluster/transfer {\"to\":NAME}",
        )),
        other => Err(Problem::bad_request(format!(
            "op: nothing is called {other:?}; there are: promote, demote, remove, replace, finish, take_back"
        ))),
    }
}

/// `POST /v1/cluster/members`
pub(super) async fn members(State(app): Shared, body: Body) -> Answer {
    let Members { op, name, if_membership, node_id: node, by, if_settings } = parse(&app, body).await?;
    change(&app, MembersRequest { op: member_op(&op)?, name, if_membership, node, by, if_settings }).await
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transfer {
    to: Option<String>,
    if_membership: Option<String>,
    if_settings: Option<u64>,
}

/// `POST /v1/cluster/transfer`
pub(super) async fn transfer(State(app): Shared, body: Body) -> Answer {
    let Transfer { to, if_membership, if_settings } = parse(&app, body).await?;
    let name = to.unwrap_or_default();
    change(
        &app,
        MembersRequest { if_membership, if_settings, ..MembersRequest::new(MemberOp::Transfer, name) },
    )
    .await
}

async fn change(app: &App, request: MembersRequest) -> Answer {
    primary(app).await?;
    let deadline = Instant::now() + CHANGE_TIMEOUT;
    // Its steps have limits of their own, which add up to more.
    match timeout_at(deadline.into(), app.node.change_members(request, deadline)).await {
        Ok(reply) => to_json(&reply?),
        Err(_) => {
            let text = format!(
                "the change took longer than {} s. It, or a part of it, may still be made: look at `quorate cluster members`",
                CHANGE_TIMEOUT.as_secs()
            );
            Err(Problem::new(504, "timeout", text).unknown())
        }
    }
}

/// `POST /v1/cluster/settings`
pub(super) async fn settings(State(app): Shared, body: Body) -> Answer {
    let settings: std::collections::BTreeMap<String, Value> = parse(&app, body).await?;
    primary(&app).await?;
    for (before, (name, value)) in settings.iter().enumerate() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let set = app.node.set(name, &value, deadline()).await;
        set.map_err(|e| if before == 0 { e } else { e.after_a_part() })?;
    }
    let status = app.node.cluster_status().await.map_err(NodeError::after_a_part)?;
    to_json(&json!({ "settings": status.settings.values, "settings_revision": status.settings.revision }))
}

/// `POST /v1/cluster/snapshot`: writes a snapshot file of this server's state, as a backup.
pub(super) async fn snapshot(State(app): Shared) -> Answer {
    let status = app.node.status()?;
    if status.differs_at.is_some() {
        let text = "the state of this server differs from the majority's: a backup of it would be wrong. Ask another one";
        return Err(Problem::new(503, "not_ready", text));
    }
    if status.disk_low {
        let text = "the disk of this server is below its reserve, and a snapshot would fill it further: free some space \
                    there, or ask another server";
        return Err(Problem::new(507, "disk_full", text));
    }
    let (path, meta) = app.node.state().snapshot_file().await.map_err(|e| match e.kind() {
        std::io::ErrorKind::StorageFull => {
            Problem::new(507, "disk_full", format!("the snapshot cannot be written: {e}")).retry_after(1000)
        }
        std::io::ErrorKind::InvalidData => {
            app.node.fail(&e);
            Problem::new(503, "shutting_down", e.to_string())
        }
        _ => Problem::new(500, "failed", format!("the snapshot cannot be written: {e}")),
    })?;
    // Whoever asks has another working directory, and maybe is on another machine.
    let path = tokio::fs::canonicalize(&path).await.unwrap_or(path);
    let bytes = tokio::fs::metadata(&path).await.map(|file| file.len()).unwrap_or(0);
    to_json(&json!({
        "server": app.node.name(),
        "file": path.display().to_string(),
        "bytes": bytes,
        "revision": meta.revision,
        "state_hash": format!("{:032x}", meta.hash),
    }))
}

/// `GET /healthz`: the process works. A missing primary is no reason to restart it. Detectors ask this, and add who
/// they are.
pub(super) async fn healthz(State(app): Shared, uri: Uri) -> Response {
    app.said.alive(uri.query())
}

/// `GET /readyz`: caught up, and with a primary.
pub(super) async fn readyz(State(app): Shared) -> Answer {
    app.node.check_ready().map_err(|e| Problem::new(503, "not_ready", e.detail))?;
    Ok("ready\n".into_response())
}

async fn parse<T: DeserializeOwned>(app: &App, body: Body) -> Result<T, Problem> {
    let body = app.bodies.read(body).await?;
    let body = if body.trim_ascii().is_empty() { b"{}" } else { &body[..] };
    serde_json::from_slice(body).map_err(|e| Problem::bad_request(e.to_string()))
}
