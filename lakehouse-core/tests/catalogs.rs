//! One contract, and every catalog keeps it: SQLite, S3 Tables (our simulator for its habits, an emulator that we did not
//! write for its tokens, Amazon's own where an environment variable names a table bucket), and Iceberg's REST catalog.
//! Each through a proxy that breaks HTTP on purpose.

use std::collections::{BTreeMap, HashMap};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use crate::support::block_on;
use crate::support::rig::{self, Address, Kind, Rig, empty_snapshot};
use iceberg::spec::{NestedField, PrimitiveType, Schema, Type};
use iceberg::{TableCreation, TableUpdate};
use lakehouse_core::catalog::{Catalog, LoadedTable, Swap};
use lakehouse_core::schema::TableName;
use testkit::fault_proxy::{Canned, Fault, Landing, When};
use testkit::tier;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// Rounds of the race between two processes.
/// Snapshots that a table of these tests keeps.
const KEPT: usize = 20;

fn name(table: &str) -> TableName {
    TableName::new("contract", table)
}

fn creation(table: &str) -> TableCreation {
    let field = NestedField::optional(1, "id", Type::Primitive(PrimitiveType::Long));
    let schema = Schema::builder().with_fields([Arc::new(field)]).build().expect("a schema");
    TableCreation::builder().name(table.to_owned()).schema(schema).build()
}

/// A commit as the protocol makes them: an empty snapshot, and properties; `count` goes up by one.
fn change(base: &LoadedTable, value: &str) -> Vec<TableUpdate> {
    let metadata = &base.metadata;
    let count = count(base) + 1;
    let properties = [("value".to_owned(), value.to_owned()), ("count".to_owned(), count.to_string())];
    let mut updates = Vec::from(empty_snapshot(base, metadata.current_schema_id()));
    updates.push(TableUpdate::SetProperties { updates: HashMap::from(properties) });
    if metadata.snapshots().len() > KEPT {
        let others =
            metadata.snapshots().map(|snapshot| snapshot.snapshot_id()).filter(|&id| base.snapshot_id() != Some(id));
        updates.push(TableUpdate::RemoveSnapshots { snapshot_ids: others.collect() });
    }
    updates
}

/// Commits that have landed.
fn count(table: &LoadedTable) -> usize {
    table.property("count").map_or(0, |count| count.parse().expect("a number"))
}

async fn load(catalog: &Arc<dyn Catalog>, table: &str) -> LoadedTable {
    catalog.load(&name(table), None).await.expect("an answer").expect("the table")
}

/// What the table's last commit wrote, as it really stands.
async fn value(rig: &Rig, table: &str) -> Option<String> {
    load(&rig.clean, table).await.property("value").map(str::to_owned)
}

async fn commit(catalog: &Arc<dyn Catalog>, base: &LoadedTable, value: &str) -> Swap {
    catalog.commit(base, change(base, value)).await.expect("an outcome")
}

fn landed(swap: Swap) -> LoadedTable {
    match swap {
        Swap::Landed(table) => table,
        other => panic!("a commit that lands, not {other:?}"),
    }
}

fn is_rejected(swap: &Swap) -> bool {
    matches!(swap, Swap::Rejected)
}

fn is_unknown(swap: &Swap) -> bool {
    matches!(swap, Swap::Unknown(_))
}

/// Tables are created once, listed, and loaded as they stand.
async fn tables_are_created_once_and_found(rig: &Rig) {
    assert!(rig.catalog.load(&name("t"), None).await.expect("an answer").is_none(), "nothing is there yet");
    assert!(rig.catalog.list(Some("contract")).await.expect("a list").is_empty(), "nor its namespace");
    let created = rig.catalog.create(&name("t"), creation("t")).await.expect("a table");
    let again = rig.catalog.create(&name("t"), creation("t")).await.expect("the same table");
    assert_eq!(created.metadata.uuid(), again.metadata.uuid());
    rig.catalog.create(&name("u"), creation("u")).await.expect("another table");
    assert_eq!(rig.catalog.list(Some("contract")).await.expect("a list"), [name("t"), name("u")]);
    let all = rig.catalog.list(None).await.expect("a list");
    assert!(all.contains(&name("t")) && all.contains(&name("u")), "{all:?}");

    let first = landed(commit(&rig.catalog, &created, "1").await);
    let loaded = load(&rig.clean, "t").await;
    assert_eq!((loaded.snapshot_id(), loaded.property("value")), (first.snapshot_id(), Some("1")));
    assert_eq!(loaded.metadata_location, first.metadata_location);
    let known = rig.catalog.load(&name("t"), Some(&first)).await.expect("an answer").expect("the table");
    assert_eq!(known.metadata_location, first.metadata_location);
    let second = landed(commit(&rig.catalog, &known, "2").await);
    assert!(second.metadata_bytes > 0 && value(rig, "t").await.as_deref() == Some("2"));
}

