//! `quorate bench`: a closed-loop load generator that costs little itself.
//!
//! It shares the machine with the servers that it measures, so each request is a patched buffer, one write and one
//! read on a connection of its own, all on one thread. One add is one HTTP request with a session and a sequence;
//! nothing is merged. A request that failed is sent again with the same sequence, and its latency counts from the
//! first sending.

mod find;
mod load;
mod request;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::Instant;

use super::common::ReadName;
use super::connect::{CONNECTION, runtime, servers};
use super::output::{CliError, Exit, Output};
use crate::client::WINDOW;
use crate::config::Config;
use load::{Plan, Shared, Worker};

const EXAMPLE: &str = "\
Examples:
  quorate bench --clients 64 --secs 10
  quorate bench --clients 1 --secs 10 --batch 1000
  quorate bench --clients 64 --secs 10 --op get --read lease --json

It adds to counters bench-0… on the cluster. Latencies are per request, operations are adds (or gets, orders, messages).";
/// How long a cluster whose servers answer may take to have a primary and open all sessions.
const PATIENCE: Duration = Duration::from_secs(15);
/// A part of the help.
const LOAD: &str = "Load";
/// Whoever waits for longer is told why.
const REMARK_AFTER: Duration = Duration::from_secs(1);
const NOTHING_YET: &str = "interrupted before anything was measured";
/// How often the progress bar moves.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct BenchArgs {
    /// The servers of the cluster [default: http://127.0.0.1:8001,…8002,…8003]
    #[arg(long, value_name = "URL,…", value_delimiter = ',', help_heading = CONNECTION)]
    servers: Vec<String>,
    /// How many clients work at the same time, each with one request in flight
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = LOAD)]
    clients: u32,
    /// How long to measure
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = seconds, help_heading = LOAD)]
    secs: f64,
    /// How long to run before measuring
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = seconds, help_heading = LOAD)]
    warmup: f64,
    /// How many adds each request carries
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = batch, help_heading = LOAD)]
    batch: u32,
    /// What to do
    #[arg(long, value_name = "OP", default_value = "add", help_heading = LOAD)]
    op: Op,
    /// How fresh gets have to be [default: linearizable]
    #[arg(long, value_name = "LEVEL", help_heading = LOAD)]
    read: Option<ReadName>,
    /// Over how many counters to spread, evenly
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000), help_heading = LOAD)]
    keys: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Op {
    /// Add 1 to a counter
    Add,
    /// Read a counter
    Get,
    /// Sell a stock of the exchange
    Order,
    /// Say something in the chat
    Say,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Get => "get",
            Self::Order => "order",
            Self::Say => "say",
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    op: &'static str,
    clients: u32,
    batch: u32,
    secs: f64,
    ops: u64,
    ops_per_sec: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    errors: u64,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected a number of seconds from 0 to 86400".to_owned()),
    }
}

fn batch(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(batch) if (1..=WINDOW as u32).contains(&batch) => Ok(batch),
        _ => Err(format!(
            "expected 1 to {WINDOW}: a session keeps 1,024 replies at most, and each add of a batch has one"
        )),
    }
}

pub(crate) fn run(arguments: BenchArgs, config: &Config) -> Result<Exit, CliError> {
    if arguments.op != Op::Add && arguments.batch > 1 {
        let text = format!("--batch is for --op add; with --op {} each is one request", arguments.op.name());
        return Err(CliError::usage(text));
    }
    if arguments.op != Op::Get && arguments.read.is_some() {
        let text = format!("--read is for --op get; with --op {} nothing is read", arguments.op.name());
        return Err(CliError::usage(text));
    }
    if arguments.secs <= 0.0 {
        return Err(CliError::usage("--secs must be more than 0"));
    }
    let servers = servers(config, arguments.servers.clone())?;
    let shared = Arc::new(Shared::new(&servers)?);
    let measured = runtime()?.block_on(measure(&arguments, &shared, PATIENCE));
    let first_error = shared.first_error();
    let report = match measured {
        Ok(secs) => report(&arguments, &shared, secs),
        Err(cause) => return Err(CliError::failed(cause)),
    };
    if arguments.json {
        Output::line(&serde_json::to_string(&report).map_err(CliError::failed)?)?;
    } else {
        Output::line(&summary(&report))?;
    }
    if report.secs < arguments.secs {
        Output::note(&format!("interrupted after {} s of {}", report.secs, arguments.secs));
    }
    if let Some(error) = first_error {
        Output::note(&format!("the first of {}: {error}", counted(report.errors, "error")));
    }
    if report.ops == 0 {
        return Err(CliError::failed(
            "no request succeeded while it was measured; see `quorate cluster status`",
        ));
    }
    Ok(Exit::Done)
}

