//! What the pipeline writes, as engines that share no code with it read it: the rules of the files requirements (W1 to
//! W14) hold for partitioned tables, deletes, added columns and long strings.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::support::{Lake, Running};
use lakehouse_core::fsck::{Verdict, fsck};
use lakehouse_core::storage::Storage;
use parquet::basic::{Compression, ConvertedType, Encoding, Type as PhysicalType};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::Type as ParquetType;
use testkit::oracle;
use testkit::postgres::{Cluster, Options};
use testkit::readers::{Engine, Judge};

/// Long strings, also such whose shortened form has no successor; decimals of every width; days to partition by.
const VISITS: &str = "
    CREATE TABLE visits (id bigint PRIMARY KEY, at timestamptz NOT NULL, guest text, fee numeric(9,2),
        total numeric(18,4), exact numeric(38,10), code varchar(20), paid boolean);
    INSERT INTO visits SELECT n, timestamptz '2026-01-01 10:00:00+00' + n % 4 * interval '1 day',
        CASE n % 3 WHEN 0 THEN repeat('ü', 40) || n WHEN 1 THEN repeat(chr(1114111), 30) END,
        n * 1.25, n * 1000.0625, n * 12345678901234567.0123456789, 'code ' || n % 7, n % 2 = 0
    FROM generate_series(1, 300) n";

/// Each is committed and read by itself.
const ROUNDS: [&str; 6] = [
    "UPDATE visits SET fee = fee + 1 WHERE id % 3 = 0",
    "UPDATE visits SET at = at + interval '1 day' WHERE id % 5 = 0",
    "BEGIN; INSERT INTO visits (id, at) SELECT n, '2026-01-02 00:00:00+00' FROM generate_series(1000, 1009) n;
     UPDATE visits SET guest = 'twice in one transaction' WHERE id >= 1000; DELETE FROM visits WHERE id = 1001; COMMIT",
    "ALTER TABLE visits ADD COLUMN remark text; UPDATE visits SET remark = 'new' WHERE id % 7 = 0",
    "DELETE FROM visits WHERE id % 2 = 0",
    "BEGIN; TRUNCATE visits; INSERT INTO visits (id, at, remark) VALUES (1, '2026-02-01 00:00:00+00', 'after'); COMMIT",
];

/// Conditions by which a reader may leave out files, row groups and pages: what their bounds say must be true.
const CONDITIONS: [&str; 6] = [
    "fee > 100",
    "total <= 100000.25",
    "exact > 1000000000000000000.5",
    "code = 'code 3'",
    "guest >= 'v'",
    "paid AND id < 100",
];

/// More rows than a row group takes, with strings longer than what statistics keep.
const LONG: &str = "
    CREATE TABLE long (id bigint PRIMARY KEY, note text);
    INSERT INTO long SELECT n, lpad(n::text, 80, '0') FROM generate_series(1, 140000) n";

