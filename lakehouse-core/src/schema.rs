//! What a captured table looks like, and how that becomes an Iceberg schema.
//!
//! A source describes its table once as a [`TableSchema`], in Arrow types; Iceberg's field ids are given out here and
//! read back from the table's metadata, never assumed (`facts`: creation reassigns them).

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, TimeUnit};
use iceberg::spec::{
    ListType, MapType, NestedField, NestedFieldRef, PrimitiveType, Schema, StructType, Transform, Type,
    UnboundPartitionSpec,
};

use crate::error::Problem;
use crate::quarantine::QuarantineLimit;

/// The name of an Iceberg table: one level of namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    pub namespace: String,
    pub name: String,
}

impl TableName {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// `<namespace>.<table>_history`: every change after the copy.
    pub fn history(&self) -> TableName {
        TableName::new(&self.namespace, format!("{}_history", self.name))
    }

    /// `<namespace>.<table>_quarantine`: the rows that could not be mapped.
    pub fn quarantine(&self) -> TableName {
        TableName::new(&self.namespace, format!("{}_quarantine", self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.namespace, self.name)
    }
}

impl std::str::FromStr for TableName {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.split_once('.') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(Self::new(namespace, name)),
            _ => Err(Problem::halt(
                "TABLE_NAME",
                text,
                "a table is named namespace.table",
                "write both parts, with a dot",
            )),
        }
    }
}

/// The name that Athena and S3 Tables accept: lower-case, everything outside `[a-z0-9_]` becomes `_`.
pub fn lake_name(source: &str) -> String {
    source.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

/// One column of a captured table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name in the lake.
    pub name: String,
    /// Name at the source.
    pub source_name: String,
    /// Type at the source, as its own tools print it.
    pub source_type: String,
    pub data_type: DataType,
    /// Part of the key: never NULL.
    pub required: bool,
}

/// Name of the map, by column, of the exact text of values that their column's type cannot hold. It joins a table with
/// the first value that needs it.
pub const OVERFLOW: &str = "_cdc_overflow";

/// What tells two rows of a table apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Indexes of the key columns.
    Columns(Vec<usize>),
    /// No key, but the source sends whole old rows: all columns, with multiplicity (R55).
    WholeRow,
    /// No key and no old rows: only a history is kept.
    None,
}

/// One version of a captured table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSchema {
    /// Name at the source, `schema.table`.
    pub source: String,
    /// The mirror's name; the history's follows from it.
    pub mirror: TableName,
    pub columns: Vec<Column>,
    pub key: Key,
    /// Columns whose old values the source sends with updates and deletes (key columns, or all).
    pub before_columns: Vec<usize>,
    pub partition: Vec<PartitionBy>,
    /// Also keep `<table>_history`.
    pub history: bool,
    /// The source's log has many lanes: the history says which, and where in it.
    pub many_lanes: bool,
    /// Also keep `<table>_quarantine`, as far as this: a column's policy sends rows there that cannot be mapped.
    pub quarantine: Option<QuarantineLimit>,
}

impl TableSchema {
    pub fn has_overflow(&self) -> bool {
        self.columns.last().is_some_and(|column| column.name == OVERFLOW)
    }

    /// The same with [`OVERFLOW`] behind all other columns. Where rows are told apart by all their values, by those too.
    #[must_use]
    pub fn with_overflow(self: &Arc<Self>) -> Arc<Self> {
        if self.has_overflow() {
            return Arc::clone(self);
        }
        let mut wider = Self::clone(self);
        if wider.key == Key::WholeRow {
            wider.before_columns.push(wider.columns.len());
        }
        wider.columns.push(overflow_column());
        Arc::new(wider)
    }

    /// Columns whose names in the lake are others than at the source, and those.
    pub fn renamed_columns(&self) -> impl Iterator<Item = (&str, &str)> {
        let names = self.columns.iter().map(|column| (column.name.as_str(), column.source_name.as_str()));
        names.filter(|(name, source)| name != source)
    }

    /// A mirror needs something that tells rows apart.
    pub fn has_mirror(&self) -> bool {
        self.key != Key::None
    }

    pub fn key_columns(&self) -> Vec<usize> {
        match &self.key {
            Key::Columns(columns) => columns.clone(),
            Key::WholeRow => (0..self.columns.len()).collect(),
            Key::None => Vec::new(),
        }
    }

