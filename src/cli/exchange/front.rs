//! A front end: the exchange over HTTP for programs that know nothing of clusters, with a cache.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

use super::Caching;
use crate::cli::output::{CliError, Exit, Output};
use crate::client::{CacheStats, Client, Error, Exchange, OrdersQuery};
use crate::detectors::{terminated, web};
use crate::services::exchange::Side;

/// What a request that it does not know is told.
const ADDRESSES: &str =
    "the front end has GET /stocks/{name}, POST /orders, GET /orders/{number}, GET /cache and GET /healthz";
/// How long it looks for a server at its start.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Front {
    exchange: Exchange,
    legacy_codes: bool,
}

/// Serves until SIGTERM or SIGINT.
pub(super) async fn serve(
    client: &Client,
    listen: SocketAddr,
    cache: Caching,
    legacy_codes: bool,
) -> Result<Exit, CliError> {
    let cannot = |error: std::io::Error| CliError::failed(format!("cannot listen on {listen}: {error}"));
    let listener = TcpListener::bind(listen).await.map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    let front = Front { exchange: cache.exchange(client), legacy_codes };
    let router = Router::new()
        .route("/stocks/{name}", get(stock))
        .route("/orders", post(order))
        .route("/orders/{number}", get(one_order))
        .route("/cache", get(hits))
        .route("/healthz", get(async || "ok\n"))
        .fallback(async || problem(StatusCode::NOT_FOUND, "not_found", ADDRESSES))
        .method_not_allowed_fallback(async || {
            problem(StatusCode::METHOD_NOT_ALLOWED, "bad_request", ADDRESSES)
        })
        .with_state(front);
    Output::note(&format!("the front end listens on http://{address}"));
    if let Err(error) = client.with_timeout(LOOK).cluster().await {
        Output::note(&format!("it waits for the cluster: {error}"));
    }
    let stopped = terminated().map_err(CliError::failed)?;
    tokio::select! {
        result = web::serve(listener, router) => result.map_err(CliError::failed)?,
        () = stopped => {}
    }
    let _ = client.close().await;
    Ok(Exit::Done)
}

/// `GET /stocks/{name}`
async fn stock(State(front): State<Front>, name: Result<Path<String>, PathRejection>) -> Response {
    let name = match name {
        Ok(Path(name)) => name,
        Err(error) => return problem(StatusCode::BAD_REQUEST, "bad_request", &error.to_string()),
    };
    match front.exchange.lookup(&name).await {
        Ok(stock) => Json(stock).into_response(),
        Err(error) => front.problem(&error),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewOrder {
    stock: String,
    side: Side,
    quantity: u64,
    #[serde(default)]
    client: String,
}

/// `POST /orders`
async fn order(State(front): State<Front>, body: axum::body::Bytes) -> Response {
    let new: NewOrder = match serde_json::from_slice(&body) {
        Ok(new) => new,
        Err(error) => {
            let text = format!("an order has stock, side (buy, sell), quantity, and maybe client: {error}");
            return problem(StatusCode::BAD_REQUEST, "bad_request", &text);
        }
    };
    match front.exchange.order(new.side, &new.stock, new.quantity, &new.client).await {
        Ok(reply) => Json(reply.data).into_response(),
        Err(error) => front.problem(&error),
    }
}

/// `GET /orders/{number}`
async fn one_order(State(front): State<Front>, number: Result<Path<u64>, PathRejection>) -> Response {
    let number = match number {
        Ok(Path(number)) => number,
        Err(_) => {
            let text = "an order is found by its number: GET /orders/0";
            return problem(StatusCode::BAD_REQUEST, "bad_request", text);
        }
    };
    let query = OrdersQuery { numbers: vec![number], ..OrdersQuery::default() };
    match front.exchange.orders(&query).await {
        Ok(page) => match page.data.orders.into_iter().next() {
            Some(order) => Json(order).into_response(),
            None => problem(StatusCode::NOT_FOUND, "unknown_order", &format!("there is no order {number}")),
        },
        Err(error) => front.problem(&error),
    }
}

/// `GET /cache`: how much it is worth.
async fn hits(State(front): State<Front>) -> Json<CacheStats> {
    Json(front.exchange.cache_stats())
}

impl Front {
    fn problem(&self, error: &Error) -> Response {
        let (status, code) = match error {
            Error::Refused(refused) => {
                let code = refused.refusal.as_deref().unwrap_or(&refused.code);
                let status = match code {
                    "not_enough" if self.legacy_codes => StatusCode::PAYMENT_REQUIRED,
                    _ => StatusCode::from_u16(refused.status).unwrap_or(StatusCode::BAD_GATEWAY),
                };
                (status, code)
            }
            Error::NotApplied(failure) => {
                (StatusCode::SERVICE_UNAVAILABLE, failure.code.as_deref().unwrap_or("no_server"))
            }
            Error::Unknown(failure) => {
                (StatusCode::GATEWAY_TIMEOUT, failure.code.as_deref().unwrap_or("timeout"))
            }
        };
        problem(status, code, &error.to_string())
    }
}

fn problem(status: StatusCode, code: &str, detail: &str) -> Response {
    let outcome = if status == StatusCode::GATEWAY_TIMEOUT { "unknown" } else { "not_applied" };
    let body = json!({ "code": code, "detail": detail, "outcome": outcome }).to_string();
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
}
