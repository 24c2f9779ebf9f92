//! Finding the primary, once for all clients.

use std::io::ErrorKind;
use std::time::Duration;

use reqwest::Url;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use super::request::plain;
use super::wire::Wire;
use crate::client::{ClusterStatus, PEER_PORT};

/// The pause between two look-ups.
const PAUSE: Duration = Duration::from_millis(20);

/// Where the primary was last seen. Whoever finds it gone asks again; the others wait and share the answer.
#[derive(Debug)]
pub(super) struct Finder {
    servers: Vec<String>,
    found: Mutex<Found>,
}

#[derive(Debug)]
struct Found {
    /// Counts the look-ups, so that a client can say which one disappointed it.
    turn: u64,
    address: String,
    at: Option<Instant>,
}

impl Finder {
    /// Takes server URLs and keeps their `HOST:PORT`.
    pub(super) fn new(urls: &[String]) -> Result<Self, String> {
        let servers = urls.iter().map(|url| address(url)).collect::<Result<Vec<_>, _>>()?;
        if servers.is_empty() {
            return Err("no server is named".to_owned());
        }
        Ok(Self { servers, found: Mutex::new(Found { turn: 0, address: String::new(), at: None }) })
    }

    /// The servers' addresses.
    pub(super) fn servers(&self) -> &[String] {
        &self.servers
    }

    /// The primary, looked up later than `turn`.
    pub(super) async fn primary(&self, turn: u64) -> Result<(u64, String), String> {
        let mut found = self.found.lock().await;
        if found.turn > turn {
            return Ok((found.turn, found.address.clone()));
        }
        if let Some(at) = found.at {
            sleep_until(at + PAUSE).await;
        }
        found.at = Some(Instant::now());
        let mut causes = Vec::new();
        for server in &self.servers {
            match ask(server).await {
                Ok(address) => {
                    found.turn += 1;
                    found.address = address;
                    return Ok((found.turn, found.address.clone()));
                }
                Err(error) => causes.push(format!("{server} ({error})")),
            }
        }
        Err(format!("no server knows a primary: {}", causes.join(", ")))
    }
}

/// Asks one server who the primary is.
async fn ask(server: &str) -> Result<String, String> {
    let mut wire = Wire::open(server).await.map_err(|error| error.to_string())?;
    let request = plain("GET", "/v1/cluster", server, "");
    let answer = wire.exchange(&request, Instant::now()).await.map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => format!("{error} ({PEER_PORT})"),
        _ => error.to_string(),
    })?;
    let body = wire.body(&answer);
    if answer.status != 200 {
        return Err(cause_of(answer.status, body));
    }
    let status: ClusterStatus = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let primary = status.primary.ok_or("no primary at present")?;
    let known = status.servers.into_iter().find(|server| server.name == primary);
    let url = known
        .and_then(|server| server.url)
        .ok_or_else(|| format!("the address of {primary} is not known"))?;
    address(&url)
}

/// What a server said when it did not do what it was asked for.
pub(super) fn cause_of(status: u16, body: &[u8]) -> String {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    match (problem.get("code").and_then(Value::as_str), problem.get("detail").and_then(Value::as_str)) {
        (Some(code), Some(detail)) => format!("HTTP {status} {code} {detail}"),
        _ => format!("HTTP {status}, but not from a Quorate server: is the address right?"),
    }
}

fn address(url: &str) -> Result<String, String> {
    let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let parsed = Url::parse(&full).map_err(|error| format!("`{url}` is no server address: {error}"))?;
    match (parsed.scheme(), parsed.host_str(), parsed.port_or_known_default()) {
        ("http", Some(host), Some(port)) => Ok(format!("{host}:{port}")),
        _ => Err(format!("`{url}` is no server address; expected http://HOST:PORT")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(address("http://127.0.0.1:8001").unwrap(), "127.0.0.1:8001");
        assert_eq!(address("localhost:8001/").unwrap(), "localhost:8001");
        assert_eq!(address("http://[::1]:8001").unwrap(), "[::1]:8001");
        assert_eq!(address("http://host").unwrap(), "host:80");
        assert!(address("https://host").is_err());
    }
}
