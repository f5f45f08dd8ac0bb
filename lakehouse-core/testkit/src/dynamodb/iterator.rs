//! Shard iterators: opaque to clients, and without memory in the service.

use super::sequence;

/// How long an iterator lives, in milliseconds.
const LIFE: u64 = 15 * 60_000;

/// What an iterator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShardIterator {
    pub(super) stream: String,
    pub(super) shard: usize,
    /// The first number that it reads.
    pub(super) from: u128,
    pub(super) issued: u64,
    /// The same in all iterators that follow from one GetShardIterator: one chain, one reader.
    pub(super) chain: u64,
}

impl ShardIterator {
    pub(super) fn text(&self) -> String {
        let Self { stream, shard, from, issued, chain } = self;
        format!("{stream}|1|{shard:x}.{}.{issued:x}.{chain:x}", sequence::text((*from).max(sequence::FIRST)))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (stream, rest) = text.split_once("|1|")?;
        let mut parts = rest.split('.');
        let (shard, from, issued, chain) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        Some(Self {
            stream: stream.to_owned(),
            shard: usize::from_str_radix(shard, 16).ok()?,
            from: sequence::parse(from)?,
            issued: u64::from_str_radix(issued, 16).ok()?,
            chain: u64::from_str_radix(chain, 16).ok()?,
        })
    }

    pub(super) fn expired(&self, now: u64) -> bool {
        now > self.issued + LIFE
    }
}
