#!/usr/bin/env python3
"""Checks the judges themselves: every engine on tables that PyIceberg wrote, against rows written down here.

    python selftest.py        with the python of the readers' virtual environment; deploy/test runs it

Not here: anything about the product.
"""

import datetime
import decimal
import json
import os
import subprocess
import sys
import tempfile
import unittest
import uuid
from pathlib import Path

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.schema import Schema
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FixedType,
    FloatType,
    IntegerType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    StructType,
    TimestampType,
    TimestamptzType,
    TimeType,
    UUIDType,
)

import canonical

HERE = Path(__file__).parent
UTC = datetime.timezone.utc
D = decimal.Decimal

ALWAYS = ("duckdb", "chdb", "sail", "pyiceberg")
# Those of the long tier, when deploy/test has found them.
HOMES = {"spark": "LAKEHOUSE_SPARK", "trino-406": "LAKEHOUSE_TRINO_406", "trino-483": "LAKEHOUSE_TRINO_483"}
ENGINES = (*ALWAYS, *(engine for engine, home in HOMES.items() if home in os.environ))


def judge(engine):
    python = f"{os.environ['LAKEHOUSE_SPARK']}/python/bin/python" if engine == "spark" else sys.executable
    return [python, str(HERE / "judge.py"), "--engine", engine]


