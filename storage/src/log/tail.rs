//! Where the log ends, told before anything is changed.
//!
//! raft-log cuts a torn tail while it opens: afterwards it is too late to find that what was cut had
//! been acknowledged. So the newest file is read once before, by the same decoder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use codeq::Decode;
use raft_log::chunked_wal::Config;
use raft_log::{RaftWalTypes, WALRecord};

use super::open::TornTail;
use super::records::WalTypes;

/// The log's files, oldest first (their names are byte positions of one width), and their sizes.
pub(super) type Files = BTreeMap<PathBuf, u64>;

pub(super) fn files(dir: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if start_of(&entry.path()).is_some() {
            files.insert(entry.path(), entry.metadata()?.len());
        }
    }
    Ok(files)
}

/// The log's byte at which a file begins, from its name; `None` for what is no file of a log.
fn start_of(file: &Path) -> Option<u64> {
    Config::parse_chunk_file_name(file.file_name()?.to_str()?).ok()
}

/// Where the intact log ends, and what follows there.
pub(super) struct Tail {
    /// The byte at which the intact records end, counted since the log was made.
    pub(super) end: u64,
    /// Files with a torn tail, newest first, and how many bytes each begins with that are whole. The
    /// last of them has some; those after it were being begun.
    torn: Vec<(PathBuf, u64)>,
}

/// Finds the log's end.
///
/// # Errors
/// `InvalidData` when the newest file is damaged before its tail.
pub(super) fn find(files: &Files) -> io::Result<Tail> {
    let mut torn = Vec::new();
    for (file, &length) in files.iter().rev() {
        let intact = intact(file, length)?;
        if intact < length || intact == 0 {
            torn.push((file.clone(), intact));
        }
        if intact > 0 {
            check_joined(files, file)?;
            return Ok(Tail { end: start_of(file).unwrap_or(0) + intact, torn });
        }
    }
    match files.first_key_value() {
        None => Ok(Tail { end: 0, torn }),
        // Each file is synced before the next is written to, and a new log before it is used.
        Some((oldest, _)) => Err(damaged(format!("the beginning of {} cannot be read", oldest.display()))),
    }
}

/// Up to `last`, each file begins where the one before ends. raft-log checks that too, but panics at
/// an empty one.
fn check_joined(files: &Files, last: &Path) -> io::Result<()> {
    for ((file, length), next) in
        files.iter().zip(files.keys().skip(1)).take_while(|(_, next)| next.as_path() <= last)
    {
        let (Some(start), Some(end)) = (start_of(file), start_of(next)) else { continue };
        if start + length != end {
            return Err(damaged(format!(
                "{} ends at byte {}, but the next file begins at byte {end}: a part is missing",
                file.display(),
                start + length
            )));
        }
    }
    Ok(())
}

impl Tail {
    /// Cuts what is torn, durably. The caller holds the log's lock.
    pub(super) fn cut(self, dir: &Path, files: &Files) -> io::Result<Vec<TornTail>> {
        let mut cut = Vec::new();
        for (file, intact) in self.torn {
            let bytes = files.get(&file).map_or(0, |length| length - intact);
            if intact == 0 {
                std::fs::remove_file(&file)?;
            } else {
                let file = File::options().write(true).open(&file)?;
                file.set_len(intact)?;
                file.sync_all()?;
            }
            if bytes > 0 {
                cut.push(TornTail { file, bytes });
            }
        }
        File::open(dir)?.sync_all()?;
        Ok(cut)
    }
}

/// How many bytes of whole records `path` begins with, when what follows is a torn tail: it ends
/// before its record does, or its record runs into zeros that go on to the file's end.
fn intact(path: &Path, length: u64) -> io::Result<u64> {
    let mut reader = Counting { inner: BufReader::with_capacity(1 << 20, File::open(path)?), count: 0 };
    let mut end = 0;
    while end < length {
        match WALRecord::<RaftWalTypes<WalTypes>>::decode(&mut reader) {
            Ok(_) => end = reader.count,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(_) if runs_into_zeros(path, end, reader.count)? => break,
            Err(e) => return Err(damaged(format!("{}, byte {end}: {e}", path.display()))),
        }
    }
    Ok(end)
}

/// A file's length can reach the disk before its bytes do: then its last blocks are zeros. Whether
/// the record that begins at `from` and was read up to `to` reaches into such blocks.
fn runs_into_zeros(path: &Path, from: u64, to: u64) -> io::Result<bool> {
    /// The smallest that a disk writes.
    const SECTOR: u64 = 512;
    let mut file = BufReader::with_capacity(64 << 10, File::open(path)?);
    file.seek(SeekFrom::Start(from))?;
    let mut buffer = [0; 4096];
    let (mut at, mut zeros) = (from, from);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => {
                if let Some(last) = buffer[..n].iter().rposition(|&byte| byte != 0) {
                    zeros = at + last as u64 + 1;
                }
                at += n as u64;
            }
        }
    }
    Ok(zeros == from || zeros.next_multiple_of(SECTOR) < to)
}

struct Counting<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count += n as u64;
        Ok(n)
    }
}

pub(super) fn damaged(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