    /// The mirror's columns with preliminary ids.
    pub fn mirror_schema(&self) -> Result<Schema, Problem> {
        let mut ids = FieldIds(0);
        let fields = self.column_fields(&mut ids, |column| column.required)?;
        let key = match &self.key {
            Key::Columns(columns) => columns.iter().map(|&column| fields[column].id).collect(),
            Key::WholeRow | Key::None => Vec::new(),
        };
        self.build(fields, key)
    }

    /// The history's columns with preliminary ids: where and when, the old image, then the columns themselves.
    pub fn history_schema(&self) -> Result<Schema, Problem> {
        let mut ids = FieldIds(0);
        let mut fields = Vec::new();
        for field in history_fields(self.many_lanes) {
            let data_type = field_type(field.data_type(), &mut ids, &self.source)?;
            fields.push(Arc::new(NestedField::new(ids.next(), field.name(), data_type, !field.is_nullable())));
        }
        if !self.before_columns.is_empty() {
            let before = self.before_columns.iter().map(|&column| {
                let column = &self.columns[column];
                let data_type = field_type(&column.data_type, &mut ids, &column.source_name)?;
                Ok(Arc::new(NestedField::optional(ids.next(), &column.name, data_type)))
            });
            let before = StructType::new(before.collect::<Result<_, Problem>>()?);
            fields.push(Arc::new(NestedField::optional(ids.next(), BEFORE, Type::Struct(before))));
        }
        fields.extend(self.column_fields(&mut ids, |_| false)?);
        self.build(fields, Vec::new())
    }

    /// The quarantine's columns with preliminary ids: the same for every table of a kind of source.
    pub fn quarantine_schema(&self) -> Result<Schema, Problem> {
        let mut ids = FieldIds(0);
        let fields = quarantine_fields(self.many_lanes).into_iter().map(|field| {
            let data_type = field_type(field.data_type(), &mut ids, &self.source)?;
            Ok(Arc::new(NestedField::new(ids.next(), field.name(), data_type, !field.is_nullable())))
        });
        self.build(fields.collect::<Result<_, Problem>>()?, Vec::new())
    }

    fn column_fields(
        &self,
        ids: &mut FieldIds,
        required: impl Fn(&Column) -> bool,
    ) -> Result<Vec<NestedFieldRef>, Problem> {
        let field = |column: &Column| {
            let data_type = field_type(&column.data_type, ids, &column.source_name)?;
            let doc = format!("{} {}", column.source_name, column.source_type);
            Ok(Arc::new(NestedField::new(ids.next(), &column.name, data_type, required(column)).with_doc(doc)))
        };
        self.columns.iter().map(field).collect()
    }

    fn build(&self, fields: Vec<NestedFieldRef>, key: Vec<i32>) -> Result<Schema, Problem> {
        Schema::builder().with_fields(fields).with_identifier_field_ids(key).build().map_err(|error| {
            Problem::halt(
                "SCHEMA",
                &self.source,
                format!("no Iceberg schema: {error}"),
                "exclude the table, report this",
            )
        })
    }

    /// Why a table of the lake cannot take this table's rows any more, if it cannot: what stands there under a column's
    /// name, or as its key, is something else now. Rows from before the change would silently stay as they were. Columns
    /// that the lake lacks are no reason, they are added.
    pub fn conflict_with(&self, lake: &Schema, wanted: &Schema) -> Option<String> {
        let plain = |field_type: &Type| renumber(field_type, &mut FieldIds(0));
        for field in lake.as_struct().fields().iter().filter(|field| !field.name.starts_with("_cdc_")) {
            let column = self.columns.iter().find(|column| column.name == field.name);
            let (Some(column), Some(now)) = (column, wanted.field_by_name(&field.name)) else {
                return Some(format!("column {:?} has been dropped or renamed", field.name));
            };
            // Another engine may have taken the doc away, and a search path changes how a type's name is qualified.
            let unqualified = |text: &str| text.rsplit('.').next().unwrap_or(text).to_owned();
            let source_type =
                field.doc.as_deref().and_then(|doc| doc.strip_prefix(&format!("{} ", column.source_name)));
            let retyped = source_type.is_some_and(|known| unqualified(known) != unqualified(&column.source_type));
            if retyped || plain(&field.field_type) != plain(&now.field_type) {
                return Some(format!("column {:?} has changed its type", column.source_name));
            }
        }
        let key = |schema: &Schema| -> BTreeSet<String> {
            let names = schema.identifier_field_ids().filter_map(|id| schema.name_by_field_id(id).map(str::to_owned));
            names.collect()
        };
        (key(lake) != key(wanted)).then(|| "the key has changed".to_owned())
    }