/// Of two plans on one state one lands.
async fn a_plan_on_a_state_that_has_gone_is_rejected(rig: &Rig) {
    let base = rig.catalog.create(&name("conflict"), creation("conflict")).await.expect("a table");
    let head = landed(commit(&rig.catalog, &base, "first").await);
    assert!(is_rejected(&commit(&rig.catalog, &base, "second").await));
    assert_eq!(value(rig, "conflict").await.as_deref(), Some("first"));
    landed(commit(&rig.catalog, &head, "third").await);
}

async fn a_lost_request_changes_nothing_and_a_lost_answer_is_not_sent_again(rig: &Rig) {
    let base = rig.catalog.create(&name("lost"), creation("lost")).await.expect("a table");
    let hits = rig.break_swaps(When::Next(1), Fault::LoseRequest);
    assert!(is_unknown(&commit(&rig.catalog, &base, "never").await));
    assert_eq!((hits.count(), value(rig, "lost").await), (1, None));
    rig.network().heal();

    rig.break_swaps(When::Next(1), Fault::LoseAnswer);
    rig.network().reset_requests();
    assert!(is_unknown(&commit(&rig.catalog, &base, "landed").await));
    assert_eq!(value(rig, "lost").await.as_deref(), Some("landed"));
    let swaps: u64 = rig.network().requests().iter().filter(|(method, ..)| *method != "GET").map(|(.., n)| n).sum();
    assert_eq!(swaps, 1, "sent once: {}", rig.network().requests());
    assert!(is_rejected(&commit(&rig.catalog, &base, "twice").await), "the old plan has had its chance");
    assert_eq!(value(rig, "lost").await.as_deref(), Some("landed"));
    rig.network().heal();
}

async fn a_late_request_lands_before_its_successor_or_never(rig: &Rig) {
    for successor_first in [true, false] {
        let table = if successor_first { "late" } else { "early" };
        let base = rig.catalog.create(&name(table), creation(table)).await.expect("a table");
        rig.break_swaps(When::Next(1), Fault::LandLate(Landing::WhenTold));
        assert!(is_unknown(&commit(&rig.catalog, &base, "late").await));
        rig.network().heal();
        // The successor plans on what it has loaded, which is the same state.
        let seen = load(&rig.catalog, table).await;
        if successor_first {
            landed(commit(&rig.catalog, &seen, "successor").await);
            assert_eq!(rig.network().land().await, [409]);
            assert_eq!(value(rig, table).await.as_deref(), Some("successor"));
        } else {
            assert_eq!(rig.network().land().await, [200]);
            assert!(is_rejected(&commit(&rig.catalog, &seen, "successor").await));
            assert_eq!(value(rig, table).await.as_deref(), Some("late"));
        }
    }
}

