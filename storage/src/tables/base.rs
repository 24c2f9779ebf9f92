//! The sled tree below the overlay: what the last flush wrote.
//!
//! One tree holds the rows and one row for [`FlushMeta`], because sled's atomic batch is per tree. It is
//! sled's default tree: the names of others are read while sled opens, and where such a page is damaged,
//! sled waits for itself for ever.

use std::cell::Cell;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Once;

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::delta::Millis;
use crate::files;
use crate::log::LogMark;
use crate::raft_types::{LogId, StoredMembership};
use crate::tables::journal;

/// Sorts before every namespace, which starts with a letter.
const META_ROW: &[u8] = &[0];
const LEAF_FANOUT: usize = 1024;

/// sled's default is 512 MiB per store.
const CACHE_BYTES: usize = 64 << 20;

/// The position of a flush. Written in the same atomic batch as the rows of that revision.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FlushMeta {
    /// The last log id whose entry the rows contain.
    pub applied: Option<LogId>,
    /// The membership as of `applied`.
    pub membership: StoredMembership,
    /// The last revision that the rows contain.
    pub revision: u64,
    /// The logged time as of `revision`.
    pub time: Millis,
    /// The sum of the rows' hashes: equal revision, equal hash, on every replica.
    pub hash: u128,
    /// How far the log on disk reached at the time: a log that now ends earlier has lost something.
    pub mark: LogMark,
}

/// Rows by key, durable as of the last batch. A clone is a handle to the same store; sled's handles are
/// `Send` but not `Sync`, so each thread has its own.
#[derive(Clone)]
pub struct Base {
    dir: PathBuf,
    db: sled::Db<LEAF_FANOUT>,
}

impl Base {
    /// Opens or creates the tree in `dir`.
    ///
    /// # Errors
    /// When sled cannot open it: damage, or another process has it.
    pub fn open(dir: &Path) -> io::Result<Self> {
        files::when_unlocked(|| Self::open_once(dir))
    }

    fn open_once(dir: &Path) -> io::Result<Self> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity_bytes(CACHE_BYTES)
            // Never: flushes alone decide what is durable. With `None`, whose name says it, sled flushes whenever a handle is
            // dropped, those in iterators too: each scan would wait for the disk, or for the flush that is running.
            .flush_every_ms(Some(usize::MAX))
            .zstd_compression_level(1);
        silence_caught_panics();
        journal::make_ready(dir)?;
        // sled asserts on some kinds of damage instead of returning an error.
        let db = catching("open", || config.open::<LEAF_FANOUT>())?;
        let base = Self { dir: dir.to_owned(), db };
        base.try_to("open", |_| {
            // sled does not sync its settings file when it makes a store: a power cut would leave it empty,
            // and the store could not be opened any more.
            files::sync_tree(dir)?;
            journal::record(dir)
        })?;
        Ok(base)
    }

    /// Whether `dir` holds a store: not just a directory for it.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn exists(dir: &Path) -> io::Result<bool> {
        journal::exists(dir)
    }

    /// The last flush, or `None` in a new store.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn meta(&self) -> io::Result<Option<FlushMeta>> {
        let row = self.try_to("read", |db| db.get(META_ROW))?;
        row.map(|row| codec::decode(&row).map_err(|e| damaged(format!("the flush's position: {e}"))))
            .transpose()
    }

    /// Calls `f` with the value at `key`.
    ///
    /// # Errors
    /// When the page that holds it cannot be read.
    pub fn with<R>(&self, key: &[u8], f: impl FnOnce(Option<&[u8]>) -> R) -> io::Result<R> {
        let value = self.try_to("read", |db| db.get(key))?;
        Ok(f(value.as_deref()))
    }

    /// The rows within the bounds, in key order, the flush's position excluded.
    pub fn range(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
    ) -> impl Iterator<Item = io::Result<(sled::InlineArray, sled::InlineArray)>> {
        let from = match from {
            Bound::Unbounded => Bound::Excluded(META_ROW),
            bounded => bounded,
        };
        // sled looks at all rows behind an upper bound, to the end of the tree, to find that none is within.
        let mut rows = Some(self.db.range::<&[u8], _>((from, Bound::Unbounded)));
        let to = to.map(<[u8]>::to_vec);
        let behind = move |key: &[u8]| match &to {
            Bound::Included(last) => key > &last[..],
            Bound::Excluded(end) => key >= &end[..],
            Bound::Unbounded => false,
        };
        std::iter::from_fn(move || {
            let next = catching("read", || rows.as_mut().and_then(Iterator::next).transpose());
            match next {
                Ok(Some((key, _))) if behind(&key) => {
                    rows = None;
                    None
                }
                Err(_) => {
                    // It is a handle too: see `try_to`.
                    std::mem::forget(rows.take());
                    next.transpose()
                }
                Ok(_) => next.transpose(),
            }
        })
    }

    /// Writes `changes` (a new value by key, or `None` for a removal) and `meta` as one atomic batch, and makes it durable.
    ///
    /// # Errors
    /// When the batch cannot be written or synced. It is never retried: the node stops.
    pub fn flush<'a, K: AsRef<[u8]>>(
        &self,
        changes: impl Iterator<Item = (K, Option<&'a [u8]>)>,
        meta: &FlushMeta,
    ) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key.as_ref(), value),
                None => batch.remove(key.as_ref()),
            }
        }
        batch.insert(META_ROW, codec::encode(meta));
        self.try_to("write", |db| db.apply_batch(batch))?;
        self.sync()
    }

    /// Writes rows without making them durable: for filling a store that nobody reads yet.
    ///
    /// # Errors
    /// When sled cannot write.
    pub fn fill<'a>(&self, rows: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for (key, value) in rows {
            batch.insert(key, value);
        }
        self.try_to("write", |db| db.apply_batch(batch))
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// When the sync fails.
    pub fn sync(&self) -> io::Result<()> {
        self.try_to("sync", |db| {
            // What this replaces on disk is free again when the handle that flushed is gone and two flushes, of nothing, have
            // followed. Without them the files grow by a copy of each page that is written again.
            db.clone().flush()?;
            db.flush()?;
            db.flush()?;
            journal::record(&self.dir)
        })
    }

    /// Ends sled, which writes once more: it puts pages together. Should the disk not take them, nothing is lost.
    pub fn close(self) {
        if let Err(error) = self.try_to("close", |db| db.flush().map(|_| ())) {
            tracing::warn!(%error, dir = %self.dir.display(), "tables are not tidied up before they are closed");
        }
    }

    /// Calls sled. After a failure it must not end: it would flush once more, and abort the process, or wait for ever for the
    /// flush that failed. So its memory and open files stay until the process ends.
    fn try_to<R>(
        &self,
        what: &str,
        call: impl FnOnce(&sled::Db<LEAF_FANOUT>) -> io::Result<R>,
    ) -> io::Result<R> {
        catching(what, || call(&self.db)).inspect_err(|_| std::mem::forget(self.db.clone()))
    }

    /// Gives up a store that could not be written, and its room on the disk.
    pub fn abandon(self) {
        // Removed alone, the files would keep their room for as long as sled has them open.
        if let Err(e) = files::empty_tree(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), error = %e, "the room of tables that were given up stays taken until the next start");
        }
        // See `try_to`: what failed need not have been sled's part.
        std::mem::forget(self);
    }
}

