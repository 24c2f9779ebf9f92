//! One server process: its ports, its directory, its log, and the signals it gets.

use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;

/// Lines of a server's log that a failure shows.
const TAIL: usize = 25;
/// Below the range that the kernel takes for outgoing connections: a port of a server that is down for a while
/// must not be somebody's when it comes back.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// A port of 127.0.0.1 that is this test's alone: the lock on its file keeps the other tests off it.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    /// Where: another machine's, when the process runs in a namespace.
    pub(crate) host: String,
    _lock: File,
}

impl Port {
    pub(crate) fn reserve() -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ports");
        fs::create_dir_all(&dir).expect("a directory for the ports' locks");
        for _ in 0..1_000 {
            let number = rand::random_range(PORTS);
            let lock = File::create(dir.join(number.to_string())).expect("a port's lock file");
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self { number, host: "127.0.0.1".to_owned(), _lock: lock };
            }
        }
        panic!("no free port in {PORTS:?} after 1,000 attempts");
    }

    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.host, self.number)
    }
}

/// A server that can be killed and started again, with its name, ports and directory as they were.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) listen: Port,
    pub(crate) peer: Port,
    pub(crate) data: PathBuf,
    /// The URL that the server tells others, when it is not that of `listen`.
    pub(crate) advertise: Option<String>,
    /// What is run.
    pub(crate) program: PathBuf,
    /// How many files the process may open, when that is to be few.
    pub(crate) file_limit: Option<u32>,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Server {
    pub(crate) fn new(name: &str, dir: &Path) -> Self {
        Self {
            name: name.to_owned(),
            listen: Port::reserve(),
            peer: Port::reserve(),
            data: dir.join(name),
            advertise: None,
            program: env!("CARGO_BIN_EXE_quorate").into(),
            file_limit: None,
            log: dir.join(format!("{name}.log")),
            child: Mutex::new(None),
        }
    }

    /// To another machine.
    pub(crate) fn move_to(&mut self, host: String) {
        self.listen.host.clone_from(&host);
        self.peer.host = host;
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.listen.address())
    }

    /// The flags that say who and where the server is.
    pub(crate) fn identity(&self) -> Vec<String> {
        let data = self.data.display().to_string();
        let (listen, peer) = (self.listen.address(), self.peer.address());
        let pairs =
            [("--name", self.name.clone()), ("--data", data), ("--listen", listen), ("--peer-listen", peer)];
        let advertise = self.advertise.clone().map(|url| ("--advertise", url));
        let flags = pairs.into_iter().chain(advertise);
        flags.flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    fn command(&self, words: &[&str]) -> Command {
        let log =
            OpenOptions::new().create(true).append(true).open(&self.log).expect("the server's log file");
        let mut command = match self.file_limit {
            None => Command::new(&self.program),
            Some(files) => {
                let script = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
                let mut shell = Command::new("sh");
                shell.args(["-c", &script]).arg(&self.program);
                shell
            }
        };
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("QUORATE_")) {
            // What the tester's shell says to `quorate` is not meant for these servers.
            command.env_remove(key);
        }
        command.args(words).args(self.identity()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("the log file twice")).stderr(log);
        command
    }

    /// `quorate cluster init`.
    pub(crate) fn init(&self) {
        let status = self.command(&["cluster", "init"]).status().expect("quorate can be run");
        assert!(status.success(), "`quorate cluster init` ended with {status}:\n{}", self.tail());
    }

    pub(crate) fn start(&self, join: &str, flags: &[String]) {
        let mut child = self.child.lock().expect("the child's lock");
        assert!(child.is_none(), "{} runs already", self.name);
        let mut command = self.command(&["server"]);
        if !join.is_empty() {
            command.args(["--join", join]);
        }
        *child = Some(command.args(flags).spawn().expect("quorate can be run"));
    }

    pub(crate) fn runs(&self) -> bool {
        self.child.lock().expect("the child's lock").is_some()
    }

    /// Its process, while it runs.
    pub(crate) fn pid(&self) -> u32 {
        let child = self.child.lock().expect("the child's lock");
        child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)).id()
    }

    /// SIGKILL; returns when the process is gone.
    pub(crate) fn kill9(&self) {
        if let Some(mut child) = self.child.lock().expect("the child's lock").take() {
            child.kill().expect("SIGKILL to a child of ours");
            child.wait().expect("the end of a child of ours");
        }
    }

    /// Sends a signal by its name: STOP, CONT, TERM.
    pub(crate) fn signal(&self, signal: &str) {
        let child = self.child.lock().expect("the child's lock");
        let pid = child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)).id();
        let script = format!("kill -{signal} {pid}");
        let status = Command::new("sh").args(["-c", &script]).status().expect("sh can be run");
        assert!(status.success(), "`{script}` failed for {}", self.name);
    }

    /// How the process ended, if it has.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().expect("the child's lock");
        let status = child.as_mut()?.try_wait().expect("the state of a child of ours");
        if status.is_some() {
            *child = None;
        }
        status
    }

    /// The whole log, of all runs.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The log's last lines.
    pub(crate) fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(TAIL)..];
        format!("--- {} ({}), its last lines:\n{}\n", self.name, self.url(), shown.join("\n"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill9();
    }
}
