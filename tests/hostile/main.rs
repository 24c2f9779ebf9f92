//! Malformed, oversized, slow and half-open requests on both ports: a clear error, no growth, no stop.

#[path = "../support/mod.rs"]
mod support;

mod limits;
mod peers;
mod requests;

use bytes::{Bytes, BytesMut};
use quorate_cluster::transport::frame::{Frame, Kind, Route};
use serde_json::{Value, json};
use support::Cluster;
use support::wire::{self, Answer};

/// One bad request: what is wrong with it, how it reads, and what it must bring.
struct Bad {
    what: &'static str,
    request: Vec<u8>,
    status: u16,
    code: &'static str,
}

fn bad(what: &'static str, request: impl Into<Vec<u8>>, status: u16, code: &'static str) -> Bad {
    Bad { what, request: request.into(), status, code }
}

/// A POST with headers of the test's own (`"a: b\r\n"`).
fn post(path: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("POST {path} HTTP/1.1\r\nhost: q\r\nconnection: close\r\n{headers}");
    [head.as_bytes(), format!("content-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: q\r\nconnection: close\r\n\r\n").into_bytes()
}

fn add(body: impl AsRef<[u8]>) -> Vec<u8> {
    post("/v1/counter/add", "", body)
}

fn session(headers: &str) -> Vec<u8> {
    post("/v1/counter/add", headers, r#"{"amount":1}"#)
}

/// Every error of ours is a problem with a code, a text, and what may have happened.
fn check_problem(what: &str, answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}: {answer:?}");
    let problem = answer.json();
    assert_eq!(problem["code"], code, "{what}: {problem}");
    assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{what}: {problem}");
    let outcome = match code {
        "session_expired" => "unknown",
        _ => "not_applied",
    };
    assert_eq!(problem["outcome"], outcome, "{what}: {problem}");
}

async fn check_all(cluster: &Cluster, requests: Vec<Bad>) {
    let address = cluster.server("S1").listen.address();
    for Bad { what, request, status, code } in requests {
        let answer = wire::exchange(&address, &request).await;
        let answer = answer.unwrap_or_else(|e| panic!("{what}: no answer: {e}"));
        check_problem(what, &answer, status, code);
    }
}

/// The server works as if nothing had been.
async fn check_serves(cluster: &Cluster) {
    for name in cluster.names() {
        let url = cluster.url(&name);
        cluster
            .until(&format!("{name} serves"), async || {
                cluster.http.ok(&format!("{url}/healthz")).await?;
                cluster.http.ok(&format!("{url}/readyz")).await?;
                let added =
                    cluster.http.post(&format!("{url}/v1/counter/add"), &json!({"amount": 1})).await?;
                match added.status {
                    200 => Ok(()),
                    _ => Err(format!("{added:?}")),
                }
            })
            .await;
    }
}

async fn counter(cluster: &Cluster) -> Value {
    cluster.http.json(&format!("{}/v1/counter/get", cluster.url("S1"))).await.expect("the counter")["value"]
        .clone()
}

/// A whole frame of the peer protocol.
fn frame(route: Route, kind: Kind, content: impl Into<Bytes>) -> BytesMut {
    let mut bytes = BytesMut::new();
    Frame { kind, id: 1, route, content: content.into() }.encode_into(&mut bytes);
    bytes
}
