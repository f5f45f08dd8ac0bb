//! The type map of requirements section 4: what a PostgreSQL type becomes in Arrow, and which decoder reads it.
//! The decoders themselves are in the sibling files.

use std::fmt;
use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Fields, TimeUnit};

use super::text::TextForm;

/// What the server's catalog says of a column's type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgType {
    pub oid: u32,
    /// `pg_attribute.atttypmod`, or `pg_type.typtypmod` for the type under a domain; −1 for none.
    pub typmod: i32,
    /// `format_type(oid, typmod)`. Extension types are told by it, since their oids differ per database.
    pub name: String,
    pub kind: PgKind,
}

/// `pg_type.typtype`, with arrays told apart from other base types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PgKind {
    Base,
    Enum,
    /// Of the type below it, which may be a domain again.
    Domain(Box<PgType>),
    /// Of this element type. A typmod of the array counts for elements that have none of their own.
    Array(Box<PgType>),
    Composite,
    Range,
    Multirange,
    Pseudo,
}

/// Choices of the map that are the operator's, or that the server's settings decide.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TypeOptions {
    /// Fraction digits of the server's `lc_monetary`, see `money_fraction_digits`. `None` maps money to string.
    pub money_fraction_digits: Option<u8>,
    /// For tables that Spark reads, which has no `time` (W12).
    pub time_as_string: bool,
    pub uuid_as_string: bool,
    pub unbounded_numeric: UnboundedNumeric,
    /// Dates outside the years 0001 to 9999 overflow, for readers that know no others.
    pub narrow_dates: bool,
}

/// What numeric without a precision, or with one above 38, becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnboundedNumeric {
    #[default]
    Text,
    /// decimal(38, scale), at most 38; other values overflow.
    Decimal { scale: u8 },
    /// The nearest double: lossy.
    Double,
}

/// W-TYPE: a type outside the map, copied as its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeWarning {
    pub type_name: String,
}

impl fmt::Display for TypeWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "type {} is not known and is copied as its text", self.type_name)
    }
}

/// What a column becomes and how its values are read.
#[derive(Debug, Clone)]
pub struct ColumnType {
    codec: Codec,
    data_type: DataType,
    warning: Option<TypeWarning>,
}

/// How the values of a column are decoded. Names are those of the PostgreSQL side.
#[derive(Debug, Clone)]
pub(super) enum Codec {
    Bool,
    Int2,
    Int4,
    Int8,
    /// oid, xid, cid: unsigned, hence one size up.
    Oid,
    Float4,
    Float8,
    Decimal {
        precision: u8,
        scale: u8,
    },
    NumericDouble,
    Money {
        fraction_digits: u8,
    },
    Date {
        narrow: bool,
    },
    Timestamp,
    Timestamptz,
    Time,
    Uuid,
    Bytea,
    /// PostGIS: hexadecimal as text, the same bytes as binary.
    Ewkb,
    Text(TextForm),
    List {
        element: Box<ColumnType>,
        delimiter: u8,
    },
    Hstore,
    Point,
    Vector {
        half: bool,
    },
}

/// A cast to varchar, not text: it always goes through the type's output function, which is what the stream shows.
/// Casts to text are sometimes another function (inet, many extension types).
const AS_TEXT: &str = "::pg_catalog.varchar";

const MAX_PRECISION: i32 = 38;
/// PostgreSQL's own bound on the fraction digits of money (`cash_out`).
const MAX_MONEY_FRACTION: u8 = 10;
pub(super) const MONEY_PRECISION: u8 = 19;

impl ColumnType {
    /// The whole map; it knows an answer for every type.
    pub fn of(pg: &PgType, options: &TypeOptions) -> Self {
        match &pg.kind {
            PgKind::Domain(base) => Self::of(base, options),
            PgKind::Array(element) if pg.name.ends_with("[]") => Self::of_array(pg, element, options),
            // int2vector, name, point, … have an element type in the catalog and are no arrays.
            PgKind::Base | PgKind::Array(_) => Self::of_base(pg, options),
            PgKind::Enum => Self::text(TextForm::Verbatim),
            PgKind::Composite | PgKind::Range | PgKind::Multirange => Self::text(TextForm::Cast),
            PgKind::Pseudo => Self::unknown(pg),
        }
    }

