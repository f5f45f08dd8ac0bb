//! Iceberg's REST catalog compares only what a commit asserts, and applies it to whatever stands there. What another engine
//! does between the load that a commit is planned on and the commit must be a conflict wherever rows, columns or ids are at
//! stake; and a worker that meets it goes on with rows that are right, or halts that table with a code.
//!
//! That the assertions are needed is shown beside each of them: the same commit with less asserted lands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::between::{Between, Meddler};
use crate::support::check::in_order;
use crate::support::reading;
use crate::support::renamed::Renamed;
use crate::support::rig::{Kind, Rig, empty_snapshot};
use crate::support::script::{Database, Identity, Row, Script, Table, plain, text};
use crate::support::world::{PIPELINE, Worker, World};
use crate::support::{Violation, block_on};
use async_trait::async_trait;
use iceberg::spec::{
    MAIN_BRANCH, NestedField, PrimitiveType, Schema, SnapshotReference, SnapshotRetention, Transform, Type,
    UnboundPartitionSpec,
};
use iceberg::{TableCreation, TableUpdate};
use lakehouse_core::catalog::{Catalog, LoadedTable, Swap};
use lakehouse_core::commit::properties::TableState;
use lakehouse_core::commit::{ControlState, LeftTable};
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::planted::Planted;
use lakehouse_core::schema::TableName;
use lakehouse_core::tags::set_tag;
use serde_json::json;

/// What another engine does to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Foreign {
    AddsColumn,
    DropsColumn,
    /// Adds a column and makes the schema before current again: the same schema id, one field id used up.
    AddsColumnAndReverts,
    ChangesSpec,
    /// Puts a new tag on the oldest snapshot.
    Tags,
    /// Moves the tag that is there to the snapshot after the oldest.
    MovesTag,
    /// Expires the oldest snapshot.
    Expires,
}

impl Foreign {
    async fn act(self, catalog: &dyn Catalog, name: &TableName) {
        for updates in self.commits(&load(catalog, name).await) {
            let base = load(catalog, name).await;
            let swap = catalog.commit(&base, updates).await.expect("an outcome");
            assert!(matches!(swap, Swap::Landed(_)), "{self:?}: {swap:?}");
        }
    }

    /// The updates of its commits, one after the other.
    fn commits(self, table: &LoadedTable) -> Vec<Vec<TableUpdate>> {
        let metadata = &table.metadata;
        let current = metadata.current_schema();
        let schema = |fields: Vec<_>| {
            let key: Vec<i32> = current.identifier_field_ids().collect();
            let builder = Schema::builder().with_fields(fields).with_identifier_field_ids(key);
            let schema = builder.with_schema_id(metadata.schemas_iter().len() as i32).build().expect("a schema");
            vec![TableUpdate::AddSchema { schema }, TableUpdate::SetCurrentSchema { schema_id: -1 }]
        };
        let mut fields = current.as_struct().fields().to_vec();
        let added =
            NestedField::optional(metadata.last_column_id() + 1, "theirs", Type::Primitive(PrimitiveType::Long));
        let oldest = in_order(table).first().map(|snapshot| snapshot.snapshot_id()).unwrap_or_default();
        let tag = |name: &str, id: i64| TableUpdate::SetSnapshotRef {
            ref_name: name.to_owned(),
            reference: SnapshotReference::new(id, SnapshotRetention::Tag { max_ref_age_ms: None }),
        };
        match self {
            Foreign::AddsColumn => {
                fields.push(Arc::new(added));
                vec![schema(fields)]
            }
            Foreign::DropsColumn => {
                fields.retain(|field| field.name != "note");
                vec![schema(fields)]
            }
            Foreign::AddsColumnAndReverts => {
                fields.push(Arc::new(added));
                let back = TableUpdate::SetCurrentSchema { schema_id: metadata.current_schema_id() };
                vec![schema(fields), vec![back]]
            }
            Foreign::ChangesSpec => {
                let id = current.field_id_by_name("id").expect("a column");
                let spec = UnboundPartitionSpec::builder().with_spec_id(1).add_partition_field(
                    id,
                    "id_bucket",
                    Transform::Bucket(2),
                );
                let spec = spec.expect("a field").build();
                vec![vec![TableUpdate::AddSpec { spec }, TableUpdate::SetDefaultSpec { spec_id: -1 }]]
            }
            Foreign::Tags => vec![vec![tag("theirs", oldest)]],
            Foreign::MovesTag => vec![vec![tag("known", in_order(table)[1].snapshot_id())]],
            Foreign::Expires => vec![vec![TableUpdate::RemoveSnapshots { snapshot_ids: vec![oldest] }]],
        }
    }
}

