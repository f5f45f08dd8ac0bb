//! SHA-256 in lower-case hexadecimal digits.

use sha2::{Digest, Sha256};

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(Sha256::new_with_prefix(bytes))
}

/// Of several parts: each with its length before it, so that what stands in one never counts for another.
pub(crate) fn sha256_of_parts(parts: &[impl AsRef<[u8]>]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        let part = part.as_ref();
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    hexadecimal(digest)
}

fn hexadecimal(digest: Sha256) -> String {
    let digits = |byte: u8| [byte >> 4, byte & 15].map(|half| char::from_digit(half.into(), 16).expect("half a byte"));
    digest.finalize().into_iter().flat_map(digits).collect()
}
