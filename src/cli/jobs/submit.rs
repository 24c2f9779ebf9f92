//! `quorate jobs submit`.

use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{done, refused, result};
use crate::cli::output::{CliError, Exit, Output, Printed};
use crate::client::{Client, NewJob, WINDOW};
use crate::config;

const EXAMPLE: &str = "\
Examples:
  quorate jobs submit --queue mails 'to: ada'
  quorate jobs submit --queue mails --key customer-17 --delay 10m --attempts 3 'to: bob'
  seq 1 1000 | quorate jobs submit --queue numbers --lines
  quorate jobs submit --queue mails --wait 30s < letter.txt

With --wait: exit 1, it is a dead letter or was cancelled; exit 3, it is submitted and has not ended.";

/// A batch of lines has so many bytes at most: half of what a body may have, as JSON may escape some.
const BATCH_BYTES: usize = 4 << 20;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct SubmitArgs {
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
    /// Not before so long from now, as 90s, 10m or 2d; at most 3650d
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    delay: Option<Duration>,
    /// After so many failed attempts it is a dead letter, 1 to 1000 [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    attempts: Option<u32>,
    /// The pause before the second attempt, doubled each time; at most 5m [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    backoff: Option<Duration>,
    /// A job for each line of stdin
    #[arg(long, conflicts_with_all = ["payload", "wait"])]
    lines: bool,
    /// Wait until it has ended, so long at most, and print what came of it
    #[arg(long, value_name = "TIME", value_parser = config::timeout)]
    wait: Option<Duration>,
}

pub(super) async fn run(
    client: &Client,
    queue: &str,
    arguments: SubmitArgs,
    output: Output,
) -> Result<Exit, CliError> {
    if arguments.lines {
        return lines(client, queue, &arguments, output).await;
    }
    let payload = match &arguments.payload {
        Some(payload) => payload.clone(),
        None => stdin()?,
    };
    let submitted = match client.jobs().submit(&new_job(&arguments, queue, payload)).await {
        Ok(submitted) => submitted,
        Err(error) => return refused(error, output),
    };
    let Some(wait) = arguments.wait else {
        return done(&Printed::new(submitted.id.to_string(), submitted.body), output);
    };
    Output::note(&format!("job {}", submitted.id));
    // Whatever comes now, it is not to be submitted again.
    match result::find(client, submitted.id, Some(wait)).await {
        Ok(job) => result::show(&job, output, |error| CliError::unseen(&error)),
        Err(error) => {
            Err(CliError::new(Exit::Unknown, format!("job {} is submitted; {error}", submitted.id)))
        }
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
async fn lines(
    client: &Client,
    queue: &str,
    arguments: &SubmitArgs,
    output: Output,
) -> Result<Exit, CliError> {
    let text = stdin()?;
    let jobs: Vec<NewJob> = text.lines().map(|line| new_job(arguments, queue, line.to_owned())).collect();
    let (mut first, mut exit, mut rest) = (1, Exit::Done, &jobs[..]);
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
            let written = match result {
                Ok(reply) => {
                    output.reply(&Printed::new(reply["id"].to_string(), reply.to_string())).map(drop)
                }
                Err(problem) => {
                    exit = Exit::Failed;
                    Output::error(&format!("line {line}: {problem}"));
                    // Each line of stdin has its line.
                    output.body(&json!({ "refused": problem.problem }).to_string())
                }
            };
            written.map_err(|error| CliError::unseen(&error))?;
        }
        first = last + 1;
    }
    Ok(exit)
}
