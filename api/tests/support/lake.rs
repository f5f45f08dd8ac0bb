//! A small lake of one pipeline, made with the core: a copy at 0/64, then two batches that end at 0/C8 and 0/12C.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, Decimal128Array, FixedSizeBinaryArray, Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow_schema::{DataType, TimeUnit};
use lakehouse_core::batch::Batch;
use lakehouse_core::catalog::{Catalog, SqliteCatalog};
use lakehouse_core::change::{ChangeChunk, Operation, Origin, Quarantined};
use lakehouse_core::commit::{Control, GiveWay};
use lakehouse_core::lakehouse::{Environment, Lakehouse, TABLES_AT_ONCE, Written};
use lakehouse_core::planted::Planted;
use lakehouse_core::position::Position;
use lakehouse_core::quarantine::QuarantineLimit;
use lakehouse_core::schema::{Column, Key, TableName, TableSchema};
use lakehouse_core::storage::Storage;

use super::Installation;

/// Its source does not answer.
pub(crate) const CONFIG: &str = r#"
    [pipelines.app.postgres]
    host = "127.0.0.1"
    port = 1
    database = "d"
    user = "u"
    tls = "disable"
"#;

pub(crate) type Row<'a> = (i64, Option<&'a str>, Option<i128>);

/// An installation whose lake holds `app.orders`: rows 1 to 3 copied; then 2 updated, 3 deleted, 4 inserted; then 5.
pub(crate) async fn installation() -> Installation {
    installation_with("", &[]).await
}

