//! The two header fields of HTTP/2 that a check by gRPC looks at, out of a header block (RFC 7541).
//!
//! No library: those there are bring a table that a server fills, and decode (and allocate) every
//! field. We announce a table of size 0, as nginx's own grpc module does, so a field is a literal or
//! one of the 61 of the standard, and all but two are passed over. Huffman's code has but one form of a
//! text, so a name is compared as it comes.

/// What a header block says.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Fields {
    /// `:status`.
    pub(super) status: Option<u16>,
    /// `grpc-status`.
    pub(super) grpc_status: Option<u16>,
}

/// Fields of the standard's table that are a `:status`, from the 8th on.
const STATUSES: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];

/// The last one of the standard's table.
const TABLE: u32 = 61;

/// Largest table that a server may say it uses; it has to be ours, but nginx bears this one.
const TABLE_SIZE_MAX: u32 = 4096;

const STATUS: [&[u8]; 2] = [b":status", b"\xb8\x84\x8d\x36\xa3"];
const GRPC_STATUS: [&[u8]; 2] = [b"grpc-status", b"\x9a\xca\xc8\xb2\x12\x34\xda\x8f"];

/// Reads a whole header block; `None` when it is malformed, or one of the two fields is no number.
pub(super) fn read(mut block: &[u8]) -> Option<Fields> {
    let mut fields = Fields::default();
    while let Some(&first) = block.first() {
        // Indexed.
        if first & 0x80 != 0 {
            let index = integer(&mut block, 7)?;
            match index {
                8..=14 => fields.status = Some(STATUSES[index as usize - 8]),
                1..=TABLE => {}
                _ => return None,
            }
            continue;
        }
        // The size of the table.
        if first & 0xe0 == 0x20 {
            if integer(&mut block, 5)? > TABLE_SIZE_MAX {
                return None;
            }
            continue;
        }
        // A literal, to be entered in the table or not.
        let index = integer(&mut block, if first & 0x40 != 0 { 6 } else { 4 })?;
        let (is_status, is_grpc_status) = match index {
            0 => {
                let name = Text::read(&mut block)?;
                (name.is(STATUS), name.is(GRPC_STATUS))
            }
            8..=14 => (true, false),
            1..=TABLE => (false, false),
            _ => return None,
        };
        let value = Text::read(&mut block)?;
        if is_status {
            fields.status = Some(value.number()?);
        } else if is_grpc_status {
            fields.grpc_status = Some(value.number()?);
        }
    }
    Some(fields)
}

/// A string as it stands in the block.
struct Text<'a> {
    huffman: bool,
    bytes: &'a [u8],
}

impl<'a> Text<'a> {
    fn read(block: &mut &'a [u8]) -> Option<Self> {
        let huffman = block.first()? & 0x80 != 0;
        let length = usize::try_from(integer(block, 7)?).ok()?;
        let (bytes, rest) = block.split_at_checked(length)?;
        *block = rest;
        Some(Self { huffman, bytes })
    }

    /// Whether it is this one, given plain and in Huffman's code.
    fn is(&self, [plain, coded]: [&[u8]; 2]) -> bool {
        self.bytes == if self.huffman { coded } else { plain }
    }

    /// The number that it is, in one to four digits.
    fn number(&self) -> Option<u16> {
        if self.bytes.is_empty() || self.bytes.len() > 4 {
            return None;
        }
        let mut number = 0;
        if !self.huffman {
            for byte in self.bytes {
                number = number * 10 + u16::from(byte.checked_sub(b'0').filter(|d| *d < 10)?);
            }
            return Some(number);
        }
        // 0 to 2 have the codes 0 to 2 of 5 bits, 3 to 9 the codes 25 to 31 of 6. Ones fill the last
        // byte, and no digit begins with five of them.
        let bits = self.bytes.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        let mut left = 8 * self.bytes.len();
        let mut digits = 0;
        while left >= 5 && bits >> (left - 5) & 31 != 31 {
            let (digit, length) = match bits >> (left - 5) & 31 {
                five @ 0..=2 => (five, 5),
                _ if left >= 6 => ((bits >> (left - 6) & 63).checked_sub(22)?, 6),
                _ => return None,
            };
            if digit > 9 || digits == 4 || (length == 6 && digit < 3) {
                return None;
            }
            number = number * 10 + digit as u16;
            digits += 1;
            left -= length;
        }
        // At most seven bits are left to fill up.
        let padding = !(!0u32 << left.min(8));
        (left < 8 && digits > 0 && bits & padding == padding).then_some(number)
    }
}

