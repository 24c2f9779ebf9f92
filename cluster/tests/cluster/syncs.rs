//! A disk that does not sync: nothing is acknowledged on it, the server says why and stops, and it is not tried again.
//! And disks that take long: who is slow is not dead.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use quorate_cluster::error::{Attempt, Code};
use quorate_cluster::node::ReadLevel;
use quorate_storage::state_machine::OVERLOADED_BYTES;

use crate::support::client::Client;
use crate::support::{Cluster, Options, PATIENCE, eventually, tally, throughout, within};

/// The directories whose files do not sync.
static BROKEN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// The directories whose files do not sync yet.
static HUNG: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
const EIO: c_int = 5;

#[expect(unsafe_code, reason = "a function of libc that std and rustix have no equal of")]
unsafe extern "C" {
    safe fn __errno_location() -> *mut c_int;
}

/// The linker takes these for libc's, so all of the process syncs through them: a disk that fails, without root.
#[expect(unsafe_code, reason = "a symbol that replaces libc's")]
#[unsafe(no_mangle)]
extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(fd)
}

/// The delta log's chunks are synced by the one, the tables by the other.
#[expect(unsafe_code, reason = "a symbol that replaces libc's")]
#[unsafe(no_mangle)]
extern "C" fn fsync(fd: c_int) -> c_int {
    sync(fd)
}

#[expect(
    unsafe_code,
    reason = "the caller's file, which it keeps open; the error number, which is the thread's own"
)]
fn sync(fd: c_int) -> c_int {
    let file = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
    while covers(&HUNG, &file) {
        std::thread::sleep(Duration::from_millis(5));
    }
    // rustix calls the kernel itself, not libc.
    let synced = match covers(&BROKEN, &file) {
        true => Err(EIO),
        false => rustix::fs::fsync(unsafe { BorrowedFd::borrow_raw(fd) }).map_err(|e| e.raw_os_error()),
    };
    let Err(error) = synced else { return 0 };
    unsafe { *__errno_location() = error };
    -1
}

fn covers(dirs: &Mutex<Vec<PathBuf>>, file: &Path) -> bool {
    dirs.lock().unwrap().iter().any(|dir| file.starts_with(dir))
}

fn breaks(dir: &Path) {
    BROKEN.lock().unwrap().push(dir.canonicalize().unwrap());
}

/// The syncs of these directories hang until this is dropped.
struct Hang(Vec<PathBuf>);

impl Hang {
    /// Of the servers' `part`: `log` or `state`.
    fn of(cluster: &Cluster, names: &[String], part: &str) -> Self {
        let dirs = names.iter().map(|name| cluster.dir(name).join(part).canonicalize().unwrap());
        let dirs: Vec<PathBuf> = dirs.collect();
        HUNG.lock().unwrap().extend(dirs.clone());
        Self(dirs)
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        HUNG.lock().unwrap().retain(|hung| !self.0.contains(hung));
    }
}

