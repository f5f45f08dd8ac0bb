//! uuid, bytea and the geometries of PostGIS: hexadecimal text to bytes. Their binary forms are the bytes.

use super::{ValueError, malformed};

/// `00112233-4455-6677-8899-aabbccddeeff`.
#[inline]
pub(super) fn uuid_from_text(value: &[u8]) -> Result<[u8; 16], ValueError> {
    let Ok(value) = <&[u8; 36]>::try_from(value) else {
        return malformed("uuid");
    };
    const DIGITS: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    let mut uuid = [0; 16];
    // A bad digit sets bits above the lower four, seen once at the end.
    let mut seen = 0;
    for (byte, at) in uuid.iter_mut().zip(DIGITS) {
        let (high, low) = (HEX[usize::from(value[at])], HEX[usize::from(value[at + 1])]);
        seen |= high | low;
        *byte = high << 4 | low;
    }
    let hyphens = [8, 13, 18, 23].iter().all(|&at| value[at] == b'-');
    if seen > 0xf || !hyphens {
        return malformed("uuid");
    }
    Ok(uuid)
}

/// `\x00ff` into `out`, which is cleared first. The setting `bytea_output` is hex (R8).
pub(super) fn bytea_from_text(value: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    match value {
        [b'\\', b'x', hex @ ..] => hex_from_text(hex, out, "bytea"),
        _ => malformed("bytea"),
    }
}

/// Extended well-known binary as PostGIS prints it.
pub(super) fn ewkb_from_text(value: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    hex_from_text(value, out, "geometry")
}

fn hex_from_text(value: &[u8], out: &mut Vec<u8>, expected: &'static str) -> Result<(), ValueError> {
    out.clear();
    let (pairs, rest) = value.as_chunks::<2>();
    let mut seen = 0;
    out.extend(pairs.iter().map(|&[high, low]| {
        let (high, low) = (HEX[usize::from(high)], HEX[usize::from(low)]);
        seen |= high | low;
        high << 4 | low
    }));
    if seen > 0xf || !rest.is_empty() {
        return malformed(expected);
    }
    Ok(())
}

/// The value of each hexadecimal digit, 0xff for other bytes.
const HEX: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut value = 0;
    while value < 16 {
        table[b"0123456789abcdef"[value] as usize] = value as u8;
        table[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_sixteen_bytes() {
        let uuid = 0x00112233_4455_6677_8899_aabbccddeeffu128.to_be_bytes();
        assert_eq!(uuid_from_text(b"00112233-4455-6677-8899-aabbccddeeff"), Ok(uuid));
        for bad in [
            "",
            "00112233445566778899aabbccddeeff",
            "00112233-4455-6677-8899-aabbccddeefg",
            "00112233-4455-6677-8899-aabbccddeef",
            "001122334-455-6677-8899-aabbccddeeff",
        ] {
            assert!(uuid_from_text(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytea_is_hexadecimal() {
        let mut out = vec![9];
        bytea_from_text(b"\\x00fFA0", &mut out).unwrap();
        assert_eq!(out, [0, 0xff, 0xa0]);
        bytea_from_text(b"\\x", &mut out).unwrap();
        assert!(out.is_empty());
        for bad in ["", "\\", "00", "\\x0", "\\x0g", "\\000"] {
            assert!(bytea_from_text(bad.as_bytes(), &mut out).is_err(), "{bad}");
        }
    }
}
