//! A command that does a job: its stdin is the payload, its stdout the result.

use std::ffi::OsString;
use std::fs;
use std::future::pending;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::maybe_done;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::{interval, sleep, timeout};

use super::log::{Log, Out};
use crate::cli::output::CliError;
use crate::client::{Attempt, Failed, Task};
use crate::config;
use crate::services::jobs::MAX_RESULT_BYTES;

/// How often it is looked whether the command says how far it is.
const LOOK: Duration = Duration::from_millis(500);
/// So long a command that was killed may take to end.
const DYING: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// What a command has left behind in other sessions may hold its pipes open for so long.
const PIPES: Duration = Duration::from_secs(1);
/// So much of the end of its progress file is read.
const PROGRESS_TAIL: u64 = 4_096;
/// So much of the end of its stderr goes into the record of a failed attempt.
const ERROR_TAIL: usize = 500;

/// What to run for each job.
#[derive(Clone)]
pub(super) struct Program {
    pub(super) words: Vec<OsString>,
    pub(super) timeout: Option<Duration>,
    /// Exit codes that end a job for good.
    pub(super) dead_on: Vec<i32>,
    /// Where the commands' progress files are.
    pub(super) scratch: Arc<TempDir>,
    pub(super) log: Log,
}

/// A process, and all that it has begun. They end with this.
struct Group(Child);

impl Group {
    /// Its own number, as long as it is not waited for.
    fn pid(&self) -> Option<Pid> {
        self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
    }

