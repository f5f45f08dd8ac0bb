use arrow_array::{ArrayRef, BooleanArray, Int64Array, StringArray};
use arrow_schema::DataType;
use tokio::sync::oneshot;

use super::*;
use crate::change::{BeforeImages, LaneOrigins, Operation, Origin, Quarantined, UnchangedColumn};
use crate::lanes::{Lane, Reached};
use crate::quarantine::QuarantineLimit;
use crate::schema::{Column, Key, TableName};

fn column(name: &str, data_type: DataType) -> Column {
    let (name, source_name, source_type) = (name.to_owned(), name.to_owned(), "t".to_owned());
    Column { name, source_name, source_type, data_type, required: false }
}

fn schema(table: &str) -> Arc<TableSchema> {
    Arc::new(TableSchema {
        source: table.to_owned(),
        mirror: TableName::new("app", table),
        columns: vec![column("id", DataType::Int64), column("v", DataType::Utf8)],
        key: Key::Columns(vec![0]),
        before_columns: vec![0],
        history: true,
        partition: Vec::new(),
        many_lanes: true,
        quarantine: Some(QuarantineLimit::default()),
    })
}

/// Three changes, whose last one stands at this offset of its lane.
fn chunk_of(table: &str, number: i64, lanes: bool) -> ChangeChunk {
    let (offset, lane): (_, Arc<str>) = (format!("{number:03}").parse().expect("an offset"), Arc::from("shard-1"));
    let origins = LaneOrigins {
        lanes: vec![Arc::clone(&lane), Arc::from("shard-2"), lane],
        offsets: vec![offset, "12345678901234567890123".parse().expect("an offset"), offset],
        actors: vec![None, Some(Arc::from("ttl")), None],
    };
    let origin = |ordinal| Origin { commit: Position::new(9), committed_at: -1, transaction: number, ordinal };
    let quarantined = Quarantined {
        operation: Some(Operation::Update),
        key: r#"{"id":3}"#.to_owned(),
        image: r#"{"id":3,"v":4}"#.to_owned(),
        old_image: (number == 1).then(String::new),
        column: "v".to_owned(),
        code: "VALUE_MISMATCH".to_owned(),
        reason: "a number".to_owned(),
    };
    ChangeChunk {
        schema: schema(table),
        quarantined: match lanes {
            true => vec![None, None, Some(Arc::new(quarantined))],
            false => Vec::new(),
        },
        operations: match lanes {
            true => vec![Operation::Insert, Operation::Update, Operation::Quarantine],
            false => vec![Operation::Insert, Operation::Update, Operation::Expire],
        },
        origins: (0..3).map(origin).collect(),
        lanes: lanes.then(|| Box::new(origins)),
        rows: vec![
            Arc::new(Int64Array::from(vec![number, 2, 3])),
            Arc::new(StringArray::from(vec![Some(""), None, Some("ü")])),
        ],
        before: lanes.then(|| BeforeImages {
            known: BooleanArray::from(vec![false, true, false]),
            columns: vec![Arc::new(Int64Array::from(vec![None, Some(2), None]))],
        }),
        unchanged: vec![UnchangedColumn { column: 1, rows: BooleanArray::from(vec![false, true, false]) }],
    }
}

fn chunk(number: i64, lanes: bool) -> ChangeChunk {
    chunk_of("t", number, lanes)
}

/// Says its events, then for ever nothing.
struct Scripted {
    events: VecDeque<SourceEvent>,
    said: Option<oneshot::Sender<()>>,
}

impl ChangeSource for Scripted {
    async fn next(&mut self) -> Result<SourceEvent, Problem> {
        match self.events.pop_front() {
            Some(event) => Ok(event),
            None => {
                self.said.take().map(|said| said.send(()));
                std::future::pending().await
            }
        }
    }

    fn acknowledge(&self, _: &DurablePosition) {}
}

fn halted() -> SourceEvent {
    let (table, reason) = ("t".to_owned(), "gone".to_owned());
    SourceEvent::TableHalted { table, position: Position::new(9), code: "GAP", reason }
}

