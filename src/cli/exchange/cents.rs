//! Prices: whole cents inside, `12.50` for people.

/// Reads `12.50`, `12.5` or `12`.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no price; expected for example 12.50");
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 2 {
        return Err(wrong());
    }
    let cents: u64 = format!("{part:0<2}").parse().map_err(|_| wrong())?;
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    whole.checked_mul(100).and_then(|all| all.checked_add(cents)).ok_or_else(wrong)
}

/// As [`parse`] reads it.
pub(super) fn show(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_as_they_are_shown() {
        for (text, cents) in [("12.50", 1250), ("12.5", 1250), ("12", 1200), ("0.01", 1), ("0", 0)] {
            assert_eq!(parse(text), Ok(cents));
        }
        for cents in [0, 9, 10, 99, 100, 1250, u64::MAX] {
            assert_eq!(parse(&show(cents)), Ok(cents));
        }
        for wrong in ["", ".", "1.", ".5", "1.234", "-1", "1,5", "x", "184467440737095517", "1.+5"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