async fn load(catalog: &dyn Catalog, name: &TableName) -> LoadedTable {
    catalog.load(name, None).await.expect("an answer").expect("the table")
}

/// What we commit: always a snapshot, and with it what the product's commits may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ours {
    Rows,
    /// The source has a column more.
    RowsAndColumn,
    /// The second and third oldest snapshot leave.
    RowsAndExpiry,
}

impl Ours {
    fn updates(self, base: &LoadedTable) -> Vec<TableUpdate> {
        let metadata = &base.metadata;
        let mut updates = Vec::new();
        let mut schema_id = metadata.current_schema_id();
        if self == Ours::RowsAndColumn {
            schema_id = metadata.schemas_iter().map(|schema| schema.schema_id()).max().unwrap_or(0) + 1;
            let mut fields = metadata.current_schema().as_struct().fields().to_vec();
            let id = metadata.last_column_id() + 1;
            fields.push(Arc::new(NestedField::optional(id, "ours", Type::Primitive(PrimitiveType::Long))));
            let schema = Schema::builder().with_fields(fields).with_schema_id(schema_id).build().expect("a schema");
            updates.push(TableUpdate::AddSchema { schema });
            updates.push(TableUpdate::SetCurrentSchema { schema_id: -1 });
        }
        updates.extend(empty_snapshot(base, schema_id));
        if self == Ours::RowsAndExpiry {
            let ids = in_order(base)[1..3].iter().map(|snapshot| snapshot.snapshot_id()).collect();
            updates.push(TableUpdate::RemoveSnapshots { snapshot_ids: ids });
        }
        updates
    }
}

/// A table of three columns and four snapshots, the second tagged `known`.
async fn prepared(catalog: &dyn Catalog, name: &TableName) -> LoadedTable {
    let field = |id, name: &str, kind| Arc::new(NestedField::optional(id, name, Type::Primitive(kind)));
    let fields = [
        field(1, "id", PrimitiveType::Long),
        field(2, "note", PrimitiveType::String),
        field(3, "amount", PrimitiveType::Long),
    ];
    let schema = Schema::builder().with_fields(fields).build().expect("a schema");
    let creation = TableCreation::builder().name(name.name.clone()).schema(schema).build();
    let mut table = catalog.create(name, creation).await.expect("a table");
    for number in 0..4 {
        let mut updates = Vec::from(empty_snapshot(&table, table.metadata.current_schema_id()));
        if number == 2 {
            let reference = SnapshotReference::new(
                in_order(&table)[0].snapshot_id(),
                SnapshotRetention::Tag { max_ref_age_ms: None },
            );
            updates.push(TableUpdate::SetSnapshotRef { ref_name: "known".to_owned(), reference });
        }
        table = match catalog.commit(&table, updates).await.expect("an outcome") {
            Swap::Landed(table) => table,
            other => panic!("{other:?}"),
        };
    }
    table
}

/// The commit with uuid and `main` asserted and nothing else, as an engine sends it that knows no more.
async fn lands_with_less_asserted(rig: &Rig, base: &LoadedTable, updates: &[TableUpdate]) -> bool {
    let requirements = json!([
        {"type": "assert-table-uuid", "uuid": base.metadata.uuid()},
        {"type": "assert-ref-snapshot-id", "ref": MAIN_BRANCH, "snapshot-id": base.snapshot_id()},
    ]);
    let body = json!({"requirements": requirements, "updates": updates}).to_string();
    let TableName { namespace, name } = &base.name;
    let uri = format!("{}/v1/namespaces/{namespace}/tables/{name}", rig.address.uri);
    let answer = testkit::http::send("POST", &uri, &body).await.expect("an answer");
    assert!([200, 409].contains(&answer.status), "{}: {}", answer.status, answer.body);
    answer.status == 200
}

/// No field id ever stood for two columns.
fn check_field_ids(table: &LoadedTable) {
    let mut names: BTreeMap<i32, String> = BTreeMap::new();
    for schema in table.metadata.schemas_iter() {
        for field in schema.as_struct().fields() {
            let name = names.entry(field.id).or_insert_with(|| field.name.clone());
            assert_eq!(*name, field.name, "field id {} stands for two columns", field.id);
        }
    }
}