fn script() -> VecDeque<SourceEvent> {
    VecDeque::from([
        SourceEvent::Changes(chunk(1, true)),
        SourceEvent::Changes(chunk(2, false)),
        SourceEvent::Boundary(Boundary::from(Position::new(9))),
        halted(),
        SourceEvent::Changes(chunk(3, true)),
        SourceEvent::End,
    ])
}

/// Every boundary is kept.
fn settings(folder: &Path) -> SpoolSettings<'_> {
    SpoolSettings { folder, boundary: Duration::ZERO }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_during_the_work_comes_again_in_order_and_goes_once_it_is_durable() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = || fs::read_dir(folder.path()).expect("the folder").count();
    let (said, all_said) = oneshot::channel();
    let mut source = Spooled::new(Scripted { events: script(), said: Some(said) });
    let work = async {
        all_said.await.expect("everything is said");
        Ok(7)
    };
    let done = source.during(settings(folder.path()), Lanes::default(), work).await;
    assert_eq!(done.expect("done"), 7);
    for expected in script() {
        source.acknowledge(&DurablePosition::planted(Position::new(9)));
        let found = source.next().await.expect("an event");
        assert_eq!(format!("{found:?}"), format!("{expected:?}"));
    }
    let nothing = tokio::time::timeout(Duration::from_millis(20), source.next()).await;
    assert!(nothing.is_err(), "nothing is said twice");
    source.acknowledge(&DurablePosition::planted(Position::new(8)));
    assert_eq!(files(), 1, "not all of it is durable");
    source.acknowledge(&DurablePosition::planted(Position::new(9)));
    assert_eq!(files(), 0);
}

#[test]
fn what_is_read_back_takes_no_more_of_a_batch_than_it_did_before() {
    let mut wide = TableSchema::clone(&schema("t"));
    wide.columns.extend((0..20).map(|n| column(&format!("c{n}"), DataType::Utf8)));
    let text = || Arc::new(StringArray::from_iter_values((0..10_000).map(|n| n.to_string()))) as ArrayRef;
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..10_000));
    let origin = Origin { commit: Position::new(9), committed_at: 0, transaction: 0, ordinal: 0 };
    let before = ChangeChunk {
        schema: Arc::new(wide),
        operations: vec![Operation::Insert; 10_000],
        origins: vec![origin; 10_000],
        lanes: None,
        rows: std::iter::once(ids).chain((0..21).map(|_| text())).collect(),
        before: None,
        unchanged: Vec::new(),
        quarantined: Vec::new(),
    };
    let bytes = before.bytes();
    let folder = tempfile::tempdir().expect("a folder");
    let mut spool = Writing::create(settings(folder.path()), Lanes::default()).expect("a spool");
    spool.append(SourceEvent::Changes(before)).expect("written");
    let event = spool.finish().expect("finished").next().expect("an event");
    let Some(SourceEvent::Changes(after)) = event else { panic!("changes were written, not {event:?}") };
    assert!(after.bytes() <= bytes + bytes / 4, "{bytes} bytes became {}", after.bytes());
}

