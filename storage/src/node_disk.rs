//! A server's directory: making it, opening it, and what to do when it cannot be opened.
//!
//! ```text
//! DIR/identity.json   who it is
//! DIR/log/            the delta log
//! DIR/state           -> state-N/, sled: tables and position, written by flushes only
//! DIR/snapshots/      files for peers and backups; nothing here is needed to start
//! DIR/incomplete      there while the directory is being made: it holds nothing yet
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use openraft::storage::{IOFlushed, RaftLogStorage};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::files;
use crate::identity::{Identity, IdentityError};
use crate::log::{DeltaLog, LogOptions, TornTail};
use crate::raft_types::{Entry, LogId, NodeInfo, Payload, log_id};
use crate::service::Registry;
use crate::state_machine::{Flushed, State};
use crate::tables::base::{Base, FlushMeta};

/// Why a directory cannot be used. The text names the cause and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The disk said no.
    #[error("{path}: {error}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the disk said.
        error: io::Error,
    },
    /// The directory has something in it already.
    #[error(
        "{0} is not empty: a new server needs an empty directory. Name another one, or start the server that \
         lives there with `quorate server --data {0}`"
    )]
    NotEmpty(PathBuf),
    /// The identity cannot be read.
    #[error("{path}: {error}. {REMEDY}")]
    Identity {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: IdentityError,
    },
    /// Another program made the directory.
    #[error(
        "{dir} belongs to a server with services that this program lacks: {lacks}. Start it with the program that made it"
    )]
    Services {
        /// The directory.
        dir: PathBuf,
        /// The services, with commas between.
        lacks: String,
    },
    /// The identity is there, the log or the state is not.
    #[error("{dir} has an identity but no {missing}/: part of the directory is lost. {REMEDY}")]
    Incomplete {
        /// The directory.
        dir: PathBuf,
        /// `log` or `state`.
        missing: &'static str,
    },
    /// Another process uses the directory.
    #[error("{0} is in use by another process: one directory serves one server. Stop that server first")]
    InUse(PathBuf),
    /// The log or the state is damaged.
    #[error("{path} is damaged: {cause}. Nothing was changed. {REMEDY}")]
    Damaged {
        /// What is damaged.
        path: PathBuf,
        /// How it was noticed.
        cause: String,
    },
}

const REMEDY: &str = "If the other servers of the cluster are well, let this one rejoin as a fresh replica: move \
                      the directory away and start the server with an empty one and --join";

/// An opened directory.
pub struct NodeDisk {
    /// Who the server is.
    pub identity: Identity,
    /// The delta log.
    pub log: DeltaLog,
    /// The tables, at their last flush.
    pub state: State,
    /// Tails of the log that a crash had left half written and that were cut.
    pub torn: Vec<TornTail>,
}

/// Makes the directory of a new server. `first` is the initial membership of a new cluster: the one
/// bootstrap there is; a server that joins brings none.
///
/// # Errors
/// [`DiskError`]; a directory that is not empty is left as it is.
pub async fn create(dir: &Path, identity: &Identity, first: Option<NodeInfo>) -> Result<(), DiskError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |error| DiskError::Io { path, error }
    };
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    sweep_incomplete(dir).map_err(io(dir))?;
    if !is_empty(dir).map_err(io(dir))? {
        return Err(DiskError::NotEmpty(dir.to_owned()));
    }
    files::sync_parent(dir).map_err(io(dir))?;
    // In place, not by a temporary file: what counts is that it is there, before anything else is.
    let marker = dir.join(INCOMPLETE);
    File::create(&marker).and_then(|file| file.sync_all()).map_err(io(&marker))?;
    files::sync_dir(dir).map_err(io(dir))?;

    let state = dir.join("state-1");
    Base::open(&state).and_then(|base| base.sync()).map_err(io(&state))?;
    files::point(&dir.join("state"), "state-1").map_err(io(&dir.join("state")))?;

    let log_dir = dir.join("log");
    write_first_entry(&log_dir, identity, first).await.map_err(io(&log_dir))?;

    identity.write(dir).map_err(io(dir))?;
    std::fs::remove_file(&marker).map_err(io(&marker))?;
    files::sync_dir(dir).map_err(io(dir))
}

/// The log of a new server: empty, or with the membership that makes a cluster of one.
async fn write_first_entry(dir: &Path, identity: &Identity, first: Option<NodeInfo>) -> io::Result<()> {
    let (mut log, _) = DeltaLog::open(dir, &LogOptions::default())?;
    if let Some(info) = first {
        let voters = vec![std::collections::BTreeSet::from([identity.node_id])];
        let nodes = std::collections::BTreeMap::from([(identity.node_id, info)]);
        let membership = openraft::Membership::new(voters, nodes).map_err(io::Error::other)?;
        // What openraft's `initialize` would write: index 0 of term 0, committed by the first leader.
        let entry = Entry { log_id: log_id(0, 0), payload: Payload::Membership(membership) };
        log.append([entry], IOFlushed::noop()).await?;
    }
    log.sync().await.map(|_| ())
}

const INCOMPLETE: &str = "incomplete";