    pub fn data_type(&self) -> &DataType {
        &self.data_type
    }

    /// Set if the type, or its element type, is outside the map.
    pub fn warning(&self) -> Option<TypeWarning> {
        self.warning.clone()
    }

    /// What to write behind the column's name in the query of a binary copy; `None` for nothing.
    pub fn copy_cast(&self) -> Option<&'static str> {
        matches!(self.codec, Codec::Text(TextForm::Cast) | Codec::List { .. }).then_some(AS_TEXT)
    }

    pub(super) fn codec(&self) -> &Codec {
        &self.codec
    }

    fn of_base(pg: &PgType, options: &TypeOptions) -> Self {
        let codec = match pg.oid {
            oid::BOOL => Codec::Bool,
            oid::INT2 => Codec::Int2,
            oid::INT4 => Codec::Int4,
            oid::INT8 => Codec::Int8,
            oid::OID | oid::XID | oid::CID => Codec::Oid,
            oid::FLOAT4 => Codec::Float4,
            oid::FLOAT8 => Codec::Float8,
            oid::NUMERIC => numeric_codec(pg.typmod, options.unbounded_numeric),
            oid::MONEY => money_codec(options.money_fraction_digits),
            oid::DATE => Codec::Date { narrow: options.narrow_dates },
            oid::TIMESTAMP => Codec::Timestamp,
            oid::TIMESTAMPTZ => Codec::Timestamptz,
            oid::TIME if options.time_as_string => Codec::Text(TextForm::Time),
            oid::TIME => Codec::Time,
            oid::UUID if options.uuid_as_string => Codec::Text(TextForm::Uuid),
            oid::UUID => Codec::Uuid,
            oid::BYTEA => Codec::Bytea,
            oid::POINT => Codec::Point,
            oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::JSON | oid::XML | oid::REFCURSOR => {
                Codec::Text(TextForm::Verbatim)
            }
            oid::JSONB | oid::JSONPATH => Codec::Text(TextForm::Versioned),
            oid::CHAR => Codec::Text(TextForm::Char),
            oid::INET => Codec::Text(TextForm::Inet),
            oid::CIDR => Codec::Text(TextForm::Cidr),
            oid::MACADDR | oid::MACADDR8 => Codec::Text(TextForm::MacAddress),
            oid::BIT | oid::VARBIT => Codec::Text(TextForm::Bits),
            oid::PG_LSN => Codec::Text(TextForm::Lsn),
            oid::XID8 => Codec::Text(TextForm::Xid8),
            known if oid::AS_TEXT.contains(&known) => Codec::Text(TextForm::Cast),
            _ => match extension_codec(&pg.name) {
                Some(codec) => codec,
                None => return Self::unknown(pg),
            },
        };
        Self::known(codec)
    }

    fn of_array(pg: &PgType, element: &PgType, options: &TypeOptions) -> Self {
        let mut element_type = element.clone();
        if element_type.typmod < 0 {
            element_type.typmod = pg.typmod;
        }
        let element = Self::of(&element_type, options);
        if element.warning.is_some() {
            // The delimiter of an unknown type is unknown too, and with a wrong one elements would merge silently.
            return Self::unknown(pg);
        }
        Self::known(Codec::List { element: Box::new(element), delimiter: delimiter(&element_type) })
    }

    fn known(codec: Codec) -> Self {
        Self { data_type: data_type(&codec), codec, warning: None }
    }

    fn text(form: TextForm) -> Self {
        Self::known(Codec::Text(form))
    }

    fn unknown(pg: &PgType) -> Self {
        Self { warning: Some(TypeWarning { type_name: pg.name.clone() }), ..Self::text(TextForm::Cast) }
    }
}

