//! What was asked of the service, and what a test wants to know of it afterwards.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::refusal::Refusal;

/// The operations that the simulator serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    BatchGetItem,
    BatchWriteItem,
    DeleteItem,
    DescribeContinuousBackups,
    DescribeExport,
    DescribeStream,
    DescribeTable,
    ExportTableToPointInTime,
    GetItem,
    GetRecords,
    GetShardIterator,
    ListStreams,
    PutItem,
    Scan,
    TransactWriteItems,
}

impl Operation {
    /// By `X-Amz-Target`.
    pub(super) fn of(target: &str) -> Option<Self> {
        let streams = |operation| target.starts_with("DynamoDBStreams_20120810.").then_some(operation);
        let tables = |operation| target.starts_with("DynamoDB_20120810.").then_some(operation);
        match target.rsplit('.').next()? {
            "BatchGetItem" => tables(Self::BatchGetItem),
            "BatchWriteItem" => tables(Self::BatchWriteItem),
            "DeleteItem" => tables(Self::DeleteItem),
            "DescribeContinuousBackups" => tables(Self::DescribeContinuousBackups),
            "DescribeExport" => tables(Self::DescribeExport),
            "ExportTableToPointInTime" => tables(Self::ExportTableToPointInTime),
            "DescribeTable" => tables(Self::DescribeTable),
            "GetItem" => tables(Self::GetItem),
            "PutItem" => tables(Self::PutItem),
            "Scan" => tables(Self::Scan),
            "TransactWriteItems" => tables(Self::TransactWriteItems),
            "DescribeStream" => streams(Self::DescribeStream),
            "GetRecords" => streams(Self::GetRecords),
            "GetShardIterator" => streams(Self::GetShardIterator),
            "ListStreams" => streams(Self::ListStreams),
            _ => None,
        }
    }

    /// As policies name it.
    pub(super) fn action(self) -> String {
        format!("dynamodb:{self:?}")
    }

    pub(super) fn throttled(self) -> Refusal {
        match self {
            Self::DescribeStream | Self::ListStreams => Refusal::limit_exceeded(),
            _ => Refusal::throttled(),
        }
    }
}

/// How a call is answered instead of being carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// ProvisionedThroughputExceededException.
    Throttled,
    LimitExceeded,
    /// InternalServerError, status 500.
    Internal,
    ExpiredIterator,
    Trimmed,
    ResourceNotFound,
    /// The key that the data is encrypted with may not be used.
    KeyRefused,
}

impl Fault {
    pub(super) fn refusal(self) -> Refusal {
        match self {
            Fault::Throttled => Refusal::throttled(),
            Fault::LimitExceeded => Refusal::limit_exceeded(),
            Fault::Internal => Refusal::internal(),
            Fault::ExpiredIterator => Refusal::expired(),
            Fault::Trimmed => Refusal::trimmed(),
            Fault::ResourceNotFound => Refusal::no_shard("-"),
            Fault::KeyRefused => Refusal::key_refused(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    pub(super) counts: BTreeMap<Operation, usize>,
    pub(super) faults: BTreeMap<Operation, VecDeque<Fault>>,
    pub(super) denied: BTreeSet<Operation>,
    /// So many of the next GetRecords answer an empty page, whatever there is.
    pub(super) empty_pages: usize,
    /// When DescribeStream was called during the last second, and the most calls that a second has seen.
    describes: VecDeque<Instant>,
    pub(super) most_describes: usize,
    readers: HashMap<(String, usize), Readers>,
    /// Shards that two chains of iterators have read by turns, or two calls at once.
    pub(super) contested: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Readers {
    newest_chain: u64,
    now: usize,
    most: usize,
}

impl Calls {
    pub(super) fn count(&mut self, operation: Operation) {
        *self.counts.entry(operation).or_default() += 1;
        if operation == Operation::DescribeStream {
            let now = Instant::now();
            let second = Duration::from_secs(1);
            while self.describes.front().is_some_and(|past| now.duration_since(*past) >= second) {
                self.describes.pop_front();
            }
            self.describes.push_back(now);
            self.most_describes = self.most_describes.max(self.describes.len());
        }
    }

    /// Whether this GetRecords is one of those that a test wants empty.
    pub(super) fn takes_empty_page(&mut self) -> bool {
        let wanted = self.empty_pages > 0;
        self.empty_pages -= usize::from(wanted);
        wanted
    }

    /// DescribeStream calls of the last second, this one included.
    pub(super) fn describes(&self) -> usize {
        self.describes.len()
    }

    /// A GetRecords begins. A chain of iterators that goes on after a newer one has begun is a second reader.
    pub(super) fn reading(&mut self, stream: &str, shard: usize, chain: u64, id: &str) {
        let readers = self.readers.entry((stream.to_owned(), shard)).or_default();
        readers.now += 1;
        readers.most = readers.most.max(readers.now);
        if chain < readers.newest_chain || readers.now > 1 {
            self.contested.insert(id.to_owned());
        }
        readers.newest_chain = readers.newest_chain.max(chain);
    }

    pub(super) fn has_read(&mut self, stream: &str, shard: usize) {
        if let Some(readers) = self.readers.get_mut(&(stream.to_owned(), shard)) {
            readers.now -= 1;
        }
    }

    /// The most calls that were reading a shard at once.
    pub(super) fn most_readers(&self, stream: &str, shard: usize) -> usize {
        self.readers.get(&(stream.to_owned(), shard)).map_or(0, |readers| readers.most)
    }
}
