//! A lake of three tables with columns of many types, which a pipeline goes on changing at random; and the keys that each
//! table must have at each cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float64Array, Int64Array,
    StringArray, Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow_schema::{DataType, TimeUnit};
use fastrand::Rng;
use lakehouse_core::change::Operation;
use lakehouse_core::lakehouse::Lakehouse;
use lakehouse_core::position::Position;
use lakehouse_core::schema::{Column, Key, TableName, TableSchema};

use super::Installation;
use super::lake::{self, CONFIG};

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Tells rows apart.
    Key,
    /// The key's second half, which follows from the first.
    Part,
    Long,
    Text,
    Decimal,
    Uuid,
    Instant,
    Truth,
    Double,
    Day,
    Clock,
    Bytes,
}

pub(crate) type Columns = &'static [(&'static str, Kind)];

/// The tables of the namespace `app`. `orders` has a history beside it.
pub(crate) const TABLES: [(&str, Columns); 3] = [
    (
        "facts",
        &[
            ("id", Kind::Key),
            ("flag", Kind::Truth),
            ("score", Kind::Double),
            ("day", Kind::Day),
            ("clock", Kind::Clock),
        ],
    ),
    (
        "orders",
        &[
            ("id", Kind::Key),
            ("name", Kind::Text),
            ("amount", Kind::Decimal),
            ("token", Kind::Uuid),
            ("at", Kind::Instant),
        ],
    ),
    (
        "parts",
        &[("id", Kind::Key), ("part", Kind::Part), ("payload", Kind::Bytes), ("note", Kind::Text), ("n", Kind::Long)],
    ),
];

pub(crate) const TEXTS: [&str; 8] = ["", "a", "ab", "b%", "ünï", "A'B\"", "x,y", "abc"];

/// Rows that each table begins with.
const COPIED: i64 = 40;
/// The position at which the pipeline begins, and how far apart cuts are.
const START: u64 = 0x64;
const STRIDE: u64 = 0x64;

/// Keys of each table, in the order of [`TABLES`].
pub(crate) type Keys = [BTreeSet<i64>; 3];

pub(crate) struct Changing {
    pub(crate) installation: Installation,
    /// By the cut's position. A cut stands here before it stands in the lake.
    pub(crate) cuts: Arc<Mutex<BTreeMap<u64, Keys>>>,
    lakehouse: Lakehouse,
    schemas: Vec<Arc<TableSchema>>,
    rng: Rng,
    keys: Keys,
    next: i64,
    position: u64,
}

impl Changing {
    /// Copied, and not yet changed.
    pub(crate) async fn start(config: &str, seed: u64) -> Self {
        let installation = Installation::new(&format!("{CONFIG}{config}"));
        let schemas: Vec<Arc<TableSchema>> =
            TABLES.iter().map(|(name, columns)| Arc::new(schema(name, columns))).collect();
        let start = Position::new(START);
        let mut lakehouse = lake::open(&installation, start, schemas.clone()).await;
        let (mut rng, copied) = (Rng::with_seed(seed), (0..COPIED).collect::<BTreeSet<i64>>());
        for (schema, (_, columns)) in schemas.iter().zip(TABLES) {
            let keys: Vec<i64> = copied.iter().copied().collect();
            lake::copy(&mut lakehouse, schema, start, &arrays(columns, &keys, &mut rng)).await;
        }
        let keys: Keys = std::array::from_fn(|_| copied.clone());
        let cuts = Arc::new(Mutex::new(BTreeMap::from([(START, keys.clone())])));
        Self { installation, cuts, lakehouse, schemas, rng, keys, next: COPIED, position: START }
    }

    /// One batch: some rows of at least one table are updated, deleted and inserted.
    pub(crate) async fn step(&mut self) {
        let (certain, mut batch) = (self.rng.usize(..TABLES.len()), Vec::new());
        for (place, (_, columns)) in TABLES.into_iter().enumerate() {
            if place != certain && self.rng.u8(..3) == 0 {
                continue;
            }
            let known: Vec<i64> = self.keys[place].iter().copied().collect();
            let touched = self.rng.choose_multiple(known, 6);
            let (mut operations, mut keys) = (Vec::new(), Vec::new());
            for key in touched {
                let operation = if self.rng.bool() { Operation::Update } else { Operation::Delete };
                if operation == Operation::Delete {
                    self.keys[place].remove(&key);
                }
                operations.push(operation);
                keys.push(key);
            }
            for _ in 0..self.rng.usize(1..8) {
                operations.push(Operation::Insert);
                keys.push(self.next);
                self.keys[place].insert(self.next);
                self.next += 1;
            }
            let rows = arrays(columns, &keys, &mut self.rng);
            batch.push((Arc::clone(&self.schemas[place]), operations, rows));
        }
        self.position += STRIDE;
        self.cuts.lock().expect("not poisoned").insert(self.position, self.keys.clone());
        lake::commit(&mut self.lakehouse, self.position, batch).await;
    }

