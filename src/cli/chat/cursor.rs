//! What a device has shown, in a small file of its own: written before a message is shown, and after.
//!
//! A crash between the two shows one message again, and that one is known. What ends is this process, not the machine, so
//! nothing is synced.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Two numbers of this width, each with a newline: one write.
const WIDTH: usize = 20;

#[derive(Debug)]
pub(super) struct Cursor {
    file: File,
    /// Cluster, account and device: elsewhere the same numbers mean other messages.
    whose: String,
    showing: u64,
    shown: u64,
}

impl Cursor {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// When it cannot be read or made, is another program's, or is held by another process.
    pub(super) fn open(path: &Path, whose: &str) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.try_lock().map_err(|_| {
            io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another chat on this machine uses it; a second one takes --device",
            )
        })?;
        let text = io::read_to_string(&file)?;
        let lines: Vec<&str> = text.lines().collect();
        let (showing, shown) = match lines[..] {
            [] => (0, 0),
            [showing, shown, known] if known == whose => match (showing.parse(), shown.parse()) {
                (Ok(showing), Ok(shown)) => (showing, shown),
                _ => return Err(invalid("it is damaged; delete it, and messages may be shown again")),
            },
            [_, _, known] => {
                return Err(invalid(&format!(
                    "it is that of {known}, not of {whose}; name another file with --cursor"
                )));
            }
            _ => return Err(invalid("it holds something else; name another file with --cursor")),
        };
        Ok(Self { file, whose: whose.to_owned(), showing, shown })
    }

    /// The message behind which to go on, and the one that may have been shown already. `delivered`: what the cluster
    /// knows to have been shown.
    pub(super) fn resume(&self, delivered: u64) -> (u64, Option<u64>) {
        let after = self.shown.max(delivered);
        (after, Some(self.showing).filter(|showing| *showing > after))
    }

    /// A message is about to be shown.
    pub(super) fn showing(&mut self, number: u64) -> io::Result<()> {
        self.showing = number;
        self.write()
    }

    /// It has been.
    pub(super) fn shown_up_to(&mut self, number: u64) -> io::Result<()> {
        self.shown = number;
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        let text = format!("{:0WIDTH$}\n{:0WIDTH$}\n{}\n", self.showing, self.shown, self.whose);
        self.file.write_all_at(text.as_bytes(), 0)
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_crash_while_a_message_is_shown_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ada");
        let mut cursor = Cursor::open(&path, "c ada default").unwrap();
        assert_eq!(cursor.resume(3), (3, None));
        cursor.showing(4).unwrap();
        cursor.shown_up_to(4).unwrap();
        cursor.showing(7).unwrap();
        assert!(Cursor::open(&path, "c ada default").unwrap_err().to_string().contains("another chat"));
        drop(cursor);
        let cursor = Cursor::open(&path, "c ada default").unwrap();
        assert_eq!(cursor.resume(3), (4, Some(7)));
        assert_eq!(cursor.resume(7), (7, None), "the cluster knows better");
        drop(cursor);
        assert!(Cursor::open(&path, "c bob default").unwrap_err().to_string().contains("not of c bob"));
        fs::write(&path, "milk, eggs").unwrap();
        assert!(Cursor::open(&path, "c ada default").unwrap_err().to_string().contains("something else"));
    }
}
