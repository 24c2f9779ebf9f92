//! `quorate jobs submit`.

use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{done, refused, result};
use crate::cli::lines::{self, Typed};
use crate::cli::output::{CliError, Exit, Output, Printed};
use crate::client::{BatchResult, Client, NewJob, WINDOW};
use crate::config;
use crate::services::jobs::MAX_PAYLOAD_BYTES;

const EXAMPLE: &str = "\
Examples:
  quorate jobs submit --queue mails 'to: ada'
  quorate jobs submit --queue mails --key customer-17 --delay 10m --attempts 3 'to: bob'
  seq 1 1000 | quorate jobs submit --queue numbers --lines
  quorate jobs submit --queue mails --wait 30s < letter.txt

With --wait: exit 1, it is a dead letter or was cancelled; exit 3, it is submitted and has not ended.";

/// A batch of lines takes no further one beyond so many bytes, of the 8 MiB that a body may have: JSON may escape some.
const BATCH_BYTES: usize = 6 << 20;
/// A line has at most so many, several times what a payload may have: who is a little above it is told by the cluster.
const MAX_LINE_BYTES: usize = 256 << 10;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct SubmitArgs {
    /// What the worker is given [default: what is on stdin]
    #[arg(allow_negative_numbers = true)]
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
        return submit_lines(client, queue, &arguments, output).await;
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

/// Who is asked to type is told so.
fn announce_stdin(what: &str) {
    if std::io::stdin().is_terminal() {
        Output::note(&format!("{what} read from stdin; end with Ctrl-D"));
    }
}

fn stdin() -> Result<String, CliError> {
    announce_stdin("the payload is");
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| CliError::usage(format!("the payload cannot be read from stdin: {error}")))?;
    Ok(text)
}

/// Each line is a job, and is submitted as it comes; those that wait go together. What could not be submitted for certain, or in
/// doubt, is told by its line.
async fn submit_lines(
    client: &Client,
    queue: &str,
    arguments: &SubmitArgs,
    output: Output,
) -> Result<Exit, CliError> {
    announce_stdin("lines, each of them a job, are");
    let mut stdin = lines::from_stdin(MAX_LINE_BYTES);
    let (mut first, mut exit) = (1, Exit::Done);
    let unseen = |error: std::io::Error| CliError::unseen(&error);
    while let Some(line) = stdin.recv().await {
        let (mut jobs, mut bytes, mut next) = (Vec::new(), 0, Some(line));
        // Until nothing waits, the batch is full, or a line is none.
        let odd = loop {
            match next.take() {
                None => break None,
                Some(Typed::Line(line)) => {
                    bytes += json!(line).to_string().len();
                    jobs.push(new_job(arguments, queue, line));
                }
                Some(odd) => break Some(odd),
            }
            if jobs.len() < WINDOW && bytes + MAX_LINE_BYTES <= BATCH_BYTES {
                next = stdin.try_recv().ok();
            }
        };
        if !jobs.is_empty() {
            let last = first + jobs.len() - 1;
            let results = client.jobs().submit_all(&jobs).await.map_err(|error| {
                let error = CliError::from(error);
                CliError { message: format!("lines {first} to {last}: {}", error.message), ..error }
            })?;
            for (line, result) in (first..).zip(&results.data) {
                show(line, result, output).map_err(unseen)?;
            }
            if results.data.iter().any(Result::is_err) {
                exit = Exit::Failed;
            }
            first = last + 1;
        }
        match odd {
            None | Some(Typed::Line(_)) => {}
            Some(Typed::TooLong(bytes)) => {
                exit = Exit::Failed;
                let detail = format!("it has {bytes} bytes, and a payload at most {MAX_PAYLOAD_BYTES}");
                let problem = json!({"code": "too_large", "detail": &detail, "outcome": "not_applied"});
                refuse(first, &detail, &problem, output).map_err(unseen)?;
                first += 1;
            }
            Some(Typed::Broken(error)) => {
                return Err(CliError::failed(format!("line {first}: {error}; it ends the input")));
            }
        }
    }
    Ok(exit)
}

fn show(line: usize, result: &BatchResult, output: Output) -> std::io::Result<()> {
    match result {
        Ok(reply) => output.reply(&Printed::new(reply["id"].to_string(), reply.to_string())).map(drop),
        Err(problem) => refuse(line, &problem.to_string(), &problem.problem, output),
    }
}

/// With `--json` each line of stdin has its line of stdout.
fn refuse(line: usize, text: &str, problem: &Value, output: Output) -> std::io::Result<()> {
    Output::error(&format!("line {line}: {text}"));
    output.body(&json!({ "refused": problem }).to_string())
}