thread_local! {
    /// A sled call is running on this thread, whose panics become errors.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// The error says it all: a panic's own message would only frighten.
fn silence_caught_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !CATCHING.try_with(Cell::get).unwrap_or(false) {
                before(panic);
            }
        }));
    });
}

/// Runs a sled call; a panic inside (sled asserts on damage) becomes an error.
fn catching<R>(what: &str, call: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
    let before = CATCHING.replace(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    CATCHING.set(before);
    match result {
        Ok(result) => result,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(damaged(format!("the table store failed to {what}: {text}")))
        }
    }
}

fn damaged(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use std::ops::Bound::Unbounded;
    use std::process::Command;

    use super::*;

    fn keys(base: &Base) -> Vec<Vec<u8>> {
        base.range(Unbounded, Unbounded).map(|row| row.unwrap().0.to_vec()).collect()
    }

    /// It would wait for the disk, and for a flush that runs, while the state is locked.
    #[test]
    fn a_scan_flushes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let [tables, copy] = ["tables", "copy"].map(|name| dir.path().join(name));
        let base = Base::open(&tables).unwrap();
        base.flush([(b"flushed", Some(b"1".as_slice()))].into_iter(), &FlushMeta::default()).unwrap();
        base.fill([(b"filled".as_slice(), b"2".as_slice())].into_iter()).unwrap();
        assert_eq!(keys(&base), [b"filled".to_vec(), b"flushed".to_vec()]);
        drop(base.clone());
        // As a power cut would leave it.
        assert!(Command::new("cp").arg("-r").args([&tables, &copy]).status().unwrap().success());
        assert_eq!(keys(&Base::open(&copy).unwrap()), [b"flushed".to_vec()]);
    }

    #[test]
    fn pages_that_are_written_again_and_again_take_no_more_room() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base::open(dir.path()).unwrap();
        let mut noise = 1u64;
        let mut byte = || {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (noise >> 56) as u8
        };
        let values: Vec<Vec<u8>> = (0..32).map(|_| (0..64 << 10).map(|_| byte()).collect()).collect();
        let rows = values.iter().enumerate().map(|(n, value)| (vec![1, n as u8], Some(value.as_slice())));
        base.flush(rows, &FlushMeta::default()).unwrap();
        let once = size(dir.path());
        assert!(once > 2 << 20, "{once}");
        for n in 0..30u8 {
            base.clone().flush([([2, n], Some(b"1".as_slice()))].into_iter(), &FlushMeta::default()).unwrap();
            assert!(size(dir.path()) < once * 7 / 2, "{once}, and {} after {n}", size(dir.path()));
        }
    }

    fn size(dir: &Path) -> u64 {
        let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
        let sizes = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
            true => size(&entry.path()),
            false => entry.metadata().unwrap().len(),
        });
        sizes.sum()
    }
}