    /// Where the newest cut stands, as text.
    pub(crate) fn position(&self) -> String {
        Position::new(self.position).to_string()
    }
}

fn schema(name: &str, columns: Columns) -> TableSchema {
    let keys: Vec<usize> =
        columns.iter().enumerate().filter(|(_, (_, kind))| kind.is_key()).map(|(place, _)| place).collect();
    let column = |(name, kind): &(&str, Kind)| Column {
        name: (*name).to_owned(),
        source_name: (*name).to_owned(),
        source_type: "x".to_owned(),
        data_type: kind.data_type(),
        required: kind.is_key(),
    };
    TableSchema {
        many_lanes: false,
        quarantine: None,
        source: format!("public.{name}"),
        mirror: TableName::new("app", name),
        columns: columns.iter().map(column).collect(),
        key: Key::Columns(keys.clone()),
        before_columns: keys,
        partition: vec![],
        history: name == "orders",
    }
}

fn arrays(columns: Columns, keys: &[i64], rng: &mut Rng) -> Vec<ArrayRef> {
    columns.iter().map(|(_, kind)| kind.array(keys, rng)).collect()
}

impl Kind {
    fn is_key(self) -> bool {
        matches!(self, Self::Key | Self::Part)
    }

    fn data_type(self) -> DataType {
        match self {
            Self::Key | Self::Long => DataType::Int64,
            Self::Part | Self::Text => DataType::Utf8,
            Self::Decimal => DataType::Decimal128(10, 2),
            Self::Uuid => DataType::FixedSizeBinary(16),
            Self::Instant => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
            Self::Truth => DataType::Boolean,
            Self::Double => DataType::Float64,
            Self::Day => DataType::Date32,
            Self::Clock => DataType::Time64(TimeUnit::Microsecond),
            Self::Bytes => DataType::Binary,
        }
    }

    /// A value for each key; but for keys themselves one of six is NULL.
    fn array(self, keys: &[i64], rng: &mut Rng) -> ArrayRef {
        fn some<T>(keys: &[i64], rng: &mut Rng, value: impl Fn(&mut Rng) -> T) -> Vec<Option<T>> {
            keys.iter().map(|_| (rng.u8(..6) > 0).then(|| value(rng))).collect()
        }
        match self {
            Self::Key => Arc::new(Int64Array::from(keys.to_vec())),
            Self::Part => Arc::new(keys.iter().map(|key| Some(format!("p{}", key % 3))).collect::<StringArray>()),
            Self::Long => Arc::new(Int64Array::from(some(keys, rng, |rng| rng.i64(-5..5)))),
            Self::Text => Arc::new(StringArray::from(some(keys, rng, |rng| TEXTS[rng.usize(..TEXTS.len())]))),
            Self::Decimal => {
                let cents = Decimal128Array::from(some(keys, rng, |rng| rng.i128(-500..500)));
                Arc::new(cents.with_precision_and_scale(10, 2).expect("amounts fit"))
            }
            Self::Uuid => {
                let tokens = some(keys, rng, |rng| [rng.u8(..20); 16]).into_iter();
                Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(tokens, 16).expect("16 bytes each"))
            }
            Self::Instant => {
                let at = TimestampMicrosecondArray::from(some(keys, rng, |rng| rng.i64(0..60) * 1_000_000));
                Arc::new(at.with_timezone("+00:00"))
            }
            Self::Truth => Arc::new(BooleanArray::from(some(keys, rng, Rng::bool))),
            Self::Double => Arc::new(Float64Array::from(some(keys, rng, |rng| f64::from(rng.i32(-10..10)) * 0.5))),
            Self::Day => Arc::new(Date32Array::from(some(keys, rng, |rng| rng.i32(0..28)))),
            Self::Clock => Arc::new(Time64MicrosecondArray::from(some(keys, rng, |rng| rng.i64(0..86_400_000_000)))),
            Self::Bytes => {
                let bytes = some(keys, rng, |rng| vec![rng.u8(..); 3]);
                Arc::new(bytes.iter().map(|value| value.as_deref()).collect::<BinaryArray>())
            }
        }
    }
}
