//! A look at sled's own journal before sled reads it.
//!
//! sled (`=1.0.0-alpha.124`) keeps in `metadata/` one snapshot and the logs behind it, whose frames say
//! where each page lies. A frame that is damaged ends the journal for sled, without a word: what comes
//! then is an older flush over pages that later ones may have written over, and sled looks for its
//! pages for ever. So each flush records here how far the journal reached, and nothing is opened
//! whose journal is not whole up to there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::files;

/// The position's file, beside sled's own.
const FILE: &str = "position";
const DIR: &str = "metadata";

/// How far the journal reached when the last flush ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    /// The newest log's number.
    log: u64,
    /// Its length.
    bytes: u64,
}

impl Position {
    fn encode(self) -> Vec<u8> {
        let mut out = [self.log.to_le_bytes(), self.bytes.to_le_bytes()].concat();
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    fn decode(record: &[u8]) -> Option<Self> {
        let (log, rest) = record.split_first_chunk::<8>()?;
        let (bytes, crc) = rest.split_first_chunk::<8>()?;
        let whole = crc == crc32fast::hash(&record[..16]).to_le_bytes();
        whole.then_some(Self { log: u64::from_le_bytes(*log), bytes: u64::from_le_bytes(*bytes) })
    }
}

/// Records how far the journal of the store in `dir` reaches. Nobody writes to the store meanwhile.
///
/// # Errors
/// As the disk gives them.
pub(super) fn record(dir: &Path) -> io::Result<()> {
    let journal = Journal::find(dir)?;
    let Some((&log, file)) = journal.logs.last_key_value() else {
        return Err(io::Error::other("the table store has no journal"));
    };
    let position = Position { log, bytes: file.metadata()?.len() };
    files::write_atomically(&dir.join(FILE), &position.encode())
}

/// Whether `dir` holds a store.
///
/// # Errors
/// As the disk gives them.
pub(super) fn exists(dir: &Path) -> io::Result<bool> {
    dir.join(FILE).try_exists()
}

/// Checks the journal of the store in `dir`, and makes it ready for sled; a store that is not there
/// yet is well.
///
/// # Errors
/// `InvalidData` when a part of it is missing or damaged; `WouldBlock` when another process has it.
pub(super) fn make_ready(dir: &Path) -> io::Result<()> {
    if !dir.try_exists()? || std::fs::read_dir(dir)?.next().is_none() {
        return Ok(());
    }
    // The lock that sled takes: whoever has the store may be writing to its journal.
    let store = File::open(dir)?;
    store.try_lock()?;
    let record = match std::fs::read(dir.join(FILE)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(damaged(format!("{FILE} is missing"))),
        record => record?,
    };
    let position = Position::decode(&record).ok_or_else(|| damaged(format!("{FILE} is damaged")))?;
    let journal = Journal::find(dir)?;
    journal.check(position)?;
    journal.begin_log(dir)
}

/// The files of a journal.
struct Journal {
    snapshot: Option<(u64, PathBuf)>,
    /// The logs behind the snapshot, by number.
    logs: BTreeMap<u64, PathBuf>,
}

impl Journal {
    fn find(dir: &Path) -> io::Result<Self> {
        let mut snapshots = BTreeMap::new();
        let mut logs = BTreeMap::new();
        let entries = match std::fs::read_dir(dir.join(DIR)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(damaged(format!("{DIR}/ is missing")));
            }
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // A snapshot that is being written ends in something else and is not one yet.
            let number = |prefix| u64::from_str_radix(name.strip_prefix(prefix)?, 16).ok();
            if let Some(number) = number("snapshot_") {
                snapshots.insert(number, path);
            } else if let Some(number) = number("log_") {
                logs.insert(number, path);
            }
        }
        let snapshot = snapshots.pop_last();
        // A crash can leave logs that are in the snapshot already: sled sweeps them.
        let behind = snapshot.as_ref().map_or(0, |(number, _)| number + 1);
        Ok(Self { snapshot, logs: logs.split_off(&behind) })
    }

    /// Where there is no log behind the snapshot (a power cut took it before it was used), sled would
    /// write that snapshot anew under its own name, and then remove it as the old one.
    fn begin_log(&self, dir: &Path) -> io::Result<()> {
        let Some((number, _)) = self.snapshot.as_ref().filter(|_| self.logs.is_empty()) else {
            return Ok(());
        };
        let log = dir.join(DIR).join(format!("log_{:016x}", number + 1));
        File::create(&log)?.sync_all()?;
        files::sync_parent(&log)
    }

