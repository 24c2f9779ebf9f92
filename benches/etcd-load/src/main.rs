//! A closed-loop load generator for etcd: the counterpart of `quorate bench` in `scripts/compare.sh`.
//!
//! Each client waits for its answer before it asks again. Keys are drawn uniformly. Only operations that end
//! within the measured seconds count; connecting, filling the keys and warming up do not. It prints the
//! object of `quorate bench --json`, with `cpu_secs`, this process' user and system time in the measured seconds.

mod load;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::Serialize;

use crate::load::{Load, Outcome};

/// As in `quorate`: the allocator is no part of the comparison.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What each client does in its loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Op {
    /// Overwrite a key with eight bytes.
    Put,
    /// Read a key linearizably.
    Get,
}

/// Which of the endpoints the connections go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// All of them, round-robin.
    All,
    /// The leader's alone, which spares etcd the way from a follower to its leader.
    Leader,
}

/// Closed-loop load on etcd; prints one JSON object.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example: etcd-load --endpoints http://127.0.0.1:12379 --clients 64 --secs 5 --op put"
)]
struct Args {
    /// Client URLs of the members, comma-separated.
    #[arg(long, value_delimiter = ',', required = true, value_name = "URL,…")]
    endpoints: Vec<String>,
    /// Which endpoints are used.
    #[arg(long, value_enum, default_value = "leader")]
    target: Target,
    /// Clients, each with one request in flight.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Connections that the clients share (HTTP/2 can); 0 is one for each client.
    #[arg(long, default_value_t = 0)]
    conns: u32,
    /// Threads that run the clients.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Measured seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    secs: u64,
    /// Seconds of the same load before them.
    #[arg(long, default_value_t = 1)]
    warmup: u64,
    /// What each client does.
    #[arg(long, value_enum, default_value = "put")]
    op: Op,
    /// How many keys there are.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    keys: u32,
}

/// The object on stdout: the contract of `quorate bench --json`, and `cpu_secs`.
#[derive(Debug, Serialize)]
struct Report {
    op: Op,
    clients: u32,
    batch: u32,
    secs: f64,
    ops: u64,
    ops_per_sec: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    errors: u64,
    cpu_secs: f64,
}

impl Report {
    fn new(args: &Args, outcome: &Outcome) -> Self {
        let ops = outcome.latencies.len();
        let quantile = |q| outcome.latencies.value_at_quantile(q);
        Self {
            op: args.op,
            clients: args.clients,
            batch: 1,
            secs: args.secs as f64,
            ops,
            ops_per_sec: ops as f64 / args.secs as f64,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            errors: outcome.errors,
            cpu_secs: outcome.cpu.as_secs_f64(),
        }
    }
}

fn run(args: &Args) -> Result<Report, String> {
    let load = Load {
        endpoints: load::choose(&args.endpoints, args.target)?,
        clients: args.clients,
        conns: if args.conns == 0 {
            args.clients
        } else {
            args.conns.min(args.clients)
        },
        threads: args.threads.min(args.clients),
        warmup: Duration::from_secs(args.warmup),
        measured: Duration::from_secs(args.secs),
        op: args.op,
        keys: args.keys,
    };
    let outcome = load.run()?;
    if let Some(error) = &outcome.first_error {
        eprintln!(
            "etcd-load: {} operations failed, the first with: {error}",
            outcome.errors
        );
    }
    Ok(Report::new(args, &outcome))
}

fn main() -> ExitCode {
    let report = run(&Args::parse())
        .and_then(|report| serde_json::to_string(&report).map_err(|error| error.to_string()));
    match report {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("etcd-load: {error}");
            ExitCode::FAILURE
        }
    }
}
