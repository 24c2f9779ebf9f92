//! Sessions: open, keep alive, close.

use axum::body::Body;
use axum::extract::{Path, State};
use quorate_storage::codec;
use quorate_storage::delta::{Command, DeltaResult, SESSION_SERVICE};
use quorate_storage::machine::{SessionCommand, SessionReply};
use serde::Deserialize;

use super::problem::Problem;
use super::{Answer, App, Shared, deadline, json_with_status, primary, serves};

const MAX_NAME: usize = 256;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Open {
    name: Option<String>,
    ttl_ms: Option<u64>,
}

/// `POST /v1/sessions`
pub(super) async fn open(State(app): Shared, body: Body) -> Answer {
    let body = app.bodies.read(body).await?;
    let Open { name, ttl_ms } = match body.trim_ascii().is_empty() {
        true => Open::default(),
        false => serde_json::from_slice(&body).map_err(|e| Problem::bad_request(e.to_string()))?,
    };
    if name.as_ref().is_some_and(|name| name.is_empty() || name.len() > MAX_NAME) {
        return Err(Problem::bad_request(format!("a session's name has 1 to {MAX_NAME} bytes")));
    }
    let reply = run(&app, SessionCommand::Open { name, ttl_ms }).await?;
    Ok(respond(if reply.created { 201 } else { 200 }, &reply))
}

/// `POST /v1/sessions/{id}/keepalive`
pub(super) async fn keep_alive(State(app): Shared, Path(id): Path<String>) -> Answer {
    let reply = run(&app, SessionCommand::KeepAlive { session: session_id(&id)? }).await?;
    Ok(respond(200, &reply))
}

/// `DELETE /v1/sessions/{id}`
pub(super) async fn close(State(app): Shared, Path(id): Path<String>) -> Answer {
    let reply = run(&app, SessionCommand::Close { session: session_id(&id)? }).await?;
    Ok(respond(200, &reply))
}

fn session_id(text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_| Problem::bad_request(format!("{text:?} is not a session's number")))
}

async fn run(app: &App, command: SessionCommand) -> Result<SessionReply, Problem> {
    let command = Command::sessionless(SESSION_SERVICE, codec::encode(&command));
    serves(app).await?;
    primary(app).await?;
    let outcome = app.node.propose(command, deadline()).await?;
    match &outcome.result {
        DeltaResult::Reply(reply) => {
            let unreadable = |e| Problem::new(500, "failed", format!("unreadable reply: {e}")).unknown();
            codec::decode(reply).map_err(unreadable)
        }
        other => {
            let none = || Problem::new(500, "failed", "no reply").unknown();
            Err(Problem::of_result(other).unwrap_or_else(none))
        }
    }
}

fn respond(status: u16, reply: &SessionReply) -> axum::response::Response {
    let SessionReply { session, next_sequence, ttl_ms, .. } = reply;
    let body = serde_json::json!({ "session": session, "next_sequence": next_sequence, "ttl_ms": ttl_ms });
    json_with_status(status, body.to_string().into_bytes())
}
