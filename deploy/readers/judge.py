#!/usr/bin/env python3
"""Reads an Iceberg table with one independent engine and prints its rows as canonical text (see canonical.py).

    judge.py --engine duckdb|chdb|sail|pyiceberg|spark|trino-406|trino-483
             --metadata FILE [--snapshot ID] [--columns A,B]
             (--rows [--order-by A,B] | --count | --sql 'SELECT … FROM t')
    judge.py --engine ENGINE --serve

Rows are sorted as text, or by the named columns' values (NULLs last). Columns are those of the snapshot's schema, or of
the current one.

--serve answers many questions without paying the engine's start again. After a first line {"engine", "version",
"folds"}, each input line {"do": "rows"|"count"|"sql", "metadata", "snapshot", "columns", "order_by", "sql"} gets one
line {"rows": [line, …]} or {"error": text}. {"do": "locate", "database", "table"} tells the metadata file of a table in
the SQLite catalog. {"do": "compact", "database", "table"} is for Spark alone, and writes: as somebody else's engine it
compacts a table of that catalog, and answers what it rewrote; {"do": "run", "catalog", "sql"} runs a statement of Spark on
a catalog (see spark.py), and answers its rows as JSON. It ends at the end of its input.

The last three engines are of the long tier and stand in spark.py and trino.py, with what they need.

Known bugs of readers are listed in FOLDS and nowhere hidden: an answer is exactly what the engine said, except that
values which the engine is known to confuse are folded into one. The other side of a comparison is folded likewise.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

import canonical
import trino
from spark import Spark
from trino import Trino

# Engine → the folds of canonical.py, each with the bug behind it.
FOLDS = {
    "chdb": [
        # ClickHouse has no nullable Array, Map or Tuple: a NULL list or map is read as empty, a NULL struct as one of
        # NULLs.
        "empty_is_null",
        # It reads time as whole seconds.
        "time_in_seconds",
    ],
    "pyiceberg": [
        # Its projection turns a NULL list or map of structs into an empty one, when reading and when writing.
        "empty_is_null",
    ],
    "duckdb": [],
    "sail": [],
    "spark": [],
    "trino-406": [],
    "trino-483": [],
}

# Not folded, an error: chdb refuses dates before 0000-01-01 and after 9999-12-31.


class DuckDb:
    def __init__(self):
        import importlib.util

        import duckdb

        self.version = duckdb.__version__
        self.connection = duckdb.connect(config={"threads": 2})
        # The order matters: iceberg needs the other two. The wheels are signed, nothing is downloaded.
        for name in ("avro", "httpfs", "iceberg"):
            folder = importlib.util.find_spec(f"duckdb_extension_{name}").submodule_search_locations[0]
            file = f"{folder}/extensions/v{self.version}/{name}.duckdb_extension"
            self.connection.execute(f"LOAD {text(file)}")
        self.connection.execute("SET TimeZone = 'UTC'")

    def query(self, metadata, snapshot, sql):
        at = f", snapshot_from_id = {snapshot}::UBIGINT" if snapshot else ""
        scan = f"SELECT * FROM iceberg_scan({text(metadata)}{at})"
        self.connection.execute(f"CREATE OR REPLACE TEMP VIEW t AS {scan}")
        return self.connection.execute(sql).to_arrow_table()


class ClickHouse:
    def __init__(self):
        # It reads only what lies below its working folder.
        os.chdir("/")
        import chdb
        from chdb.session import Session

        self.version = chdb.__version__
        self.session = Session()

    def query(self, metadata, snapshot, sql):
        import pyarrow as pa

        folder, name = str(Path(metadata).parent.parent), f"metadata/{Path(metadata).name}"
        scan = f"SELECT * FROM icebergLocal({text(folder)}, SETTINGS iceberg_metadata_file_path = {text(name)})"
        # Not a view: that would fix the columns before the snapshot is known.
        rest = re.match("(?i)with ", sql)
        query = f"WITH t AS ({scan})" + (f", {sql[rest.end():]}" if rest else f" {sql}")
        # As bytes: binary columns are strings here, and not UTF-8.
        query += " SETTINGS output_format_arrow_string_as_string = 0"
        if snapshot:
            query += f", iceberg_snapshot_id = {snapshot}"
        answer = self.session.query(query, "Arrow")
        return pa.ipc.open_file(pa.BufferReader(answer.bytes())).read_all()


class Sail:
    def __init__(self):
        import warnings

        # Its log goes to standard error and is of no use to a test.
        os.environ.setdefault("RUST_LOG", "error")
        import pysail
        from pysail.spark import SparkConnectServer

        # pyspark talks about a pandas that is not used here.
        warnings.simplefilter("ignore")
        from pyspark.sql import SparkSession

        self.version = pysail.__version__
        self.server = SparkConnectServer("127.0.0.1", 0)
        self.server.start(background=True)
        host, port = self.server.listening_address
        self.spark = SparkSession.builder.remote(f"sc://{host}:{port}").getOrCreate()
        self.spark.conf.set("spark.sql.session.timeZone", "UTC")
        self.folder = tempfile.mkdtemp(prefix="judge-sail-")

    def query(self, metadata, snapshot, sql):
        # Sail takes the newest metadata file of a folder; in a folder with this one alone, that is this one. All paths
        # inside metadata are absolute.
        alone = Path(self.folder) / Path(metadata).name / "metadata"
        if not alone.exists():
            alone.mkdir(parents=True)
            shutil.copy(metadata, alone)
        reader = self.spark.read.format("iceberg")
        if snapshot:
            reader = reader.option("snapshotId", str(snapshot))
        reader.load(alone.parent.as_uri()).createOrReplaceTempView("t")
        return self.spark.sql(sql).toArrow()

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


class PyIceberg:
    def __init__(self):
        import pyiceberg

        self.version = pyiceberg.__version__

    def scan(self, metadata, snapshot, columns):
        from pyiceberg.table import StaticTable

        table = StaticTable.from_metadata(metadata)
        return table.scan(snapshot_id=snapshot, selected_fields=tuple(columns or ["*"]))


ENGINES = {
    "duckdb": DuckDb,
    "chdb": ClickHouse,
    "sail": Sail,
    "pyiceberg": PyIceberg,
    "spark": Spark,
    "trino-406": lambda: Trino(406),
    "trino-483": lambda: Trino(483),
}


class Judge:
    def __init__(self, name):
        self.name = name
        self.engine = ENGINES[name]()

    def answer(self, request):
        if request["do"] == "locate":
            return locate(request["database"], request["table"])
        if request["do"] == "compact":
            return self.engine.compact(request["database"], request["table"])
        if request["do"] == "run":
            return [json.dumps(row) for row in self.engine.run(request["catalog"], request["sql"])]
        metadata = re.sub("^file://(?=/)|^file:(?=/)", "", request["metadata"])
        snapshot = int(request["snapshot"]) if request.get("snapshot") else None
        do = request["do"]
        if do == "rows":
            rows = self.rows(metadata, snapshot, request.get("columns"), request.get("order_by"))
        elif do == "count":
            rows = self.count(metadata, snapshot)
        elif do == "sql":
            rows = self.sql(metadata, snapshot, request["sql"])
        else:
            raise ValueError(f"unknown request {do!r}")
        return rows

    def rows(self, metadata, snapshot, columns, order_by):
        types = schema(metadata, snapshot)
        columns = columns or list(types)
        unknown = [name for name in [*columns, *(order_by or [])] if name not in types]
        if unknown:
            raise ValueError(f"no such column: {', '.join(unknown)}; there are {', '.join(types)}")
        if isinstance(self.engine, Trino):
            query = f"SELECT {self.quote(columns)} FROM t" + (f" ORDER BY {self.quote(order_by)}" if order_by else "")
            values, _ = self.engine.query(metadata, snapshot, query)
            rows = trino.lines(values, [types[name] for name in columns])
        else:
            table = self.table(metadata, snapshot, columns, order_by or [], types)
            rows = canonical.lines(table, [(name, types[name]) for name in columns])
        rows = canonical.fold(rows, FOLDS[self.name])
        return rows if order_by else sorted(rows)

    def table(self, metadata, snapshot, columns, order_by, types):
        read = columns + [name for name in order_by if name not in columns]
        if self.name == "pyiceberg":
            table = self.engine.scan(metadata, snapshot, read).to_arrow()
        else:
            table = self.engine.query(metadata, snapshot, f"SELECT {self.quote(read)} FROM t")
            table = with_times(table, types)
        return table.sort_by([(name, "ascending") for name in order_by]) if order_by else table

    def count(self, metadata, snapshot):
        if self.name == "pyiceberg":
            return [canonical.line([str(self.engine.scan(metadata, snapshot, None).count())])]
        return self.sql(metadata, snapshot, "SELECT count(*) AS n FROM t")

    def sql(self, metadata, snapshot, sql):
        if self.name == "pyiceberg":
            raise ValueError("pyiceberg has no SQL")
        if isinstance(self.engine, Trino):
            values, columns = self.engine.query(metadata, snapshot, sql)
            rows = trino.lines(values, [trino.iceberg_type(kind) for _, kind in columns])
        else:
            table = self.engine.query(metadata, snapshot, sql)
            rows = canonical.lines(table, [(field.name, canonical.iceberg_type(field.type)) for field in table.schema])
        return canonical.fold(rows, FOLDS[self.name])

    def quote(self, names):
        mark = '"' if self.name == "duckdb" or isinstance(self.engine, Trino) else "`"
        return ", ".join(mark + name.replace(mark, mark * 2) + mark for name in names)

    def serve(self):
        send({"engine": self.name, "version": self.engine.version, "folds": FOLDS[self.name]})
        for request in sys.stdin:
            try:
                send({"rows": self.answer(json.loads(request))})
            except Exception as error:  # The next question may be a good one.
                send({"error": f"{type(error).__name__}: {error}"})

    def close(self):
        getattr(self.engine, "close", lambda: None)()


def locate(database, table):
    """The metadata file that the SQLite catalog points to, read without anybody's Iceberg library."""
    namespace, _, name = table.rpartition(".")
    query = "SELECT metadata_location FROM iceberg_tables WHERE table_namespace = ? AND table_name = ?"
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        found = connection.execute(query, (namespace, name)).fetchone()
    if not found:
        raise ValueError(f"no table {table} in {database}")
    return list(found)


