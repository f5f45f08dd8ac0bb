//! The simulator of DynamoDB and its Streams, driven by Amazon's clients.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{
    AttributeValue, Delete, Put, PutRequest, ReturnConsumedCapacity, StreamViewType, TransactWriteItem, WriteRequest,
};
use aws_sdk_dynamodbstreams::types::{
    AttributeValue as StreamValue, Record, Shard, ShardFilter, ShardFilterType, ShardIteratorType,
};
use serde_json::{Value, json};
use testkit::dynamodb::{
    DynamoDb, Event, Fault, Habits, KeyType, Operation, TrimAnswer, View, Write, client, streams_client,
};

const TABLE: &str = "profiles";
const HOUR: Duration = Duration::from_secs(3_600);

struct World {
    dynamo: DynamoDb,
    tables: aws_sdk_dynamodb::Client,
    streams: aws_sdk_dynamodbstreams::Client,
    arn: String,
}

/// Records, and the next iterator.
type Page = (Vec<Record>, Option<String>);

impl World {
    fn start(habits: Habits, seed: u64, shards: usize) -> Self {
        let dynamo = DynamoDb::start(habits, seed);
        dynamo.create_table(TABLE, &[("id", KeyType::S)]);
        let arn = dynamo.enable_stream(TABLE, View::NewAndOldImages, shards);
        let (tables, streams) = (client(&dynamo.endpoint()), streams_client(&dynamo.endpoint()));
        Self { dynamo, tables, streams, arn }
    }

    fn calm() -> Self {
        Self::start(Habits::default(), 1, 1)
    }

    fn put(&self, id: &str, value: u64) {
        self.dynamo.put(TABLE, &item(id, value));
    }

    fn only_shard(&self) -> String {
        let open = self.dynamo.open_shards(TABLE);
        assert_eq!(open.len(), 1);
        open[0].clone()
    }

    /// A page of the listing, and where the next one begins; the error's code.
    async fn page(&self, last: Option<String>) -> Result<(Vec<Shard>, Option<String>), String> {
        let page = self.streams.describe_stream().stream_arn(&self.arn).set_exclusive_start_shard_id(last);
        let page = page.send().await.map_err(|error| code(&error))?.stream_description.unwrap();
        Ok((page.shards.unwrap(), page.last_evaluated_shard_id))
    }

    /// One whole listing, page by page.
    async fn list(&self) -> Result<Vec<Shard>, String> {
        let (mut all, mut last) = self.page(None).await?;
        while last.is_some() {
            let (shards, next) = self.page(last).await?;
            all.extend(shards);
            last = next;
        }
        Ok(all)
    }

    async fn listed(&self) -> Vec<String> {
        self.list().await.unwrap().into_iter().map(|shard| shard.shard_id.unwrap()).collect()
    }

    async fn iterator(&self, shard: &str, from: ShardIteratorType, number: Option<&str>) -> Result<String, String> {
        let get = self.streams.get_shard_iterator().stream_arn(&self.arn).shard_id(shard).shard_iterator_type(from);
        let answer = get.set_sequence_number(number.map(str::to_owned)).send().await;
        answer.map(|answer| answer.shard_iterator.unwrap()).map_err(|error| code(&error))
    }

    async fn at_first(&self, shard: &str) -> Result<String, String> {
        let starting = self.dynamo.shards(TABLE).into_iter().find(|known| known.id == shard).unwrap().starting;
        self.iterator(shard, ShardIteratorType::AtSequenceNumber, Some(&starting)).await
    }

    async fn records(&self, iterator: &str) -> Result<Page, String> {
        let answer = self.streams.get_records().shard_iterator(iterator).send().await.map_err(|error| code(&error))?;
        Ok((answer.records.unwrap_or_default(), answer.next_shard_iterator))
    }

    /// Reads a shard from its first number to where it has nothing more to give now; whether that is its end.
    async fn read(&self, shard: &str) -> (Vec<Record>, bool) {
        let mut iterator = self.at_first(shard).await.unwrap();
        let mut all = Vec::new();
        loop {
            let (records, next) = self.records(&iterator).await.unwrap();
            let empty = records.is_empty();
            all.extend(records);
            match next {
                None => return (all, true),
                Some(_) if empty => return (all, false),
                Some(next) => iterator = next,
            }
        }
    }
}

fn item(id: &str, value: u64) -> Value {
    json!({"id": {"S": id}, "value": {"N": value.to_string()}})
}

fn key(id: &str) -> Value {
    json!({"id": {"S": id}})
}

fn code(error: &impl ProvideErrorMetadata) -> String {
    error.code().unwrap_or("no code").to_owned()
}

fn sequence(record: &Record) -> &str {
    record.dynamodb().unwrap().sequence_number().unwrap()
}

