//! A small lake, written by the product through its public interface: one table, copied, then changed by a script.
//! Not here: faults, catalogs that misbehave, random loads.

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Decimal128Array, Int64Array, StringArray};
use arrow_schema::DataType;
use lakehouse_core::batch::Batch;
use lakehouse_core::catalog::{Catalog, LoadedTable, SqliteCatalog};
use lakehouse_core::change::{BeforeImages, ChangeChunk, Operation, Origin};
use lakehouse_core::commit::{Control, GiveWay};
use lakehouse_core::lakehouse::{Environment, Lakehouse, Written};
use lakehouse_core::planted::Planted;
use lakehouse_core::position::Position;
use lakehouse_core::schema::{Column, Key, TableName, TableSchema};
use lakehouse_core::storage::Storage;

pub(crate) const COPIED_AT: u64 = 100;

pub(crate) struct Lake {
    _folder: tempfile::TempDir,
    pub(crate) catalog: Arc<SqliteCatalog>,
    pub(crate) storage: Storage,
}

/// Columns `id`, `name`, `amount`.
pub(crate) fn schema(key: Key) -> Arc<TableSchema> {
    let column = |name: &str, data_type, required| Column {
        name: name.into(),
        source_name: name.into(),
        source_type: "x".into(),
        data_type,
        required,
    };
    let keyed = matches!(key, Key::Columns(_));
    Arc::new(TableSchema {
        many_lanes: false,
        quarantine: None,
        source: "public.t".into(),
        mirror: TableName::new("ns", "t"),
        columns: vec![
            column("id", DataType::Int64, keyed),
            column("name", DataType::Utf8, false),
            column("amount", DataType::Decimal128(9, 2), false),
        ],
        before_columns: if keyed { vec![0] } else { vec![0, 1, 2] },
        key,
        partition: vec![],
        history: true,
    })
}

fn columns(rows: &[(Option<i64>, Option<&str>)]) -> Vec<ArrayRef> {
    let amounts: Decimal128Array = rows.iter().map(|(id, _)| id.map(|id| i128::from(id) * 100)).collect();
    vec![
        Arc::new(rows.iter().map(|(id, _)| *id).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|(_, name)| *name).collect::<StringArray>()),
        Arc::new(amounts.with_precision_and_scale(9, 2).unwrap()),
    ]
}

/// One transaction: `+1a` insert, `=1b` update, `=1a>1b` update with its old row, `-1a` delete, `!` truncate.
fn transaction(schema: &Arc<TableSchema>, script: &str, commit: Position) -> ChangeChunk {
    let row = |text: &str| -> (Option<i64>, Option<String>) {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        (text[..digits].parse().ok(), Some(text[digits..].to_owned()).filter(|name| !name.is_empty()))
    };
    let (mut operations, mut after, mut before) = (vec![], vec![], vec![]);
    for word in script.split_whitespace() {
        let (kind, rest) = word.split_at(1);
        operations.push(match kind {
            "+" => Operation::Insert,
            "=" => Operation::Update,
            "-" => Operation::Delete,
            "!" => Operation::Truncate,
            other => panic!("{other}"),
        });
        let (old, new) = rest.split_once('>').map_or((None, rest), |(old, new)| (Some(row(old)), new));
        before.push(old);
        after.push(row(new));
    }
    let known: BooleanArray = before.iter().map(|old| Some(old.is_some())).collect();
    let before: Vec<_> = before.into_iter().map(Option::unwrap_or_default).collect();
    let as_columns = |rows: &[(Option<i64>, Option<String>)]| {
        columns(&rows.iter().map(|(id, name)| (*id, name.as_deref())).collect::<Vec<_>>())
    };
    let old = as_columns(&before);
    let origin = |ordinal| Origin { commit, committed_at: 1_700_000_000_000_000, transaction: 7, ordinal };
    ChangeChunk {
        lanes: None,
        quarantined: Vec::new(),
        schema: Arc::clone(schema),
        origins: (0..).take(operations.len()).map(origin).collect(),
        operations,
        rows: as_columns(&after),
        before: Some(BeforeImages {
            known,
            columns: schema.before_columns.iter().map(|&column| old[column].clone()).collect(),
        }),
        unchanged: vec![],
    }
}

impl Lake {
    /// Copies `rows` (`1a 2b`), then commits each transaction on its own, ten positions apart.
    pub(crate) async fn of(key: Key, rows: &str, transactions: &[&str], planted: Planted) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::local();
        let warehouse = folder.path().join("warehouse");
        let catalog = SqliteCatalog::open(&folder.path().join("catalog.db"), &warehouse, storage.clone()).unwrap();
        let catalog = Arc::new(catalog);
        let environment = Environment {
            catalog: catalog.clone(),
            storage: storage.clone(),
            local_state: folder.path().join("state"),
            sync_local_state: false,
            tables_at_once: 1,
            owner_interval: lakehouse_core::lakehouse::OWNER_INTERVAL,
            rollback_tags: lakehouse_core::lakehouse::ROLLBACK_TAGS,
            give_way: GiveWay::default(),
            planted,
        };
        let schema = schema(key);
        let control = Control::open(catalog.clone(), storage.clone(), "p").await.unwrap();
        let first = Position::new(COPIED_AT);
        let go = Lakehouse::go(environment, control, "source".into(), first, vec![Arc::clone(&schema)]);
        let mut lakehouse = go.await.unwrap();

        let mut copy = lakehouse.begin_copy("public.t").await.unwrap();
        let copied: Vec<String> = rows.split_whitespace().map(|row| format!("+{row}")).collect();
        let copied = transaction(&schema, &copied.join(" "), first);
        let mut writer = copy.target().writer().unwrap();
        writer.write(&schema, &copied.rows).unwrap();
        copy.commit_chunk(writer.finish().unwrap()).await.unwrap();
        lakehouse.finish_copy(copy, first).await.unwrap();

        for (script, number) in transactions.iter().zip(1..) {
            let commit = Position::new(COPIED_AT + 10 * number);
            let mut batch = Batch::default();
            batch.absorb(transaction(&schema, script, commit));
            batch.close_at(commit);
            let Written::Batch(written) = lakehouse.write(batch).await.unwrap() else { panic!("a batch is closed") };
            lakehouse.commit(written).await.unwrap().expect("every batch gives a cut");
        }
        Self { _folder: folder, catalog, storage }
    }

    pub(crate) async fn load(&self, name: &str) -> LoadedTable {
        self.catalog.load(&name.parse().unwrap(), None).await.unwrap().expect("the table is there")
    }
}