/// Removes what an interrupted [`create`] left: without an identity it never took part in anything.
fn sweep_incomplete(dir: &Path) -> io::Result<()> {
    let marker = dir.join(INCOMPLETE);
    if !marker.try_exists()? || dir.join(crate::identity::FILE).try_exists()? {
        return Ok(());
    }
    for name in ["log", "state-1"] {
        ignore_absent(std::fs::remove_dir_all(dir.join(name)))?;
    }
    for name in ["state", "state.tmp", "identity.tmp", INCOMPLETE] {
        ignore_absent(std::fs::remove_file(dir.join(name)))?;
    }
    files::sync_dir(dir)
}

fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether there is nothing in `dir` that a server would miss; `lost+found` of a fresh mount does not count.
fn is_empty(dir: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        if entry?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a server lives in `dir`: an identity is there. False for an absent or empty directory.
///
/// # Errors
/// [`DiskError`] when the directory has something in it, but no identity.
pub fn inhabited(dir: &Path) -> Result<bool, DiskError> {
    let io = |error| DiskError::Io { path: dir.to_owned(), error };
    if !dir.try_exists().map_err(io)? {
        return Ok(false);
    }
    if dir.join(crate::identity::FILE).try_exists().map_err(io)? {
        return Ok(true);
    }
    sweep_incomplete(dir).map_err(io)?;
    if is_empty(dir).map_err(io)? { Ok(false) } else { Err(DiskError::NotEmpty(dir.to_owned())) }
}

/// Opens a server's directory. Must run within a tokio runtime.
///
/// # Errors
/// [`DiskError`]; nothing but a torn tail is changed.
pub fn open(dir: &Path, registry: Registry, options: &LogOptions) -> Result<NodeDisk, DiskError> {
    let identity = Identity::read(dir)
        .map_err(|error| DiskError::Identity { path: dir.to_owned(), error })?
        .ok_or_else(|| DiskError::NotEmpty(dir.to_owned()))?;
    let names = registry.names();
    let lacks: Vec<&str> =
        identity.services.iter().filter(|name| !names.contains(name)).map(String::as_str).collect();
    if !lacks.is_empty() {
        return Err(DiskError::Services { dir: dir.to_owned(), lacks: lacks.join(", ") });
    }
    let parts = [("log", DeltaLog::exists(&dir.join("log"))), ("state", Base::exists(&dir.join("state")))];
    for (missing, exists) in parts {
        if !exists.map_err(|error| DiskError::Io { path: dir.join(missing), error })? {
            return Err(DiskError::Incomplete { dir: dir.to_owned(), missing });
        }
    }
    ignore_absent(std::fs::remove_file(dir.join(INCOMPLETE)))
        .map_err(|error| DiskError::Io { path: dir.join(INCOMPLETE), error })?;
    // The tables first: their last flush knows how far the log must reach.
    let state_dir = dir.join("state");
    let flushed = Flushed::open(dir).map_err(|e| classify(dir, &state_dir, e))?;
    let log_dir = dir.join("log");
    let (log, torn) = DeltaLog::open_behind(&log_dir, options, &flushed.meta().mark)
        .map_err(|e| classify(dir, &log_dir, e))?;
    for tail in &torn {
        tracing::warn!(file = %tail.file.display(), bytes = tail.bytes, "cut a torn tail: a write that a crash left half done, never acknowledged");
    }
    check_joined(&log, flushed.meta()).map_err(|e| classify(dir, &state_dir, e))?;
    let state = State::new(dir, registry, log.clone(), flushed).map_err(|e| classify(dir, &state_dir, e))?;
    Ok(NodeDisk { identity, log, state, torn })
}

/// The log is purged up to the last flush at most: if it is purged further, a flush is lost.
fn check_joined(log: &DeltaLog, flush: &FlushMeta) -> io::Result<()> {
    let purged = log.purged();
    if purged <= flush.applied {
        return Ok(());
    }
    let show = |id: Option<LogId>| id.map_or("nothing".to_owned(), |id| format!("entry {id}"));
    let text = format!(
        "the tables hold what was applied up to {}, but the log is purged up to {}: a flush is lost",
        show(flush.applied),
        show(purged)
    );
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

fn classify(dir: &Path, path: &Path, error: io::Error) -> DiskError {
    let text = error.to_string();
    match error.kind() {
        io::ErrorKind::WouldBlock => DiskError::InUse(dir.to_owned()),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other => {
            DiskError::Damaged { path: path.to_owned(), cause: text }
        }
        _ => DiskError::Io { path: path.to_owned(), error },
    }
}

/// Bytes that are free for us on the file system of `dir`.
///
/// # Errors
/// As the system gives them.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Files that the log, the tables and the runtimes open themselves: about 100, and more for a flush or a snapshot.
const OWN_FILES: u64 = 160;

/// How many connections this process may have open, of all kinds: the system grants it as many files beside its own.
pub fn max_connections() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let (Some(now), most) = (limit.current, limit.maximum) else { return usize::MAX };
    let raised = Rlimit { current: most, maximum: most };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => most.unwrap_or(u64::MAX),
        Err(_) => now,
    };
    usize::try_from(limit.saturating_sub(OWN_FILES)).unwrap_or(usize::MAX)
}
