//! Files that are there wholly or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// Writes `content` to `path` by temp file, fsync, rename, and fsync of the directory.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let temp = path.with_extension("tmp");
    let mut file = File::create(&temp)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&temp, path)?;
    sync_parent(path)
}

/// Makes a rename, a creation or a removal in `path`'s directory durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        // A relative path of one part.
        Some(parent) if parent.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Fsyncs a directory.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Points the symbolic link `link` at `target` atomically and durably.
pub(crate) fn point(link: &Path, target: &str) -> io::Result<()> {
    let temp = link.with_extension("tmp");
    match std::fs::remove_file(&temp) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    std::os::unix::fs::symlink(target, &temp)?;
    std::fs::rename(&temp, link)?;
    sync_parent(link)
}

/// Fsyncs all files and directories below `dir`, and itself.
pub(crate) fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

/// Cuts all files below `dir` to nothing.
pub(crate) fn empty_tree(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            empty_tree(&entry.path())?;
        } else {
            File::options().write(true).truncate(true).open(entry.path())?;
        }
    }
    Ok(())
}

/// Opens what another process may have locked; says `WouldBlock` only when that lasts.
///
/// sled starts the command `sync` when it opens, and until that process has become it, it holds the
/// locks of all that this one has open or has just closed: a moment.
pub(crate) fn when_unlocked<R>(mut open: impl FnMut() -> io::Result<R>) -> io::Result<R> {
    const ATTEMPTS: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(10);
    for _ in 1..ATTEMPTS {
        match open() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            opened => return opened,
        }
    }
    open()
}
