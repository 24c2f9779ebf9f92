//! Stored text on a terminal: what could take the terminal over is escaped, and what would fill it is cut. A pipe and
//! `--json` get everything as it is.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

/// Of one value among others, in a line or a table.
const CELL_MAX: usize = 120;
/// Of a value that stands alone.
const WHOLE_MAX: usize = 10_000;

/// One value of several on stdout, in one line.
pub(crate) fn cell(text: &str) -> String {
    if io::stdout().is_terminal() { printable(text, CELL_MAX, &[]) } else { text.to_owned() }
}

/// A text that has a line of stdout to itself.
pub(crate) fn line(text: &str) -> String {
    if io::stdout().is_terminal() { printable(text, WHOLE_MAX, &[]) } else { text.to_owned() }
}

/// A value that has stdout to itself. Its lines stay lines.
pub(crate) fn whole(text: String) -> String {
    if io::stdout().is_terminal() { printable(&text, WHOLE_MAX, &['\n', '\t']) } else { text }
}

/// A remark on stderr: what others wrote may be part of it.
pub(crate) fn remark(text: &str) -> String {
    if io::stderr().is_terminal() { printable(text, WHOLE_MAX, &['\n', '\t']) } else { text.to_owned() }
}

/// At most `max` characters, those that steer a terminal as escapes.
fn printable(text: &str, max: usize, kept: &[char]) -> String {
    let mut shown = String::new();
    for (at, character) in text.chars().enumerate() {
        if at == max {
            // Writing to a string does not fail.
            let _ = write!(shown, "… ({} bytes in all)", text.len());
            break;
        }
        if steers(character) && !kept.contains(&character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Control characters, and those that turn the direction of the text around.
fn steers(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_steered_and_not_flooded() {
        assert_eq!(printable("grün ☃", 10, &[]), "grün ☃");
        assert_eq!(printable("a\u{1b}[2Jb\r\u{7f}", 20, &[]), "a\\u{1b}[2Jb\\r\\u{7f}");
        assert_eq!(printable("a\tb\nc", 20, &[]), "a\\tb\\nc");
        assert_eq!(printable("a\tb\nc\r", 20, &['\n', '\t']), "a\tb\nc\\r");
        assert_eq!(printable("\u{202e}abc", 20, &[]), "\\u{202e}abc");
        assert_eq!(printable("ääää", 3, &[]), "äää… (8 bytes in all)");
        assert_eq!(printable("äää", 3, &[]), "äää");
    }
}
