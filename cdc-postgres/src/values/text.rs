//! Types that become strings: their text form is stored as it is; here is how their binary form becomes that text.

use std::fmt::Write;

use super::{ValueError, datetime, fixed, malformed, network, numeric, utf8};

/// How the binary form of a string-mapped type holds its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextForm {
    /// The binary form is the text.
    Verbatim,
    /// So it is after `ColumnType::copy_cast`.
    Cast,
    /// A version byte 1, then the text: jsonb, jsonpath, ltree.
    Versioned,
    /// `"char"`: one byte of any value.
    Char,
    Numeric,
    Time,
    Uuid,
    Inet,
    Cidr,
    MacAddress,
    Bits,
    Lsn,
    Xid8,
}

impl TextForm {
    /// The string to store for a text value.
    #[inline]
    pub(super) fn of_text<'a>(self, value: &'a [u8], scratch: &'a mut String) -> Result<&'a str, ValueError> {
        match self {
            Self::Char => char_text(value, scratch),
            _ => utf8(value),
        }
    }

    /// The string to store for a binary value.
    pub(super) fn of_binary<'a>(self, value: &'a [u8], scratch: &'a mut String) -> Result<&'a str, ValueError> {
        scratch.clear();
        match self {
            Self::Verbatim | Self::Cast => return utf8(value),
            Self::Versioned => {
                let [1, text @ ..] = value else {
                    return malformed("a text with version 1");
                };
                return utf8(text);
            }
            // The server's text form leaves the zero byte out.
            Self::Char if value == [0] => return Ok(""),
            Self::Char => return char_text(value, scratch),
            Self::Numeric => numeric::write_text(value, scratch)?,
            Self::Time => datetime::write_time_text(value, scratch)?,
            Self::Uuid => write_uuid(fixed(value, "uuid")?, scratch),
            Self::Inet => network::write_inet(value, scratch)?,
            Self::Cidr => network::write_cidr(value, scratch)?,
            Self::MacAddress => network::write_mac_address(value, scratch)?,
            Self::Bits => write_bits(value, scratch)?,
            Self::Lsn => {
                let lsn = fixed(value, "pg_lsn").map(u64::from_be_bytes)?;
                push(scratch, format_args!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff));
            }
            Self::Xid8 => push(scratch, format_args!("{}", fixed(value, "xid8").map(u64::from_be_bytes)?)),
        }
        Ok(scratch)
    }
}

/// A byte beyond ASCII is no UTF-8 by itself: it is written as PostgreSQL 16 and later print it, `\303`.
fn char_text<'a>(value: &'a [u8], scratch: &'a mut String) -> Result<&'a str, ValueError> {
    match *value {
        [byte] if !byte.is_ascii() => {
            scratch.clear();
            push(scratch, format_args!("\\{byte:03o}"));
            Ok(scratch)
        }
        _ => utf8(value),
    }
}

fn write_uuid(bytes: [u8; 16], out: &mut String) {
    for (at, byte) in bytes.iter().enumerate() {
        push(out, format_args!("{}{byte:02x}", if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" }));
    }
}

/// bit and varbit: the number of bits, then the bits from the highest of each byte.
fn write_bits(value: &[u8], out: &mut String) -> Result<(), ValueError> {
    let Some((length, bytes)) = value.split_first_chunk() else {
        return malformed("bit");
    };
    let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length.div_ceil(8) != bytes.len() {
        return malformed("bit");
    }
    let bits = bytes.iter().flat_map(|byte| (0..8).map(move |at| byte << at & 0x80 != 0));
    out.extend(bits.take(length).map(|bit| if bit { '1' } else { '0' }));
    Ok(())
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes all text");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(form: TextForm, value: &[u8], expected: Result<&str, ValueError>) {
        assert_eq!(form.of_binary(value, &mut "left over".to_owned()), expected, "{form:?} of {value:?}");
    }

    #[test]
    fn binary_forms_become_the_text_of_the_server() {
        check(TextForm::Verbatim, "žluť  ".as_bytes(), Ok("žluť  "));
        check(TextForm::Versioned, b"\x01{\"a\": 1}", Ok("{\"a\": 1}"));
        check(TextForm::Char, b"x", Ok("x"));
        check(TextForm::Char, b"\0", Ok(""));
        check(TextForm::Char, b"\xc3", Ok("\\303"));
        check(TextForm::Bits, &[0, 0, 0, 10, 0b0101_0000, 0b0100_0000], Ok("0101000001"));
        check(TextForm::Bits, &[0, 0, 0, 0], Ok(""));
        check(TextForm::Lsn, &[0, 0, 0, 0x16, 0xB3, 0x74, 0xD8, 0x48], Ok("16/B374D848"));
        check(TextForm::Xid8, &[0xff; 8], Ok("18446744073709551615"));
        let uuid = 0x00112233_4455_6677_8899_aabbccddeeffu128;
        check(TextForm::Uuid, &uuid.to_be_bytes(), Ok("00112233-4455-6677-8899-aabbccddeeff"));
        check(TextForm::Time, &86_400_000_000i64.to_be_bytes(), Ok("24:00:00"));
    }

    #[test]
    fn malformed_binary_forms_are_refused() {
        check(TextForm::Verbatim, b"\xc3", Err(ValueError::NotUtf8));
        for (form, value) in [
            (TextForm::Versioned, &b"\x02x"[..]),
            (TextForm::Versioned, b""),
            (TextForm::Bits, &[0xff, 0xff, 0xff, 0xff]),
            (TextForm::Bits, &[0, 0, 0, 9, 0]),
            (TextForm::Lsn, &[0; 7]),
            (TextForm::Uuid, &[0; 15]),
        ] {
            assert!(form.of_binary(value, &mut String::new()).is_err(), "{form:?} of {value:?}");
        }
    }

    #[test]
    fn a_char_beyond_ascii_is_the_same_in_both_forms() {
        assert_eq!(TextForm::Char.of_text(b"\xc3", &mut String::new()), Ok("\\303"));
        assert_eq!(TextForm::Char.of_text(b"\\303", &mut String::new()), Ok("\\303"));
    }
}