/// A snapshot, and what the source said then: its rows, and for how many of them each condition holds.
struct Round {
    snapshot: i64,
    rows: Vec<String>,
    counts: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_read_every_snapshot_alike_and_fsck_finds_nothing() {
    let cluster = Cluster::start(Options::default()).await;
    cluster.sql("postgres", VISITS).await;
    cluster.sql("postgres", LONG).await;
    let mut lake = Lake::new(&cluster);
    let partition = ["day(at)", "bucket(3, code)"].map(|field| field.parse().expect("a partition field"));
    lake.options("public.visits").partition = partition.into();
    let mut running = lake.start();
    let mut rounds = vec![round(&cluster, &lake, &mut running).await];
    for statements in ROUNDS {
        cluster.sql("postgres", statements).await;
        rounds.push(round(&cluster, &lake, &mut running).await);
    }
    running.stop().await;

    let client = cluster.connect("postgres").await;
    let long = oracle::rows_where(&client, "long", "id > 139000").await;
    for engine in Engine::at_hand() {
        let mut judge = Judge::start(engine).await;
        let visits = judge.metadata(&lake.database(), "shop.visits").await;
        for Round { snapshot, rows, counts } in &rounds {
            judge.assert_rows(&visits, Some(*snapshot), &[], rows).await;
            if engine == Engine::PyIceberg {
                continue;
            }
            for (condition, count) in CONDITIONS.iter().zip(counts) {
                // Of a column, as some engines answer count(*) without reading.
                let query = format!("SELECT count(id) FROM t WHERE {condition}");
                let found = judge.sql(&visits, Some(*snapshot), &query).await;
                assert_eq!(found, [format!("[\"{count}\"]")], "{engine:?}, {condition}");
            }
        }
        assert_eq!(judge.count(&visits, None).await, 1, "{engine:?}");
        // A table without snapshots.
        let metadata = judge.metadata(&lake.database(), "shop.long_history").await;
        assert_eq!(judge.count(&metadata, None).await, 0, "{engine:?}");
        let metadata = judge.metadata(&lake.database(), "shop.long").await;
        assert_eq!(judge.count(&metadata, None).await, 140_000, "{engine:?}");
        if engine != Engine::PyIceberg {
            // Pruned by bounds of the second row group, which only strings longer than the bounds distinguish.
            let query = "SELECT count(*) FROM t WHERE note > lpad('139000', 80, '0')";
            assert_eq!(judge.sql(&metadata, None, query).await, [format!("[\"{}\"]", long.len())], "{engine:?}");
        }
    }
    let report = fsck(&lake.catalog(), &Storage::local(), None).await.expect("fsck");
    assert_eq!(report.verdict, Verdict::Sound, "{report:#?}");
    check_parquet(&lake.path("warehouse"));
}

async fn round(cluster: &Cluster, lake: &Lake, running: &mut Running) -> Round {
    lake.caught_up(cluster, running).await;
    let client = cluster.connect("postgres").await;
    let rows = oracle::rows(&client, "visits").await;
    let mut counts = Vec::new();
    for condition in CONDITIONS {
        counts.push(cluster.value("postgres", &format!("SELECT count(*) FROM visits WHERE {condition}")).await);
    }
    Round { snapshot: lake.table("visits").await.snapshot_id().expect("copied"), rows, counts }
}

/// Field ids everywhere (W5), decimals as fixed-length bytes (W10), zstd and no byte-stream split (W11).
fn check_parquet(folder: &Path) {
    let files = parquet_files(folder);
    assert!(files.len() > 20, "files of partitions, deletes and histories: {}", files.len());
    for path in files {
        let reader = SerializedFileReader::new(File::open(&path).expect("a file")).expect("Parquet");
        let metadata = reader.metadata();
        check_ids(metadata.file_metadata().schema().get_fields(), &path);
        for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
            let name = format!("{} in {}", column.column_path(), path.display());
            assert!(matches!(column.compression(), Compression::ZSTD(_)), "{name}: {:?}", column.compression());
            assert!(column.encodings().all(|encoding| encoding != Encoding::BYTE_STREAM_SPLIT), "{name}");
            if column.column_descr().converted_type() == ConvertedType::DECIMAL {
                assert_eq!(column.column_type(), PhysicalType::FIXED_LEN_BYTE_ARRAY, "{name}");
            }
        }
    }
}

fn check_ids(fields: &[std::sync::Arc<ParquetType>], path: &Path) {
    for field in fields {
        let info = field.get_basic_info();
        // The repeated group between a list or map and what it holds is no field of the table.
        let repeated = info.has_repetition() && info.repetition() == parquet::basic::Repetition::REPEATED;
        assert!(info.has_id() || repeated, "{} in {} has no field id", field.name(), path.display());
        if field.is_group() {
            check_ids(field.get_fields(), path);
        }
    }
}

fn parquet_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => parquet_files(&path),
            false => Vec::from_iter(path.extension().is_some_and(|suffix| suffix == "parquet").then_some(path)),
        })
        .collect()
}
