//! `quorate jobs`: submitting jobs, working on them, and looking at what became of them.

mod command;
mod log;
mod result;
mod ring;
mod show;
mod submit;
mod work;

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use self::show::{counted, describe, job_table, queue_table, word};
use super::connect::{ConnectFlags, background_runtime, runtime};
use super::output::{CliError, Exit, Output, Printed};
use crate::client::{Client, Error, JobState, Jobs, Purged, Reply, is_refusal};
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
const RESULT_EXAMPLE: &str = "\
Examples:
  quorate jobs result 17
  quorate jobs result 17 --wait 30s

Exit 1: it is a dead letter, or was cancelled. Exit 3: it has not ended.";
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
    Submit(submit::SubmitArgs),
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
    #[command(after_help = RESULT_EXAMPLE)]
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
    /// Show the queues, and how many jobs they have, or have ever had that are done or cancelled
    #[command(after_help = "Example:\n  quorate jobs queues")]
    Queues,
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
    let set = config.pick("queue", None, config::parsed)?;
    // Of who names none.
    let queue: String = set.clone().unwrap_or_else(|| DEFAULT_QUEUE.to_owned());
    super::log_to_stderr("warn")?;
    let (client, output) = (connection.builder().build()?, connection.output());
    match arguments.action {
        Action::Work(arguments) => {
            let name: String = config.require("name", arguments.name.clone(), config::parsed)?;
            background_runtime()?.block_on(work::run(&client, (&queue, &name), arguments, connection.json))
        }
        Action::Ring(arguments) => runtime()?.block_on(ring::show(&client, &queue, &arguments, output)),
        Action::Request(request) => runtime()?.block_on(async {
            let request = request.of_queue(set);
            let ended = perform(&client, request, &queue, output, connection.json).await;
            super::client::close(&client).await;
            ended
        }),
    }
}

impl Request {
    /// What shows the jobs of all queues unless one is named shows those of the one that is set.
    fn of_queue(mut self, set: Option<String>) -> Self {
        if let Self::List(ListArgs { queue, .. }) | Self::Dead { queue } = &mut self {
            *queue = queue.take().or(set);
        }
        self
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
        Request::Submit(arguments) => return submit::run(client, queue, arguments, output).await,
        Request::Result { id, wait } => {
            return match result::find(client, id, wait).await {
                Ok(job) => result::show(&job, output, CliError::from),
                Err(error) => refused(error, output),
            };
        }
        Request::Retry { dead: Some(queue), .. } => return retry_dead(&jobs, &queue, output).await,
        Request::Purge { queue } => return purged(jobs.purge(&queue).await, output),
        Request::Cancel { id } => return changed(jobs.cancel(id).await, output),
        Request::Retry { id, dead: None } => {
            return changed(jobs.retry(id.unwrap_or_default()).await, output);
        }
        Request::Status { id } => {
            jobs.result(id).await.map(|job| Printed::new(describe(&job), json!(*job).to_string()))
        }
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
async fn retry_dead(jobs: &Jobs, queue: &str, output: Output) -> Result<Exit, CliError> {
    let mut count = 0;
    let dead = match all_dead(jobs, Some(queue)).await {
        Ok(dead) => dead,
        Err(error) => return refused(error, output),
    };
    for job in dead {
        match jobs.retry(job.id).await {
            Ok(_) => count += 1,
            Err(error) if is_refusal(&error, "not_ended") || is_refusal(&error, "already_done") => {}
            Err(error) => {
                Output::note(&format!("{count} were put back before job {}", job.id));
                return refused(error, output);
            }
        }
    }
    done(&Printed::new(count.to_string(), json!({ "jobs": count }).to_string()), output)
}

fn purged(reply: Result<Reply<Purged>, Error>, output: Output) -> Result<Exit, CliError> {
    match reply {
        Ok(reply) => {
            let Purged { jobs, gone } = reply.data;
            let rest = if gone { "the queue too" } else { "the queue is still in use" };
            Output::note(&format!("forgotten: {}; {rest}", counted(jobs, "job")));
            done(&Printed::new(jobs.to_string(), reply.body), output)
        }
        Err(error) => refused(error, output),
    }
}