/// Whatever is no answer leaves the outcome open; whether it landed is for a load to say.
async fn an_answer_that_is_none_leaves_the_outcome_unknown(rig: &Rig) {
    let mut base = rig.catalog.create(&name("unknown"), creation("unknown")).await.expect("a table");
    let json = |status| match rig.kind {
        Kind::Rest => Canned::iceberg(status, "ServiceFailureException"),
        _ => Canned::json(status, "InternalServerErrorException"),
    };
    let refusals =
        [json(500), json(503), json(429), Canned::html(502), Canned::xml(503, "SlowDown"), Canned::html(504)];
    for (number, canned) in refusals.into_iter().enumerate() {
        for (fault, lands) in [(Fault::Refuse(canned.clone()), false), (Fault::RefuseAfter(canned.clone()), true)] {
            let (before, next) = (value(rig, "unknown").await, format!("{number} {lands}"));
            rig.break_swaps(When::Next(1), fault);
            let swap = commit(&rig.catalog, &base, &next).await;
            assert!(is_unknown(&swap), "{canned:?}: {swap:?}");
            rig.network().heal();
            let expected = if lands { Some(next) } else { before };
            assert_eq!(value(rig, "unknown").await, expected, "{canned:?}");
            base = load(&rig.catalog, "unknown").await;
        }
    }
    rig.break_swaps(When::Next(1), Fault::Truncate);
    assert!(is_unknown(&commit(&rig.catalog, &base, "half an answer").await));
    assert_eq!(value(rig, "unknown").await.as_deref(), Some("half an answer"));
    rig.network().heal();
}

async fn a_read_is_repeated_until_it_is_answered(rig: &Rig) {
    let base = rig.catalog.create(&name("read"), creation("read")).await.expect("a table");
    landed(commit(&rig.catalog, &base, "1").await);
    let faults = [
        Fault::LoseRequest,
        Fault::LoseAnswer,
        Fault::Truncate,
        Fault::Refuse(Canned::html(503)),
        Fault::Refuse(match rig.kind {
            Kind::Rest => Canned::iceberg(429, "TooManyRequestsException"),
            _ => Canned::json(429, "TooManyRequestsException"),
        }),
    ];
    for fault in faults {
        let hits = rig.break_loads(When::Next(2), fault.clone());
        assert_eq!(load(&rig.catalog, "read").await.property("value"), Some("1"), "{fault:?}");
        assert_eq!(hits.count(), 2, "{fault:?}");
        rig.network().heal();
    }
}

/// A read may be old: what is planned on it does not land.
async fn a_stale_read_delays_and_breaks_nothing(rig: &Rig) {
    let base = rig.catalog.create(&name("stale"), creation("stale")).await.expect("a table");
    load(&rig.catalog, "stale").await;
    landed(commit(&rig.clean, &base, "1").await);
    let hits = rig.break_loads(When::Next(1), Fault::StaleRead);
    let stale = load(&rig.catalog, "stale").await;
    assert_eq!((hits.count(), stale.property("value")), (1, None));
    assert!(is_rejected(&commit(&rig.catalog, &stale, "2").await));
    assert_eq!(value(rig, "stale").await.as_deref(), Some("1"));
    rig.network().heal();
}

async fn refused_credentials_are_told_apart_and_change_nothing(rig: &Rig) {
    let base = rig.catalog.create(&name("denied"), creation("denied")).await.expect("a table");
    let (expired, denied) = match rig.kind {
        Kind::Rest => (Canned::iceberg(401, "NotAuthorizedException"), Canned::iceberg(403, "ForbiddenException")),
        _ => (Canned::expired_token_json(), Canned::json(403, "AccessDeniedException")),
    };
    for (canned, code) in [(expired, "CREDENTIALS_EXPIRED"), (denied, "ACCESS_DENIED")] {
        rig.break_swaps(When::Next(1), Fault::Refuse(canned));
        match rig.catalog.commit(&base, change(&base, "denied")).await {
            Err(problem) => assert_eq!(problem.code, code, "{problem:?}"),
            // A catalog that wants a new token gets one with the next load.
            Ok(swap) => {
                assert!(rig.kind == Kind::Rest && code == "CREDENTIALS_EXPIRED" && is_unknown(&swap), "{swap:?}")
            }
        }
        assert_eq!(value(rig, "denied").await, None);
        rig.network().heal();
    }
}

