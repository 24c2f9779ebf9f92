//! Jobs and queues as tables.

use serde_json::json;

use crate::cli::shown::cell;
use crate::cli::status;
use crate::client::JobResult;
use crate::services::jobs::{JobRow, QueueRow, State};

/// A state in the word that is used everywhere.
pub(super) fn word(state: State) -> String {
    json!(state).as_str().unwrap_or_default().to_owned()
}

/// `1 job`, `2 jobs`.
pub(super) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

pub(super) fn job_table(jobs: &[JobRow]) -> String {
    let mut table = status::table(&[
        "job",
        "queue",
        "state",
        "attempts",
        "worker",
        "submitted",
        "key",
        "progress or error",
    ]);
    for job in jobs {
        // What an attempt before the last one failed by is no news once it is done.
        let failed = job.progress.is_empty() && job.state != State::Done;
        let told = job.error.as_deref().filter(|_| failed).unwrap_or(&job.progress);
        table.add_row([
            job.id.to_string(),
            cell(&job.queue),
            word(job.state),
            format!("{}/{}", job.attempts, job.most_attempts),
            cell(job.worker.as_deref().unwrap_or("")),
            status::utc(job.submitted_ms),
            cell(job.key.as_deref().unwrap_or("")),
            cell(told.lines().next().unwrap_or_default()),
        ]);
    }
    status::trimmed(&table)
}

pub(super) fn queue_table(queues: &[QueueRow]) -> String {
    let mut table = status::table(&[
        "queue",
        "workers",
        "ready",
        "running",
        "waiting",
        "delayed",
        "done",
        "dead",
        "cancelled",
        "ring",
    ]);
    for queue in queues {
        let jobs = queue.jobs;
        let counts =
            [jobs.ready, jobs.running, jobs.waiting, jobs.delayed, jobs.done, jobs.dead, jobs.cancelled];
        let row = [cell(&queue.name), queue.workers.to_string()].into_iter();
        table
            .add_row(row.chain(counts.map(|count| count.to_string())).chain([queue.phase.name().to_owned()]));
    }
    status::trimmed(&table)
}

/// One job, a line for each thing that there is to say.
pub(super) fn describe(found: &JobResult) -> String {
    let job = &found.job;
    let mut lines = vec![
        format!("job {} of queue {}: {}", job.id, cell(&job.queue), word(job.state)),
        format!("submitted  {}, priority {}", status::utc(job.submitted_ms), job.priority),
        format!("attempts   {} of {}", job.attempts, job.most_attempts),
    ];
    let mut add =
        |what: &str, text: Option<String>| lines.extend(text.map(|text| format!("{what:<10} {text}")));
    add("key", job.key.as_deref().map(cell));
    add("due", (job.due_ms > job.submitted_ms).then(|| status::utc(job.due_ms)));
    add(
        "claimed",
        job.claimed_ms.map(|time| {
            format!(
                "{} by {}, token {}",
                status::utc(time),
                cell(job.worker.as_deref().unwrap_or("?")),
                job.token
            )
        }),
    );
    add("progress", Some(cell(&job.progress)).filter(|text| !text.is_empty()));
    add(if job.state == State::Done { "had failed" } else { "error" }, job.error.as_deref().map(cell));
    add("ended", job.ended_ms.map(status::utc));
    add("payload", Some(cell(&found.payload)));
    add("result", found.result.as_deref().map(cell));
    lines.join("\n")
}