fn works(dir: &Path) {
    let dir = dir.canonicalize().unwrap();
    BROKEN.lock().unwrap().retain(|broken| *broken != dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_alone_whose_log_does_not_sync_acknowledges_nothing_and_says_why() {
    let cluster = Cluster::start_with(Options { servers: 1, ..Options::default() }).await;
    let node = cluster.node("S1");
    node.propose(tally::add("hits"), within(5000)).await.unwrap();
    let log = cluster.dir("S1").join("log");
    breaks(&log);
    let error = node.propose(tally::add("hits"), within(5000)).await.unwrap_err();
    assert_eq!(error.attempt, Attempt::Unknown, "{error:?}");
    let cause = tokio::time::timeout(PATIENCE, node.failed()).await.unwrap();
    assert!(cause.contains("Input/output error"), "{cause}");
    // The disk is well again, but it is not trusted: the kernel may have dropped what it could not write.
    works(&log);
    let error = node.propose(tally::add("hits"), within(5000)).await.unwrap_err();
    assert!(matches!(error.code, Code::Failed | Code::NoPrimary), "{error:?}");
    let error = node.read_point(ReadLevel::Linearizable, within(5000)).await.unwrap_err();
    assert_eq!((error.code, error.detail.contains("Input/output error")), (Code::Failed, true), "{error:?}");
    let error = node.state().flush().await.unwrap_err().to_string();
    assert!(error.contains("the delta log failed and takes no more writes"), "{error}");
    let error = node.state().flush().await.unwrap_err().to_string();
    assert!(error.contains("an earlier flush failed"), "{error}");
    drop(node);
    cluster.kill("S1").await;
    cluster.start("S1").await;
    eventually("it is ready", async || cluster.node("S1").ready()).await;
    let held = tally::held(&cluster.node("S1"), "hits");
    assert!((1..=2).contains(&held), "one is acknowledged, one unknown: {held}");
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_go_on_without_a_primary_whose_log_does_not_sync() {
    let cluster = Cluster::start_three().await;
    let mut client = Client::open(&cluster.nodes, "hits").await;
    client.add().await;
    let broken = cluster.primary().await;
    let log = cluster.dir(&broken).join("log");
    breaks(&log);
    client.add().await;
    let cause = tokio::time::timeout(PATIENCE, cluster.node(&broken).failed()).await.unwrap();
    assert!(cause.contains("Input/output error"), "{cause}");
    // Its process would end now.
    cluster.kill(&broken).await;
    cluster.primary().await;
    client.add().await;
    works(&log);
    cluster.start(&broken).await;
    eventually("it is ready again", async || cluster.node(&broken).ready()).await;
    cluster.converge().await;
    for node in cluster.nodes.all() {
        assert_eq!(tally::held(&node, "hits"), 3);
    }
    cluster.finish().await;
}

/// As when one disk carries them all. An election would not make it faster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_stays_while_all_disks_hang_and_reads_are_answered() {
    let cluster = Cluster::start_with(Options::patient()).await;
    let primary = cluster.primary().await;
    let term = cluster.status(&primary).term;
    let node = cluster.node(&primary);
    node.propose(tally::add("hits"), within(5000)).await.unwrap();
    let hang = Hang::of(&cluster, &cluster.names(), "log");
    let proposed = tokio::spawn({
        let node = node.clone();
        async move { node.propose(tally::add("hits"), within(20_000)).await }
    });
    // Longer than a lease and two election time-outs, and longer than a connection may be silent.
    let undisturbed = || cluster.names().iter().all(|name| cluster.status(name).term == term);
    throughout("the term stays while the disks hang", Duration::from_secs(6), undisturbed).await;
    for name in cluster.names() {
        let read = cluster.node(&name).read_point(ReadLevel::Linearizable, within(5000)).await;
        assert!(read.is_ok(), "{name}: {read:?}");
        assert!(!cluster.node(&name).ready(), "{name} says that its disk hangs");
    }
    assert!(!proposed.is_finished(), "acknowledged before it was on disk");
    drop(hang);
    proposed.await.unwrap().unwrap();
    assert_eq!(cluster.status(&primary).term, term);
    cluster.converge().await;
    assert_eq!(tally::held(&node, "hits"), 2);
    drop(node);
    cluster.finish().await;
}

/// The others acknowledge without it, and it would fill up with what it cannot flush.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_whose_disk_alone_hangs_hands_leadership_over() {
    let cluster = Cluster::start_three().await;
    let mut client = Client::open(&cluster.nodes, "hits").await;
    let hung = cluster.primary().await;
    let hang = Hang::of(&cluster, std::slice::from_ref(&hung), "log");
    let mut adds = 0;
    eventually("another leads", async || {
        client.add().await;
        adds += 1;
        let others = cluster.others(&hung);
        others.iter().any(|name| cluster.node(name).is_primary())
    })
    .await;
    drop(hang);
    eventually("it is ready again", async || cluster.node(&hung).ready()).await;
    cluster.converge().await;
    for node in cluster.nodes.all() {
        assert_eq!(tally::held(&node, "hits"), adds);
    }
    cluster.finish().await;
}

#[test]
fn the_sync_that_std_calls_is_ours() {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("file")).unwrap();
    file.sync_data().unwrap();
    breaks(dir.path());
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(EIO));
    works(dir.path());
    file.sync_data().unwrap();
}

/// Memory stays bounded: what is applied waits there for a flush.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_are_refused_while_a_flush_hangs_and_go_on_behind_it() {
    const TEXT: usize = 4 << 20;
    let cluster = Cluster::start_with(Options { servers: 1, ..Options::patient() }).await;
    let node = cluster.node("S1");
    let hang = Hang::of(&cluster, &cluster.names(), "state");
    let (mut written, mut refused) = (0, None);
    while refused.is_none() && written * TEXT < 2 * OVERLOADED_BYTES {
        refused = node.propose(tally::put(&format!("text{written}"), TEXT), within(20_000)).await.err();
        written += usize::from(refused.is_none());
    }
    let refused = refused.expect("nothing bounds what is dirty");
    assert_eq!((refused.code, refused.attempt), (Code::Overloaded, Attempt::NotApplied), "{refused:?}");
    assert!(refused.retry_after_ms.is_some() && refused.detail.contains("the disk"), "{refused:?}");
    assert!(written * TEXT >= OVERLOADED_BYTES - 2 * TEXT, "refused after {written} already");
    node.read_point(ReadLevel::Linearizable, within(5000)).await.unwrap();
    drop(hang);
    eventually("there is room again", async || node.propose(tally::add("hits"), within(5000)).await.is_ok())
        .await;
    drop(node);
    cluster.finish().await;
}