    /// The mirror's partition spec over `schema`'s ids.
    pub fn partition_spec(&self, schema: &Schema) -> Result<UnboundPartitionSpec, Problem> {
        partition_spec(&self.partition, schema, &self.source)
    }

    /// The history is partitioned by the day of the commit.
    pub fn history_partition_spec(&self, schema: &Schema) -> Result<UnboundPartitionSpec, Problem> {
        let day = PartitionBy { transform: Transform::Day, column: COMMITTED_AT.to_owned() };
        partition_spec(&[day], schema, &self.source)
    }

    /// The quarantine is partitioned by the kind of change, so that the rows of a copy can be told from all others by their
    /// files, and by day.
    pub fn quarantine_partition_spec(&self, schema: &Schema) -> Result<UnboundPartitionSpec, Problem> {
        let operation = PartitionBy { transform: Transform::Identity, column: OPERATION.to_owned() };
        let day = PartitionBy { transform: Transform::Day, column: COMMITTED_AT.to_owned() };
        partition_spec(&[operation, day], schema, &self.source)
    }
}

fn overflow_column() -> Column {
    let entries = vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)];
    let entries = Field::new("key_value", DataType::Struct(entries.into()), false);
    Column {
        name: OVERFLOW.to_owned(),
        source_name: OVERFLOW.to_owned(),
        source_type: "values that their column cannot hold, as the source's text".to_owned(),
        data_type: DataType::Map(Arc::new(entries), false),
        required: false,
    }
}

/// Name of the history's column for the kind of change.
pub const OPERATION: &str = "_cdc_operation";
/// Name of the history's column for the end of the source transaction.
pub const POSITION: &str = "_cdc_position";
/// Name of the history's column for the place in the transaction.
pub const ORDINAL: &str = "_cdc_ordinal";
/// Name of the history's column for the source's commit time.
pub const COMMITTED_AT: &str = "_cdc_committed_at";
/// Name of the history's column for the source's transaction id.
pub const TRANSACTION: &str = "_cdc_transaction_id";
/// Name of the history's column for the old image.
pub const BEFORE: &str = "_cdc_before";

/// Name of the history's column for the lane of the source's log, where it has many.
pub const LANE: &str = "_cdc_lane";
/// Name of the history's column for the place in the lane.
pub const OFFSET: &str = "_cdc_offset";
/// Name of the history's column for who made the change, if it was not a client.
pub const ACTOR: &str = "_cdc_actor";

/// The columns that stand first in every history table. A log with many lanes has no transactions.
pub fn history_fields(many_lanes: bool) -> Vec<Field> {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
    let mut fields = vec![
        Field::new(OPERATION, DataType::Utf8, false),
        Field::new(POSITION, DataType::Int64, false),
        Field::new(ORDINAL, DataType::Int32, false),
        Field::new(COMMITTED_AT, utc, false),
    ];
    fields.extend(match many_lanes {
        false => vec![Field::new(TRANSACTION, DataType::Int64, false)],
        true => vec![
            Field::new(LANE, DataType::Utf8, false),
            Field::new(OFFSET, DataType::Utf8, false),
            Field::new(ACTOR, DataType::Utf8, true),
        ],
    });
    fields
}

/// Name of the quarantine's column for the key, as JSON.
pub const KEY: &str = "_cdc_key";
/// Name of the quarantine's column for the whole row, as JSON.
pub const IMAGE: &str = "_cdc_image";
/// Name of the quarantine's column for the whole row as it was before, as JSON.
pub const OLD_IMAGE: &str = "_cdc_old_image";
/// Name of the quarantine's column for the column that could not take its value, by its name at the source.
pub const COLUMN: &str = "_cdc_column";
/// Name of the quarantine's column for the stable code of why.
pub const CODE: &str = "_cdc_code";
/// Name of the quarantine's column for why, in words. No other table has it.
pub const REASON: &str = "_cdc_reason";
/// What stands in [`OPERATION`] of a quarantine for a row that a copy has read.
pub const COPIED: &str = "copy";

