//! `quorate jobs`: submitting jobs, working on them, and looking at what became of them.

mod command;
mod ring;
mod show;
mod work;

use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use self::show::{describe, job_table, queue_table, word};
use super::connect::{ConnectFlags, background_runtime, runtime};
use super::output::{CliError, Exit, Output, Printed};
use super::shown::whole;
use crate::client::{Client, Error, JobResult, JobState, Jobs, NewJob, Reply, WINDOW, is_refusal};
use crate::config::{self, Config};
use crate::services::jobs::{DEFAULT_QUEUE, JobRow, State};

const EXAMPLE: &str = "\
Examples:
  quorate jobs submit --queue mails 'to: ada'
  quorate jobs work --queue mails --name W1 -- ./send-mail
  quorate jobs list --queue mails
  quorate jobs ring --queue mails

What a job does is done at least once: a worker that is lost in the middle has done a part of it, and another one begins
anew. That it was completed is recorded exactly once.";
const SUBMIT_EXAMPLE: &str = "\
Examples:
  quorate jobs submit --queue mails 'to: ada'
  quorate jobs submit --queue mails --key customer-17 --delay 10m --attempts 3 'to: bob'
  seq 1 1000 | quorate jobs submit --queue numbers --lines
  quorate jobs submit --queue mails --wait 30s < letter.txt";
const WORK_EXAMPLE: &str = "\
Example:
  quorate jobs work --queue mails --name W1 -- ./send-mail

The command runs once for each attempt at a job: the payload is its stdin, its stdout is the result (both UTF-8, 64 KiB at most),
an exit code other than 0 fails the attempt. It finds the job's number in QUORATE_JOB, which attempt it is in QUORATE_ATTEMPT, the
fencing token in QUORATE_TOKEN, the key in QUORATE_KEY; what it writes into the file QUORATE_PROGRESS is shown by `status` and `ring`.
SIGTERM: the worker finishes its job and leaves. A second one ends the command, and the job goes back to the queue.";
const RING_EXAMPLE: &str = "\
Examples:
  quorate jobs ring --queue mails
  quorate jobs ring --queue mails --watch";

/// Before a cluster that does not answer is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// A batch of lines has so many bytes at most: half of what a body may have, as JSON may escape some.
const BATCH_BYTES: usize = 4 << 20;
/// Jobs that are looked for at once.
const PAGE: u32 = 1_000;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct JobsArgs {
    #[command(flatten)]
    connect: ConnectFlags,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    #[command(flatten)]
    Request(Request),
    /// Work on a queue's jobs: run a command for each
    #[command(after_help = WORK_EXAMPLE)]
    Work(work::WorkArgs),
    /// Show a queue's workers, what each of them owns, and how a resize goes on
    #[command(after_help = RING_EXAMPLE)]
    Ring(ring::RingArgs),
}

/// What is asked once and answered.
#[derive(Debug, Subcommand)]
enum Request {
    /// Put a job into a queue, and print its number
    #[command(after_help = SUBMIT_EXAMPLE)]
    Submit(SubmitArgs),
    /// Show one job
    #[command(after_help = "Example:\n  quorate jobs status 17")]
    Status {
        /// Its number
        id: u64,
    },
    /// Show jobs
    #[command(after_help = "Examples:\n  quorate jobs list --queue mails\n  quorate jobs list --state dead")]
    List(ListArgs),
    /// Print what came of a job
    #[command(after_help = "Examples:\n  quorate jobs result 17\n  quorate jobs result 17 --wait 30s")]
    Result {
        /// Its number
        id: u64,
        /// Wait until it has ended, so long at most
        #[arg(long, value_name = "TIME", value_parser = config::timeout)]
        wait: Option<Duration>,
    },
    /// Take a job out of its queue, or a dead letter away
    #[command(after_help = "Example:\n  quorate jobs cancel 17")]
    Cancel {
        /// Its number
        id: u64,
    },
    /// Put a dead letter, or a job that was cancelled, back into its queue
    #[command(after_help = "Examples:\n  quorate jobs retry 17\n  quorate jobs retry --dead mails")]
    Retry {
        /// Its number
        #[arg(required_unless_present = "dead")]
        id: Option<u64>,
        /// All dead letters of this queue
        #[arg(long, value_name = "QUEUE", conflicts_with = "id")]
        dead: Option<String>,
    },
    /// Show the dead letters: jobs whose attempts have all failed
    #[command(after_help = "Example:\n  quorate jobs dead --queue mails")]
    Dead {
        /// Of this queue alone
        #[arg(long)]
        queue: Option<String>,
    },
    /// Forget a queue's jobs that are done or cancelled, and the queue when nothing of it is left
    #[command(after_help = "Example:\n  quorate jobs purge mails")]
    Purge {
        /// Which queue
        queue: String,
    },
    /// Show the queues, and how many jobs they have
    #[command(after_help = "Example:\n  quorate jobs queues")]
    Queues,
}

