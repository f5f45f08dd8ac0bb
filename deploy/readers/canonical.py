"""The canonical text of rows, so that different engines and the oracle compare byte for byte.

A row is one line of compact JSON, an array of its values in column order:

    NULL                 null
    boolean              "true", "false"
    int, long            "-12"
    float, double        the shortest text that reads back as the same double, as Python's repr writes it: "0.1",
                         "1e+16", "-0.0", "NaN", "Infinity", "-Infinity". A float is first widened to double: 0.1 is
                         "0.10000000149011612".
    decimal(p, s)        exactly s digits after the point, never an exponent: "1.50"
    date                 "2024-02-29"; years outside 0000 to 9999 have a sign and count astronomically: "-0043-03-15" is
                         44 BC, "+12024-01-01"
    time                 "01:02:03.000004"
    timestamp            "2024-02-29T12:00:00.000001", the year as in a date
    timestamptz          the same in UTC, with "Z"
    string               itself
    uuid                 "00112233-4455-6677-8899-aabbccddeeff"
    binary, fixed        lower-case hexadecimal, two digits per byte
    list                 array of values
    struct               array of the fields' values, in the schema's order
    map                  array of [key, value], sorted by the key's JSON text

Owned here: Arrow to text. Not here: how an engine is asked (judge.py).
"""

import json
import re
import uuid

import pyarrow as pa
import pyarrow.compute as pc

DAY_MICROS = 86_400_000_000


def lines(table, types):
    """The rows of an Arrow table as canonical lines; types: (column, Iceberg type as in metadata JSON) in order."""
    columns = [values(table.column(name), kind) for name, kind in types]
    return [line(row) for row in zip(*columns)] if columns else []


def line(row):
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def fold(rows, names):
    """Rows with the values made equal that an engine cannot tell apart. Both sides of a comparison are folded."""
    for name in names:
        rows = [line([FOLDS[name](value) for value in json.loads(row)]) for row in rows]
    return rows


def empty_is_null(value):
    """NULL, the empty list or map, and the struct of NULLs become one value: null."""
    if not isinstance(value, list):
        return value
    folded = [empty_is_null(item) for item in value]
    return None if all(item is None for item in folded) else folded


def time_in_seconds(value):
    """A time of day loses its fraction."""
    if isinstance(value, list):
        return [time_in_seconds(item) for item in value]
    return value[:9] + "000000" if isinstance(value, str) and TIME.fullmatch(value) else value


FOLDS = {"empty_is_null": empty_is_null, "time_in_seconds": time_in_seconds}
TIME = re.compile("[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}")


def values(array, kind):
    """An Arrow array as a list of canonical values (None, str, list)."""
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        return [None] * len(array)
    if isinstance(kind, dict):
        return {"list": lists, "map": maps, "struct": structs}[kind["type"]](array, kind)
    return PRIMITIVES[kind.split("(")[0].split("[")[0]](array, kind)


def lists(array, kind):
    items = iter(values(array.flatten(), kind["element"]))
    return [None if size is None else [next(items) for _ in range(size)] for size in sizes(array)]


def maps(array, kind):
    # Unlike a list, a map cannot be flattened by Arrow: its offsets count in the unsliced keys and items.
    pairs = [*zip(values(array.keys, kind["key"]), values(array.items, kind["value"]))]
    offsets = array.offsets.to_pylist()
    return [
        sorted(([*pair] for pair in pairs[begin:end]), key=lambda pair: line(pair[0])) if valid else None
        for valid, begin, end in zip(array.is_valid().to_pylist(), offsets, offsets[1:])
    ]


def structs(array, kind):
    names = [array.type.field(index).name for index in range(array.type.num_fields)]
    # flatten() carries the struct's own NULLs into its fields.
    fields = dict(zip(names, array.flatten()))
    columns = [values(fields[field["name"]], field["type"]) for field in kind["fields"]]
    return [[*row] if valid else None for row, valid in zip(zip(*columns), array.is_valid().to_pylist())]


def sizes(array):
    return pc.list_value_length(array).to_pylist()


def each(text):
    """Lifts a function of one value over an array, NULL to NULL."""
    return lambda items: [None if item is None else text(item) for item in items]


def whole(array, _):
    return each(str)(array.cast(pa.int64()).to_pylist())


def real(array, _):
    return each(real_text)(array.cast(pa.float64()).to_pylist())


