//! Where a chat's lines come from, and how it ends with them: a pipe, and a terminal.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Stdio};

use rustix::io::ioctl_fionread;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;

use crate::support::{self, Cluster};
use crate::{Talker, ended};

fn terminate(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, Signal::TERM).expect("a signal to a child of ours");
}

/// Types `lines` into `quorate chat` from a file, whose end comes at once.
async fn pipe(cluster: &Cluster, dir: &Path, name: &str, lines: &str) -> support::cli::Run {
    let (typed, servers) = (dir.join("typed"), cluster.urls().join(","));
    fs::write(&typed, lines).expect("a file");
    let mut command = support::cli::quorate_command();
    command.args(["chat", "--name", name, "--servers", &servers, "--timeout", "30s", "--cursor"]);
    command.arg(dir.join(name)).stdin(fs::File::open(&typed).expect("the file"));
    support::cli::run_with_stdin(command).await
}

#[tokio::test]
async fn a_pipe_ends_when_all_was_shown() {
    let cluster = Cluster::start(3).await;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    pipe(&cluster, dir.path(), "ada", "").await.expect(0);
    let mut said = String::new();
    for number in 1..=20 {
        let own = pipe(&cluster, dir.path(), "bob", &format!("message {number}\n")).await.expect(0);
        let shown = format!("[{number}] bob: message {number}\n");
        assert_eq!(own.stdout, shown, "{own:?}");
        said += &shown;
    }
    let missed = pipe(&cluster, dir.path(), "ada", "").await.expect(0);
    assert_eq!(missed.stdout, said, "{missed:?}");
    // And nothing twice; what is not there is said to be not there.
    let again = pipe(&cluster, dir.path(), "ada", "/history cleo\n").await.expect(0);
    assert_eq!(again.stdout, "", "{again:?}");
    assert!(again.stderr.contains("there are no messages from or to cleo"), "{again:?}");
    let mistake = pipe(&cluster, dir.path(), "ada", "/history 0\n").await.expect(1);
    assert!(mistake.stderr.contains("N is a number from 1 on"), "{mistake:?}");
    // Nothing is written under a name that is none.
    let strange = pipe(&cluster, dir.path(), "../../evil", "hi\n").await.expect(2);
    assert!(strange.stderr.contains("is no name of an account"), "{strange:?}");
    // What is too long is not sent, and the rest is.
    for bytes in [4_097, 20_000] {
        let long = pipe(&cluster, dir.path(), "cleo", &format!("{}\n/list [ac]\n", "x".repeat(bytes))).await;
        let long = long.expect(1);
        assert!(long.stderr.contains("send it in parts"), "{long:?}");
        assert_eq!(long.stdout, "ada\ncleo (online)\n", "{long:?}");
    }
    // A crash while a message was shown: that one comes again, and is marked.
    let client = cluster.client().build().expect("a client");
    let id = client.cluster().await.expect("an answer").cluster_id.as_str().expect("an id").to_owned();
    fs::write(dir.path().join("phone"), format!("{:020}\n{:020}\n{id} ada phone\n", 20, 19)).expect("a file");
    let mut command = support::cli::quorate_command();
    command.args(["chat", "--name", "ada", "--device", "phone", "--servers", &cluster.urls().join(",")]);
    command.arg("--cursor").arg(dir.path().join("phone")).stdin(Stdio::null());
    let again = support::cli::run_with_stdin(command).await.expect(0);
    assert_eq!(again.stdout, "[20] bob: message 20  (repeated)\n", "{again:?}");
}

/// A pipe that is ended from outside says what was not said.
#[tokio::test]
async fn an_ended_pipe_says_what_was_left() {
    let cluster = Cluster::start(1).await;
    let mut ada = Talker::start(&cluster, "ada").await;
    cluster.kill9("S1");
    for number in 0..5 {
        ada.types(&format!("nobody hears {number}"));
    }
    // It reads them while the first one is under way.
    cluster
        .until("it has read them", async || {
            let stdin = ada.child.as_ref().and_then(|child| child.stdin.as_ref()).expect("it runs");
            match ioctl_fionread(stdin).expect("the pipe can be asked") {
                0 => Ok(()),
                left => Err(format!("{left} bytes are left")),
            }
        })
        .await;
    let mut child = ada.child.take().expect("it runs");
    terminate(&child);
    let code = ended(&cluster, &mut child).await;
    let noted = fs::read_to_string(ada.file(ada.runs, "err")).expect("its notes");
    assert!(noted.contains("what was left of its input was not said"), "{noted}");
    // The first one may have to wait for a mark that is under way.
    let is_unknown = noted.contains("`nobody hears 0`: outcome unknown");
    assert_eq!(code, Some(if is_unknown { 3 } else { 1 }), "{noted}");
}

/// Whatever ends a chat at a terminal: keys are read a line at a time again, and shown.
#[tokio::test]
async fn a_terminal_is_left_as_it_was() {
    let cluster = Cluster::start(1).await;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    for (end, code) in [("/logout\r", 0), ("\u{4}", 0), ("/delete ada\r", 0), ("", 0)] {
        let typist = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&typist).and_then(|()| unlockpt(&typist)).expect("a terminal");
        let path = ptsname(&typist, Vec::new()).expect("its name");
        let open = || {
            let file = fs::OpenOptions::new().read(true).write(true).open(path.to_str().expect("a path"));
            file.expect("the terminal")
        };
        let terminal = open();
        let before = tcgetattr(&terminal).expect("its settings").local_modes;
        let mut command = support::cli::quorate_command();
        command.args(["chat", "--name", "ada", "--servers", &cluster.urls().join(","), "--cursor"]);
        command.arg(dir.path().join("cursor")).env("TERM", "xterm");
        command.stdin(open()).stdout(open()).stderr(open());
        let mut child = command.spawn().expect("quorate can be run");
        // What it prints has to go somewhere.
        let mut typist = fs::File::from(typist);
        let mut reader = typist.try_clone().expect("a file");
        std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        cluster
            .until("it takes keys", async || {
                match tcgetattr(&terminal).map_err(|e| e.to_string())?.local_modes {
                    modes if modes == before => Err("it does not yet".to_owned()),
                    _ => Ok(()),
                }
            })
            .await;
        typist.write_all(end.as_bytes()).expect("it is typed");
        if end.is_empty() {
            terminate(&child);
        }
        assert_eq!(ended(&cluster, &mut child).await, Some(code), "after {end:?}");
        assert_eq!(tcgetattr(&terminal).expect("its settings").local_modes, before, "after {end:?}");
    }
}
