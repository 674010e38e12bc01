//! Times in parameters of requests and of directives, as nginx writes them in its configuration.

/// Units from the longest to the shortest, in milliseconds.
const UNITS: [(&str, u64); 6] = [
    ("w", 604_800_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Reads `30s`, `500ms`, `1m 30s` or `1m30s`; a number alone is seconds. Milliseconds; `None` when it is
/// no time, or a longer one than anybody lives.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut units = UNITS.iter();
    let mut total: u64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let value: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (name, after) = rest.split_at(letters);
        // A number alone comes last.
        let name = if name.is_empty() && after.is_empty() { "s" } else { name };
        // Each unit once, the longer ones first.
        let (_, scale) = units.find(|(unit, _)| *unit == name)?;
        total = value.checked_mul(*scale)?.checked_add(total)?;
        rest = after.trim_start_matches(' ');
        if rest.is_empty() && !after.is_empty() {
            return None;
        }
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn times_are_those_of_nginx() {
        for (text, ms) in [
            ("0", 0),
            ("30", 30_000),
            ("30s", 30_000),
            ("500ms", 500),
            ("1m", 60_000),
            ("1m 30s", 90_000),
            ("1m30s", 90_000),
            ("1m 30", 90_000),
            ("1h 2m 3s 4ms", 3_723_004),
            ("2w 1d", 1_296_000_000),
        ] {
            assert_eq!(parse(text), Some(ms), "{text}");
        }
        let long = "9".repeat(30);
        for text in [
            "",
            " ",
            "s",
            "-1",
            "1.5s",
            "1 s",
            "1s ",
            " 1s",
            "1s 1m",
            "1s 1s",
            "1S",
            "1q",
            "1s,",
            "ä",
            "1sä",
            "30 1m",
            "18446744073709551615w",
            &long,
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