/// The objects behind the catalog, through the same faults: repeated while time may heal them, never taken for good.
async fn objects_come_whole_or_not_at_all(rig: &Rig) {
    let objects = rig.objects.as_ref().expect("objects behind a proxy");
    let base = rig.catalog.create(&name("objects"), creation("objects")).await.expect("a table");
    let faults = [
        Fault::LoseRequest,
        Fault::LoseAnswer,
        Fault::Refuse(Canned::xml(503, "SlowDown")),
        Fault::RefuseAfter(Canned::html(500)),
        Fault::Truncate,
        Fault::FlipAnswer,
    ];
    let file = format!("{}/metadata/probe.avro", base.metadata.location());
    let text: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
    for (number, fault) in faults.into_iter().enumerate() {
        let location = format!("{file}.{number}");
        let hits = objects.add(testkit::fault_proxy::Rule::new(When::Next(2), "", "probe", fault.clone()));
        let io = rig.storage.io();
        if !matches!(fault, Fault::FlipAnswer) {
            io.new_output(&location).expect("a place").write(text.clone().into()).await.expect("written");
        } else {
            objects.heal();
            io.new_output(&location).expect("a place").write(text.clone().into()).await.expect("written");
            objects.add(testkit::fault_proxy::Rule::new(When::Next(1), "GET", "probe", fault.clone()));
        }
        let read = io.new_input(&location).expect("a place").read().await;
        let whole = read.as_ref().is_ok_and(|bytes| bytes[..] == text[..]);
        assert!(whole || read.is_err(), "{fault:?}: bytes that were never written");
        assert!(whole || matches!(fault, Fault::FlipAnswer), "{fault:?}: {read:?}");
        assert!(hits.count() > 0 || matches!(fault, Fault::FlipAnswer), "{fault:?}");
        objects.heal();
    }
}

/// Every request that tells or asks the position of a pointer, over the parts of the contract.
async fn keep(rig: &Rig) {
    tables_are_created_once_and_found(rig).await;
    a_plan_on_a_state_that_has_gone_is_rejected(rig).await;
    if rig.proxy.is_none() {
        return;
    }
    a_lost_request_changes_nothing_and_a_lost_answer_is_not_sent_again(rig).await;
    a_late_request_lands_before_its_successor_or_never(rig).await;
    an_answer_that_is_none_leaves_the_outcome_unknown(rig).await;
    a_read_is_repeated_until_it_is_answered(rig).await;
    a_stale_read_delays_and_breaks_nothing(rig).await;
    refused_credentials_are_told_apart_and_change_nothing(rig).await;
    objects_come_whole_or_not_at_all(rig).await;
}

fn keeps_the_contract(kind: Kind, test: &str) {
    block_on(async {
        if let Some(rig) = Rig::start(kind, test).await {
            keep(&rig).await;
        }
    });
}

#[test]
fn sqlite_keeps_the_contract() {
    keeps_the_contract(Kind::Sqlite, "sqlite_keeps_the_contract");
}

#[test]
fn s3_tables_keeps_the_contract_on_the_simulator() {
    keeps_the_contract(Kind::Simulator, "s3_tables_keeps_the_contract_on_the_simulator");
}

#[test]
fn s3_tables_keeps_the_contract_on_an_emulator() {
    keeps_the_contract(Kind::Moto, "s3_tables_keeps_the_contract_on_an_emulator");
}

#[test]
fn s3_tables_keeps_the_contract_at_amazon() {
    keeps_the_contract(Kind::Amazon, "s3_tables_keeps_the_contract_at_amazon");
}

#[test]
fn rest_keeps_the_contract() {
    keeps_the_contract(Kind::Rest, "rest_keeps_the_contract");
}

/// Two processes plan on the same state, again and again: one wins each time, and each knows which.
async fn race(rig: &Rig) {
    let rounds = tier::size("LAKEHOUSE_ROUNDS", 100, 1_000);
    rig.catalog.create(&name("race"), creation("race")).await.expect("a table");
    let (mut left, mut right) = (Racer::start(rig, "left").await, Racer::start(rig, "right").await);
    let mut wins: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..rounds {
        left.tell("load").await;
        right.tell("load").await;
        assert_eq!((left.hear().await, right.hear().await), ("ready".to_owned(), "ready".to_owned()));
        left.tell("commit").await;
        right.tell("commit").await;
        let answers = [left.hear().await, right.hear().await];
        let winner = match &answers {
            [won, lost] if won == "landed" && lost == "rejected" => "left",
            [lost, won] if won == "landed" && lost == "rejected" => "right",
            _ => panic!("round {round}: {answers:?}"),
        };
        *wins.entry(winner.to_owned()).or_default() += 1;
        if round % 50 == 49 {
            assert_eq!(value(rig, "race").await.as_deref(), Some(winner), "round {round}");
        }
    }
    println!("{rounds} rounds: {wins:?}");
    assert_eq!(count(&load(&rig.clean, "race").await) as u64, rounds);
}

