//! From an add's sending to its reply: real server processes with their data on a disk, over loopback.
//!
//! One iteration is one add of *each* client, one HTTP request with a session and a sequence, on a connection of its
//! own to the primary. So the time of an iteration is a client's latency, and the throughput counts all clients' adds.
//! The load runs on one thread of this process, beside the servers. `quorate bench` measures percentiles.

mod support;

use std::io::{Error, ErrorKind, Result};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use futures_util::future::try_join_all;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

const NODES: [usize; 2] = [1, 3];
const CLIENTS: [usize; 3] = [1, 16, 64];
const COUNTERS: usize = 1_000;
/// How long a cluster may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any pause between two measurements.
const OPEN_SESSION: &str = r#"{"ttl_ms":3600000}"#;

fn main() {
    let mut criterion = Criterion::default().sample_size(15).configure_from_args();
    let mut group = criterion.benchmark_group("commit_latency");
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4));
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    for nodes in NODES {
        // Started by the first bench that is not filtered out.
        let mut cluster = None;
        for clients in CLIENTS {
            group.throughput(Throughput::Elements(clients as u64));
            let name = if nodes == 1 { "1 node" } else { "3 nodes" };
            group.bench_with_input(BenchmarkId::new(name, clients), &clients, |bench, &clients| {
                let cluster = cluster.get_or_insert_with(|| Cluster::start(&runtime, nodes));
                let primary = &cluster.addresses[0];
                let mut clients = runtime
                    .block_on(try_join_all((0..clients).map(|number| Client::open(primary, number))))
                    .expect("a session for each client");
                bench.iter_custom(|adds| {
                    let begun = Instant::now();
                    let all = clients.iter_mut().map(|client| client.add(adds));
                    runtime.block_on(try_join_all(all)).expect("every add acknowledged");
                    begun.elapsed()
                });
            });
        }
    }
    group.finish();
    criterion.final_summary();
}

/// Server processes; killed when dropped.
struct Cluster {
    addresses: Vec<String>,
    processes: Vec<Child>,
    /// After the processes: they write into it.
    _dir: TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // One that has ended already is no harm.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Cluster {
    /// The first server is the primary, and all are voters.
    fn start(runtime: &Runtime, nodes: usize) -> Self {
        let dir = support::disk_dir("commit-latency");
        let ports = free_addresses(2 * nodes);
        let (addresses, peers) = ports.split_at(nodes);
        let mut cluster = Self { addresses: addresses.to_vec(), processes: Vec::new(), _dir: dir };
        let dir = cluster._dir.path().to_owned();
        run(server(&["cluster", "init"], 1, &dir, &addresses[0], &peers[0]));
        for number in 1..=nodes {
            let (address, peer) = (&addresses[number - 1], &peers[number - 1]);
            let mut command = server(&["server", "--log-level", "error"], number, &dir, address, peer);
            if number > 1 {
                command.args(["--join", &peers[0]]);
            }
            cluster.processes.push(command.spawn().expect("a server process"));
            cluster.wait(runtime, address, "role", if number > 1 { "learner" } else { "primary" });
            if number > 1 {
                let name = format!("S{number}");
                let url = format!("http://{}", addresses[0]);
                let mut promote = quorate();
                promote.args(["cluster", "promote", &name, "--servers", &url]);
                run(promote);
                cluster.wait(runtime, address, "role", "backup");
            }
            cluster.wait(runtime, address, "ready", "true");
        }
        cluster
    }

    /// Until the server's status says so.
    fn wait(&mut self, runtime: &Runtime, address: &str, field: &str, wanted: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = runtime.block_on(status(address));
            let found = status.as_ref().map(|status| match &status[field] {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            });
            if found.as_deref().is_ok_and(|found| found == wanted) {
                return;
            }
            assert!(Instant::now() < end, "{address}: {field} is not {wanted}: {status:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Free a moment ago. The listeners live until all are chosen, so that none is chosen twice.
fn free_addresses(count: usize) -> Vec<String> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    let address = |listener: &TcpListener| listener.local_addr().expect("its address").to_string();
    listeners.iter().map(address).collect()
}

fn quorate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn server(words: &[&str], number: usize, dir: &Path, address: &str, peer: &str) -> Command {
    let mut command = quorate();
    let name = format!("S{number}");
    command.args(words).args(["--name", &name, "--data"]).arg(dir.join(&name));
    command.args(["--listen", address, "--peer-listen", peer]);
    command
}

fn run(mut command: Command) {
    let output = command.output().expect("a process");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn status(address: &str) -> Result<serde_json::Value> {
    let mut stream = TcpStream::connect(address).await?;
    let body =
        exchange(&mut stream, "GET /v1/status HTTP/1.1\r\nhost: bench\r\n\r\n", &mut Vec::new()).await?;
    Ok(serde_json::from_slice(&body)?)
}

/// A closed loop: the next add goes out when the reply is there.
struct Client {
    stream: TcpStream,
    number: usize,
    session: u64,
    sequence: u64,
    buffer: Vec<u8>,
}

impl Client {
    async fn open(address: &str, number: usize) -> Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut buffer = Vec::new();
        let reply = exchange(&mut stream, &post("/v1/sessions", "", OPEN_SESSION), &mut buffer).await?;
        let reply: serde_json::Value = serde_json::from_slice(&reply)?;
        let session = reply["session"].as_u64().ok_or(ErrorKind::InvalidData)?;
        Ok(Self { stream, number, session, sequence: 0, buffer })
    }

    async fn add(&mut self, times: u64) -> Result<()> {
        for _ in 0..times {
            self.sequence += 1;
            let headers = format!(
                "quorate-session: {}\r\nquorate-sequence: {}\r\nquorate-acked: {}\r\n",
                self.session,
                self.sequence,
                self.sequence - 1
            );
            let counter = (self.number * 31 + self.sequence as usize * 17) % COUNTERS;
            let body = format!(r#"{{"name":"bench-{counter:03}","amount":1}}"#);
            let request = post("/v1/counter/add", &headers, &body);
            exchange(&mut self.stream, &request, &mut self.buffer).await?;
        }
        Ok(())
    }
}

fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}

/// Sends a request; the body of its answer, which must be a good one.
async fn exchange(stream: &mut TcpStream, request: &str, buffer: &mut Vec<u8>) -> Result<Vec<u8>> {
    stream.write_all(request.as_bytes()).await?;
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(buffer).map_err(|e| Error::new(ErrorKind::InvalidData, e))?;
        let httparse::Status::Complete(head) = parsed else { continue };
        let length =
            response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
        let whole = head + length.ok_or(ErrorKind::InvalidData)?;
        if buffer.len() < whole {
            continue;
        }
        let body = buffer[head..whole].to_vec();
        return match response.code {
            Some(200 | 201) => Ok(body),
            code => Err(Error::other(format!("{code:?}: {}", String::from_utf8_lossy(&body)))),
        };
    }
}
