//! Finding the primary, once for all clients.

use std::io::{self, ErrorKind};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use super::request::plain;
use super::wire::Wire;
use crate::client::{ClusterStatus, PEER_PORT, Problem, parse_server};

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

    /// Whether any server answers at all. A load generator has nothing to do where none runs, and says so at once; a
    /// cluster that is busy with an election is waited for later.
    pub(super) async fn reach(&self) -> Result<(), String> {
        let asked = self.servers.iter().map(|server| async move {
            let answered = fetch(server).await;
            answered.map(drop).map_err(|error| format!("{server} ({error})"))
        });
        let answers = join_all(asked).await;
        if answers.iter().any(Result::is_ok) {
            return Ok(());
        }
        let causes: Vec<String> = answers.into_iter().filter_map(Result::err).collect();
        Err(format!(
            "no server can be reached: {}; next: is one running there? `scripts/cluster.sh up --bare` starts three; \
             --servers names others",
            causes.join(", ")
        ))
    }
}

/// What a Quorate server answers to the question for the cluster: its status and body. Others' answers are errors.
async fn fetch(server: &str) -> Result<(u16, Vec<u8>), String> {
    let mut wire = Wire::open(server).await.map_err(|error| plain_cause(&error))?;
    let request = plain("GET", "/v1/cluster", server, "");
    let answer = wire.exchange(&request, Instant::now()).await.map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => format!("{error}; {PEER_PORT}"),
        _ => plain_cause(&error),
    })?;
    let body = wire.body(&answer).to_vec();
    let problem = Problem::read(answer.status, &body);
    if answer.status != 200 && problem.is_foreign() {
        return Err(problem.detail);
    }
    Ok((answer.status, body))
}

/// Asks one server who the primary is.
async fn ask(server: &str) -> Result<String, String> {
    let (status, body) = fetch(server).await?;
    if status != 200 {
        return Err(cause_of(status, &body));
    }
    let status: ClusterStatus = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    let primary = status.primary.ok_or("no primary at present")?;
    let known = status.servers.into_iter().find(|server| server.name == primary);
    let url = known
        .and_then(|server| server.url)
        .ok_or_else(|| format!("the address of {primary} is not known"))?;
    address(&url)
}

/// What a server said when it did not do what it was asked for.
pub(super) fn cause_of(status: u16, body: &[u8]) -> String {
    let problem = Problem::read(status, body);
    if problem.is_foreign() {
        problem.detail
    } else {
        format!("HTTP {status} {} {}", problem.code, problem.detail)
    }
}

/// An error without the system's number for it.
fn plain_cause(error: &io::Error) -> String {
    match error.kind() {
        kind @ ErrorKind::ConnectionRefused => kind.to_string(),
        _ => error.to_string(),
    }
}

fn address(url: &str) -> Result<String, String> {
    let parsed = parse_server(url)?;
    match (parsed.host_str(), parsed.port_or_known_default()) {
        (Some(host), Some(port)) => Ok(format!("{host}:{port}")),
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
        for bad in ["https://host", "http://host:8001/foo"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