/// `typmod` as `numerictypmodin` of PostgreSQL 15 packs it: ((precision << 16) | (scale & 0x7ff)) + 4, the scale in
/// 11 bits with sign. Earlier servers have scales 0 to 1000, which read the same.
fn numeric_codec(typmod: i32, unbounded: UnboundedNumeric) -> Codec {
    if typmod >= 4 {
        let packed = typmod - 4;
        let precision = (packed >> 16) & 0xffff;
        let scale = ((packed & 0x7ff) ^ 1024) - 1024;
        let (precision, scale) = if scale < 0 { (precision - scale, 0) } else { (precision.max(scale), scale) };
        if (1..=MAX_PRECISION).contains(&precision) {
            return Codec::Decimal { precision: precision as u8, scale: scale as u8 };
        }
    }
    match unbounded {
        UnboundedNumeric::Decimal { scale } if i32::from(scale) <= MAX_PRECISION => {
            Codec::Decimal { precision: MAX_PRECISION as u8, scale }
        }
        UnboundedNumeric::Double => Codec::NumericDouble,
        UnboundedNumeric::Text | UnboundedNumeric::Decimal { .. } => Codec::Text(TextForm::Numeric),
    }
}

fn money_codec(fraction_digits: Option<u8>) -> Codec {
    match fraction_digits {
        Some(fraction_digits) if fraction_digits <= MAX_MONEY_FRACTION => Codec::Money { fraction_digits },
        _ => Codec::Text(TextForm::Cast),
    }
}

fn extension_codec(name: &str) -> Option<Codec> {
    Some(match bare_name(name) {
        "citext" => Codec::Text(TextForm::Verbatim),
        "ltree" | "lquery" | "ltxtquery" => Codec::Text(TextForm::Versioned),
        "hstore" => Codec::Hstore,
        "geometry" | "geography" => Codec::Ewkb,
        "vector" => Codec::Vector { half: false },
        "halfvec" => Codec::Vector { half: true },
        "sparsevec" => Codec::Text(TextForm::Cast),
        _ => return None,
    })
}

/// The name without schema and type modifier: `public.geometry(Point,4326)` is `geometry`.
fn bare_name(name: &str) -> &str {
    let name = name.split_once('(').map_or(name, |(name, _)| name);
    name.rsplit_once('.').map_or(name, |(_, name)| name)
}

/// `pg_type.typdelim` of the types in the map.
fn delimiter(element: &PgType) -> u8 {
    match &element.kind {
        PgKind::Domain(base) => delimiter(base),
        PgKind::Base if element.oid == oid::BOX => b';',
        PgKind::Base if element.oid >= oid::FIRST_NORMAL => match bare_name(&element.name) {
            "geometry" | "geography" => b':',
            _ => b',',
        },
        _ => b',',
    }
}

fn data_type(codec: &Codec) -> DataType {
    match codec {
        Codec::Bool => DataType::Boolean,
        Codec::Int2 | Codec::Int4 => DataType::Int32,
        Codec::Int8 | Codec::Oid => DataType::Int64,
        Codec::Float4 => DataType::Float32,
        Codec::Float8 | Codec::NumericDouble => DataType::Float64,
        Codec::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale as i8),
        Codec::Money { fraction_digits } => DataType::Decimal128(MONEY_PRECISION, *fraction_digits as i8),
        Codec::Date { .. } => DataType::Date32,
        Codec::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        Codec::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
        Codec::Time => DataType::Time64(TimeUnit::Microsecond),
        Codec::Uuid => DataType::FixedSizeBinary(16),
        Codec::Bytea | Codec::Ewkb => DataType::Binary,
        Codec::Text(_) => DataType::Utf8,
        Codec::List { element, .. } => DataType::List(element_field(element.data_type.clone())),
        Codec::Vector { .. } => DataType::List(element_field(DataType::Float32)),
        Codec::Hstore => DataType::Map(hstore_entries(), false),
        Codec::Point => DataType::Struct(point_fields()),
    }
}

pub(super) fn element_field(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("element", data_type, true))
}

pub(super) fn point_fields() -> Fields {
    Fields::from(vec![Field::new("x", DataType::Float64, true), Field::new("y", DataType::Float64, true)])
}

/// The entries of a map, with the names that iceberg gives them.
pub(super) fn hstore_entries() -> FieldRef {
    Arc::new(Field::new("key_value", DataType::Struct(hstore_entry_fields()), false))
}

pub(super) fn hstore_entry_fields() -> Fields {
    Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)])
}

