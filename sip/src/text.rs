//! Numbers and addresses as text, without the machinery of `format!`: a call writes some forty.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

/// Appends a decimal number.
pub(crate) fn push_number(out: &mut Vec<u8>, number: impl Into<u64>) {
    let mut digits = [0; 20];
    let mut rest = number.into();
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A decimal number.
pub(crate) fn digits(number: impl Into<u64>) -> Vec<u8> {
    let mut out = Vec::with_capacity(8);
    push_number(&mut out, number);
    out
}

/// Appends an address and port as they stand in a URI or Via: `192.0.2.1:5060`, `[2001:db8::1]:5060`.
pub(crate) fn push_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address {
        SocketAddr::V4(v4) => {
            push_ip(out, IpAddr::V4(*v4.ip()));
            out.push(b':');
            push_number(out, v4.port());
        }
        // Writing to a Vec does not fail.
        SocketAddr::V6(_) => drop(write!(out, "{address}")),
    }
}

/// Appends an address without brackets.
pub(crate) fn push_ip(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            for (index, octet) in v4.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                push_octet(out, octet);
            }
        }
        IpAddr::V6(_) => drop(write!(out, "{address}")),
    }
}

fn push_octet(out: &mut Vec<u8>, octet: u8) {
    if octet >= 100 {
        out.push(b'0' + octet / 100);
    }
    if octet >= 10 {
        out.push(b'0' + octet / 10 % 10);
    }
    out.push(b'0' + octet % 10);
}

/// Eight hexadecimal digits.
pub(crate) fn hex(number: u32) -> [u8; 8] {
    let mut digits = [0; 8];
    for (digit, shift) in digits.iter_mut().zip((0..8).rev()) {
        *digit = b"0123456789abcdef"[(number >> (4 * shift)) as usize & 0xf];
    }
    digits
}

/// Appends them.
pub(crate) fn push_hex(out: &mut String, number: u32) {
    out.extend(hex(number).map(char::from));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_is_written_as_format_writes_it(number: u32, long: u64, address: SocketAddr) {
            let mut out = Vec::new();
            push_number(&mut out, long);
            prop_assert_eq!(&out, &long.to_string().into_bytes());
            out.clear();
            push_number(&mut out, number);
            prop_assert_eq!(&out, &number.to_string().into_bytes());
            out.clear();
            push_address(&mut out, address);
            prop_assert_eq!(&out, &address.to_string().into_bytes());
            out.clear();
            push_ip(&mut out, address.ip());
            prop_assert_eq!(&out, &address.ip().to_string().into_bytes());
            let mut out = String::new();
            push_hex(&mut out, number);
            prop_assert_eq!(out, format!("{number:08x}"));
        }
    }
}
