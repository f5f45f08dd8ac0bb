//! Manifests that this process has written or read lately: they never change, and merging them into larger ones should not
//! fetch what was just sent.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Of all files together.
const KEPT_BYTES: usize = 32 << 20;
/// Of one file; larger ones are merged rarely.
const FILE_BYTES: usize = 1 << 20;

/// Clones share what is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    bytes: usize,
    /// By location, the newest last.
    files: VecDeque<(String, Bytes)>,
}

impl Recent {
    pub(super) fn get(&self, location: &str) -> Option<Bytes> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.files.iter().rev().find(|(name, _)| name == location).map(|(_, bytes)| bytes.clone())
    }

    /// Keeps a manifest, for as long as there is room.
    pub(super) fn keep(&self, location: &str, bytes: &Bytes) {
        if !location.ends_with(".avro") || bytes.len() > FILE_BYTES {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += bytes.len();
        kept.files.push_back((location.to_owned(), bytes.clone()));
        while kept.bytes > KEPT_BYTES
            && let Some((_, oldest)) = kept.files.pop_front()
        {
            kept.bytes -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_when_room_is_short_and_only_manifests_are_kept() {
        let recent = Recent::default();
        let bytes = Bytes::from(vec![0; FILE_BYTES]);
        for number in 0..=KEPT_BYTES / FILE_BYTES {
            recent.keep(&format!("{number}.avro"), &bytes);
        }
        assert!(recent.get("0.avro").is_none() && recent.get("1.avro").is_some());
        recent.keep("a.metadata.json", &Bytes::from_static(b"{}"));
        recent.keep("large.avro", &Bytes::from(vec![0; FILE_BYTES + 1]));
        assert!(recent.get("a.metadata.json").is_none() && recent.get("large.avro").is_none());
    }
}