#[derive(Debug, Args)]
struct SubmitArgs {
    /// What the worker is given [default: what is on stdin]
    payload: Option<String>,
    /// Into which queue [default: default]
    #[arg(long)]
    queue: Option<String>,
    /// Jobs of one key run one after the other, in the order of their submission
    #[arg(long)]
    key: Option<String>,
    /// From 0 to 9, the highest goes first [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Not before so long from now
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    delay: Option<Duration>,
    /// After so many failed attempts it is a dead letter [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    attempts: Option<u32>,
    /// The pause before the second attempt, doubled each time [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    backoff: Option<Duration>,
    /// A job for each line of stdin
    #[arg(long, conflicts_with_all = ["payload", "wait"])]
    lines: bool,
    /// Wait until it has ended, so long at most, and print what came of it
    #[arg(long, value_name = "TIME", value_parser = config::timeout)]
    wait: Option<Duration>,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Of this queue
    #[arg(long)]
    queue: Option<String>,
    /// In this state
    #[arg(long)]
    state: Option<Shown>,
    /// Behind this number
    #[arg(long, value_name = "N", default_value_t = 0)]
    after: u64,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shown {
    /// Behind another job of its key
    Waiting,
    /// Until its time comes
    Delayed,
    /// The next worker that asks may have it; of a key, the key's owner
    Ready,
    /// A worker has it
    Running,
    /// Completed
    Done,
    /// All its attempts have failed
    Dead,
    /// Taken out
    Cancelled,
}

impl From<Shown> for State {
    fn from(shown: Shown) -> Self {
        match shown {
            Shown::Waiting => Self::Waiting,
            Shown::Delayed => Self::Delayed,
            Shown::Ready => Self::Ready,
            Shown::Running => Self::Running,
            Shown::Done => Self::Done,
            Shown::Dead => Self::Dead,
            Shown::Cancelled => Self::Cancelled,
        }
    }
}

pub(crate) fn run(arguments: JobsArgs, config: &Config) -> Result<Exit, CliError> {
    let connection = arguments.connect.resolve(config)?;
    // Of who names none.
    let queue = config.pick("queue", None, config::parsed)?.unwrap_or_else(|| DEFAULT_QUEUE.to_owned());
    super::log_to_stderr("warn")?;
    let (client, output) = (connection.builder().build()?, connection.output());
    match arguments.action {
        Action::Work(arguments) => {
            let name: String = config.require("name", arguments.name.clone(), config::parsed)?;
            background_runtime()?.block_on(work::run(&client, (&queue, &name), arguments))
        }
        Action::Ring(arguments) => runtime()?.block_on(ring::show(&client, &queue, &arguments, output)),
        Action::Request(request) => runtime()?.block_on(async {
            let ended = perform(&client, request, &queue, output, connection.json).await;
            super::client::close(&client).await;
            ended
        }),
    }
}

async fn perform(
    client: &Client,
    request: Request,
    queue: &str,
    output: Output,
    as_json: bool,
) -> Result<Exit, CliError> {
    let jobs = client.jobs();
    let asked = match request {
        Request::Submit(arguments) if arguments.lines => return submit_lines(client, queue, arguments).await,
        Request::Submit(arguments) => return submit(client, queue, arguments, output).await,
        Request::Result { id, wait } => return result(client, id, wait, output).await,
        Request::Retry { dead: Some(queue), .. } => return retry_dead(&jobs, &queue).await,
        Request::Purge { queue } => return purge(&jobs, &queue, output).await,
        Request::Cancel { id } => return changed(jobs.cancel(id).await, output),
        Request::Retry { id, dead: None } => {
            return changed(jobs.retry(id.unwrap_or_default()).await, output);
        }
        Request::Status { id } => jobs.result(id).await.map(|job| Printed::new(describe(&job), body(&job))),
        Request::Queues => jobs
            .queues()
            .await
            .map(|queues| Printed::new(queue_table(&queues), json!({ "queues": queues }).to_string())),
        Request::Dead { queue } => all_dead(&jobs, queue.as_deref()).await.map(|dead| {
            let value = if dead.is_empty() { "no dead letters".to_owned() } else { job_table(&dead) };
            Printed::new(value, json!({ "jobs": dead }).to_string())
        }),
        Request::List(wanted) => {
            let page =
                jobs.list(wanted.queue.as_deref(), wanted.state.map(State::from), wanted.after, wanted.limit);
            page.await.map(|page| {
                let note = page.next.map(|next| format!("there may be more: --after {next}"));
                Printed { note, ..Printed::new(job_table(&page.jobs), page.body) }
            })
        }
    };
    match asked {
        Ok(printed) => {
            let printed = if as_json { Printed { note: None, ..printed } } else { printed };
            output.reply(&printed)?;
            Ok(Exit::Done)
        }
        Err(error) => refused(error, output),
    }
}

fn refused(error: Error, output: Output) -> Result<Exit, CliError> {
    output.refusal(&error)?;
    Err(error.into())
}

/// A change that was made: who sees an exit code of 1 may do it again.
fn done(printed: &Printed, output: Output) -> Result<Exit, CliError> {
    output.reply(printed).map_err(|error| CliError::unseen(&error))?;
    Ok(Exit::Done)
}

fn changed(reply: Result<Reply<JobState>, Error>, output: Output) -> Result<Exit, CliError> {
    match reply {
        Ok(reply) => done(&Printed::new(word(reply.state), reply.body), output),
        Err(error) => refused(error, output),
    }
}

fn body(job: &JobResult) -> String {
    json!(job).to_string()
}

async fn submit(
    client: &Client,
    queue: &str,
    arguments: SubmitArgs,
    output: Output,
) -> Result<Exit, CliError> {
    let wait = arguments.wait;
    let payload = match &arguments.payload {
        Some(payload) => payload.clone(),
        None => stdin()?,
    };
    match client.jobs().submit(&new_job(&arguments, queue, payload)).await {
        Ok(submitted) if wait.is_some() => {
            Output::note(&format!("job {}", submitted.id));
            // It is submitted: whatever comes now, it is not to be submitted again.
            result(client, submitted.id, wait, output).await.map_err(|error| match error.exit {
                Exit::Failed => {
                    let message = format!("job {} is submitted; {}", submitted.id, error.message);
                    CliError { exit: Exit::Unknown, message, ..error }
                }
                _ => error,
            })
        }
        Ok(submitted) => done(&Printed::new(submitted.id.to_string(), submitted.body), output),
        Err(error) => refused(error, output),
    }
}

fn new_job(arguments: &SubmitArgs, queue: &str, payload: String) -> NewJob {
    NewJob {
        queue: arguments.queue.as_deref().unwrap_or(queue).to_owned(),
        payload,
        key: arguments.key.clone(),
        priority: arguments.priority,
        delay: arguments.delay.unwrap_or_default(),
        attempts: arguments.attempts,
        backoff: arguments.backoff,
    }
}

fn stdin() -> Result<String, CliError> {
    if std::io::stdin().is_terminal() {
        Output::note("the payload is read from stdin; end it with Ctrl-D");
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| CliError::usage(format!("the payload cannot be read from stdin: {error}")))?;
    Ok(text)
}

/// Each line is a job; many go at once. What could not be submitted for certain, or in doubt, is told by its line.
async fn submit_lines(client: &Client, queue: &str, arguments: SubmitArgs) -> Result<Exit, CliError> {
    let text = stdin()?;
    let jobs: Vec<NewJob> = text.lines().map(|line| new_job(&arguments, queue, line.to_owned())).collect();
    let (mut first, mut refused, mut rest) = (1, 0, &jobs[..]);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take(WINDOW).take_while(|job| {
            bytes += json!(job.payload).to_string().len();
            bytes <= BATCH_BYTES
        });
        let (batch, behind) = rest.split_at(fits.count().max(1));
        rest = behind;
        let last = first + batch.len() - 1;
        let results = client.jobs().submit_all(batch).await.map_err(|error| {
            let error = CliError::from(error);
            CliError { message: format!("lines {first} to {last}: {}", error.message), ..error }
        })?;
        for (line, result) in (first..).zip(&results.data) {
            match result {
                Ok(reply) => {
                    Output::line(&reply["id"].to_string()).map_err(|error| CliError::unseen(&error))?
                }
                Err(problem) => {
                    refused += 1;
                    Output::error(&format!("line {line}: {problem}"));
                }
            }
        }
        first = last + 1;
    }
    Ok(if refused > 0 { Exit::Failed } else { Exit::Done })
}

