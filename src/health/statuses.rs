//! Sets of HTTP statuses.

/// Statuses of HTTP, as `status=200-399,401` or `status=!500,502-504` names them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Statuses {
    /// The first and the last of each range.
    ranges: Vec<(u16, u16)>,
    /// All but these.
    negated: bool,
}

impl Default for Statuses {
    /// 200 to 399.
    fn default() -> Self {
        Self { ranges: vec![(200, 399)], negated: false }
    }
}

impl Statuses {
    /// Reads codes and ranges from 100 to 599 with commas between them; a `!` before them all turns
    /// it round. `None` when it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let (list, negated) = match text.strip_prefix('!') {
            Some(list) => (list, true),
            None => (text, false),
        };
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (code(first)?, code(last)?);
            (first <= last).then_some((first, last))
        };
        let ranges = list.split(',').map(range).collect::<Option<_>>()?;
        Some(Self { ranges, negated })
    }

    /// Whether a status is among them.
    pub fn contains(&self, status: u16) -> bool {
        let named = self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&status));
        named != self.negated
    }
}

/// Three digits.
fn code(text: &str) -> Option<u16> {
    let digits = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|code| digits && (100..600).contains(code))
}

#[cfg(test)]
mod tests {
    use super::Statuses;

    #[test]
    fn codes_ranges_and_all_but_these() {
        for (text, inside, outside) in [
            ("200", &[200][..], &[199, 201, 100][..]),
            ("200-399", &[200, 301, 399], &[199, 400]),
            ("100-599", &[100, 599], &[600, 999]),
            ("401,200-204,503", &[401, 200, 204, 503], &[400, 402, 205, 500]),
            ("!500", &[200, 404, 501, 999], &[500]),
            ("!500,502-504", &[501, 200], &[500, 502, 503, 504]),
        ] {
            let statuses = Statuses::parse(text).unwrap();
            assert!(inside.iter().all(|s| statuses.contains(*s)), "{text}");
            assert!(!outside.iter().any(|s| statuses.contains(*s)), "{text}");
        }
        assert_eq!(Some(Statuses::default()), Statuses::parse("200-399"));
        for text in [
            "",
            "!",
            "2",
            "20",
            "2000",
            "0200",
            "+200",
            "99",
            "099",
            "600",
            "2xx",
            "200-",
            "-200",
            "200,",
            ",200",
            "200 ",
            "299-200",
            "200-299-300",
            "200;204",
            "200,!204",
            "!!200",
            "２００",
        ] {
            assert_eq!(Statuses::parse(text), None, "{text:?}");
        }
    }
}