/// Object ids of `pg_type.dat`; those below `FIRST_NORMAL` never change.
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const CHAR: u32 = 18;
    pub(super) const NAME: u32 = 19;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT4: u32 = 23;
    pub(super) const TEXT: u32 = 25;
    pub(super) const OID: u32 = 26;
    pub(super) const XID: u32 = 28;
    pub(super) const CID: u32 = 29;
    pub(super) const JSON: u32 = 114;
    pub(super) const XML: u32 = 142;
    pub(super) const POINT: u32 = 600;
    pub(super) const BOX: u32 = 603;
    pub(super) const CIDR: u32 = 650;
    pub(super) const FLOAT4: u32 = 700;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const MACADDR8: u32 = 774;
    pub(super) const MONEY: u32 = 790;
    pub(super) const MACADDR: u32 = 829;
    pub(super) const INET: u32 = 869;
    pub(super) const BPCHAR: u32 = 1042;
    pub(super) const VARCHAR: u32 = 1043;
    pub(super) const DATE: u32 = 1082;
    pub(super) const TIME: u32 = 1083;
    pub(super) const TIMESTAMP: u32 = 1114;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
    pub(super) const BIT: u32 = 1560;
    pub(super) const VARBIT: u32 = 1562;
    pub(super) const NUMERIC: u32 = 1700;
    pub(super) const REFCURSOR: u32 = 1790;
    pub(super) const UUID: u32 = 2950;
    pub(super) const PG_LSN: u32 = 3220;
    pub(super) const JSONB: u32 = 3802;
    pub(super) const JSONPATH: u32 = 4072;
    pub(super) const XID8: u32 = 5069;
    pub(super) const FIRST_NORMAL: u32 = 16384;

    /// Types whose text is the value: int2vector, tid, oidvector, the geometric ones but point, interval, timetz, the
    /// reg… aliases, tsvector, tsquery, and transaction snapshots.
    pub(super) const AS_TEXT: &[u32] = &[
        22, 27, 30, 601, 602, 603, 604, 628, 718, 1186, 1266, 24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096,
        4191, 3614, 3615, 2970, 5038,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(oid: u32, typmod: i32, name: &str) -> PgType {
        PgType { oid, typmod, name: name.to_owned(), kind: PgKind::Base }
    }

    fn map(pg: &PgType) -> DataType {
        ColumnType::of(pg, &TypeOptions::default()).data_type().clone()
    }

    fn typmod(precision: i32, scale: i32) -> i32 {
        ((precision << 16) | (scale & 0x7ff)) + 4
    }

    #[test]
    fn numeric_maps_by_precision_and_scale() {
        let of = |precision, scale| map(&base(oid::NUMERIC, typmod(precision, scale), "numeric"));
        assert_eq!(of(10, 2), DataType::Decimal128(10, 2));
        assert_eq!(of(38, 38), DataType::Decimal128(38, 38));
        assert_eq!(of(5, -3), DataType::Decimal128(8, 0));
        assert_eq!(of(36, -3), DataType::Utf8);
        assert_eq!(of(2, 5), DataType::Decimal128(5, 5));
        assert_eq!(of(2, 39), DataType::Utf8);
        assert_eq!(of(39, 0), DataType::Utf8);
        assert_eq!(of(1000, -1000), DataType::Utf8);
        assert_eq!(map(&base(oid::NUMERIC, -1, "numeric")), DataType::Utf8);
    }

    #[test]
    fn unbounded_numeric_follows_its_option() {
        let of = |unbounded_numeric| {
            let options = TypeOptions { unbounded_numeric, ..TypeOptions::default() };
            ColumnType::of(&base(oid::NUMERIC, -1, "numeric"), &options).data_type().clone()
        };
        assert_eq!(of(UnboundedNumeric::Decimal { scale: 9 }), DataType::Decimal128(38, 9));
        assert_eq!(of(UnboundedNumeric::Decimal { scale: 39 }), DataType::Utf8);
        assert_eq!(of(UnboundedNumeric::Double), DataType::Float64);
    }

    #[test]
    fn money_needs_known_fraction_digits() {
        let of = |money_fraction_digits| {
            let options = TypeOptions { money_fraction_digits, ..TypeOptions::default() };
            let t = ColumnType::of(&base(oid::MONEY, -1, "money"), &options);
            (t.data_type().clone(), t.copy_cast())
        };
        assert_eq!(of(Some(0)), (DataType::Decimal128(19, 0), None));
        assert_eq!(of(Some(2)), (DataType::Decimal128(19, 2), None));
        assert_eq!(of(Some(11)), (DataType::Utf8, Some(AS_TEXT)));
        assert_eq!(of(None), (DataType::Utf8, Some(AS_TEXT)));
    }

    #[test]
    fn domains_and_arrays_map_by_what_they_are_made_of() {
        let numeric = base(oid::NUMERIC, typmod(9, 2), "numeric(9,2)");
        let price =
            PgType { oid: 20000, typmod: -1, name: "price".to_owned(), kind: PgKind::Domain(Box::new(numeric)) };
        let list = |element: DataType| DataType::List(element_field(element));
        let prices =
            PgType { oid: 20001, typmod: -1, name: "price[]".to_owned(), kind: PgKind::Array(Box::new(price.clone())) };
        assert_eq!(map(&price), DataType::Decimal128(9, 2));
        assert_eq!(map(&prices), list(DataType::Decimal128(9, 2)));

        let element = Box::new(base(oid::NUMERIC, -1, "numeric"));
        let array = PgType {
            oid: 1231,
            typmod: typmod(4, 1),
            name: "numeric(4,1)[]".to_owned(),
            kind: PgKind::Array(element.clone()),
        };
        assert_eq!(map(&array), list(DataType::Decimal128(4, 1)));

        let vector = PgType {
            oid: 22,
            typmod: -1,
            name: "int2vector".to_owned(),
            kind: PgKind::Array(Box::new(base(21, -1, "smallint"))),
        };
        assert_eq!(map(&vector), DataType::Utf8);
    }

    #[test]
    fn extension_types_are_told_by_their_bare_name() {
        for name in ["hstore", "public.hstore", "\"my.schema\".hstore"] {
            assert!(matches!(map(&base(30000, -1, name)), DataType::Map(..)), "{name}");
        }
        assert_eq!(map(&base(30000, -1, "gis.geometry(Point,4326)")), DataType::Binary);
        assert!(matches!(map(&base(30000, -1, "vector(3)")), DataType::List(_)));
        let element = Box::new(base(30000, -1, "geometry"));
        let array = PgType { oid: 30001, typmod: -1, name: "geometry[]".to_owned(), kind: PgKind::Array(element) };
        assert!(matches!(ColumnType::of(&array, &TypeOptions::default()).codec(), Codec::List { delimiter: b':', .. }));
    }

    #[test]
    fn an_unknown_type_is_text_with_a_warning_and_so_is_its_array() {
        let semver = base(30000, -1, "semver");
        let array = PgType {
            oid: 30001,
            typmod: -1,
            name: "semver[]".to_owned(),
            kind: PgKind::Array(Box::new(semver.clone())),
        };
        for pg in [&semver, &array, &base(194, -1, "pg_node_tree")] {
            let t = ColumnType::of(pg, &TypeOptions::default());
            assert_eq!(t.data_type(), &DataType::Utf8);
            assert_eq!(t.warning().map(|w| w.type_name), Some(pg.name.clone()));
            assert_eq!(t.copy_cast(), Some(AS_TEXT));
        }
        assert_eq!(ColumnType::of(&base(30000, -1, "citext"), &TypeOptions::default()).warning(), None);
    }

    #[test]
    fn options_turn_time_and_uuid_into_text() {
        let options = TypeOptions { time_as_string: true, uuid_as_string: true, ..TypeOptions::default() };
        for oid in [oid::TIME, oid::UUID] {
            assert_eq!(ColumnType::of(&base(oid, -1, ""), &options).data_type(), &DataType::Utf8);
        }
        assert_eq!(map(&base(oid::TIME, -1, "time")), DataType::Time64(TimeUnit::Microsecond));
        assert_eq!(map(&base(oid::UUID, -1, "uuid")), DataType::FixedSizeBinary(16));
    }
}
