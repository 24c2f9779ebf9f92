//! `quorate jobs result`: what came of a job, also of one that was just submitted.

use std::io;
use std::time::Duration;

use serde_json::json;

use super::show::word;
use crate::cli::output::{CliError, Exit, Output, Printed};
use crate::cli::shown::whole;
use crate::client::{Client, Error, JobResult, Jobs, Reply};

/// Before a cluster that does not answer is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// The job, as soon as it has ended; when that takes longer than `wait`, as it is then.
pub(super) async fn find(
    client: &Client,
    id: u64,
    wait: Option<Duration>,
) -> Result<Reply<JobResult>, Error> {
    let jobs = client.jobs();
    let ended = match wait {
        Some(wait) => tokio::time::timeout(wait, wait_for(&jobs, id)).await.ok(),
        None => None,
    };
    match ended {
        Some(ended) => ended,
        None => jobs.result(id).await,
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

/// Prints what came of a job. Exit 1: nothing, and nothing will; 3: it has not ended.
pub(super) fn show(
    job: &JobResult,
    output: Output,
    unwritten: fn(io::Error) -> CliError,
) -> Result<Exit, CliError> {
    let body = json!(job).to_string();
    if let Some(result) = &job.result {
        output.reply(&Printed::new(whole(result.clone()), body)).map_err(unwritten)?;
        return Ok(Exit::Done);
    }
    // A program reads how it stands.
    output.body(&body).map_err(unwritten)?;
    let (id, state) = (job.job.id, word(job.job.state));
    let error = job.job.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    Err(match job.has_ended() {
        true => CliError::failed(format!("job {id} has no result, it is {state}{error}")),
        false => {
            let error = if error.is_empty() { error } else { format!("; the last attempt failed{error}") };
            CliError::new(Exit::Unknown, format!("job {id} has not ended, it is {state}{error}"))
        }
    })
}
