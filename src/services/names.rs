//! What services share: names, and lists of rows by name.

use std::ops::{Bound, ControlFlow};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Refusal, Table, View};

/// A name takes at most this many bytes.
pub(super) const MAX_NAME_BYTES: usize = 256;
/// A page has at most this many rows.
pub(super) const MAX_ROWS: u32 = 1_000;
/// A page ends after the row that reaches this many bytes: registers may be large.
pub(super) const MAX_PAGE_BYTES: usize = 1 << 20;

const DEFAULT_ROWS: u32 = 100;

/// The name when a request gives none.
pub(super) fn default_name() -> String {
    "default".to_owned()
}

/// Refuses a name that nobody could type or read back.
pub(super) fn check(name: &str) -> Result<(), Refusal> {
    // Most names are plain: every command has one.
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return Ok(());
    }
    let problem = if name.is_empty() {
        "the name is empty".to_owned()
    } else if name.len() > MAX_NAME_BYTES {
        format!("the name takes {} bytes", name.len())
    } else if let Some(control) = name.chars().find(|c| c.is_control()) {
        format!("the name contains the control character {control:?}")
    } else {
        return Ok(());
    };
    let detail = format!("{problem}; use 1 to {MAX_NAME_BYTES} bytes of UTF-8 without control characters");
    Err(Refusal::new("bad_name", detail).with_status(400))
}

/// Refuses a name that could not stand before a colon, in a topic or in a file's name.
pub(super) fn check_plain(what: &str, name: &str, most: usize) -> Result<(), Refusal> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=most).contains(&name.len()) && name.chars().all(plain) {
        return Ok(());
    }
    let a = if what.starts_with('a') { "an" } else { "a" };
    let text = format!(
        "{name:?} is no name of {a} {what}: use 1 to {most} bytes of letters, digits, '-', '_' and '.'"
    );
    Err(Refusal::new("bad_name", text).with_status(400))
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    /// Only names that begin with this.
    #[serde(default)]
    pub prefix: String,
    /// Only names after this one: a page's `next` brings the page behind it.
    #[serde(default)]
    pub after: Option<String>,
    /// At most so many, from 1 to 1,000.
    #[serde(default = "default_rows")]
    pub limit: u32,
}

fn default_rows() -> u32 {
    DEFAULT_ROWS
}

/// One page of a list, in the order of the names' bytes.
pub(super) struct Page<V> {
    pub(super) rows: Vec<(String, V)>,
    /// The last name, when more rows follow it.
    pub(super) next: Option<String>,
}

/// Reads the rows of `table` that `listing` asks for, and one more to see whether there is one.
pub(super) fn page<V: DeserializeOwned>(
    view: &View<'_>,
    table: &Table<String, V>,
    listing: &Listing,
    bytes_of: impl Fn(&V) -> usize,
) -> Result<Page<V>, Refusal> {
    if !(1..=MAX_ROWS).contains(&listing.limit) {
        let detail =
            format!("the limit is {}; use 1 to {MAX_ROWS}, and `after` for what follows", listing.limit);
        return Err(Refusal::new("bad_limit", detail).with_status(400));
    }
    let from = match &listing.after {
        Some(after) if *after >= listing.prefix => Bound::Excluded(after),
        _ => Bound::Included(&listing.prefix),
    };
    let end = end_of(&listing.prefix);
    let to = end.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
    let mut page = Page { rows: Vec::new(), next: None };
    let mut bytes = 0;
    view.range(table, (from, to), |name, value| {
        if page.rows.len() >= listing.limit as usize || bytes >= MAX_PAGE_BYTES {
            page.next = page.rows.last().map(|(last, _)| last.clone());
            return ControlFlow::Break(());
        }
        bytes += name.len() + bytes_of(&value);
        page.rows.push((name, value));
        ControlFlow::Continue(())
    });
    Ok(page)
}

/// The first text after all that begin with `prefix`: its last character that has a successor, succeeded.
/// Texts are ordered as their characters are, so that holds for bytes too.
fn end_of(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        if let Some(successor) = (last..=char::MAX).nth(1) {
            end.push(successor);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::end_of;

    #[test]
    fn the_end_of_a_prefix_is_behind_everything_that_begins_with_it() {
        assert_eq!(end_of("ab").as_deref(), Some("ac"));
        assert_eq!(end_of("a\u{d7ff}").as_deref(), Some("a\u{e000}"), "there is no character in between");
        assert_eq!(end_of("a\u{10ffff}\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(end_of("\u{10ffff}"), None);
        assert_eq!(end_of(""), None);
        assert!("z\u{10ffff}\u{10ffff}z" < end_of("z").unwrap().as_str());
    }
}