/// Runs the load, until Ctrl-C at the most, and returns how long it was measured.
async fn measure(arguments: &BenchArgs, shared: &Arc<Shared>, patience: Duration) -> Result<f64, String> {
    let plan = Plan {
        op: arguments.op,
        read: arguments.read.unwrap_or(ReadName::Linearizable),
        batch: arguments.batch,
        keys: arguments.keys,
        // A session that outlives the run needs no keep-alive.
        session_ttl: Duration::from_secs_f64(arguments.warmup + arguments.secs) + Duration::from_secs(60),
        patience,
    };
    let prepared = async {
        shared.reach().await?;
        prepare(shared, &plan, arguments.clients).await
    };
    let workers = tokio::select! {
        workers = prepared => workers?,
        _ = tokio::signal::ctrl_c() => return Err(NOTHING_YET.to_owned()),
    };
    let start = Instant::now() + Duration::from_secs_f64(arguments.warmup);
    let end = start + Duration::from_secs_f64(arguments.secs);
    let mut running = tokio::task::JoinSet::new();
    for worker in workers {
        running.spawn(worker.run(start, end));
    }
    let finish = async {
        if !arguments.json {
            show_progress(shared, start, end).await;
        }
        while running.join_next().await.is_some() {}
    };
    tokio::select! {
        () = finish => return Ok(arguments.secs),
        _ = tokio::signal::ctrl_c() => {}
    }
    let now = Instant::now();
    if now <= start {
        return Err(NOTHING_YET.to_owned());
    }
    // What is in flight is not waited for; the sessions expire.
    running.abort_all();
    let secs = now.min(end).duration_since(start).as_secs_f64();
    Ok(((secs * 1_000.0).round() / 1_000.0).clamp(0.001, arguments.secs))
}

/// Connects all clients. Whoever has to wait for long is told what for.
async fn prepare(shared: &Arc<Shared>, plan: &Plan, clients: u32) -> Result<Vec<Worker>, String> {
    let mut preparing = tokio::task::JoinSet::new();
    for index in 0..clients {
        preparing.spawn(Worker::prepare(Arc::clone(shared), plan.clone(), index));
    }
    let mut workers = Vec::with_capacity(clients as usize);
    let remark = tokio::time::sleep(REMARK_AFTER);
    tokio::pin!(remark);
    let mut remarked = false;
    loop {
        tokio::select! {
            worker = preparing.join_next() => match worker {
                Some(worker) => workers.push(worker.map_err(|error| error.to_string())??),
                None => return Ok(workers),
            },
            () = &mut remark, if !remarked => {
                remarked = true;
                let cause = shared.waiting_for().unwrap_or_else(|| "the servers are slow".to_owned());
                Output::note(&format!("waiting up to {} s to begin: {cause}", plan.patience.as_secs()));
            }
        }
    }
}

/// A bar on stderr, when that is a terminal.
async fn show_progress(shared: &Shared, start: Instant, end: Instant) {
    let bar = ProgressBar::new((end - start).as_millis() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40.green} {msg}") {
        bar.set_style(style);
    }
    while Instant::now() < end {
        let done = Instant::now().saturating_duration_since(start);
        bar.set_position(done.as_millis() as u64);
        if done.is_zero() {
            bar.set_message("warming up");
        } else {
            let ops = shared.ops.load(Ordering::Relaxed) as f64;
            bar.set_message(format!("{} ops/s", grouped((ops / done.as_secs_f64()) as u64)));
        }
        tokio::time::sleep_until(end.min(Instant::now() + PROGRESS_INTERVAL)).await;
    }
    bar.finish_and_clear();
}

fn report(arguments: &BenchArgs, shared: &Shared, secs: f64) -> Report {
    let latencies = shared.latencies();
    let ops = shared.ops.load(Ordering::Relaxed);
    Report {
        op: arguments.op.name(),
        clients: arguments.clients,
        batch: arguments.batch,
        secs,
        ops,
        ops_per_sec: (ops as f64 / secs * 10.0).round() / 10.0,
        p50_us: latencies.value_at_quantile(0.5),
        p99_us: latencies.value_at_quantile(0.99),
        p999_us: latencies.value_at_quantile(0.999),
        errors: shared.errors.load(Ordering::Relaxed),
    }
}

fn summary(report: &Report) -> String {
    let ms = |us: u64| format!("{:.2} ms", us as f64 / 1_000.0);
    let batch = if report.batch > 1 { format!(", {} to a request", report.batch) } else { String::new() };
    format!(
        "{}, {}{batch}, {} s\n  {} ops, {} ops/s\n  latency p50 {}, p99 {}, p99.9 {}\n  {}",
        report.op,
        counted(report.clients.into(), "client"),
        report.secs,
        grouped(report.ops),
        grouped(report.ops_per_sec as u64),
        ms(report.p50_us),
        ms(report.p99_us),
        ms(report.p999_us),
        counted(report.errors, "error")
    )
}

/// 1 client, 2 clients.
fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
