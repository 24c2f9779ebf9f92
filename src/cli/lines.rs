//! Lines of stdin, read on a thread of its own and in bounded room.

use std::io::{self, BufRead, Read as _};

use tokio::sync::mpsc;

/// Lines that wait to be taken, at most: a pipe waits meanwhile.
pub(crate) const WAITING: usize = 64;

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    Line(String),
    /// A line of so many bytes, which are too many; it was passed over.
    TooLong(usize),
    /// It cannot be read on.
    Broken(String),
}

pub(crate) type Lines = mpsc::Receiver<Typed>;

/// Begins to read stdin. A line has at most `most` bytes.
pub(crate) fn from_stdin(most: usize) -> Lines {
    let (typed, lines) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        while let Some(line) = next(&mut stdin, most) {
            let broken = matches!(line, Typed::Broken(_));
            if typed.blocking_send(line).is_err() || broken {
                return;
            }
        }
    });
    lines
}

/// Reads one line, of which no more is kept than it may have.
fn next(from: &mut impl BufRead, most: usize) -> Option<Typed> {
    let broken = |error: io::Error| Some(Typed::Broken(error.to_string()));
    let mut line = Vec::new();
    if let Err(error) = from.by_ref().take(most as u64 + 1).read_until(b'\n', &mut line) {
        return broken(error);
    }
    if line.is_empty() {
        return None;
    }
    if line.len() > most && line.last() != Some(&b'\n') {
        let mut rest = Vec::new();
        // What is too long is looked at piece by piece.
        let mut bytes = line.len();
        loop {
            rest.clear();
            match from.by_ref().take(most as u64 + 1).read_until(b'\n', &mut rest) {
                Err(error) => return broken(error),
                Ok(count) => bytes += count,
            }
            match rest.last() {
                None => return Some(Typed::TooLong(bytes)),
                Some(b'\n') => return Some(Typed::TooLong(bytes - 1)),
                Some(_) => {}
            }
        }
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    match String::from_utf8(line) {
        Ok(line) => Some(Typed::Line(line)),
        Err(_) => Some(Typed::Broken("it is not UTF-8".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_in_bounded_room() {
        let long = "x".repeat(100);
        let text = format!("one\n\n{long}\n{long}x\n{long}{long}\nlast");
        let mut input = text.as_bytes();
        let mut next = || super::next(&mut input, 100);
        assert_eq!(next(), Some(Typed::Line("one".to_owned())));
        assert_eq!(next(), Some(Typed::Line(String::new())));
        assert_eq!(next(), Some(Typed::Line(long.clone())));
        assert_eq!(next(), Some(Typed::TooLong(101)));
        assert_eq!(next(), Some(Typed::TooLong(200)));
        assert_eq!(next(), Some(Typed::Line("last".to_owned())));
        assert_eq!(next(), None);
        let mut input = &b"\xff\nnext"[..];
        assert_eq!(super::next(&mut input, 100), Some(Typed::Broken("it is not UTF-8".to_owned())));
    }
}