/// The columns of every quarantine: first those of a history, NULL where a copy's rows have none.
pub fn quarantine_fields(many_lanes: bool) -> Vec<Field> {
    let always = |field: &Field| [OPERATION, COMMITTED_AT].contains(&field.name().as_str());
    let mut fields: Vec<Field> = history_fields(many_lanes)
        .into_iter()
        .map(|field| if always(&field) { field } else { field.with_nullable(true) })
        .collect();
    fields.extend(
        [(KEY, false), (IMAGE, false), (OLD_IMAGE, true), (COLUMN, false), (CODE, false), (REASON, false)]
            .map(|(name, nullable)| Field::new(name, DataType::Utf8, nullable)),
    );
    fields
}

/// One field of a partition spec as the configuration writes it: `day(paid_at)`, `bucket(16, customer_id)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionBy {
    pub transform: Transform,
    /// Name in the lake.
    pub column: String,
}

impl std::str::FromStr for PartitionBy {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let invalid = || {
            Problem::halt(
                "CONFIG_PARTITION",
                text,
                "not a partition field",
                "write a column name or identity(c), year(c), month(c), day(c), hour(c), bucket(N, c), truncate(N, c)",
            )
        };
        let column = |name: &str| {
            let name = name.trim();
            let plain = !name.is_empty() && !name.contains(['(', ')', ',']);
            plain.then(|| lake_name(name)).ok_or_else(invalid)
        };
        let Some((function, rest)) = text.split_once('(') else {
            return Ok(Self { transform: Transform::Identity, column: column(text)? });
        };
        let arguments = rest.trim_end().strip_suffix(')').ok_or_else(invalid)?;
        let sized = || {
            let (size, name) = arguments.split_once(',').ok_or_else(invalid)?;
            let size: u32 = size.trim().parse().map_err(|_| invalid())?;
            if size == 0 { Err(invalid()) } else { Ok((size, column(name)?)) }
        };
        let (transform, column) = match function.trim().to_lowercase().as_str() {
            "identity" => (Transform::Identity, column(arguments)?),
            "year" => (Transform::Year, column(arguments)?),
            "month" => (Transform::Month, column(arguments)?),
            "day" => (Transform::Day, column(arguments)?),
            "hour" => (Transform::Hour, column(arguments)?),
            "bucket" => sized().map(|(size, column)| (Transform::Bucket(size), column))?,
            "truncate" => sized().map(|(size, column)| (Transform::Truncate(size), column))?,
            _ => return Err(invalid()),
        };
        Ok(Self { transform, column })
    }
}

fn partition_spec(fields: &[PartitionBy], schema: &Schema, table: &str) -> Result<UnboundPartitionSpec, Problem> {
    let mut builder = UnboundPartitionSpec::builder();
    for field in fields {
        let refused = |why: String| {
            let remedy = "correct `partition` of the table in the configuration";
            Problem::halt("CONFIG_PARTITION", format!("{table}.{}", field.column), why, remedy)
        };
        let column =
            schema.field_by_name(&field.column).ok_or_else(|| refused("partition column does not exist".into()))?;
        field.transform.result_type(&column.field_type).map_err(|error| refused(error.message().to_owned()))?;
        let name = match &field.transform {
            Transform::Identity => field.column.clone(),
            Transform::Truncate(_) => format!("{}_trunc", field.column),
            Transform::Bucket(_) => format!("{}_bucket", field.column),
            other => format!("{}_{other}", field.column),
        };
        builder =
            builder.add_partition_field(column.id, name, field.transform).map_err(|e| refused(e.message().into()))?;
    }
    Ok(builder.build())
}

struct FieldIds(i32);

impl FieldIds {
    fn next(&mut self) -> i32 {
        self.0 += 1;
        self.0
    }
}