/// The other process of a race: this test binary again, told what to do line by line.
struct Racer {
    input: tokio::process::ChildStdin,
    answers: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    _process: tokio::process::Child,
}

const RACER: &str = "LAKEHOUSE_TEST_RACER";

impl Racer {
    async fn start(rig: &Rig, who: &str) -> Self {
        let Address { uri, bucket, s3 } = &rig.address;
        let program = std::env::current_exe().expect("this program");
        let mut command = tokio::process::Command::new(program);
        command.args(["--exact", "catalogs::a_racer", "--nocapture", "--test-threads=1"]);
        command.env(RACER, format!("{who} {:?} {uri} {bucket} {s3}", rig.kind));
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("a racer");
        let input = process.stdin.take().expect("piped");
        let answers = BufReader::new(process.stdout.take().expect("piped")).lines();
        Self { input, answers, _process: process }
    }

    async fn tell(&mut self, what: &str) {
        self.input.write_all(format!("{what}\n").as_bytes()).await.expect("a racer that listens");
    }

    /// The next answer; the test runner's own lines are passed over.
    async fn hear(&mut self) -> String {
        loop {
            let line = self.answers.next_line().await.expect("readable").expect("a racer that lives");
            if let Some(answer) = line.rsplit_once("> ").map(|(_, answer)| answer) {
                return answer.to_owned();
            }
        }
    }
}

/// Only in the other process, see [`Racer`].
#[test]
fn a_racer() {
    let Ok(order) = std::env::var(RACER) else { return };
    let words: Vec<&str> = order.split(' ').collect();
    let [who, kind, uri, bucket, s3] = words[..] else { panic!("{order}") };
    let kinds = [Kind::Sqlite, Kind::Simulator, Kind::Moto, Kind::Rest, Kind::Amazon];
    let kind = kinds.into_iter().find(|known| format!("{known:?}") == kind).expect("a kind");
    let address = Address { uri: uri.to_owned(), bucket: bucket.to_owned(), s3: s3.to_owned() };
    block_on(async {
        let (catalog, _) = rig::open(kind, &address).await;
        let mut base = None;
        for order in std::io::stdin().lines() {
            let answer = match order.expect("readable").as_str() {
                "load" => {
                    base = Some(load(&catalog, "race").await);
                    "ready".to_owned()
                }
                _ => match commit(&catalog, base.as_ref().expect("loaded first"), who).await {
                    Swap::Landed(_) => "landed".to_owned(),
                    Swap::Rejected => "rejected".to_owned(),
                    Swap::Unknown(why) => format!("unknown: {why}"),
                },
            };
            println!("> {answer}");
        }
    });
}

fn races(kind: Kind, test: &str) {
    block_on(async {
        if let Some(rig) = Rig::start(kind, test).await {
            tokio::time::timeout(Duration::from_secs(600), race(&rig)).await.expect("a race that ends");
        }
    });
}

#[test]
fn of_two_processes_one_wins_each_time_on_sqlite() {
    races(Kind::Sqlite, "of_two_processes_one_wins_each_time_on_sqlite");
}

#[test]
fn of_two_processes_one_wins_each_time_on_s3_tables() {
    races(Kind::Simulator, "of_two_processes_one_wins_each_time_on_s3_tables");
}

#[test]
fn of_two_processes_one_wins_each_time_on_an_emulator() {
    races(Kind::Moto, "of_two_processes_one_wins_each_time_on_an_emulator");
}

#[test]
fn of_two_processes_one_wins_each_time_on_rest() {
    races(Kind::Rest, "of_two_processes_one_wins_each_time_on_rest");
}