/// Prints what came of a job. Exit 1: nothing, or not yet.
async fn result(client: &Client, id: u64, wait: Option<Duration>, output: Output) -> Result<Exit, CliError> {
    let jobs = client.jobs();
    let found = match wait {
        None => jobs.result(id).await,
        Some(wait) => match tokio::time::timeout(wait, wait_for(&jobs, id)).await {
            Ok(found) => found,
            Err(_) => jobs.result(id).await,
        },
    };
    let job = match found {
        Ok(job) => job,
        Err(error) => return refused(error, output),
    };
    match (&job.result, job.job.state) {
        (Some(result), _) => {
            output.reply(&Printed::new(whole(result.clone()), body(&job)))?;
            Ok(Exit::Done)
        }
        (None, state) => {
            // A program reads how it stands.
            output.body(&body(&job))?;
            let error = job.job.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            Err(CliError::failed(format!("job {id} has no result, it is {}{error}", word(state))))
        }
    }
}

/// A cluster that is away for a moment does not end the wait.
async fn wait_for(jobs: &Jobs, id: u64) -> Result<Reply<JobResult>, Error> {
    loop {
        match jobs.wait(id).await {
            Err(error) if error.refused().is_none() => tokio::time::sleep(AGAIN).await,
            ended => return ended,
        }
    }
}