fn field_type(data_type: &DataType, ids: &mut FieldIds, subject: &str) -> Result<Type, Problem> {
    let primitive = |primitive| Ok(Type::Primitive(primitive));
    match data_type {
        DataType::Boolean => primitive(PrimitiveType::Boolean),
        DataType::Int32 => primitive(PrimitiveType::Int),
        DataType::Int64 => primitive(PrimitiveType::Long),
        DataType::Float32 => primitive(PrimitiveType::Float),
        DataType::Float64 => primitive(PrimitiveType::Double),
        DataType::Decimal128(precision, scale) if *scale >= 0 => {
            primitive(PrimitiveType::Decimal { precision: u32::from(*precision), scale: scale.unsigned_abs().into() })
        }
        DataType::Date32 => primitive(PrimitiveType::Date),
        DataType::Time64(TimeUnit::Microsecond) => primitive(PrimitiveType::Time),
        DataType::Timestamp(TimeUnit::Microsecond, None) => primitive(PrimitiveType::Timestamp),
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => primitive(PrimitiveType::Timestamptz),
        DataType::Utf8 => primitive(PrimitiveType::String),
        DataType::Binary => primitive(PrimitiveType::Binary),
        DataType::FixedSizeBinary(16) => primitive(PrimitiveType::Uuid),
        DataType::List(element) => {
            let element_type = field_type(element.data_type(), ids, subject)?;
            let element = NestedField::list_element(ids.next(), element_type, !element.is_nullable());
            Ok(Type::List(ListType::new(Arc::new(element))))
        }
        DataType::Map(entries, _) => {
            let DataType::Struct(fields) = entries.data_type() else {
                return Err(unmapped(data_type, subject));
            };
            let [key, value] = &fields[..] else {
                return Err(unmapped(data_type, subject));
            };
            let key_type = field_type(key.data_type(), ids, subject)?;
            let value_type = field_type(value.data_type(), ids, subject)?;
            let key = NestedField::map_key_element(ids.next(), key_type);
            let value = NestedField::map_value_element(ids.next(), value_type, !value.is_nullable());
            Ok(Type::Map(MapType::new(Arc::new(key), Arc::new(value))))
        }
        DataType::Struct(fields) => {
            let fields = fields.iter().map(|field| {
                let data_type = field_type(field.data_type(), ids, subject)?;
                Ok(Arc::new(NestedField::new(ids.next(), field.name(), data_type, !field.is_nullable())))
            });
            Ok(Type::Struct(StructType::new(fields.collect::<Result<_, Problem>>()?)))
        }
        other => Err(unmapped(other, subject)),
    }
}

fn unmapped(data_type: &DataType, subject: &str) -> Problem {
    let message = format!("no Iceberg type for {data_type}");
    Problem::halt("TYPE_UNMAPPED", subject, message, "exclude the table and report this")
}

/// The Arrow schema that data files of `schema` are written and read with: field ids everywhere (files W5), uuid as a
/// logical type, binary with 32-bit offsets.
pub fn arrow_schema(schema: &Schema) -> Result<arrow_schema::SchemaRef, Problem> {
    let arrow = iceberg::arrow::schema_to_arrow_schema(schema)
        .map_err(|error| Problem::halt("SCHEMA", "", format!("no Arrow schema: {error}"), "report this"))?;
    let fields: Fields = arrow.fields().iter().map(|field| Arc::new(storage_field(field))).collect();
    Ok(Arc::new(arrow_schema::Schema::new(fields)))
}

fn storage_field(field: &Field) -> Field {
    let data_type = match field.data_type() {
        DataType::LargeBinary => DataType::Binary,
        DataType::List(element) => DataType::List(Arc::new(storage_field(element))),
        DataType::Map(entries, sorted) => DataType::Map(Arc::new(storage_field(entries)), *sorted),
        DataType::Struct(fields) => {
            DataType::Struct(fields.iter().map(|field| Arc::new(storage_field(field))).collect())
        }
        other => other.clone(),
    };
    let mut metadata: HashMap<String, String> = field.metadata().clone();
    metadata.retain(|key, _| key == parquet::arrow::PARQUET_FIELD_ID_META_KEY);
    if data_type == DataType::FixedSizeBinary(16) {
        metadata.insert("ARROW:extension:name".into(), "arrow.uuid".into());
    }
    Field::new(field.name(), data_type, field.is_nullable()).with_metadata(metadata)
}

