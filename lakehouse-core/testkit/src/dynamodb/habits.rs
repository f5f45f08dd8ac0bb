//! How the service behaves: as its documentation allows, gently or not. Single events are scripted by methods of
//! [`super::DynamoDb`]; this is what happens by itself, drawn from a seed.

use std::time::Duration;

use fastrand::Rng;

/// What the service answers where a position's records are gone. Which it is on Amazon, and where, is not published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrimAnswer {
    /// An error wherever a record at or behind the position is gone.
    #[default]
    WhereLost,
    /// An error for every number up to the last trimmed one, also where nothing behind it is gone.
    EveryTrimmedNumber,
    /// No error: reading begins silently behind the gap, as emulators do.
    Never,
}

/// Chances are per mille; zero, as in [`Habits::default`], is good behaviour.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Per write: the written shard splits in two.
    pub splits: u32,
    /// Per write: the written shard closes and has one child.
    pub rolls: u32,
    /// No split makes more open shards of a stream than this.
    pub most_open_shards: usize,
    /// A new shard is missing in up to so many listings; the second child in up to twice as many.
    pub listed_late: u32,
    /// A closed shard is shown as open in up to so many listings.
    pub closed_late: u32,
    /// New shards take a random place in the listing, not their place in time.
    pub unordered: bool,
    /// Shards on a page of the listing.
    pub largest_listing: usize,
    /// Items on a page of a scan, beside the service's own bounds.
    pub largest_scan: usize,
    /// Per call: ProvisionedThroughputExceededException, or LimitExceededException where that is the operation's own.
    pub throttled: u32,
    /// Per call: InternalServerError.
    pub internal_errors: u32,
    /// Per GetRecords: the iterator has expired.
    pub expired_iterators: u32,
    /// Per GetRecords: an empty page although there are records.
    pub empty_pages: u32,
    /// Per GetRecords: a page shorter than there are records.
    pub short_pages: u32,
    /// Per shard: its last records and its end come on one page; else the end has a page of its own.
    pub ends_with_records: u32,
    /// Records of one transaction come in any order.
    pub shuffled_transactions: bool,
    /// An eventually consistent read misses up to so many of the last second's writes.
    pub missed_writes: usize,
    pub trim: TrimAnswer,
    /// An export is described as under way so many times.
    pub export_looks: u32,
    /// DescribeStream calls per second of real time, over all streams; the service has 10.
    pub describe_stream_limit: Option<usize>,
    /// Real time before an answer.
    pub latency: Duration,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            splits: 0,
            rolls: 0,
            most_open_shards: usize::MAX,
            listed_late: 0,
            closed_late: 0,
            unordered: false,
            largest_listing: super::stream::LARGEST_LISTING,
            largest_scan: usize::MAX,
            throttled: 0,
            internal_errors: 0,
            expired_iterators: 0,
            empty_pages: 0,
            short_pages: 0,
            ends_with_records: 0,
            shuffled_transactions: false,
            missed_writes: 0,
            trim: TrimAnswer::default(),
            export_looks: 0,
            describe_stream_limit: None,
            latency: Duration::ZERO,
        }
    }
}

impl Habits {
    /// A service in one of its moods. Nothing in it takes real time, and trimming only answers as documented.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut chance = |most: u32| if rng.bool() { rng.u32(0..=most) } else { 0 };
        Self {
            splits: chance(40),
            rolls: chance(40),
            listed_late: chance(3),
            closed_late: chance(3),
            throttled: chance(150),
            internal_errors: chance(100),
            expired_iterators: chance(80),
            empty_pages: chance(400),
            short_pages: chance(500),
            ends_with_records: chance(1000),
            missed_writes: chance(8) as usize,
            most_open_shards: rng.usize(1..=8),
            unordered: rng.bool(),
            largest_listing: if rng.bool() { rng.usize(1..=4) } else { super::stream::LARGEST_LISTING },
            shuffled_transactions: rng.bool(),
            ..Self::default()
        }
    }
}

/// Whether something with a chance per mille happens now.
pub(super) fn happens(rng: &mut Rng, chance: u32) -> bool {
    chance > 0 && rng.u32(0..1000) < chance
}