    fn kill(&self) {
        if let Some(pid) = self.pid() {
            // Nobody of it may be left.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }

    /// Waits until the process has ended, and ends what it has left behind, which would hold its pipes open.
    async fn ended(&mut self) -> io::Result<ExitStatus> {
        let pid = self.pid().ok_or(io::ErrorKind::NotFound)?;
        let watched = pidfd_open(pid, PidfdFlags::empty())?;
        // A thread, which ends with the process. It is not waited for yet, so that its number stays its own.
        let ended = tokio::task::spawn_blocking(move || {
            let mut watched = [PollFd::new(&watched, PollFlags::IN)];
            while poll(&mut watched, None) == Err(Errno::INTR) {}
        });
        ended.await.map_err(io::Error::other)?;
        self.kill();
        self.0.wait().await
    }
}

impl Drop for Group {
    /// Waits a little for its end: who drops it says that the job is let go.
    fn drop(&mut self) {
        self.kill();
        if let Some(pid) = self.pid()
            && let Ok(watched) = pidfd_open(pid, PidfdFlags::empty())
        {
            // One that does not end by then hangs in the kernel.
            let _ = poll(&mut [PollFd::new(&watched, PollFlags::IN)], Some(&DYING));
        }
    }
}

/// Whether there is such a command: a slip of the pen is not the jobs' fault, and costs them no attempts.
pub(super) fn check(words: &[OsString]) -> Result<(), CliError> {
    let Some(program) = words.first().map(Path::new) else {
        return Err(CliError::usage("there is no command"));
    };
    let can_run = |file: &Path| access(file, Access::EXEC_OK).is_ok() && file.is_file();
    let found = if program.components().count() > 1 {
        can_run(program)
    } else {
        config::program_dirs().iter().any(|dir| can_run(&dir.join(program)))
    };
    if found {
        return Ok(());
    }
    Err(CliError::usage(format!(
        "{} cannot be run: there is no such program, or it may not be executed",
        program.display()
    )))
}

impl Program {
    /// Runs it for a job. An error says what the attempt failed by.
    pub(super) async fn run(self, task: Task) -> Attempt {
        let Some((program, arguments)) = self.words.split_first() else {
            return Err("there is no command".into());
        };
        let claim = &task.claim;
        let progress = self.scratch.path().join(format!("progress-{}", claim.token));
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("QUORATE_JOB", claim.id.to_string())
            .env("QUORATE_ATTEMPT", claim.attempt.to_string())
            .env("QUORATE_TOKEN", claim.token.to_string())
            .env("QUORATE_KEY", claim.key.as_deref().unwrap_or_default())
            .env("QUORATE_PROGRESS", &progress)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let child =
            command.spawn().map_err(|error| format!("{} cannot be run: {error}", program.display()))?;
        let mut group = Group(child);
        let limit = async {
            match self.timeout {
                Some(timeout) => sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        let result = tokio::select! {
            result = self.talk(&mut group, &claim.payload) => result,
            () = follow(&progress, &task) => Err("the progress cannot be followed".into()),
            () = limit => Err(format!("not done within {:?}", self.timeout.unwrap_or_default()).into()),
        };
        // It may never have been written.
        let _ = fs::remove_file(&progress);
        result
    }

    async fn talk(&self, group: &mut Group, payload: &str) -> Attempt {
        let child = &mut group.0;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err("the command has no pipes".into());
        };
        let feed = async move {
            // A command that does not read all of it has its reasons; its exit code counts.
            let _ = stdin.write_all(payload.as_bytes()).await;
        };
        let (mut result, mut error) = (Vec::new(), Vec::new());
        let (status, read) = {
            let talk = async {
                let ((), read, ()) = tokio::join!(
                    feed,
                    read_result(stdout, &mut result),
                    read_error(stderr, &mut error, &self.log)
                );
                read
            };
            let mut talk = pin!(maybe_done(talk));
            let status = tokio::select! {
                status = group.ended() => status,
                () = async { (&mut talk).await; pending().await } => Err(io::ErrorKind::NotFound.into()),
            };
            let _ = timeout(PIPES, &mut talk).await;
            (status, talk.take_output().unwrap_or(Ok(())))
        };
        let status = status.map_err(|error| format!("its end cannot be waited for: {error}"))?;
        if !status.success() {
            let cause = cause(&status, &String::from_utf8_lossy(&error));
            let last = status.code().is_some_and(|code| self.dead_on.contains(&code));
            return Err(Failed { cause, last });
        }
        read.map_err(|error| format!("its output cannot be read: {error}"))?;
        if result.len() > MAX_RESULT_BYTES {
            return Err(format!(
                "its output takes more than {MAX_RESULT_BYTES} bytes; store it elsewhere and print its address"
            )
            .into());
        }
        String::from_utf8(result).map_err(|_| "its output is not UTF-8".into())
    }
}

/// Passes on the last line of what the command writes into its progress file, for ever.
async fn follow(file: &Path, task: &Task) {
    let mut looks = interval(LOOK);
    loop {
        looks.tick().await;
        if let Ok(text) = end_of(file)
            && let Some(line) = text.lines().last()
        {
            task.progress(line);
        }
    }
}

fn end_of(file: &Path) -> io::Result<String> {
    let mut file = fs::File::open(file)?;
    let begin = file.metadata()?.len().saturating_sub(PROGRESS_TAIL);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(PROGRESS_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Why a command has failed: in the first line its status and the last thing that it said, below that what else it said last.
fn cause(status: &ExitStatus, told: &str) -> String {
    let told = told.trim();
    match told.lines().next_back() {
        None => status.to_string(),
        Some(last) if last.len() == told.len() => format!("{status}: {told}"),
        Some(last) => format!("{status}: {}\n{told}", last.trim()),
    }
}

/// One byte more than is taken, and the rest unread into nothing, so that the command does not wait for ever.
async fn read_result(stdout: impl AsyncRead + Unpin, result: &mut Vec<u8>) -> io::Result<()> {
    let mut stdout = stdout.take(MAX_RESULT_BYTES as u64 + 1);
    stdout.read_to_end(result).await?;
    tokio::io::copy(&mut stdout.into_inner(), &mut tokio::io::sink()).await.map(drop)
}

/// Passes the command's stderr on, and keeps the end of it.
async fn read_error(mut stderr: impl AsyncRead + Unpin, tail: &mut Vec<u8>, log: &Log) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        log.write(Out::Stderr(buffer[..count].to_vec()));
        tail.extend_from_slice(&buffer[..count]);
        let excess = tail.len().saturating_sub(ERROR_TAIL);
        tail.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn the_last_line_says_why() {
        let told = |text: &str| cause(&ExitStatus::from_raw(1 << 8), text);
        assert_eq!(told(" \n"), "exit status: 1");
        assert_eq!(told("no route\n"), "exit status: 1: no route");
        assert_eq!(
            told("Traceback:\n  line 3\nValueError: x\n"),
            "exit status: 1: ValueError: x\nTraceback:\n  line 3\nValueError: x"
        );
    }
}