/// `table`'s columns that `current` lacks, as a schema with ids behind `last_column_id`; `None` if nothing is missing.
/// Columns are told apart by name; a column that is gone from the source stays and reads NULL.
pub fn with_added_columns(current: &Schema, wanted: &Schema, last_column_id: i32) -> Result<Option<Schema>, Problem> {
    let mut ids = FieldIds(last_column_id);
    let mut fields: Vec<NestedFieldRef> = current.as_struct().fields().to_vec();
    for field in wanted.as_struct().fields() {
        if current.field_by_name(&field.name).is_some() {
            continue;
        }
        let data_type = renumber(&field.field_type, &mut ids);
        let mut added = NestedField::optional(ids.next(), &field.name, data_type);
        added.doc.clone_from(&field.doc);
        fields.push(Arc::new(added));
    }
    if fields.len() == current.as_struct().fields().len() {
        return Ok(None);
    }
    let key: Vec<i32> = current.identifier_field_ids().collect();
    let built = Schema::builder().with_fields(fields).with_identifier_field_ids(key).build();
    built
        .map(Some)
        .map_err(|error| Problem::halt("SCHEMA", "", format!("column cannot be added: {error}"), "resync the table"))
}

fn renumber(field_type: &Type, ids: &mut FieldIds) -> Type {
    let mut renumbered = |field: &NestedFieldRef| {
        let data_type = renumber(&field.field_type, ids);
        let mut field = NestedField::clone(field);
        field.field_type = Box::new(data_type);
        field.id = ids.next();
        Arc::new(field)
    };
    match field_type {
        Type::Primitive(_) => field_type.clone(),
        Type::List(list) => Type::List(ListType::new(renumbered(&list.element_field))),
        Type::Map(map) => {
            let key = renumbered(&map.key_field);
            Type::Map(MapType::new(key, renumbered(&map.value_field)))
        }
        Type::Struct(fields) => Type::Struct(StructType::new(fields.fields().iter().map(renumbered).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_what_athena_accepts() {
        for (source, lake) in [("Mixed Case", "mixed_case"), ("Key", "key"), ("naïve-1", "na_ve_1"), ("ok_2", "ok_2")]
        {
            assert_eq!(lake_name(source), lake);
        }
    }

    #[test]
    fn partition_fields_are_read_as_written() {
        let parse = |text: &str| text.parse::<PartitionBy>().map(|p| (p.transform.to_string(), p.column));
        assert_eq!(parse("day(paid_at)").unwrap(), ("day".into(), "paid_at".into()));
        assert_eq!(parse("bucket(16, Customer Id)").unwrap(), ("bucket[16]".into(), "customer_id".into()));
        assert_eq!(parse("truncate( 4 ,code )").unwrap(), ("truncate[4]".into(), "code".into()));
        assert_eq!(parse("country").unwrap(), ("identity".into(), "country".into()));
        for wrong in ["", "day()", "day(a", "bucket(a)", "bucket(0,a)", "bucket(x, a)", "week(a)", "a b(c)d"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    fn table(columns: &[(&str, DataType)]) -> TableSchema {
        TableSchema {
            many_lanes: false,
            quarantine: None,
            source: "public.t".into(),
            mirror: TableName::new("ns", "t"),
            columns: columns
                .iter()
                .map(|(name, data_type)| Column {
                    name: (*name).into(),
                    source_name: (*name).into(),
                    source_type: "x".into(),
                    data_type: data_type.clone(),
                    required: *name == "id",
                })
                .collect(),
            key: Key::Columns(vec![0]),
            before_columns: vec![0],
            partition: vec![],
            history: true,
        }
    }

    #[test]
    fn an_added_column_gets_ids_behind_all_others() {
        let list = DataType::List(Arc::new(Field::new("element", DataType::Int32, true)));
        let old = table(&[("id", DataType::Int64)]).mirror_schema().unwrap();
        let new = table(&[("id", DataType::Int64), ("tags", list)]).mirror_schema().unwrap();
        assert!(with_added_columns(&new, &old, 9).unwrap().is_none());
        let merged = with_added_columns(&old, &new, 41).unwrap().unwrap();
        assert_eq!(merged.field_by_name("tags").unwrap().id, 43);
        assert_eq!(merged.field_by_name("tags.element").unwrap().id, 42);
        assert_eq!(merged.identifier_field_ids().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn every_file_column_carries_its_field_id() {
        let point = DataType::Struct(vec![Field::new("x", DataType::Float64, true)].into());
        let schema = table(&[("id", DataType::FixedSizeBinary(16)), ("p", point)]).history_schema().unwrap();
        fn check(fields: &Fields) {
            for field in fields {
                assert!(field.metadata().contains_key(parquet::arrow::PARQUET_FIELD_ID_META_KEY), "{field}");
                if let DataType::Struct(children) = field.data_type() {
                    check(children);
                }
            }
        }
        check(arrow_schema(&schema).unwrap().fields());
    }
}