def real_text(value):
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(value), repr(value))


def decimals(array, kind):
    scale = int(kind[len("decimal(") : -1].split(",")[1])
    return each(lambda value: format(value, "f"))(array.cast(pa.decimal128(38, scale)).to_pylist())


def dates(array, _):
    days = array if pa.types.is_integer(array.type) else array.cast(pa.date32()).cast(pa.int32())
    return each(date_text)(days.to_pylist())


def times(array, _):
    micros = array if pa.types.is_integer(array.type) else array.cast(pa.time64("us")).cast(pa.int64())
    return each(time_text)(micros.to_pylist())


def timestamps(array, kind):
    suffix = "Z" if kind == "timestamptz" else ""
    micros = array.cast(pa.timestamp("us", array.type.tz)).cast(pa.int64())
    return each(lambda value: timestamp_text(value) + suffix)(micros.to_pylist())


def date_text(days):
    """A count of days from 1970-01-01 as text, in the proleptic Gregorian calendar."""
    # 400 years are 146,097 days; counted from 0000-03-01, so that a leap day ends its year.
    era, day = divmod(days + 719_468, 146_097)
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    day += 1 - (153 * month + 2) // 5
    month += 3 if month < 10 else -9
    year += 400 * era + (month <= 2)
    sign = "" if 0 <= year <= 9999 else "-" if year < 0 else "+"
    return f"{sign}{abs(year):04}-{month:02}-{day:02}"


def time_text(micros):
    seconds, micros = divmod(micros, 1_000_000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{micros:06}"


def timestamp_text(micros):
    days, micros = divmod(micros, DAY_MICROS)
    return f"{date_text(days)}T{time_text(micros)}"


def strings(array, _):
    # Some engines hand out text as bytes; bytes that are not UTF-8 are an error, never repaired.
    return each(lambda value: value.decode() if isinstance(value, bytes) else value)(array.to_pylist())


def uuids(array, _):
    return each(lambda value: str(uuid.UUID(bytes=value) if isinstance(value, bytes) else uuid.UUID(value)))(
        array.to_pylist()
    )


def binaries(array, _):
    return each(bytes.hex)(array.cast(pa.large_binary()).to_pylist())


def booleans(array, _):
    return each(lambda value: "true" if value else "false")(array.cast(pa.bool_()).to_pylist())


PRIMITIVES = {
    "boolean": booleans,
    "int": whole,
    "long": whole,
    "float": real,
    "double": real,
    "decimal": decimals,
    "date": dates,
    "time": times,
    "timestamp": timestamps,
    "timestamptz": timestamps,
    "string": strings,
    "uuid": uuids,
    "binary": binaries,
    "fixed": binaries,
}


def iceberg_type(arrow):
    """The Iceberg type of an expression's Arrow type: an SQL answer has no schema of its own."""
    if isinstance(arrow, pa.ExtensionType):
        return "uuid" if arrow.extension_name == "arrow.uuid" else iceberg_type(arrow.storage_type)
    if pa.types.is_map(arrow):
        return {"type": "map", "key": iceberg_type(arrow.key_type), "value": iceberg_type(arrow.item_type)}
    if pa.types.is_list(arrow) or pa.types.is_large_list(arrow):
        return {"type": "list", "element": iceberg_type(arrow.value_type)}
    if pa.types.is_struct(arrow):
        fields = [arrow.field(index) for index in range(arrow.num_fields)]
        return {"type": "struct", "fields": [{"name": f.name, "type": iceberg_type(f.type)} for f in fields]}
    if pa.types.is_decimal(arrow):
        return f"decimal({arrow.precision}, {arrow.scale})"
    if pa.types.is_timestamp(arrow):
        return "timestamptz" if arrow.tz else "timestamp"
    for test, name in (
        (pa.types.is_boolean, "boolean"),
        (pa.types.is_integer, "long"),
        (pa.types.is_floating, "double"),
        (pa.types.is_date, "date"),
        (pa.types.is_time, "time"),
        (pa.types.is_string, "string"),
        (pa.types.is_large_string, "string"),
        (pa.types.is_null, "string"),
        (pa.types.is_binary, "binary"),
        (pa.types.is_large_binary, "binary"),
        (pa.types.is_fixed_size_binary, "binary"),
    ):
        if test(arrow):
            return name
    raise ValueError(f"no canonical text for {arrow}")