fn id(record: &Record) -> &str {
    record.dynamodb().unwrap().keys().unwrap()["id"].as_s().unwrap()
}

/// A record's new value; none of a delete.
fn value(record: &Record) -> Option<&str> {
    record.dynamodb().unwrap().new_image().map(|image| image["value"].as_n().unwrap().as_str())
}

fn numbers<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<(usize, &'a str)> {
    texts.into_iter().map(|text| (text.len(), text)).collect()
}

/// What a proper reader does, and no more: parents first, every error survived, the end only where there is no next.
struct Reader<'a> {
    world: &'a World,
    /// Where each shard stands.
    shards: HashMap<String, Lane>,
    read: Vec<Record>,
}

#[derive(Debug)]
struct Lane {
    parent: Option<String>,
    starting: String,
    last: Option<String>,
    iterator: Option<String>,
    finished: bool,
}

impl<'a> Reader<'a> {
    fn new(world: &'a World) -> Self {
        Self { world, shards: HashMap::new(), read: Vec::new() }
    }

    async fn discover(&mut self) {
        let mut listed = Vec::new();
        let mut last = None;
        loop {
            match self.world.page(last.clone()).await {
                Err(_) => continue,
                Ok((shards, next)) => (listed.extend(shards), last = next),
            };
            if last.is_none() {
                break;
            }
        }
        for shard in listed {
            self.shards.entry(shard.shard_id.unwrap()).or_insert_with(|| Lane {
                parent: shard.parent_shard_id,
                starting: shard.sequence_number_range.unwrap().starting_sequence_number.unwrap(),
                last: None,
                iterator: None,
                finished: false,
            });
        }
    }

    /// One page of every shard that may be read.
    async fn round(&mut self) {
        let unfinished = |id: &String| self.shards.get(id).is_none_or(|lane| !lane.finished);
        let ready = |(id, lane): (&String, &Lane)| {
            (!lane.finished && !lane.parent.as_ref().is_some_and(unfinished)).then(|| id.clone())
        };
        let ready: Vec<String> = self.shards.iter().filter_map(ready).collect();
        for id in ready {
            let lane = self.shards.get_mut(&id).unwrap();
            if lane.iterator.is_none() {
                let opened = match &lane.last {
                    Some(last) => self.world.iterator(&id, ShardIteratorType::AfterSequenceNumber, Some(last)).await,
                    None => self.world.iterator(&id, ShardIteratorType::AtSequenceNumber, Some(&lane.starting)).await,
                };
                let Ok(opened) = opened else { continue };
                lane.iterator = Some(opened);
            }
            match self.world.records(lane.iterator.as_ref().unwrap()).await {
                Ok((records, next)) => {
                    lane.last = records.last().map(|record| sequence(record).to_owned()).or(lane.last.take());
                    lane.finished = next.is_none();
                    lane.iterator = next;
                    self.read.extend(records);
                }
                Err(code) if code == "ExpiredIteratorException" => lane.iterator = None,
                Err(code) => {
                    assert!(["ProvisionedThroughputExceededException", "InternalServerError"].contains(&&*code))
                }
            }
        }
    }
}

