//! Spans of time as people write them.

use std::time::Duration;

/// Reads a span of time: `250ms`, `5s`, `2m`, `1h`, `7d`, also with a fraction (`1.5s`).
///
/// # Errors
/// What is expected instead.
pub fn parse(text: &str) -> Result<Duration, String> {
    let fail =
        || format!("`{text}` is no span of time; expected for example 250ms, 5s or 2m, in ms, s, m, h or d");
    let (number, unit) = split_unit(text);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(fail()),
    };
    let number: f64 = number.parse().map_err(|_| fail())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| fail())
}

/// A number, and the unit behind it.
pub fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}