#[test]
fn boundaries_with_little_between_them_do_not_pile_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let seldom = SpoolSettings { folder: folder.path(), boundary: Duration::MAX };
    let mut spool = Writing::create(seldom, Lanes::default()).expect("a spool");
    for number in 1..=1_000 {
        spool.append(SourceEvent::Changes(chunk(number, true))).expect("written");
        spool.append(SourceEvent::Boundary(Boundary::from(Position::new(number.unsigned_abs())))).expect("noted");
    }
    let mut spool = spool.finish().expect("finished");
    let (mut chunks, mut boundaries) = (0, Vec::new());
    while let Some(event) = spool.next().expect("an event") {
        match event {
            SourceEvent::Changes(_) => chunks += 1,
            SourceEvent::Boundary(boundary) => boundaries.push((chunks, boundary.position.offset())),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(boundaries, [(1_000, 1_000)], "the last one, behind everything");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_beside_the_work_ends_it() {
    struct Failing;
    impl ChangeSource for Failing {
        async fn next(&mut self) -> Result<SourceEvent, Problem> {
            Err(Problem::retry("GAP", "t", "gone"))
        }
        fn acknowledge(&self, _: &DurablePosition) {}
    }
    let folder = tempfile::tempdir().expect("a folder");
    let work = std::future::pending::<Result<(), Problem>>();
    let ended = Spooled::new(Failing).during(settings(folder.path()), Lanes::default(), work).await;
    assert_eq!(ended.expect_err("the source's problem").code, "GAP");
}

/// Read up to this offset.
fn read(offset: i64) -> TableLanes {
    let at = Reached::Offset(format!("{offset:03}").parse().expect("an offset"));
    let lanes = BTreeMap::from([("shard-1".to_owned(), Lane { parent: None, at })]);
    TableLanes { log: "log".to_owned(), lanes, read_until: None }
}

fn lanes(tables: &[(&str, i64)]) -> Lanes {
    tables.iter().map(|(table, offset)| ((*table).to_owned(), Arc::new(read(*offset)))).collect()
}

fn boundary(number: u64, tables: &[(&str, i64)]) -> SourceEvent {
    SourceEvent::Boundary(Boundary { position: Position::new(number), lanes: lanes(tables) })
}

/// What a crash leaves: changes 1 and 2 of two tables, each with its boundary, then one that has none.
fn crashed(folder: &Path) {
    let mut spool = Writing::create(settings(folder), lanes(&[("t", 0), ("u", 0)])).expect("a spool");
    for number in 1..=2 {
        for table in ["t", "u"] {
            spool.append(SourceEvent::Changes(chunk_of(table, number, true))).expect("written");
        }
        spool.append(boundary(number.unsigned_abs(), &[("t", number), ("u", number)])).expect("written");
        if number == 1 {
            spool.append(halted()).expect("written");
        }
    }
    spool.append(SourceEvent::Changes(chunk(3, true))).expect("written");
}

fn schemas() -> [Arc<TableSchema>; 2] {
    [schema("t"), schema("u")]
}

fn own(tables: &[(&str, i64)]) -> BTreeMap<String, Arc<TableLanes>> {
    tables.iter().map(|(table, offset)| ((*table).to_owned(), Arc::new(read(*offset)))).collect()
}

/// What is said again, in short: `t1` for a table's changes, `|1 t1` for a boundary.
fn said_by(spool: &mut Reading) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(event) = spool.next().expect("whole") {
        all.push(match event {
            SourceEvent::Changes(chunk) => format!("{}{}", chunk.schema.source, chunk.origins[0].transaction),
            SourceEvent::Boundary(Boundary { position, lanes }) => {
                let offset = |lanes: &TableLanes| match lanes.lanes["shard-1"].at {
                    Reached::Offset(offset) => offset.to_string(),
                    other => format!("{other:?}"),
                };
                let tables = lanes.tables().map(|(table, lanes)| format!(" {table}{}", offset(lanes)));
                format!("|{}{}", position.offset(), tables.collect::<String>())
            }
            other => panic!("{other:?}"),
        });
    }
    all
}

fn resumed(folder: &Path, tables: &[(&str, i64)]) -> Reading {
    let kept = KeptSpool::open(folder, &schemas()).expect("readable").expect("kept");
    let nothing = Scripted { events: VecDeque::new(), said: None };
    let spooled = Spooled::resume(nothing, kept, own(tables), &schemas()).expect("opened");
    spooled.spool.expect("something to say")
}

#[test]
fn what_stands_before_the_last_boundary_outlives_a_crash() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(KeptSpool::open(folder.path(), &schemas()).expect("readable").is_none());
    crashed(folder.path());
    let kept = KeptSpool::open(folder.path(), &schemas()).expect("readable").expect("kept");
    assert_eq!(kept.position(), Position::new(2));
    assert_eq!(kept.follows("t", &read(0)), Some(read(2)));
    assert_eq!(kept.follows("t", &read(7)), Some(read(7)), "who has read further goes on from there");
    assert_eq!(kept.follows("other", &read(0)), None);
    let mut before = read(0);
    before.log = "another".to_owned();
    assert_eq!(kept.follows("t", &before), None);
    assert!(!kept.is_said(&own(&[("t", 2), ("u", 1)])) && kept.is_said(&own(&[("t", 2), ("u", 3)])));
    // What it says of a table that has left, whoever follows that finds out for himself.
    let said = said_by(&mut resumed(folder.path(), &[("t", 0), ("u", 0)]));
    assert_eq!(said, ["t1", "u1", "|1 t001 u001", "t2", "u2", "|2 t002 u002"]);
    // A cut does not go back behind what a table has read itself.
    let said = said_by(&mut resumed(folder.path(), &[("t", 0), ("u", 7)]));
    assert_eq!(said, ["t1", "u1", "|1 t001 u007", "t2", "u2", "|2 t002 u007"]);
}