class Served:
    """One judge process in server mode."""

    def __init__(self, engine):
        command = [*judge(engine), "--serve"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.greeting = json.loads(self.process.stdout.readline())

    def ask(self, metadata, **request):
        request = {"metadata": metadata, "do": "rows", **request}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(timeout=60)


class JudgesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="readers-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.database = f"{cls.folder.name}/catalog.db"
        uri, warehouse = f"sqlite:///{cls.database}", f"file://{cls.folder.name}/warehouse"
        cls.catalog = SqlCatalog("lakehouse", uri=uri, warehouse=warehouse)
        cls.addClassCleanup(cls.catalog.close)
        cls.catalog.create_namespace("ns")
        cls.judges = {}
        for engine in ENGINES:
            cls.judges[engine] = Served(engine)
            cls.addClassCleanup(cls.judges[engine].close)

    def table(self, name, *fields, rows=()):
        fields = [NestedField(100 + n, name, kind) for n, (name, kind) in enumerate(fields)]
        # Bounds need dates that Python can express; the extremes of these tables are not among them.
        properties = {"format-version": "2", "write.metadata.metrics.default": "none"}
        table = self.catalog.create_table(f"ns.{name}", Schema(*fields), properties=properties)
        for batch in rows:
            table.append(pa.Table.from_pylist(batch, schema=table.schema().as_arrow()))
        return table

    def check(self, metadata, expected, but=(), **request):
        """Every engine gives these rows, but for those that are known to refuse them: they are not asked."""
        expected = [canonical.line(row) for row in expected]
        for engine in [engine for engine in ENGINES if engine not in but]:
            with self.subTest(engine=engine):
                served = self.judges[engine]
                answer = served.ask(metadata, **request)
                folded = canonical.fold(expected, served.greeting["folds"])
                self.assertEqual(answer.get("rows"), folded, answer.get("error"))

    def test_every_primitive_type_has_one_text(self):
        table = self.table(
            "primitives",
            ("id", LongType()),
            ("b", BooleanType()),
            ("i", IntegerType()),
            ("f", FloatType()),
            ("d", DoubleType()),
            ("n", DecimalType(9, 2)),
            ("nn", DecimalType(38, 10)),
            ("day", DateType()),
            ("tm", TimeType()),
            ("ts", TimestampType()),
            ("tz", TimestamptzType()),
            ("s", StringType()),
            ("u", UUIDType()),
            ("fx", FixedType(4)),
            ("bin", BinaryType()),
        )
        first = {
            "id": 1, "b": True, "i": -(2**31), "f": 0.1, "d": 0.1, "n": D("1.50"),
            "nn": D("1234567890123456789012345678.0123456789"), "day": datetime.date(2024, 2, 29),
            "tm": datetime.time(1, 2, 3, 4), "ts": datetime.datetime(2024, 2, 29, 12, 0, 0, 1),
            "tz": datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), "s": 'é "\\ \n\x01 🦀',
            "u": uuid.UUID("00112233-4455-6677-8899-aabbccddeeff").bytes, "fx": b"\x00\x01\xfe\xff", "bin": b"\x00\xff",
        }  # fmt: skip
        second = {
            "id": 2, "b": False, "i": 2**31 - 1, "f": float("nan"), "d": float("inf"), "n": D("-0.01"), "nn": D("0"),
            "day": datetime.date(1, 1, 1), "tm": datetime.time(23, 59, 59, 999_999), "ts": datetime.datetime(1, 1, 1),
            "tz": datetime.datetime(9999, 12, 31, tzinfo=UTC), "s": "", "u": b"\xff" * 16, "fx": b"abcd", "bin": b"",
        }  # fmt: skip
        third = {"id": 3, "f": float("-inf"), "d": -0.0}
        fourth = {"id": 4, "f": 1e-45, "d": 5e-324}
        fifth = {"id": 5, "f": 16777216.0, "d": 1e16}
        for batch in ([first, second], [third, fourth, fifth]):
            schema = table.schema().as_arrow()
            batch = [{name: row.get(name) for name in schema.names} for row in batch]
            table.append(pa.Table.from_pylist(batch, schema=schema))
        nothing = [None] * 10
        self.check(
            table.metadata_location,
            [
                ["1", "true", "-2147483648", "0.10000000149011612", "0.1", "1.50",
                 "1234567890123456789012345678.0123456789", "2024-02-29", "01:02:03.000004",
                 "2024-02-29T12:00:00.000001", "1969-12-31T23:59:59.999999Z", 'é "\\ \n\x01 🦀',
                 "00112233-4455-6677-8899-aabbccddeeff", "0001feff", "00ff"],
                ["2", "false", "2147483647", "NaN", "Infinity", "-0.01", "0.0000000000", "0001-01-01",
                 "23:59:59.999999", "0001-01-01T00:00:00.000000", "9999-12-31T00:00:00.000000Z", "",
                 "ffffffff-ffff-ffff-ffff-ffffffffffff", "61626364", ""],
                ["3", None, None, "-Infinity", "-0.0", *nothing],
                ["4", None, None, "1.401298464324817e-45", "5e-324", *nothing],
                ["5", None, None, "16777216.0", "1e+16", *nothing],
            ],
            # Spark knows no time of day, this Trino no fixed.
            but=["spark", "trino-406"],
        )  # fmt: skip

    def test_dates_and_times_reach_beyond_four_digit_years(self):
        table = self.table("extremes", ("id", LongType()), ("day", DateType()), ("ts", TimestampType()))
        days = pa.array([-735_594, 2_145_042_541, 0], pa.int32()).cast(pa.date32())
        stamps = pa.array([-210_866_803_200_000_000, 9_223_371_331_200_000_000, 0]).cast(pa.timestamp("us"))
        table.append(pa.table([pa.array([1, 2, 3]), days, stamps], schema=table.schema().as_arrow()))
        stamps = ["-4713-11-24T00:00:00.000000", "+294247-01-02T00:00:00.000000", "1970-01-01T00:00:00.000000"]
        days = ["-0044-01-06", "+5874897-01-01", "1970-01-01"]
        metadata = table.metadata_location
        self.check(metadata, [*zip("123", days, stamps)], but=["chdb"])
        self.check(metadata, [*zip("123", stamps)], columns=["id", "ts"])

    def test_nested_types_keep_their_nulls(self):
        struct = StructType(
            NestedField(1, "in", StructType(NestedField(2, "z", TimestamptzType()))), NestedField(3, "k", StringType())
        )
        pair = StructType(NestedField(5, "q", DecimalType(20, 3)), NestedField(6, "bin", BinaryType()))
        inner = ListType(8, StringType(), element_required=False)
        table = self.table(
            "nested",
            ("id", LongType()),
            ("ll", ListType(1, inner, element_required=False)),
            ("ss", struct),
            ("ms", MapType(1, StringType(), 4, pair, value_required=False)),
            ("mi", MapType(1, IntegerType(), 2, DoubleType(), value_required=False)),
            rows=[[
                {"id": 1, "ll": [["a", None], [], None],
                 "ss": {"in": {"z": datetime.datetime(2020, 1, 1, tzinfo=UTC)}, "k": "x"},
                 "ms": [("k", {"q": D(1), "bin": b"\xff"}), ("a", {"q": None, "bin": None}), ("n", None)],
                 "mi": [(2, 0.5), (10, None)]},
                {"id": 2, "ll": None, "ss": None, "ms": [], "mi": None},
                {"id": 3, "ll": [], "ss": {"in": None, "k": None}, "ms": [], "mi": []},
                {"id": 4, "ll": [None], "ss": {"in": {"z": None}, "k": None}, "ms": [], "mi": []},
            ]],
        )  # fmt: skip
        self.check(
            table.metadata_location,
            [
                ["1", [["a", None], [], None], [["2020-01-01T00:00:00.000000Z"], "x"],
                 [["a", [None, None]], ["k", ["1.000", "ff"]], ["n", None]], [["10", None], ["2", "0.5"]]],
                ["2", None, None, [], None],
                ["3", [], [None, None], [], []],
                ["4", [None], [[None], None], [], []],
            ],
        )  # fmt: skip

    def test_the_past_is_read_by_snapshot_and_by_metadata_file(self):
        rows = [[{"id": 1, "s": "a"}], [{"id": 2, "s": "b"}]]
        table = self.table("past", ("id", LongType()), ("s", StringType()), rows=rows)
        before = table.metadata_location
        table.delete("id == 1")
        with table.update_schema() as change:
            change.rename_column("s", "renamed")
            change.add_column("more", IntegerType())
        now, first = table.metadata_location, str(table.metadata.snapshots[0].snapshot_id)
        self.check(before, [["1", "a"], ["2", "b"]])
        self.check(now, [["1"]], snapshot=first, columns=["id"])
        self.check(now, [["2", "b", None]])
        self.check(now, [["1"]], snapshot=first, do="count")
        self.check(now, [["1"]], do="count")

    def test_an_old_snapshot_has_its_own_columns(self):
        table = self.table("schemas", ("id", LongType()), ("s", StringType()), rows=[[{"id": 1, "s": "a"}]])
        with table.update_schema() as change:
            change.rename_column("s", "renamed")
            change.add_column("more", IntegerType())
        first = str(table.metadata.snapshots[0].snapshot_id)
        self.check(table.metadata_location, [["1", "a"]], snapshot=first)

    def test_a_table_without_snapshots_has_no_rows(self):
        table = self.table("empty", ("id", LongType()), ("l", ListType(1, LongType(), element_required=False)))
        # This Trino wants a current snapshot of -1, where PyIceberg writes none.
        self.check(table.metadata_location, [], but=["trino-406"])
        self.check(table.metadata_location, [["0"]], but=["trino-406"], do="count")

    def test_sql_sees_the_table_as_t(self):
        table = self.table("queried", ("id", LongType()), rows=[[{"id": n} for n in range(10)]])
        sql = "SELECT count(*) AS n, max(id) AS m FROM t WHERE id < 5"
        self.check(table.metadata_location, [["5", "4"]], but=["pyiceberg"], do="sql", sql=sql)
        self.assertIn("no SQL", self.judges["pyiceberg"].ask(table.metadata_location, do="sql", sql=sql)["error"])

    def test_rows_come_in_the_order_that_was_asked_for(self):
        rows = [[{"id": n, "s": "x"} for n in (10, 9, 1)]]
        table = self.table("ordered", ("id", LongType()), ("s", StringType()), rows=rows)
        self.check(table.metadata_location, [["1"], ["10"], ["9"]], columns=["id"])
        self.check(table.metadata_location, [["1"], ["9"], ["10"]], columns=["id"], order_by=["s", "id"])

    def test_a_bad_question_is_answered_and_the_next_one_too(self):
        table = self.table("robust", ("id", LongType()), rows=[[{"id": 1}]])
        for served in self.judges.values():
            self.assertIn("error", served.ask(table.metadata_location, columns=["absent"]))
            self.assertIn("error", served.ask("/nowhere/metadata/x.metadata.json"))
            self.assertIn("error", served.ask(table.metadata_location, snapshot="1"))
        self.check(table.metadata_location, [["1"]])

    def test_a_foreign_engine_lists_deletes_rewrites_and_appends(self):
        rows = [[{"id": n, "day": None} for n in part] for part in ((1, 2), (3, 4))]
        self.table("foreign", ("id", LongType()), ("day", DateType()), rows=rows)
        self.foreign("delete", "--table", "ns.foreign", "--where", "id == 1")
        rewritten = self.foreign("rewrite", "--table", "ns.foreign")
        self.check(rewritten["metadata_location"], [["2"], ["3"], ["4"]], columns=["id"])
        self.assertEqual(len([*self.catalog.load_table("ns.foreign").scan().plan_files()]), 1)
        given = '{"id": 5, "day": "2024-02-29"}\n'
        appended = self.foreign("append", "--table", "ns.foreign", "--rows", "-", given=given)
        self.check(appended["metadata_location"], [["2", None], ["3", None], ["4", None], ["5", "2024-02-29"]])
        (namespace,) = self.foreign("list")["namespaces"]
        (table,) = [table for table in namespace["tables"] if table["name"] == "foreign"]
        self.assertEqual(table["metadata_location"], appended["metadata_location"])
        self.assertEqual(table["current_snapshot_id"], appended["snapshot_id"])
        # Two appends, the delete's overwrite, the rewrite, the append.
        self.assertEqual(len(table["snapshots"]), 5)
        self.assertEqual(table["properties"]["write.metadata.metrics.default"], "none")

    def test_a_foreign_replace_keeps_the_rows_unless_it_is_told_not_to(self):
        rows = [[{"id": n} for n in part] for part in ((1, 2), (3, 4, 5), (6, 7))]
        table = self.table("replaced", ("id", LongType()), rows=rows)
        replaced = self.foreign("replace", "--table", "ns.replaced", "--files", "2")
        self.check(replaced["metadata_location"], [[str(n)] for n in range(1, 8)])
        table = self.catalog.load_table("ns.replaced")
        self.assertEqual(table.current_snapshot().summary.operation.value, "replace")
        self.assertEqual(len([*table.scan().plan_files()]), 2)
        for wrong, count, distinct in (("exchanged", 7, 6), ("lost", 6, 5), ("doubled", 7, 5)):
            self.foreign("replace", "--table", "ns.replaced", "--wrong", wrong)
            found = self.catalog.load_table("ns.replaced").scan().to_arrow()["id"].to_pylist()
            self.assertEqual((len(found), len({*found})), (count, distinct), wrong)

    @unittest.skipUnless("spark" in ENGINES, "only in deploy/test --long")
    def test_spark_compacts_a_table_of_the_catalog(self):
        table = self.table("compacted", ("id", LongType()), rows=[[{"id": 1}, {"id": 2}], [{"id": 3}]])
        answer = self.judges["spark"].ask(None, do="compact", database=self.database, table="ns.compacted")
        self.assertEqual(answer["rows"][:2], ["2", "1"], answer)
        table = self.catalog.load_table("ns.compacted")
        self.assertEqual(table.current_snapshot().summary.operation.value, "replace")
        self.check(table.metadata_location, [["1"], ["2"], ["3"]])

    def foreign(self, *arguments, given=""):
        command = [sys.executable, str(HERE / "catalog.py"), "--database", self.database, *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_the_command_line_prints_lines(self):
        table = self.table("printed", ("id", LongType()), rows=[[{"id": 1}, {"id": 2}]])
        for engine in self.judges:
            command = [*judge(engine), "--rows", "--metadata", table.metadata_location]
            done = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout), (0, '["1"]\n["2"]\n'), done.stderr)

    def test_a_year_is_text_as_python_writes_it(self):
        epoch = datetime.date(1970, 1, 1)
        for days in range(-719_162, 2_932_897, 997):
            self.assertEqual(canonical.date_text(days), (epoch + datetime.timedelta(days)).isoformat())


if __name__ == "__main__":
    unittest.main(verbosity=2)