/// Whether our commit lands on what it was not planned on. Whatever it does not put at stake may lie beside it.
const VERDICTS: &[(Foreign, Ours, bool)] = &[
    (Foreign::AddsColumn, Ours::Rows, false),
    (Foreign::AddsColumn, Ours::RowsAndColumn, false),
    (Foreign::AddsColumn, Ours::RowsAndExpiry, false),
    (Foreign::DropsColumn, Ours::Rows, false),
    (Foreign::DropsColumn, Ours::RowsAndColumn, false),
    (Foreign::AddsColumnAndReverts, Ours::Rows, true),
    (Foreign::AddsColumnAndReverts, Ours::RowsAndColumn, false),
    (Foreign::ChangesSpec, Ours::Rows, false),
    (Foreign::ChangesSpec, Ours::RowsAndColumn, false),
    (Foreign::Tags, Ours::Rows, true),
    (Foreign::MovesTag, Ours::Rows, true),
    (Foreign::MovesTag, Ours::RowsAndExpiry, false),
    (Foreign::Expires, Ours::Rows, true),
];

#[test]
fn what_a_commit_was_planned_on_is_asserted() {
    block_on(async {
        let Some(rig) = Rig::start(Kind::Rest, "what_a_commit_was_planned_on_is_asserted").await else { return };
        for (number, &(foreign, ours, lands)) in VERDICTS.iter().enumerate() {
            let name = TableName::new("rest", format!("t{number}"));
            let base = prepared(rig.catalog.as_ref(), &name).await;
            let updates = ours.updates(&base);
            foreign.act(rig.clean.as_ref(), &name).await;
            let between = load(rig.clean.as_ref(), &name).await;
            let swap = rig.catalog.commit(&base, updates.clone()).await.expect("an outcome");
            let after = load(rig.clean.as_ref(), &name).await;
            match (lands, &swap) {
                (true, Swap::Landed(_)) => {
                    // What the other engine did is still done.
                    let schema = |table: &LoadedTable| table.metadata.current_schema_id();
                    assert_eq!(schema(&after), schema(&between), "{foreign:?}, {ours:?}");
                    let tags = |table: &LoadedTable| {
                        serde_json::to_value(&*table.metadata).expect("plain data")["refs"]
                            .as_object()
                            .map(|refs| refs.len())
                    };
                    assert_eq!(tags(&after), tags(&between), "{foreign:?}, {ours:?}");
                    assert_eq!(in_order(&after).len(), in_order(&between).len() + 1, "{foreign:?}, {ours:?}");
                    check_field_ids(&after);
                }
                (false, Swap::Rejected) => {
                    assert_eq!(after.metadata_location, between.metadata_location, "{foreign:?}, {ours:?}");
                    let needed = lands_with_less_asserted(&rig, &base, &updates).await;
                    assert!(needed, "{foreign:?}, {ours:?}: the server refuses it by itself");
                }
                _ => panic!("{foreign:?}, {ours:?}: {swap:?}"),
            }
        }
    });
}

/// Which of two sets or moves a tag is decided by what was looked at, also where the catalog compares nothing by itself.
#[test]
fn a_tag_is_set_moved_and_taken_away_on_what_was_looked_at() {
    block_on(async {
        let Some(rig) = Rig::start(Kind::Rest, "a_tag_is_set_moved_and_taken_away_on_what_was_looked_at").await else {
            return;
        };
        let name = TableName::new("rest", "tags");
        let base = prepared(rig.catalog.as_ref(), &name).await;
        let ids: Vec<i64> = in_order(&base).iter().map(|snapshot| snapshot.snapshot_id()).collect();
        let theirs = vec![set_tag("new", ids[0]), set_tag("known", ids[2])];
        rig.clean.commit(&base, theirs).await.expect("an outcome");
        let gone = TableUpdate::RemoveSnapshotRef { ref_name: "known".to_owned() };
        for ours in [set_tag("new", ids[1]), set_tag("known", ids[0]), gone.clone()] {
            let swap = rig.catalog.commit(&base, vec![ours.clone()]).await.expect("an outcome");
            assert!(matches!(swap, Swap::Rejected), "{ours:?}: {swap:?}");
        }
        // Looked at again, all of it may be done.
        let base = load(rig.clean.as_ref(), &name).await;
        let swap = rig.catalog.commit(&base, vec![set_tag("new", ids[1]), gone]).await.expect("an outcome");
        assert!(matches!(swap, Swap::Landed(_)), "{swap:?}");
        let after = load(rig.clean.as_ref(), &name).await;
        let at = |tag: &str| after.metadata.snapshot_for_ref(tag).map(|snapshot| snapshot.snapshot_id());
        assert_eq!((at("new"), at("known")), (Some(ids[1]), None));
    });
}