async fn all_dead(jobs: &Jobs, queue: Option<&str>) -> Result<Vec<JobRow>, Error> {
    let queues: Vec<String> = match queue {
        Some(queue) => vec![queue.to_owned()],
        None => {
            let all = jobs.queues().await?;
            all.into_iter().filter(|queue| queue.jobs.dead > 0).map(|queue| queue.name).collect()
        }
    };
    let mut dead = Vec::new();
    for queue in queues {
        let mut after = Some(0);
        while let Some(from) = after {
            let page = jobs.list(Some(&queue), Some(State::Dead), from, PAGE).await?.data;
            dead.extend(page.jobs);
            after = page.next;
        }
    }
    Ok(dead)
}

/// Prints how many could be put back; who is first to put one back does not matter.
async fn retry_dead(jobs: &Jobs, queue: &str) -> Result<Exit, CliError> {
    let mut count = 0;
    for job in all_dead(jobs, Some(queue)).await? {
        match jobs.retry(job.id).await {
            Ok(_) => count += 1,
            Err(error) if is_refusal(&error, "not_ended") || is_refusal(&error, "already_done") => {}
            Err(error) => {
                Output::note(&format!("{count} were put back before job {}", job.id));
                return Err(error.into());
            }
        }
    }
    Output::line(&count.to_string()).map_err(|error| CliError::unseen(&error))?;
    Ok(Exit::Done)
}

async fn purge(jobs: &Jobs, queue: &str, output: Output) -> Result<Exit, CliError> {
    let mut count = 0;
    loop {
        let purged = match jobs.purge(queue).await {
            Ok(purged) => purged,
            Err(error) => return refused(error, output),
        };
        count += purged.jobs;
        if !purged.more {
            let rest = if purged.gone { "; the queue is gone" } else { "; the queue is still in use" };
            Output::note(&format!("{count} jobs forgotten{rest}"));
            return done(
                &Printed::new(count.to_string(), json!({"jobs": count, "gone": purged.gone}).to_string()),
                output,
            );
        }
    }
}
