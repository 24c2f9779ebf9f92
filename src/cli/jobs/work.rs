//! `quorate jobs work`.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::command::Program;
use super::show::word;
use crate::cli::output::{CliError, Exit, Output};
use crate::client::{Client, DEFAULT_LEASE, Stop, WorkerEvent};
use crate::config;
use crate::services::jobs::SLOTS;

#[derive(Debug, Args)]
#[command(after_help = super::WORK_EXAMPLE)]
pub(super) struct WorkArgs {
    /// Whose jobs [default: default]
    #[arg(long)]
    queue: Option<String>,
    /// The worker's name, which no other one in the queue has
    #[arg(long)]
    pub(super) name: Option<String>,
    /// It is taken for dead, and its job is given to another one, after this time without a word [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = config::timeout)]
    lease: Option<Duration>,
    /// An attempt that takes longer has failed
    #[arg(long, value_name = "TIME", value_parser = config::timeout)]
    job_timeout: Option<Duration>,
    /// End when the queue has nothing left to do
    #[arg(long)]
    until_empty: bool,
    /// Tell of troubles alone
    #[arg(long)]
    quiet: bool,
    /// What to run for each job
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) async fn run(
    client: &Client,
    (queue, name): (&str, &str),
    arguments: WorkArgs,
) -> Result<Exit, CliError> {
    super::command::check(&arguments.command)?;
    let scratch = tempfile::Builder::new().prefix("quorate-worker-").tempdir().map_err(|error| {
        CliError::failed(format!("there is no room for temporary files (TMPDIR says where): {error}"))
    })?;
    let program =
        Program { words: arguments.command, timeout: arguments.job_timeout, scratch: Arc::new(scratch) };
    let worker = client
        .worker(arguments.queue.as_deref().unwrap_or(queue), name)
        .lease(arguments.lease.unwrap_or(DEFAULT_LEASE))
        .until_empty(arguments.until_empty);
    let (stop, stopped) = watch::channel(Stop::No);
    let signals = listen(stop)?;
    let quiet = arguments.quiet;
    let done = tokio::select! {
        done = worker.run(|task| program.clone().run(task), stopped, |event| tell(&event, quiet)) => done?,
        () = signals => 0,
    };
    super::super::client::close(client).await;
    Output::note(&format!("{done} jobs done"));
    Ok(Exit::Done)
}

/// The first signal: after this job. The second: at once.
fn listen(stop: watch::Sender<Stop>) -> Result<impl Future<Output = ()>, CliError> {
    let failed = |error| CliError::failed(format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    // A terminal that was closed: without this its command would go on alone, and a second one begin.
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    Ok(async move {
        for (when, text) in [
            (
                Stop::AfterJob,
                "stopping; a job that it has is done first. Once more, and that goes back to the queue",
            ),
            (Stop::Now, "stopping now"),
        ] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
            Output::note(text);
            stop.send_replace(when);
        }
        // The worker ends this.
        std::future::pending().await
    })
}

fn tell(event: &WorkerEvent, quiet: bool) {
    let text = match event {
        WorkerEvent::NameTaken(why) => format!("{why}. Waiting for that"),
        WorkerEvent::Joined(_)
        | WorkerEvent::Begun(_)
        | WorkerEvent::Ended { .. }
        | WorkerEvent::SlotsLost(_)
            if quiet =>
        {
            return;
        }
        WorkerEvent::Joined(member) => format!("joined as member {member}"),
        WorkerEvent::Begun(claim) => format!("job {}: attempt {}", claim.id, claim.attempt),
        WorkerEvent::Ended { id, state, error: None } => format!("job {id}: {}", word(*state)),
        WorkerEvent::Ended { id, state, error: Some(error) } => {
            format!("job {id}: the attempt has failed ({error}); it is {}", word(*state))
        }
        WorkerEvent::Lost { id, cause } => format!("job {id} is no longer this worker's: {cause}"),
        WorkerEvent::SlotsLost(runs) => {
            let slots: u32 = runs.iter().map(|(first, last)| last + 1 - first).sum();
            format!("the ring is resized: {slots} of its {SLOTS} slots go to other workers")
        }
        WorkerEvent::Evicted => {
            "evicted: nothing was heard of this worker for its lease. Joining again".to_owned()
        }
        WorkerEvent::Trouble(error) => format!("{error}; trying again"),
    };
    Output::note(&text);
}