/// A documented limit: no requirement speaks of a tag that nobody knew.
#[test]
fn a_new_tag_between_plan_and_expiry_does_not_keep_its_snapshot() {
    block_on(async {
        let Some(rig) = Rig::start(Kind::Rest, "a_new_tag_between_plan_and_expiry_does_not_keep_its_snapshot").await
        else {
            return;
        };
        let name = TableName::new("rest", "limit");
        let base = prepared(rig.catalog.as_ref(), &name).await;
        let doomed = in_order(&base)[1].snapshot_id();
        let updates = Ours::RowsAndExpiry.updates(&base);
        let reference = SnapshotReference::new(doomed, SnapshotRetention::Tag { max_ref_age_ms: None });
        let tag = TableUpdate::SetSnapshotRef { ref_name: "theirs".to_owned(), reference };
        rig.clean.commit(&base, vec![tag]).await.expect("an outcome");
        let swap = rig.catalog.commit(&base, updates).await.expect("an outcome");
        assert!(matches!(swap, Swap::Landed(_)), "the limit is gone: {swap:?}");
        let after = load(rig.clean.as_ref(), &name).await;
        assert!(after.metadata.snapshot_by_id(doomed).is_none(), "the limit is gone: say so in the protocol");
        // The tag that was known stays, and what it names.
        let known = in_order(&base)[0].snapshot_id();
        assert!(after.metadata.snapshot_by_id(known).is_some());
    });
}

/// Lets another engine act right before the n-th commit to a table goes out, behind the load that it was planned on.
struct Meddling {
    clean: Arc<dyn Catalog>,
    table: TableName,
    foreign: Foreign,
    before: usize,
    commits: AtomicUsize,
}

#[async_trait]
impl Meddler for Meddling {
    async fn before_commit(&self, base: &LoadedTable) -> Result<(), Problem> {
        if base.name == self.table && self.commits.fetch_add(1, Ordering::SeqCst) == self.before {
            self.foreign.act(self.clean.as_ref(), &base.name).await;
        }
        Ok(())
    }
}

const FIRST: usize = 0;
const SECOND: usize = 1;

/// Both tables change in every transaction; in the middle the first one gets a column.
fn script() -> Script {
    let mut database = Database::new(vec![
        Table::new("public.first", Identity::Key).with_history(),
        Table::new("public.second", Identity::Key),
    ]);
    database.transaction(|tx| {
        for id in 0..4 {
            tx.insert(FIRST, plain(id, "copied", id));
            tx.insert(SECOND, plain(id, "copied", id));
        }
    });
    database.copy_here();
    for number in 0..8 {
        if number == 4 {
            database.add_column(FIRST);
        }
        database.transaction(|tx| {
            let note = format!("transaction {number}");
            tx.insert(FIRST, plain(10 + number, &note, number));
            tx.update(FIRST, number % 4, |row| row[1] = text(&note), &[]);
            tx.add(SECOND, number % 4, 1, &[1]);
        });
    }
    database.done()
}

/// Lives of a worker, each batch one transaction, until the script has ended. How many it took.
async fn live(world: &World) -> usize {
    let mut ends = Vec::new();
    for life in 0..8 {
        let worker = Worker { bytes: 1, ..Worker::plain(life) };
        match world.incarnation(&worker, &Arc::default()).await {
            Ok(()) => return life + 1,
            Err(problem) if problem.reaction == Reaction::Retry => ends.push(problem),
            Err(problem) => panic!("{problem:?}"),
        }
    }
    panic!("the script does not come to its end: {ends:?}");
}