def schema(metadata, snapshot):
    """Column → Iceberg type, of the snapshot's schema or the current one."""
    document = json.loads(Path(metadata).read_text())
    wanted = document["current-schema-id"]
    if snapshot:
        known = {entry["snapshot-id"]: entry for entry in document.get("snapshots", [])}
        if snapshot not in known:
            raise ValueError(f"no snapshot {snapshot} in {metadata}")
        wanted = known[snapshot].get("schema-id", wanted)
    fields = next(entry["fields"] for entry in document["schemas"] if entry["schema-id"] == wanted)
    return {field["name"]: field["type"] for field in fields}


def with_times(table, types):
    """ClickHouse's time columns, whole seconds as integers, as microseconds. Nested ones are not looked at."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for index, field in enumerate(table.schema):
        if types[field.name] == "time" and pa.types.is_integer(field.type):
            table = table.set_column(index, field.name, pc.multiply(table.column(index), 1_000_000))
    return table


def text(value):
    return "'" + value.replace("'", "''") + "'"


def send(answer):
    sys.stdout.write(canonical.line(answer) + "\n")
    sys.stdout.flush()


def arguments():
    parser = argparse.ArgumentParser(description="Reads an Iceberg table with one engine and prints canonical rows.")
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--metadata", help="the metadata.json file, a path or a file: URI")
    parser.add_argument("--snapshot", help="snapshot id; without it the current one")
    names = lambda value: value.split(",")
    parser.add_argument("--columns", type=names, help="comma-separated; without it all")
    parser.add_argument("--order-by", type=names, help="comma-separated columns")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--rows", action="store_true")
    action.add_argument("--count", action="store_true")
    action.add_argument("--sql", help="a query of the table t")
    action.add_argument("--serve", action="store_true")
    options = parser.parse_args()
    if not options.serve and not options.metadata:
        parser.error("--metadata is needed")
    if options.metadata and not options.metadata.startswith("file:"):
        options.metadata = os.path.abspath(options.metadata)
    return options


def main():
    options = arguments()
    judge = Judge(options.engine)
    try:
        if options.serve:
            judge.serve()
        else:
            do = "rows" if options.rows else "count" if options.count else "sql"
            for row in judge.answer({**vars(options), "do": do}):
                print(row)
    finally:
        judge.close()


if __name__ == "__main__":
    status = 0
    try:
        main()
    except SystemExit as end:
        status = end.code or 0
    except Exception as error:
        print(f"judge: {type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Sail's server and ClickHouse's threads do not end by themselves.
    os._exit(status)