#[test]
fn a_table_that_does_not_go_on_with_it_is_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    crashed(folder.path());
    assert_eq!(said_by(&mut resumed(folder.path(), &[("u", 0)])), ["u1", "|1 u001", "u2", "|2 u002"]);
    let mut other = TableSchema::clone(&schema("t"));
    other.columns.push(column("new", DataType::Utf8));
    let kept = KeptSpool::open(folder.path(), &[Arc::new(other), schema("u")]).expect("readable").expect("kept");
    assert_eq!(kept.follows("t", &read(0)), None, "its changes have other columns");
    assert_eq!(kept.follows("u", &read(0)), Some(read(2)));
}

#[test]
fn a_table_that_begins_anew_counts_from_there_on() {
    let folder = tempfile::tempdir().expect("a folder");
    crashed(folder.path());
    let again = resumed(folder.path(), &[("u", 0)]);
    let spool = Writing::append_to(again, settings(folder.path()), lanes(&[("t", 5)])).expect("opened");
    drop(spool);
    // Also where the next crash comes before any boundary.
    let kept = KeptSpool::open(folder.path(), &schemas()).expect("readable").expect("kept");
    assert_eq!(kept.follows("t", &read(5)), Some(read(5)));
    assert_eq!(kept.follows("t", &read(0)), None, "what lies between is in no spool");
    let again = resumed(folder.path(), &[("t", 5), ("u", 0)]);
    let mut spool = Writing::append_to(again, settings(folder.path()), Lanes::default()).expect("opened");
    spool.append(SourceEvent::Changes(chunk(6, true))).expect("written");
    spool.append(boundary(3, &[("t", 6), ("u", 2)])).expect("written");
    spool.append(halted()).expect("written");
    let mut again = spool.finish().expect("finished");
    let mut all = Vec::new();
    while let Some(event) = again.next().expect("whole") {
        all.push(event);
    }
    assert!(matches!(all.pop(), Some(SourceEvent::TableHalted { .. })), "this process knows of it");
    assert_eq!(all.len(), 6);
    let said = said_by(&mut resumed(folder.path(), &[("t", 5), ("u", 0)]));
    assert_eq!(said, ["u1", "|1 u001", "u2", "|2 u002", "t6", "|3 t006 u002"]);
}

#[test]
fn a_torn_end_is_cut_off_and_nothing_is_said_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    crashed(folder.path());
    let file = file_in(folder.path());
    let whole = fs::read(&file).expect("the file");
    let all = ["t1", "u1", "|1 t001 u001", "t2", "u2", "|2 t002 u002"];
    let mut found = [0; 3];
    let mut check = |bytes: &[u8]| {
        fs::write(&file, bytes).expect("written");
        match KeptSpool::open(folder.path(), &schemas()).expect("readable") {
            None => found[2] += 1,
            Some(kept) => {
                let boundaries = usize::try_from(kept.position().offset()).expect("few");
                let said = said_by(&mut resumed(folder.path(), &[("t", 0), ("u", 0)]));
                assert_eq!(said, all[..boundaries * 3], "{} of {} bytes", bytes.len(), whole.len());
                found[boundaries.min(1)] += 1;
            }
        }
    };
    for length in (0..whole.len()).step_by(7) {
        check(&whole[..length]);
        let mut damaged = whole.clone();
        damaged[length] ^= 1;
        check(&damaged);
    }
    assert!(found.iter().all(|count| *count > 0), "{found:?}");
}
