//! inet, cidr, macaddr: binary to the text of the server's output functions. A cast would not do for inet: its cast
//! to text adds a mask that the output function leaves out.

use std::fmt::Write;

use super::{ValueError, malformed};

const IPV4: u8 = 2;
const IPV6: u8 = 3;

/// The text of `inet_out`, which leaves out the mask of a single host.
pub(super) fn write_inet(value: &[u8], out: &mut String) -> Result<(), ValueError> {
    write_address(value, false, out)
}

/// The text of `cidr_out`, always with its mask.
pub(super) fn write_cidr(value: &[u8], out: &mut String) -> Result<(), ValueError> {
    write_address(value, true, out)
}

/// Form of `network_send`: family, mask bits, is-cidr, length, address.
fn write_address(value: &[u8], always_mask: bool, out: &mut String) -> Result<(), ValueError> {
    let (bits, all_bits) = match *value {
        [IPV4, bits, _, 4, a, b, c, d] => {
            push(out, format_args!("{a}.{b}.{c}.{d}"));
            (bits, 32)
        }
        [IPV6, bits, _, 16, ref address @ ..] => {
            let Ok(address) = <[u8; 16]>::try_from(address) else {
                return malformed("inet");
            };
            write_ipv6(address, out);
            (bits, 128)
        }
        _ => return malformed("inet"),
    };
    if bits > all_bits {
        return malformed("inet");
    }
    if always_mask || bits < all_bits {
        push(out, format_args!("/{bits}"));
    }
    Ok(())
}

/// As `inet_cidr_ntop_ipv6` of PostgreSQL: the first longest run of two or more zero words is `::`, and addresses
/// that carry an IPv4 one show it in its own form.
fn write_ipv6(address: [u8; 16], out: &mut String) {
    let (pairs, _) = address.as_chunks::<2>();
    let mut words = [0u16; 8];
    for (word, pair) in words.iter_mut().zip(pairs) {
        *word = u16::from_be_bytes(*pair);
    }
    let (start, length) = longest_zero_run(&words);
    let [.., a, b, c, d] = address;
    let carries_ipv4 = start == 0 && (length == 6 || (length == 5 && words[5] == 0xffff));
    for (at, word) in words.iter().enumerate() {
        if length > 0 && (start..start + length).contains(&at) {
            if at == start {
                out.push(':');
            }
            continue;
        }
        if at > 0 {
            out.push(':');
        }
        if at == 6 && carries_ipv4 {
            push(out, format_args!("{a}.{b}.{c}.{d}"));
            return;
        }
        push(out, format_args!("{word:x}"));
    }
    if length > 0 && start + length == 8 {
        out.push(':');
    }
}

/// Start and length; a single zero word is no run.
fn longest_zero_run(words: &[u16; 8]) -> (usize, usize) {
    let mut best = (0, 0);
    let mut current = (0, 0);
    for (at, &word) in words.iter().enumerate() {
        current = match (word, current.1) {
            (0, 0) => (at, 1),
            (0, length) => (current.0, length + 1),
            _ => (0, 0),
        };
        if current.1 > best.1 {
            best = current;
        }
    }
    if best.1 < 2 { (0, 0) } else { best }
}

/// macaddr and macaddr8: `08:00:2b:01:02:03`.
pub(super) fn write_mac_address(value: &[u8], out: &mut String) -> Result<(), ValueError> {
    if value.len() != 6 && value.len() != 8 {
        return malformed("macaddr");
    }
    for (at, byte) in value.iter().enumerate() {
        push(out, format_args!("{}{byte:02x}", if at > 0 { ":" } else { "" }));
    }
    Ok(())
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes all text");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inet(value: &[u8]) -> Result<String, ValueError> {
        let mut out = String::new();
        write_inet(value, &mut out).map(|()| out)
    }

    fn cidr(value: &[u8]) -> Result<String, ValueError> {
        let mut out = String::new();
        write_cidr(value, &mut out).map(|()| out)
    }

    fn ipv6(words: [u16; 8]) -> String {
        let address = words.iter().flat_map(|word| word.to_be_bytes());
        inet(&[3, 128, 0, 16].into_iter().chain(address).collect::<Vec<u8>>()).unwrap()
    }

    #[test]
    fn only_cidr_shows_the_mask_of_a_host() {
        assert_eq!(inet(&[2, 32, 0, 4, 192, 168, 0, 1]).as_deref(), Ok("192.168.0.1"));
        assert_eq!(inet(&[2, 24, 0, 4, 192, 168, 0, 1]).as_deref(), Ok("192.168.0.1/24"));
        assert_eq!(cidr(&[2, 32, 1, 4, 192, 168, 0, 1]).as_deref(), Ok("192.168.0.1/32"));
    }

    #[test]
    fn ipv6_is_shortened_as_the_server_does() {
        assert_eq!(ipv6([0; 8]), "::");
        assert_eq!(ipv6([0, 0, 0, 0, 0, 0, 0, 1]), "::1");
        assert_eq!(ipv6([0, 0, 0, 0, 0, 0, 0, 2]), "::2");
        assert_eq!(ipv6([0, 0, 0, 0, 0, 0xffff, 0x0102, 0x0304]), "::ffff:1.2.3.4");
        assert_eq!(ipv6([0, 0, 0, 0, 0, 0, 0x0102, 0x0304]), "::1.2.3.4");
        assert_eq!(ipv6([0x2001, 0xdb8, 0, 0, 1, 0, 0, 1]), "2001:db8::1:0:0:1");
        assert_eq!(ipv6([0x2001, 0xdb8, 0, 1, 1, 1, 1, 1]), "2001:db8:0:1:1:1:1:1");
        assert_eq!(ipv6([0xfe80, 0, 0, 0, 0, 0, 0, 0]), "fe80::");
        assert_eq!(ipv6([1, 2, 3, 4, 5, 6, 7, 0]), "1:2:3:4:5:6:7:0");
    }

    #[test]
    fn mac_addresses_have_six_or_eight_bytes() {
        let mut out = String::new();
        write_mac_address(&[8, 0, 0x2b, 1, 2, 3], &mut out).unwrap();
        assert_eq!(out, "08:00:2b:01:02:03");
        assert!(write_mac_address(&[0; 7], &mut out).is_err());
    }

    #[test]
    fn malformed_addresses_are_refused() {
        for value in [&[][..], &[2, 33, 0, 4, 0, 0, 0, 0], &[2, 32, 0, 4, 0, 0, 0], &[3, 129, 0, 16], &[4, 0, 0, 0]] {
            assert!(inet(value).is_err(), "{value:?}");
        }
    }
}