/// Random writes, a reader beside them, all habits of a seed.
async fn read_everything(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let world = World::start(Habits::seeded(seed), seed, rng.usize(1..=3));
    let mut reader = Reader::new(&world);
    let mut last_values: BTreeMap<String, u64> = BTreeMap::new();
    for number in 0..300 {
        let id = format!("item-{}", rng.u32(0..20));
        match rng.u32(0..10) {
            0 if last_values.remove(&id).is_some() => world.dynamo.delete(TABLE, &key(&id)),
            _ => {
                world.put(&id, number);
                last_values.insert(id, number);
            }
        }
        if rng.u32(0..100) == 0 {
            world.dynamo.lengthen_sequence_numbers(TABLE);
        }
        if number % 30 == 29 {
            reader.discover().await;
            reader.round().await;
        }
    }
    let expected = world.dynamo.records(TABLE);
    let mut rounds = 0;
    while reader.read.len() < expected.len() {
        reader.discover().await;
        reader.round().await;
        rounds += 1;
        assert!(rounds < 2_000, "seed {seed}: {} of {} records", reader.read.len(), expected.len());
    }
    let distinct: BTreeSet<&str> = reader.read.iter().map(sequence).collect();
    assert_eq!(distinct.len(), expected.len(), "seed {seed}: each once");
    let mut of_items: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    reader.read.iter().for_each(|record| of_items.entry(id(record)).or_default().push(record));
    for (id, records) in of_items {
        assert!(numbers(records.iter().map(|record| sequence(record))).is_sorted(), "seed {seed}: {id}");
        let last = value(records.last().unwrap()).map(str::to_owned);
        assert_eq!(last, last_values.get(id).map(u64::to_string), "seed {seed}: {id}");
    }
    world.dynamo.assert_one_reader_per_shard();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proper_reader_gets_every_record_once_and_in_item_order() {
    for seed in 0..60 {
        read_everything(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_and_writes_make_the_same_stream() {
    let run = |reads: usize| async move {
        let world = World::start(Habits::seeded(7), 7, 2);
        for number in 0..200 {
            world.put(&format!("item-{}", number % 9), number);
            for _ in 0..reads {
                let _ = world.list().await;
            }
        }
        (world.dynamo.records(TABLE), world.dynamo.shards(TABLE))
    };
    assert_eq!(run(0).await, run(1).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_makes_children_above_their_parent_that_take_its_items() {
    let world = World::calm();
    let parent = world.only_shard();
    (0..50).for_each(|number| world.put(&format!("item-{number}"), 1));
    let children = world.dynamo.split(TABLE, &parent);
    (0..50).for_each(|number| world.put(&format!("item-{number}"), 2));
    assert_eq!(children.len(), 2);
    let listed = world.list().await.unwrap();
    assert_eq!(listed.len(), 3);
    let range = |id: &str| {
        let shard = listed.iter().find(|shard| shard.shard_id() == Some(id)).unwrap();
        shard.sequence_number_range().unwrap().clone()
    };
    let end = range(&parent).ending_sequence_number.unwrap();
    let (of_parent, ended) = world.read(&parent).await;
    assert!(ended && of_parent.len() == 50);
    let mut of_children = 0;
    for child in &children {
        assert_eq!(
            listed.iter().find(|shard| shard.shard_id() == Some(child)).unwrap().parent_shard_id(),
            Some(&*parent)
        );
        let starting = range(child).starting_sequence_number.unwrap();
        assert!(numbers([end.as_str(), starting.as_str()]).is_sorted_by(|one, other| one < other));
        let (records, ended) = world.read(child).await;
        assert!(!ended && !records.is_empty());
        assert!(numbers([starting.as_str(), sequence(&records[0])]).is_sorted());
        of_children += records.len();
    }
    assert_eq!(of_children, 50);
    let id = parent.strip_prefix("shardId-").unwrap().split_once('-').unwrap();
    assert_eq!((id.0.len(), id.1.len()), (20, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_over_closes_a_shard_in_favour_of_one_child() {
    let world = World::calm();
    let parent = world.only_shard();
    let child = world.dynamo.roll(TABLE, &parent);
    assert_eq!(world.only_shard(), child);
    assert!(world.read(&parent).await.1);
    let children = world
        .streams
        .describe_stream()
        .stream_arn(&world.arn)
        .shard_filter(ShardFilter::builder().r#type(ShardFilterType::ChildShards).shard_id(&parent).build());
    let children = children.send().await.unwrap().stream_description.unwrap().shards.unwrap();
    assert_eq!(children.iter().map(|shard| shard.shard_id().unwrap()).collect::<Vec<_>>(), [child]);
}

#[tokio::test(flavor = "multi_thread")]
async fn children_are_listed_late_the_second_later_and_the_parent_is_still_shown_as_open() {
    let world = World::calm();
    let parent = world.only_shard();
    let children = world.dynamo.split(TABLE, &parent);
    world.dynamo.list_late(TABLE, &children[0], 1);
    world.dynamo.list_late(TABLE, &children[1], 2);
    world.dynamo.show_open(TABLE, &parent, 2);
    let open = |shards: &[Shard]| {
        let parent = shards.iter().find(|shard| shard.shard_id() == Some(&*parent)).unwrap();
        parent.sequence_number_range().unwrap().ending_sequence_number().is_none()
    };
    let mut seen = Vec::new();
    for _ in 0..3 {
        let listed = world.list().await.unwrap();
        seen.push((listed.len(), open(&listed)));
    }
    assert_eq!(seen, [(1, true), (2, true), (3, false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_has_pages_and_need_not_be_in_order() {
    let habits = Habits { unordered: true, largest_listing: 3, ..Habits::default() };
    let world = World::start(habits, 5, 1);
    for _ in 0..20 {
        world.dynamo.roll(TABLE, &world.only_shard());
    }
    let listed = world.listed().await;
    assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), 21);
    assert_eq!(world.dynamo.calls(Operation::DescribeStream), 7);
    let born: Vec<String> = world.dynamo.shards(TABLE).into_iter().map(|shard| shard.id).collect();
    assert_ne!(listed, born);
    let limited = world.streams.describe_stream().stream_arn(&world.arn).limit(2).send().await.unwrap();
    assert_eq!(limited.stream_description.unwrap().shards.unwrap().len(), 2);
    let too_many = world.streams.describe_stream().stream_arn(&world.arn).limit(101).send().await;
    assert_eq!(code(&too_many.unwrap_err()), "ValidationException");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_have_at_most_a_thousand_records_and_a_megabyte() {
    let world = World::calm();
    (0..1_500).for_each(|number| world.put("small", number));
    let shard = world.only_shard();
    let first = world.at_first(&shard).await.unwrap();
    let (records, next) = world.records(&first).await.unwrap();
    assert_eq!(records.len(), 1_000);
    assert_eq!(world.records(&next.unwrap()).await.unwrap().0.len(), 500);
    let (last, next) = (sequence(&records[999]).to_owned(), "x".repeat(390 << 10));
    for number in 0..4 {
        world.dynamo.put(TABLE, &json!({"id": {"S": "large"}, "value": {"S": format!("{number}{next}")}}));
    }
    let mut iterator = world.iterator(&shard, ShardIteratorType::AfterSequenceNumber, Some(&last)).await.unwrap();
    let mut pages = Vec::new();
    loop {
        let (records, next) = world.records(&iterator).await.unwrap();
        if records.is_empty() {
            break;
        }
        pages.push(records.len());
        iterator = next.unwrap();
    }
    // An update of a large item carries both of its images.
    assert_eq!(pages, [501, 1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn iterators_begin_where_they_are_told_to() {
    let world = World::calm();
    (0..3).for_each(|number| world.put("a", number));
    let shard = world.only_shard();
    let (all, _) = world.read(&shard).await;
    let second = Some(sequence(&all[1]));
    let mut counts = Vec::new();
    for (from, number) in [
        (ShardIteratorType::TrimHorizon, None),
        (ShardIteratorType::AtSequenceNumber, second),
        (ShardIteratorType::AfterSequenceNumber, second),
        (ShardIteratorType::Latest, None),
    ] {
        let iterator = world.iterator(&shard, from, number).await.unwrap();
        counts.push(world.records(&iterator).await.unwrap().0.len());
    }
    assert_eq!(counts, [3, 2, 1, 0]);
    let latest = world.iterator(&shard, ShardIteratorType::Latest, None).await.unwrap();
    world.put("a", 9);
    assert_eq!(world.records(&latest).await.unwrap().0.len(), 1);
    let foreign = world.iterator(&shard, ShardIteratorType::AtSequenceNumber, Some(&"9".repeat(21))).await;
    assert!(foreign.is_ok(), "an open shard takes numbers that are still to come");
    let foreign = world.iterator(&shard, ShardIteratorType::AtSequenceNumber, Some("12")).await;
    assert_eq!(foreign.unwrap_err(), "ValidationException");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_iterator_lives_fifteen_minutes_and_a_number_begins_again() {
    let world = World::calm();
    world.put("a", 1);
    let shard = world.only_shard();
    let (records, next) = world.records(&world.at_first(&shard).await.unwrap()).await.unwrap();
    world.put("a", 2);
    world.dynamo.advance(Duration::from_secs(15 * 60 + 1));
    assert_eq!(world.records(&next.unwrap()).await.unwrap_err(), "ExpiredIteratorException");
    let after = world.iterator(&shard, ShardIteratorType::AfterSequenceNumber, Some(sequence(&records[0]))).await;
    assert_eq!(value(&world.records(&after.unwrap()).await.unwrap().0[0]), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn trimmed_records_are_refused_by_number_and_skipped_in_silence_from_the_horizon() {
    let world = World::calm();
    (0..3).for_each(|number| world.put("a", number));
    let shard = world.only_shard();
    let (all, _) = world.read(&shard).await;
    world.dynamo.advance(HOUR * 23);
    let early = world.at_first(&shard).await.unwrap();
    let later = world.iterator(&shard, ShardIteratorType::AfterSequenceNumber, Some(sequence(&all[2]))).await.unwrap();
    world.put("a", 3);
    world.dynamo.advance(HOUR);
    assert_eq!(world.records(&early).await.unwrap_err(), "ExpiredIteratorException");
    assert_eq!(world.at_first(&shard).await.unwrap_err(), "TrimmedDataAccessException");
    assert_eq!(world.records(&later).await.unwrap_err(), "ExpiredIteratorException");
    let horizon = world.iterator(&shard, ShardIteratorType::TrimHorizon, None).await.unwrap();
    assert_eq!(value(&world.records(&horizon).await.unwrap().0[0]), Some("3"));
    let trimmed = Some(sequence(&all[2]));
    let after = world.iterator(&shard, ShardIteratorType::AfterSequenceNumber, trimmed).await.unwrap();
    assert_eq!(world.records(&after).await.unwrap().0.len(), 1, "nothing behind it is lost");
    world.dynamo.habits(|habits| habits.trim = TrimAnswer::EveryTrimmedNumber);
    let after = world.iterator(&shard, ShardIteratorType::AfterSequenceNumber, trimmed).await;
    assert_eq!(after.unwrap_err(), "TrimmedDataAccessException");
    world.dynamo.habits(|habits| habits.trim = TrimAnswer::Never);
    let silent = world.at_first(&shard).await.unwrap();
    assert_eq!(world.records(&silent).await.unwrap().0.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_iterator_that_was_valid_when_issued_meets_the_trim_too() {
    let world = World::calm();
    (0..3).for_each(|number| world.put("a", number));
    let shard = world.only_shard();
    for from in [ShardIteratorType::TrimHorizon, ShardIteratorType::AtSequenceNumber] {
        let number = world.dynamo.records(TABLE)[1].sequence.clone();
        let number = (from == ShardIteratorType::AtSequenceNumber).then_some(&*number);
        let iterator = world.iterator(&shard, from, number).await.unwrap();
        assert!(world.records(&iterator).await.is_ok());
        world.dynamo.trim_shard(TABLE, &shard, 1);
        assert_eq!(world.records(&iterator).await.unwrap_err(), "TrimmedDataAccessException");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_shard_leaves_the_listing_after_a_day_and_a_vanished_one_at_once() {
    let world = World::calm();
    world.put("a", 1);
    let parent = world.only_shard();
    let child = world.dynamo.roll(TABLE, &parent);
    world.dynamo.advance(HOUR * 23);
    assert_eq!(world.listed().await, [parent.clone(), child.clone()]);
    world.dynamo.advance(HOUR);
    let listed = world.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].parent_shard_id(), Some(&*parent), "a child names its parent still");
    world.put("a", 2);
    world.dynamo.vanish(TABLE, &child);
    assert!(world.listed().await.is_empty());
    assert_eq!(world.at_first(&child).await.unwrap_err(), "ResourceNotFoundException");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_page_is_not_the_end_and_pages_may_be_short() {
    let habits = Habits { empty_pages: 500, short_pages: 500, ..Habits::default() };
    let world = World::start(habits, 3, 1);
    (0..100).for_each(|number| world.put("a", number));
    let mut iterator = world.at_first(&world.only_shard()).await.unwrap();
    let (mut all, mut empty, mut pages) = (0, 0, 0);
    while all < 100 {
        let (records, next) = world.records(&iterator).await.unwrap();
        (all, empty, pages) = (all + records.len(), empty + usize::from(records.is_empty()), pages + 1);
        iterator = next.unwrap();
    }
    assert!(empty > 0 && pages - empty > 1, "{pages} pages, {empty} of them empty");
    let world = World::calm();
    let iterator = world.at_first(&world.only_shard()).await.unwrap();
    world.put("a", 1);
    world.dynamo.empty_next(2);
    for records in [0, 0, 1] {
        assert_eq!(world.records(&iterator).await.unwrap().0.len(), records);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_shard_comes_with_its_last_records_or_on_a_page_of_its_own() {
    for (ends_with_records, pages) in [(0, 2), (1_000, 1)] {
        let world = World::start(Habits { ends_with_records, ..Habits::default() }, 1, 1);
        let shard = world.only_shard();
        world.put("a", 1);
        world.dynamo.roll(TABLE, &shard);
        let mut next = world.at_first(&shard).await.ok();
        let mut count = 0;
        while let Some(iterator) = next {
            next = world.records(&iterator).await.unwrap().1;
            count += 1;
        }
        assert_eq!(count, pages);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_fail_as_scripted_and_then_succeed() {
    let world = World::calm();
    let shard = world.only_shard();
    let iterator = world.at_first(&shard).await.unwrap();
    for (fault, expected) in [
        (Fault::Throttled, "ProvisionedThroughputExceededException"),
        (Fault::LimitExceeded, "LimitExceededException"),
        (Fault::Internal, "InternalServerError"),
        (Fault::ExpiredIterator, "ExpiredIteratorException"),
        (Fault::Trimmed, "TrimmedDataAccessException"),
        (Fault::ResourceNotFound, "ResourceNotFoundException"),
    ] {
        world.dynamo.fail_next(Operation::GetRecords, fault, 1);
        assert_eq!(world.records(&iterator).await.unwrap_err(), expected);
        assert!(world.records(&iterator).await.is_ok());
    }
    world.dynamo.deny(Operation::DescribeStream);
    assert_eq!(world.list().await.unwrap_err(), "AccessDeniedException");
    world.dynamo.allow(Operation::DescribeStream);
    assert!(world.list().await.is_ok());
    let gone = world.tables.describe_table().table_name("nowhere").send().await;
    assert_eq!(code(&gone.unwrap_err()), "ResourceNotFoundException");
}

#[tokio::test(flavor = "multi_thread")]
async fn describe_stream_has_a_limit_per_second() {
    let world = World::start(Habits { describe_stream_limit: Some(10), ..Habits::default() }, 1, 1);
    let mut codes = BTreeSet::new();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        codes.extend(world.list().await.err());
    }
    assert_eq!(codes.into_iter().collect::<Vec<_>>(), ["LimitExceededException"]);
    assert!(world.dynamo.most_describe_stream_calls_per_second() > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_by_time_to_live_names_the_service() {
    let world = World::calm();
    for id in ["a", "b"] {
        world.put(id, 1);
    }
    world.dynamo.ttl_delete(TABLE, &key("a"));
    world.dynamo.delete(TABLE, &key("b"));
    let (records, _) = world.read(&world.only_shard()).await;
    let identity = records[2].user_identity().unwrap();
    assert_eq!((identity.r#type(), identity.principal_id()), (Some("Service"), Some("dynamodb.amazonaws.com")));
    assert!(records[3].user_identity().is_none());
    let recorded = world.dynamo.records(TABLE);
    assert_eq!([recorded[2].by_ttl, recorded[3].by_ttl], [true, false]);
    assert_eq!(recorded[2].event, Event::Remove);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_transaction_come_in_any_order() {
    let world = World::start(Habits { shuffled_transactions: true, ..Habits::default() }, 2, 1);
    let ids: Vec<String> = (0..10).map(|number| format!("item-{number}")).collect();
    let writes: Vec<_> = ids.iter().map(|id| (TABLE, Write::Put(item(id, 1)))).collect();
    world.dynamo.transact(&writes);
    let (records, _) = world.read(&world.only_shard()).await;
    let came: Vec<&str> = records.iter().map(id).collect();
    assert_ne!(came, ids);
    assert_eq!(came.iter().copied().collect::<BTreeSet<_>>(), ids.iter().map(String::as_str).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_write_as_the_test_does() {
    let world = World::calm();
    let value = |number: u32| AttributeValue::N(format!("{number}.0"));
    let name = |name: &str| AttributeValue::S(name.to_owned());
    let put =
        |id: &str, number| world.tables.put_item().table_name(TABLE).item("id", name(id)).item("value", value(number));
    put("a", 1).send().await.unwrap();
    put("a", 1).send().await.unwrap();
    put("a", 2).send().await.unwrap();
    let write = PutRequest::builder().item("id", name("b")).item("value", value(3)).build().unwrap();
    let write = WriteRequest::builder().put_request(write).build();
    world.tables.batch_write_item().request_items(TABLE, vec![write]).send().await.unwrap();
    let put = Put::builder().table_name(TABLE).item("id", name("c")).item("value", value(4)).build().unwrap();
    let delete = Delete::builder().table_name(TABLE).key("id", name("b")).build().unwrap();
    let transaction = world.tables.transact_write_items();
    let transaction = transaction.transact_items(TransactWriteItem::builder().put(put).build());
    transaction.transact_items(TransactWriteItem::builder().delete(delete).build()).send().await.unwrap();
    world.tables.delete_item().table_name(TABLE).key("id", name("nobody")).send().await.unwrap();
    let (records, _) = world.read(&world.only_shard()).await;
    let seen: Vec<_> = records.iter().map(|record| (record.event_name().unwrap().as_str(), id(record))).collect();
    let expected = [("INSERT", "a"), ("MODIFY", "a"), ("INSERT", "b"), ("INSERT", "c"), ("REMOVE", "b")];
    assert_eq!(seen, expected, "a write that changes nothing has no record");
    let change = records[1].dynamodb().unwrap();
    let number = |image: Option<&HashMap<String, StreamValue>>| image.unwrap()["value"].as_n().unwrap().clone();
    assert_eq!([number(change.old_image()), number(change.new_image())], ["1", "2"]);
    let get =
        world.tables.get_item().table_name(TABLE).key("id", name("c")).consistent_read(true).send().await.unwrap();
    assert_eq!(get.item.unwrap()["value"].as_n().unwrap(), "4");
    assert_eq!(world.dynamo.items(TABLE).len(), 2);
    let bad = world.tables.put_item().table_name(TABLE).item("id", AttributeValue::N("1".into())).send().await;
    assert_eq!(code(&bad.unwrap_err()), "ValidationException");
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_a_scan_come_in_pages_and_cover_the_table_once() {
    let world = World::calm();
    (0..200).for_each(|number| world.put(&format!("item-{number}"), number));
    let mut seen = Vec::new();
    for segment in 0..3 {
        let mut last = None;
        loop {
            let scan = world.tables.scan().table_name(TABLE).segment(segment).total_segments(3).limit(7);
            let scan = scan.consistent_read(true).set_exclusive_start_key(last);
            let page = scan.return_consumed_capacity(ReturnConsumedCapacity::Total).send().await.unwrap();
            assert_eq!(page.consumed_capacity.unwrap().capacity_units, Some(1.0));
            seen.extend(page.items.unwrap().into_iter().map(|item| item["id"].as_s().unwrap().clone()));
            last = page.last_evaluated_key;
            if last.is_none() {
                break;
            }
        }
    }
    assert_eq!(seen.len(), 200);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 200);
    assert_eq!(world.dynamo.read_units(TABLE), world.dynamo.calls(Operation::Scan) as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_scan_has_a_megabyte() {
    let world = World::calm();
    let large = "x".repeat(300 << 10);
    for number in 0..6 {
        world.dynamo.put(TABLE, &json!({"id": {"S": format!("{number}")}, "value": {"S": large}}));
    }
    let page = world.tables.scan().table_name(TABLE).consistent_read(true).send().await.unwrap();
    assert_eq!(page.count, 4);
    assert!(page.last_evaluated_key.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eventually_consistent_read_misses_recent_writes_for_a_second() {
    let world = World::start(Habits { missed_writes: 8, ..Habits::default() }, 4, 1);
    world.put("old", 1);
    world.dynamo.advance(HOUR);
    (0..4).for_each(|number| world.put(&format!("item-{number}"), 1));
    world.dynamo.delete(TABLE, &key("old"));
    let scan = |consistent| world.tables.scan().table_name(TABLE).consistent_read(consistent).send();
    let mut seen = BTreeSet::new();
    for _ in 0..50 {
        seen.insert(scan(false).await.unwrap().count);
        assert_eq!(scan(true).await.unwrap().count, 4);
    }
    assert!(seen.contains(&1) && seen.contains(&4), "{seen:?}");
    world.dynamo.advance(Duration::from_secs(1));
    for _ in 0..20 {
        assert_eq!(scan(false).await.unwrap().count, 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_enabled_again_is_another_one() {
    let world = World::calm();
    world.put("a", 1);
    world.dynamo.disable_stream(TABLE);
    world.put("a", 2);
    let tables = &world.tables;
    let described = |table: &'static str| async move {
        let table = tables.describe_table().table_name(table).send().await.unwrap().table.unwrap();
        (table.latest_stream_arn.clone().unwrap(), table.stream_specification().map(|stream| stream.stream_enabled))
    };
    assert_eq!(described(TABLE).await, (world.arn.clone(), None));
    let shard = &world.dynamo.shards(TABLE)[0];
    assert!(shard.ending.is_some());
    let (records, ended) = world.read(&shard.id).await;
    assert!(ended && records.len() == 1);
    let arn = world.dynamo.enable_stream(TABLE, View::KeysOnly, 1);
    assert_ne!(arn, world.arn);
    assert_eq!(described(TABLE).await, (arn.clone(), Some(true)));
    let streams = world.streams.list_streams().table_name(TABLE).send().await.unwrap().streams.unwrap();
    assert_eq!(streams.len(), 2);
    world.dynamo.advance(HOUR * 24);
    assert_eq!(world.list().await.unwrap_err(), "ResourceNotFoundException");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_table_leaves_its_stream_for_a_day() {
    let world = World::calm();
    world.put("a", 1);
    world.dynamo.delete_table(TABLE);
    let described = world.tables.describe_table().table_name(TABLE).send().await;
    assert_eq!(code(&described.unwrap_err()), "ResourceNotFoundException");
    assert_eq!(world.listed().await.len(), 1);
    world.dynamo.advance(HOUR * 24);
    assert_eq!(world.list().await.unwrap_err(), "ResourceNotFoundException");
}

#[tokio::test(flavor = "multi_thread")]
async fn view_types_decide_about_images() {
    for (view, kind, new, old) in [
        (View::KeysOnly, StreamViewType::KeysOnly, false, false),
        (View::NewImage, StreamViewType::NewImage, true, false),
        (View::OldImage, StreamViewType::OldImage, false, true),
        (View::NewAndOldImages, StreamViewType::NewAndOldImages, true, true),
    ] {
        let mut world = World::calm();
        world.dynamo.disable_stream(TABLE);
        world.arn = world.dynamo.enable_stream(TABLE, view, 1);
        world.put("a", 1);
        world.put("a", 2);
        let (records, _) = world.read(&world.only_shard()).await;
        let change = records[1].dynamodb().unwrap();
        assert_eq!((change.new_image().is_some(), change.old_image().is_some()), (new, old));
        let table = world.tables.describe_table().table_name(TABLE).send().await.unwrap().table.unwrap();
        assert_eq!(table.stream_specification.unwrap().stream_view_type, Some(kind));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_have_streams_of_their_own_and_say_what_they_are() {
    let world = World::calm();
    world.dynamo.create_table("reservations", &[("user", KeyType::S), ("at", KeyType::N)]);
    world.dynamo.point_in_time_recovery("reservations", false);
    world.dynamo.replicate_to("reservations", &["eu-west-1"]);
    for at in ["10", "9", "-1", "1e1"] {
        world.dynamo.put("reservations", &json!({"user": {"S": "u"}, "at": {"N": at}}));
    }
    let order: Vec<_> = world.dynamo.items("reservations").into_iter().map(|item| item["at"].clone()).collect();
    assert_eq!(order, [json!({"N": "-1"}), json!({"N": "9"}), json!({"N": "10"})]);
    let table = world.tables.describe_table().table_name("reservations").send().await.unwrap().table.unwrap();
    assert!(table.latest_stream_arn.is_none());
    assert_eq!(table.key_schema().len(), 2);
    assert_eq!(table.attribute_definitions()[1].attribute_type.as_str(), "N");
    assert_eq!(table.replicas()[0].region_name(), Some("eu-west-1"));
    let tables = &world.tables;
    let recovery = |table: &'static str| async move {
        let backups = tables.describe_continuous_backups().table_name(table).send().await.unwrap();
        let recovery = backups.continuous_backups_description.unwrap().point_in_time_recovery_description.unwrap();
        recovery.point_in_time_recovery_status.unwrap().as_str().to_owned()
    };
    assert_eq!(recovery("reservations").await, "DISABLED");
    assert_eq!(recovery(TABLE).await, "ENABLED");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_readers_of_a_shard_are_noticed_and_a_successor_is_not_one() {
    let world = World::calm();
    world.put("a", 1);
    let shard = world.only_shard();
    let first = world.at_first(&shard).await.unwrap();
    let next = world.records(&first).await.unwrap().1.unwrap();
    let second = world.at_first(&shard).await.unwrap();
    world.records(&second).await.unwrap();
    world.dynamo.assert_one_reader_per_shard();
    world.records(&next).await.unwrap();
    assert_eq!(world.dynamo.contested_shards(), BTreeSet::from([shard.clone()]));

    world.dynamo.habits(|habits| habits.latency = Duration::from_millis(200));
    let (one, other) = tokio::join!(world.records(&second), world.records(&second));
    assert!(one.is_ok() && other.is_ok());
    assert_eq!(world.dynamo.most_readers(TABLE, &shard), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_shards_are_listed_and_read_in_bounded_time() {
    let habits = Habits { unordered: true, ends_with_records: 500, ..Habits::default() };
    let world = World::start(habits, 8, 1);
    let mut depth = 0;
    while depth < 6 {
        world.dynamo.open_shards(TABLE).iter().for_each(|shard| drop(world.dynamo.split(TABLE, shard)));
        depth += 1;
    }
    let mut number = 0;
    while world.dynamo.shards(TABLE).len() < 5_000 {
        for shard in world.dynamo.open_shards(TABLE) {
            world.dynamo.roll(TABLE, &shard);
            number += 1;
            world.put(&format!("item-{}", number % 500), number);
        }
    }
    let mut reader = Reader::new(&world);
    reader.discover().await;
    let calls = world.dynamo.calls(Operation::DescribeStream);
    assert_eq!(calls, reader.shards.len().div_ceil(100));
    let expected = world.dynamo.records(TABLE).len();
    while reader.read.len() < expected {
        reader.round().await;
    }
    assert_eq!(reader.read.len(), expected);
    assert!(reader.shards.len() >= 5_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn sequence_numbers_grow_in_length() {
    let world = World::calm();
    for number in 0..22 {
        world.put("a", number);
        world.dynamo.lengthen_sequence_numbers(TABLE);
    }
    let (records, _) = world.read(&world.only_shard()).await;
    let lengths: Vec<usize> = records.iter().map(|record| sequence(record).len()).collect();
    assert_eq!((lengths[0], *lengths.last().unwrap()), (21, 40));
    assert!(numbers(records.iter().map(sequence)).is_sorted());
    assert!(!records.iter().map(sequence).is_sorted(), "text order is another one");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_call_is_refused() {
    let world = World::calm();
    let answer = testkit::http::send("POST", &world.dynamo.endpoint(), "{}").await.unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("MissingAuthenticationTokenException"));
}