/// An integer whose first byte has so many bits for it (section 5.1), up to 2^28.
fn integer(block: &mut &[u8], prefix: u32) -> Option<u32> {
    let mask = (1u32 << prefix) - 1;
    let (&first, rest) = block.split_first()?;
    *block = rest;
    let mut value = u32::from(first) & mask;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let (&byte, rest) = block.split_first()?;
        *block = rest;
        value += u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use httlib_hpack::Encoder;
    use proptest::prelude::*;

    use super::{Fields, read};
    use crate::shm::testing::cases;

    /// All ways in which a field may be encoded, with no table.
    const WAYS: [u8; 8] = [
        0,
        Encoder::HUFFMAN_NAME,
        Encoder::HUFFMAN_VALUE,
        Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE,
        Encoder::NEVER_INDEXED | Encoder::HUFFMAN_VALUE,
        Encoder::WITH_INDEXING | Encoder::HUFFMAN_VALUE,
        Encoder::BEST_FORMAT,
        Encoder::BEST_FORMAT | Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE,
    ];

    fn encoded(fields: &[(&str, String, u8)]) -> Vec<u8> {
        let mut encoder = Encoder::with_dynamic_size(0);
        let mut block = Vec::new();
        for (name, value, how) in fields {
            let field = (name.as_bytes().to_vec(), value.as_bytes().to_vec(), *how);
            encoder.encode(field, &mut block).unwrap();
        }
        block
    }

    #[test]
    fn each_number_is_read_in_each_form() {
        for number in 0..10_000 {
            for how in WAYS {
                let block = encoded(&[
                    (":status", number.to_string(), how),
                    ("x-grpc-status", "7".to_owned(), how),
                    ("grpc-status", format!("{number:04}"), how),
                ]);
                let fields = Fields { status: Some(number), grpc_status: Some(number) };
                assert_eq!(read(&block), Some(fields), "{number} {how}");
            }
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for value in [
            "", "a", "20a", "a20", "2 0", "-1", "+1", "12345", "00000", "1234567", "4:", "2.", "!",
            "\u{7f}",
        ] {
            for how in WAYS {
                let block = encoded(&[("grpc-status", value.to_owned(), how)]);
                assert_eq!(read(&block), None, "{value:?} {how}");
            }
        }
        // 2 is 00010; whoever fills up the byte must do it with ones, and not with a whole byte.
        let block = |value: &[u8]| [&[0x08, 0x80 | value.len() as u8], value].concat();
        assert_eq!(read(&block(&[0x17])).unwrap().status, Some(2));
        for value in [&[0x16][..], &[0x10, 0xff], &[0x17, 0xff], &[0xff]] {
            assert_eq!(read(&block(value)), None, "{value:?}");
        }
    }

    #[test]
    fn statuses_of_the_table_are_known() {
        for status in ["200", "204", "206", "304", "400", "404", "500"] {
            let block = encoded(&[(":status", status.to_owned(), Encoder::BEST_FORMAT)]);
            assert_eq!(block.len(), 1, "{status}");
            assert_eq!(read(&block).unwrap().status, status.parse().ok());
        }
        assert_eq!(read(&[]), Some(Fields::default()));
        // Sizes of the table: none, and nginx's.
        assert_eq!(read(&[0x20, 0x3f, 0xe1, 0x1f, 0x89]).unwrap().status, Some(204));
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for block in [
            // An index of 0, and one of the table that we have not.
            &[0x80][..],
            &[0xbe],
            &[0xff, 0x80, 0x01],
            &[0x7f, 0, 1, b'x'],
            &[0x0f, 47, 1, b'x'],
            // Cut off.
            &[0xff],
            &[0xff, 0x80],
            &[0x08],
            &[0x08, 3, b'2', b'0'],
            &[0x00, 1, b'x'],
            &[0x00, 5, b'x'],
            &[0x00, 0x7f],
            // Numbers that are too large.
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0x08, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x7f],
            &[0x3f, 0xe2, 0x1f],
        ] {
            assert_eq!(read(block), None, "{block:x?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(cases(500)))]

        #[test]
        fn fuzz_of_fields_finds_the_two(
            before in prop::collection::vec(("[a-z:-]{1,20}", "[ -~]{0,40}", 0..WAYS.len()), 0..6),
            status in 100..1000u16,
            grpc_status in 0..17u16,
            ways in [0..WAYS.len(), 0..WAYS.len()],
        ) {
            let mut fields: Vec<_> = before
                .iter()
                .filter(|(name, ..)| name != ":status" && name != "grpc-status")
                .map(|(name, value, way)| (name.as_str(), value.clone(), WAYS[*way]))
                .collect();
            fields.push(("grpc-status", grpc_status.to_string(), WAYS[ways[1]]));
            fields.insert(fields.len() / 2, (":status", status.to_string(), WAYS[ways[0]]));
            let found = Fields { status: Some(status), grpc_status: Some(grpc_status) };
            prop_assert_eq!(read(&encoded(&fields)), Some(found));
        }

        #[test]
        fn fuzz_of_blocks_is_survived(block in prop::collection::vec(any::<u8>(), 0..60)) {
            read(&block);
        }
    }
}
