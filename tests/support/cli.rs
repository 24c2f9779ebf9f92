//! The command line as a user runs it: what it printed and how it ended.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

/// No command of the tests takes longer: the longest is a promotion that waits for a dead learner.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// What a run of `quorate` came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Fails the test unless it ended with `code`.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Its stdout as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{self:?} is not JSON: {e}"))
    }
}

/// Runs `quorate` with `words`, nothing on its stdin, and nothing of the tester's settings.
pub(crate) async fn quorate<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>) -> Run {
    with_environment(words, &[]).await
}

/// The same, with variables.
pub(crate) async fn with_environment<W: AsRef<OsStr>>(
    words: impl IntoIterator<Item = W>,
    variables: &[(&str, &str)],
) -> Run {
    let mut command = quorate_command();
    command.args(words).envs(variables.iter().copied());
    run(command).await
}

/// `quorate`, with nothing of the tester's settings.
pub(crate) fn quorate_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("QUORATE_")) {
        command.env_remove(key);
    }
    command
}

/// Runs any command to its end, with nothing on its stdin, and kills it when that does not come.
pub(crate) async fn run(mut command: Command) -> Run {
    command.stdin(Stdio::null());
    run_with_stdin(command).await
}

/// The same, with the stdin that it has.
pub(crate) async fn run_with_stdin(mut command: Command) -> Run {
    let shown = format!("{command:?}");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{shown}: {e}"));
    // Read while it runs, or a long output would stop it.
    let stdout = spawn_blocking(reader(child.stdout.take().expect("a pipe")));
    let stderr = spawn_blocking(reader(child.stderr.take().expect("a pipe")));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("the state of a child of ours") {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().expect("SIGKILL to a child of ours");
            child.wait().expect("the end of a child of ours");
            panic!("{shown} has not ended within {PATIENCE:?}");
        }
        tokio::time::sleep(POLL).await;
    };
    let code = status.code().unwrap_or_else(|| panic!("{shown} ended with {status}"));
    let (stdout, stderr) = (stdout.await.expect("a reader"), stderr.await.expect("a reader"));
    Run { code, stdout, stderr }
}

fn reader(mut pipe: impl Read + Send + 'static) -> impl FnOnce() -> String + Send + 'static {
    move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).expect("quorate prints UTF-8");
        text
    }
}