    fn check(&self, position: Position) -> io::Result<()> {
        let start = self.snapshot.as_ref().map_or(0, |(number, _)| *number);
        if let Some((_, file)) = &self.snapshot {
            let (whole, length) = whole_frames(file)?;
            if whole != length || length == 0 {
                return Err(damaged(format!("{} is damaged", file.display())));
            }
        }
        if !self.logs.keys().copied().eq((start + 1..).take(self.logs.len())) {
            return Err(damaged(format!("a file of {DIR}/ is missing")));
        }
        for (&number, file) in &self.logs {
            let (whole, length) = whole_frames(file)?;
            let newest = self.logs.last_key_value().is_some_and(|(&last, _)| last == number);
            let known = if number == position.log { position.bytes } else { 0 };
            // Only the newest can end in a frame that a crash left half written.
            if whole < known || (whole < length && !newest) {
                return Err(damaged(format!(
                    "{} is damaged at byte {whole} of {length}, or it was cut there",
                    file.display()
                )));
            }
        }
        if start < position.log && !self.logs.contains_key(&position.log) {
            return Err(damaged(format!("{DIR}/log_{:016x} is missing", position.log)));
        }
        Ok(())
    }
}

/// How many bytes of whole frames a file begins with, and its length.
///
/// A frame: 6 bytes of length, 2 of its CRC-32, the content, the CRC-32 of all that xor 0xAF.
fn whole_frames(path: &Path) -> io::Result<(u64, u64)> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    let mut rest = &bytes[..];
    while let Some(frame) = frame_length(rest) {
        rest = &rest[frame..];
    }
    Ok(((bytes.len() - rest.len()) as u64, bytes.len() as u64))
}

fn frame_length(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<8>()?;
    let length_crc = crc32fast::hash(&header[..6]) as u16;
    if header[6..] != length_crc.to_le_bytes() {
        return None;
    }
    let mut length = [0; 8];
    length[..6].copy_from_slice(&header[..6]);
    let content_end = usize::try_from(u64::from_le_bytes(length)).ok()?.checked_add(8)?;
    let crc = bytes.get(content_end..content_end.checked_add(4)?)?;
    let whole = crc == (crc32fast::hash(&bytes[..content_end]) ^ 0xAF).to_le_bytes();
    whole.then_some(content_end + 4)
}

fn damaged(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the table store's journal: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::base::{Base, FlushMeta};

    /// A store with one row, opened twice; its position is that of the first time.
    fn store(dir: &Path) {
        let base = Base::open(dir).unwrap();
        base.flush([(&b"row"[..], Some(&b"value"[..]))].into_iter(), &FlushMeta::default()).unwrap();
        drop(base);
        let position = std::fs::read(dir.join(FILE)).unwrap();
        drop(Base::open(dir).unwrap());
        std::fs::write(dir.join(FILE), position).unwrap();
    }

    fn row(base: &Base) -> Option<Vec<u8>> {
        base.with(b"row", |value| value.map(<[u8]>::to_vec)).unwrap()
    }

    #[test]
    fn a_store_whose_new_log_a_power_cut_took_is_opened_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path());
        let logs = Journal::find(dir.path()).unwrap().logs;
        assert_eq!(logs.len(), 1);
        logs.values().for_each(|log| std::fs::remove_file(log).unwrap());
        for _ in 0..3 {
            assert_eq!(row(&Base::open(dir.path()).unwrap()), Some(b"value".to_vec()));
        }
    }

    #[test]
    fn a_journal_that_ends_before_the_last_flush_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path());
        let base = Base::open(dir.path()).unwrap();
        base.flush([(&b"row"[..], Some(&b"other"[..]))].into_iter(), &FlushMeta::default()).unwrap();
        // What sled writes behind it when it is closed may be lost.
        let position = Position::decode(&std::fs::read(dir.path().join(FILE)).unwrap()).unwrap();
        drop(base);
        let logs = Journal::find(dir.path()).unwrap().logs;
        let log = &logs[&position.log];
        assert!(position.bytes > 0);
        for cut in [position.bytes - 1, 0] {
            File::options().write(true).open(log).unwrap().set_len(cut).unwrap();
            let refused = Base::open(dir.path()).map(|_| ()).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{refused}");
        }
        std::fs::remove_file(log).unwrap();
        assert!(Base::open(dir.path()).is_err());
        std::fs::write(dir.path().join(FILE), b"short").unwrap();
        assert!(Base::open(dir.path()).is_err());
    }

    #[test]
    fn a_store_in_use_is_told_to_be_and_not_called_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let _base = Base::open(dir.path()).unwrap();
        assert_eq!(Base::open(dir.path()).map(|_| ()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
