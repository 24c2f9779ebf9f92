//! Splitting a line of the console into words.

/// Splits at white space. Quotes keep a word together (`"` and `'` alike), a backslash takes the next character as it
/// is, except between single quotes. A word that begins with `#` begins a remark.
pub(crate) fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None | Some('"'), '\\') => {
                let next = characters.next().ok_or("the line ends after a backslash")?;
                word.get_or_insert_default().push(next);
            }
            (Some(_), _) => word.get_or_insert_default().push(character),
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            (None, _) => word.get_or_insert_default().push(character),
        }
    }
    if let Some(open) = quote {
        return Err(format!("a {open} is not closed"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn words_and_quotes() {
        assert_eq!(split("  add  5 ").unwrap(), ["add", "5"]);
        assert_eq!(split(r#"set "two words" 'it "is"' """#).unwrap(), ["set", "two words", r#"it "is""#, ""]);
        assert_eq!(split(r"a\ b 'c\d'").unwrap(), ["a b", r"c\d"]);
        assert_eq!(split("add 5 # \"five").unwrap(), ["add", "5"]);
        assert_eq!(split(r"say a#1 '#2' \#3").unwrap(), ["say", "a#1", "#2", "#3"]);
        assert!(split("").unwrap().is_empty() && split(" # nothing").unwrap().is_empty());
        assert!(split("'open").is_err());
        assert!(split("end\\").is_err());
    }
}