/// Every snapshot of ours that is still there shows the rows of its position. The table's own position, at last.
async fn check_rows(world: &World, table: usize) -> Result<TableState, Violation> {
    let name = world.script.tables[table].mirror();
    let loaded = load(world.catalog.as_ref(), &name).await;
    check_field_ids(&loaded);
    let mut kept = reading::Kept::new();
    for snapshot in in_order(&loaded) {
        let to = snapshot.summary().additional_properties.get("cdc.to").and_then(|to| to.parse().ok());
        let Some(to) = to else { continue };
        let read = reading::rows(&world.storage, &loaded, snapshot.snapshot_id(), &mut kept).await;
        let rows: Vec<Row> = read.expect("a snapshot that can be read").0;
        assert_eq!(rows, world.script.rows_at(table, to), "{name} at {to}");
    }
    Ok(TableState::of(&loaded).expect("sound properties"))
}

async fn left(world: &World) -> BTreeMap<String, LeftTable> {
    let (state, _) = ControlState::read(world.catalog.as_ref(), PIPELINE).await.expect("an answer").expect("a table");
    state.cut.expect("a cut").left
}

#[test]
fn a_worker_goes_on_rightly_or_halts_the_table_whatever_another_engine_does_behind_its_load() {
    let test = "a_worker_goes_on_rightly_or_halts_the_table_whatever_another_engine_does_behind_its_load";
    block_on(async {
        let Some(rig) = Rig::start(Kind::Rest, test).await else { return };
        let (rig, script) = (Arc::new(rig), script());
        let foreign = [
            Foreign::AddsColumn,
            Foreign::DropsColumn,
            Foreign::AddsColumnAndReverts,
            Foreign::ChangesSpec,
            Foreign::Tags,
            Foreign::Expires,
        ];
        // Two commits of the copy; then a change, the one that adds the column, and one behind it.
        let cases: Vec<(Foreign, usize)> =
            foreign.into_iter().flat_map(|foreign| [4, 6, 8].map(|before| (foreign, before))).collect();
        let mut running = Vec::new();
        for (number, (foreign, before)) in cases.into_iter().enumerate() {
            let (rig, script) = (Arc::clone(&rig), script.clone());
            running.push(tokio::spawn(async move { meddle(&rig, &script, number, foreign, before).await }));
            if running.len() == 3 {
                for case in running.drain(..) {
                    case.await.expect("no panic");
                }
            }
        }
        for case in running {
            case.await.expect("no panic");
        }
    });
}

async fn meddle(rig: &Rig, script: &Script, number: usize, foreign: Foreign, before: usize) {
    let renamed = |inner: &Arc<dyn Catalog>| -> Arc<dyn Catalog> {
        Arc::new(Renamed { inner: Arc::clone(inner), suffix: number.to_string() })
    };
    let meddler = Meddling {
        clean: renamed(&rig.clean),
        table: script.tables[FIRST].mirror(),
        foreign,
        before,
        commits: AtomicUsize::new(0),
    };
    let meddled = Arc::new(Between { inner: renamed(&rig.catalog), meddler });
    let through: Arc<dyn Catalog> = Arc::clone(&meddled) as Arc<dyn Catalog>;
    let world = World::on(renamed(&rig.clean), through, rig.storage.clone(), script.clone(), Planted::none());
    let lives = live(&world).await;
    assert!(meddled.meddler.commits.load(Ordering::SeqCst) > before, "{foreign:?}: the other engine has not acted");
    let first = check_rows(&world, FIRST).await.unwrap_or_else(|violation| panic!("{foreign:?}: {violation}"));
    let second = check_rows(&world, SECOND).await.unwrap_or_else(|violation| panic!("{foreign:?}: {violation}"));
    let left = left(&world).await;
    println!("{foreign:?} before commit {before}: {lives} lives, left {left:?}");
    assert_eq!(second.position, Some(script.end()), "{foreign:?}: the other table goes on");
    match foreign {
        Foreign::AddsColumn | Foreign::DropsColumn => {
            let code = left.get("public.first").map(|left| left.code.as_str());
            assert_eq!(code, Some("SCHEMA_CHANGED"), "{foreign:?} before commit {before}");
            assert!(first.position < Some(script.end()));
        }
        // Its cuts name snapshots that are gone, so only the rows can be looked at.
        Foreign::Expires => {
            assert!(left.is_empty(), "{left:?}");
            assert_eq!(first.position, Some(script.end()));
        }
        _ => drop(world.end().await.unwrap_or_else(|violation| panic!("{foreign:?} before {before}: {violation}"))),
    }
}