/// The same with more in its configuration, and more rows that are inserted last, up to 0/190.
pub(crate) async fn installation_with(config: &str, more: &[Row<'_>]) -> Installation {
    let installation = Installation::new(&format!("{CONFIG}{config}"));
    let schema = Arc::new(schema());
    let start = Position::new(0x64);
    let mut lakehouse = open(&installation, start, vec![Arc::clone(&schema)]).await;
    let rows = [(1, Some("Ann"), Some(150)), (2, Some("Bob \"B\", Jr."), None), (3, Some(""), Some(-5))];
    copy(&mut lakehouse, &schema, start, &columns(&rows)).await;

    use Operation::{Delete, Insert, Update};
    let rows = [(Update, (2, Some("Bea"), Some(1))), (Delete, (3, None, None)), (Insert, (4, None, Some(99)))];
    commit_rows(&mut lakehouse, &schema, 0xC8, &rows).await;
    commit_rows(&mut lakehouse, &schema, 0x12C, &[(Insert, (5, Some("Eve"), None))]).await;
    if !more.is_empty() {
        let inserts: Vec<_> = more.iter().map(|row| (Insert, *row)).collect();
        commit_rows(&mut lakehouse, &schema, 0x190, &inserts).await;
    }
    installation
}

/// An installation whose `app.orders` has row 1, and a quarantine with one row for each of these ids, the last the newest.
/// They came in batches that end at 0/C8, 0/12C and so on.
pub(crate) async fn with_quarantine(config: &str, quarantined: &[i64]) -> Installation {
    let installation = Installation::new(&format!("{CONFIG}{config}"));
    let schema = Arc::new(TableSchema { quarantine: Some(QuarantineLimit::default()), ..schema() });
    let start = Position::new(0x64);
    let mut lakehouse = open(&installation, start, vec![Arc::clone(&schema)]).await;
    copy(&mut lakehouse, &schema, start, &columns(&[(1, Some("Ann"), Some(150))])).await;
    for (id, to) in quarantined.iter().zip((0xC8..).step_by(0x64)) {
        let row = Quarantined {
            operation: Some(Operation::Insert),
            key: format!(r#"{{"id":{id}}}"#),
            image: format!(r#"{{"id":{id},"amount":"many"}}"#),
            old_image: None,
            column: "amount".to_owned(),
            code: "VALUE_MISMATCH".to_owned(),
            reason: "no amount".to_owned(),
        };
        let whole = (Arc::clone(&schema), vec![Operation::Quarantine], columns(&[(*id, None, None)]));
        let chunk = ChangeChunk { quarantined: vec![Some(Arc::new(row))], ..chunk(to, whole) };
        commit_chunks(&mut lakehouse, to, vec![chunk]).await;
    }
    installation
}

/// Adds `other.orders` to the lake, with the rows 1 and 2, of a pipeline `other` that the configuration has.
pub(crate) async fn add_other(installation: &Installation) {
    let schema = Arc::new(TableSchema { mirror: TableName::new("other", "orders"), ..schema() });
    let start = Position::new(0x64);
    let mut lakehouse = open_as("other", installation, start, vec![Arc::clone(&schema)]).await;
    copy(&mut lakehouse, &schema, start, &columns(&[(1, None, None), (2, None, None)])).await;
    commit_rows(&mut lakehouse, &schema, 0xC8, &[(Operation::Delete, (1, None, None))]).await;
}

/// The pipeline `app` of an installation, whose lake is empty.
pub(crate) async fn open(installation: &Installation, start: Position, schemas: Vec<Arc<TableSchema>>) -> Lakehouse {
    open_as("app", installation, start, schemas).await
}

/// The pipeline of this name, which has no tables yet.
async fn open_as(
    pipeline: &str,
    installation: &Installation,
    start: Position,
    schemas: Vec<Arc<TableSchema>>,
) -> Lakehouse {
    let lake = installation.path().join("lake");
    let storage = Storage::local();
    let catalog = SqliteCatalog::open(&lake.join("catalog.db"), &lake.join("warehouse"), storage.clone());
    let catalog: Arc<dyn Catalog> = Arc::new(catalog.expect("a new catalog"));
    let control = Control::open(Arc::clone(&catalog), storage.clone(), pipeline).await.expect("a control table");
    let local_state = installation.path().join("state").join(pipeline);
    let environment = Environment {
        catalog,
        storage,
        local_state,
        sync_local_state: false,
        tables_at_once: TABLES_AT_ONCE,
        owner_interval: lakehouse_core::lakehouse::OWNER_INTERVAL,
        rollback_tags: lakehouse_core::lakehouse::ROLLBACK_TAGS,
        give_way: GiveWay::default(),
        planted: Planted::none(),
    };
    let lakehouse = Lakehouse::go(environment, control, "test".to_owned(), start, schemas).await;
    lakehouse.expect("a new lake")
}

/// The rows that a table has when its pipeline begins.
pub(crate) async fn copy(lakehouse: &mut Lakehouse, schema: &Arc<TableSchema>, at: Position, rows: &[ArrayRef]) {
    let mut copy = lakehouse.begin_copy(&schema.source).await.expect("a copy");
    let mut writer = copy.target().writer().expect("a writer");
    writer.write(schema, rows).expect("rows fit");
    copy.commit_chunk(writer.finish().expect("files")).await.expect("a chunk");
    lakehouse.finish_copy(copy, at).await.expect("a copied table");
}

async fn commit_rows(lakehouse: &mut Lakehouse, schema: &Arc<TableSchema>, to: u64, changes: &[(Operation, Row<'_>)]) {
    let rows: Vec<Row<'_>> = changes.iter().map(|(_, row)| *row).collect();
    let operations = changes.iter().map(|(operation, _)| *operation).collect();
    commit(lakehouse, to, vec![(Arc::clone(schema), operations, columns(&rows))]).await;
}

/// What has happened to the rows of one table.
pub(crate) type Changes = (Arc<TableSchema>, Vec<Operation>, Vec<ArrayRef>);

/// One batch, and the cut behind it.
pub(crate) async fn commit(lakehouse: &mut Lakehouse, to: u64, changes: Vec<Changes>) {
    let chunks = changes.into_iter().map(|changes| chunk(to, changes)).collect();
    commit_chunks(lakehouse, to, chunks).await;
}

fn chunk(to: u64, (schema, operations, rows): Changes) -> ChangeChunk {
    let origin = |ordinal: usize| Origin {
        commit: Position::new(to),
        committed_at: 1_700_000_000_000_000,
        transaction: 7,
        ordinal: i32::try_from(ordinal).expect("few changes"),
    };
    ChangeChunk {
        lanes: None,
        quarantined: Vec::new(),
        schema,
        origins: (0..operations.len()).map(origin).collect(),
        operations,
        rows,
        before: None,
        unchanged: vec![],
    }
}

async fn commit_chunks(lakehouse: &mut Lakehouse, to: u64, chunks: Vec<ChangeChunk>) {
    let mut batch = Batch::default();
    chunks.into_iter().for_each(|chunk| batch.absorb(chunk));
    batch.close_at(Position::new(to));
    let Written::Batch(written) = lakehouse.write(batch).await.expect("files") else { panic!("a closed batch") };
    lakehouse.commit(written).await.expect("a commit").expect("a cut");
}

fn schema() -> TableSchema {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
    let column = |name: &str, data_type: DataType| Column {
        name: name.to_owned(),
        source_name: name.to_owned(),
        source_type: "x".to_owned(),
        data_type,
        required: name == "id",
    };
    TableSchema {
        many_lanes: false,
        quarantine: None,
        source: "public.orders".to_owned(),
        mirror: TableName::new("app", "orders"),
        columns: vec![
            column("id", DataType::Int64),
            column("name", DataType::Utf8),
            column("amount", DataType::Decimal128(10, 2)),
            column("token", DataType::FixedSizeBinary(16)),
            column("at", utc),
        ],
        key: Key::Columns(vec![0]),
        before_columns: vec![0],
        partition: vec![],
        history: true,
    }
}

/// Token and time follow from the id.
fn columns(rows: &[Row<'_>]) -> Vec<ArrayRef> {
    let ids = || rows.iter().map(|row| row.0);
    let tokens: Vec<[u8; 16]> = ids().map(|id| [u8::try_from(id).expect("a small id"); 16]).collect();
    let amounts: Decimal128Array = rows.iter().map(|row| row.2).collect();
    let at: TimestampMicrosecondArray = ids().map(|id| Some(id * 1_000_000)).collect();
    vec![
        Arc::new(ids().map(Some).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.1).collect::<StringArray>()),
        Arc::new(amounts.with_precision_and_scale(10, 2).expect("amounts fit")),
        Arc::new(FixedSizeBinaryArray::try_from_iter(tokens.into_iter()).expect("16 bytes each")),
        Arc::new(at.with_timezone("+00:00")),
    ]
}
