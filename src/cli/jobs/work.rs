//! `quorate jobs work`.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::command::Program;
use super::log::{Log, Out};
use super::show::{counted, word};
use crate::cli::output::{CliError, Exit};
use crate::client::{Client, DEFAULT_LEASE, Stop, Tally, WorkerEvent};
use crate::config;
use crate::services::jobs::{MAX_LEASE_MS, MIN_LEASE_MS, SLOTS};

#[derive(Debug, Args)]
#[command(after_help = super::WORK_EXAMPLE)]
pub(super) struct WorkArgs {
    /// Whose jobs [default: default]
    #[arg(long)]
    queue: Option<String>,
    /// The worker's name, which no other one in the queue has
    #[arg(long)]
    pub(super) name: Option<String>,
    /// It is taken for dead, and its job is given to another one, after this time without a word, 500ms to 1h [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = lease)]
    lease: Option<Duration>,
    /// An attempt that takes longer has failed
    #[arg(long, value_name = "TIME", value_parser = config::timeout)]
    job_timeout: Option<Duration>,
    /// Exit codes which say that no further attempt is of use: the job is a dead letter at once
    #[arg(long, value_name = "CODE,…", value_delimiter = ',', value_parser = clap::value_parser!(i32).range(1..=255))]
    dead_on: Vec<i32>,
    /// End when the queue has nothing left to do; with 1 if jobs became dead letters in this worker's hands
    #[arg(long)]
    until_empty: bool,
    /// Tell of troubles alone
    #[arg(long)]
    quiet: bool,
    /// What to run for each job
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn lease(text: &str) -> Result<Duration, String> {
    let lease = config::timeout(text)?;
    match (MIN_LEASE_MS..=MAX_LEASE_MS).contains(&u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)) {
        true => Ok(lease),
        false => Err(format!("`{text}` is no lease; use 500ms to 1h")),
    }
}

pub(super) async fn run(
    client: &Client,
    (queue, name): (&str, &str),
    arguments: WorkArgs,
    as_json: bool,
) -> Result<Exit, CliError> {
    super::command::check(&arguments.command)?;
    let scratch = tempfile::Builder::new().prefix("quorate-worker-").tempdir().map_err(|error| {
        CliError::failed(format!("there is no room for temporary files (TMPDIR says where): {error}"))
    })?;
    let log = Log::start();
    let program = Program {
        words: arguments.command,
        timeout: arguments.job_timeout,
        dead_on: arguments.dead_on,
        scratch: Arc::new(scratch),
        log: log.clone(),
    };
    let worker = client
        .worker(arguments.queue.as_deref().unwrap_or(queue), name)
        .lease(arguments.lease.unwrap_or(DEFAULT_LEASE))
        .until_empty(arguments.until_empty);
    let (stop, stopped) = watch::channel(Stop::No);
    let signals = listen(stop, log.clone())?;
    let told = |event: WorkerEvent| match as_json {
        true => log.write(Out::Line(as_line(&event))),
        false => tell(&event, arguments.quiet).into_iter().for_each(|text| log.write(Out::Note(text))),
    };
    let ended = tokio::select! {
        ended = worker.run(|task| program.clone().run(task), stopped, told) => ended,
        () = signals => Ok(Tally::default()),
    };
    let tally = match ended {
        Ok(tally) => tally,
        Err(error) => {
            log.finish().await;
            return Err(error.into());
        }
    };
    super::super::client::close(client).await;
    let dead = match tally.dead {
        0 => String::new(),
        dead => format!(", and {dead} dead: `quorate jobs dead` shows them"),
    };
    log.write(Out::Note(format!("{} done{dead}", counted(tally.done, "job"))));
    log.finish().await;
    // One that is run for what is there has not done it all; one that goes on for ever is not judged by its jobs.
    Ok(if arguments.until_empty && tally.dead > 0 { Exit::Failed } else { Exit::Done })
}

/// The first signal: after this job. The second: at once; but a terminal that is closed may say so several times, the kernel and the
/// shell each.
fn listen(stop: watch::Sender<Stop>, log: Log) -> Result<impl Future<Output = ()>, CliError> {
    let failed = |error| CliError::failed(format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    // Without this a closed terminal's command would go on alone, and a second one begin.
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    Ok(async move {
        // The worker ends this.
        loop {
            let is_hangup = tokio::select! {
                _ = terminate.recv() => false,
                _ = interrupt.recv() => false,
                _ = hangup.recv() => true,
            };
            let now = *stop.borrow();
            let (when, text) = match now {
                Stop::No => (
                    Stop::AfterJob,
                    "stopping; a job that it has is done first. Once more, and that goes back to the queue",
                ),
                Stop::AfterJob if !is_hangup => (Stop::Now, "stopping now"),
                Stop::AfterJob | Stop::Now => continue,
            };
            log.write(Out::Note(text.to_owned()));
            stop.send_replace(when);
        }
    })
}

/// For a program: an event as a line of JSON.
fn as_line(event: &WorkerEvent) -> String {
    let line = match event {
        WorkerEvent::Joined(member) => json!({"event": "joined", "member": member}),
        WorkerEvent::NameTaken(why) => json!({"event": "name_taken", "detail": why}),
        WorkerEvent::Begun(claim) => {
            json!({"event": "begun", "job": claim.id, "attempt": claim.attempt, "token": claim.token, "key": claim.key})
        }
        WorkerEvent::Ended { id, state, error } => {
            json!({"event": "ended", "job": id, "state": state, "error": error})
        }
        WorkerEvent::Lost { id, cause } => json!({"event": "lost", "job": id, "detail": cause}),
        WorkerEvent::SlotsLost(runs) => json!({"event": "slots_lost", "slots": runs}),
        WorkerEvent::Evicted => json!({"event": "evicted"}),
        WorkerEvent::Trouble(error) => json!({"event": "trouble", "detail": error.to_string()}),
        WorkerEvent::Recovered => json!({"event": "recovered"}),
    };
    line.to_string()
}

/// For a person; nothing, if this one wants to hear of troubles alone.
fn tell(event: &WorkerEvent, quiet: bool) -> Option<String> {
    Some(match event {
        WorkerEvent::NameTaken(why) => format!("{why}. Waiting for that"),
        WorkerEvent::Joined(_)
        | WorkerEvent::Begun(_)
        | WorkerEvent::Ended { .. }
        | WorkerEvent::SlotsLost(_)
            if quiet =>
        {
            return None;
        }
        WorkerEvent::Joined(member) => format!("joined as member {member}"),
        WorkerEvent::Begun(claim) => format!("job {}: attempt {}", claim.id, claim.attempt),
        WorkerEvent::Ended { id, state, error: None } => format!("job {id}: {}", word(*state)),
        WorkerEvent::Ended { id, state, error: Some(error) } => {
            let cause = error.lines().next().unwrap_or_default();
            format!("job {id}: the attempt has failed ({cause}); it is {}", word(*state))
        }
        WorkerEvent::Lost { id, cause } => format!("job {id} is no longer this worker's: {cause}"),
        WorkerEvent::SlotsLost(runs) => {
            let slots: u32 = runs.iter().map(|(first, last)| last + 1 - first).sum();
            format!("the ring is resized: {slots} of its {SLOTS} slots go to other workers")
        }
        WorkerEvent::Evicted => {
            "evicted: nothing was heard of this worker for its lease. Joining again".to_owned()
        }
        WorkerEvent::Trouble(error) => format!("{error}; trying again until it answers"),
        WorkerEvent::Recovered => "the cluster answers again".to_owned(),
    })
}
