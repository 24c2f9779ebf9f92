//! What the benches share: a directory on a real disk.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A directory of this bench's own below `target/`, removed when dropped.
///
/// # Panics
/// When `target/` lies on a file system in memory: a sync costs nothing there, so the figures would be false.
pub(crate) fn disk_dir(bench: &str) -> TempDir {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let dir = tempfile::Builder::new()
        .prefix(&format!("bench-{bench}-"))
        .tempdir_in(parent)
        .expect("a directory below target/");
    let kind = Command::new("stat")
        .args(["-f", "-c", "%T"])
        .arg(dir.path())
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .expect("stat, of coreutils");
    assert!(
        !matches!(kind.as_str(), "tmpfs" | "ramfs"),
        "{} is on {kind}, where a sync costs nothing: set CARGO_TARGET_DIR to a directory on a disk",
        parent.display()
    );
    dir
}
