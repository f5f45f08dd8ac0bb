#!/usr/bin/env python3
"""Asks DuckDB about tables of the lake, through its ordinary Iceberg extension: now, or as of a snapshot.

    query.py --database lake/catalog.db --table fuji.payments 'SELECT count(*) FROM payments'
    query.py --database lake/catalog.db --table fuji.payments@SNAPSHOT --table fuji.refunds 'SELECT … FROM payments JOIN …'
    query.py --uri http://127.0.0.1:8181 --table fuji.payments 'SELECT count(*) FROM payments'

--table may be repeated; each is a view under the table's own name. `lakehouse snapshots TABLE` lists snapshots.
--database names the file of an SQLite catalog; --uri the address of a REST catalog without authentication, with
--warehouse where it wants one and, for objects in an emulator of S3, --s3 ENDPOINT [--key KEY --secret SECRET --region
REGION], which are printed too.

Prints the SQL that it runs, for any DuckDB shell after `INSTALL iceberg; LOAD iceberg;`, and then the answer. With
--json one document {"sql": text, "columns": [name, …], "rows": [[text or null, …], …], "seconds": number}.

Not here: judging rows (judge.py).
"""

import argparse
import json
import re
import sys
import time

import judge
import rest


def main():
    options = arguments()
    before = [] if options.database else rest.attach(options)
    before += [view(options.database, *name.partition("@")[::2]) for name in options.table]
    connection = judge.DuckDb().connection
    for statement in before:
        connection.execute(statement)
    begun = time.monotonic()
    answer = connection.execute(options.query)
    columns = [column[0] for column in answer.description]
    rows = [[None if value is None else str(value) for value in row] for row in answer.fetchall()]
    seconds = time.monotonic() - begun
    sql = ";\n".join([*before, options.query]) + ";"
    if options.json:
        print(json.dumps({"sql": sql, "columns": columns, "rows": rows, "seconds": seconds}))
    else:
        show(sql, columns, rows, seconds)


def view(database, table, snapshot):
    """The statement that puts a table, as it is now or was at a snapshot, under its own name."""
    namespace, _, name = table.rpartition(".")
    view = f"CREATE OR REPLACE TEMP VIEW {quoted(name)} AS SELECT * FROM"
    if not database:
        at = f" AT (VERSION => {int(snapshot)})" if snapshot else ""
        return f"{view} lake.{quoted(namespace)}.{quoted(name)}{at}"
    metadata = re.sub("^file://(?=/)|^file:(?=/)", "", judge.locate(database, table)[0])
    at = f", snapshot_from_id = {int(snapshot)}" if snapshot else ""
    return f"{view} iceberg_scan({judge.text(metadata)}{at})"


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def show(sql, columns, rows, seconds):
    print(sql)
    print()
    shown = [columns, *([value if value is not None else "NULL" for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown)]
    for row in shown:
        print("  ".join(value.ljust(width) for value, width in zip(row, widths)).rstrip())
    print(f"\n{len(rows)} rows in {seconds:.2f} s")


def arguments():
    parser = argparse.ArgumentParser(description="Asks DuckDB about tables of the lake.")
    catalog = parser.add_mutually_exclusive_group(required=True)
    catalog.add_argument("--database", help="the catalog's SQLite file")
    catalog.add_argument("--uri", help="a REST catalog, without /v1")
    parser.add_argument("--warehouse", help="of a REST catalog; of S3 Tables: a table bucket's ARN")
    parser.add_argument("--s3", help="where objects are, such as http://127.0.0.1:4566")
    for name in ("key", "secret", "region"):
        parser.add_argument(f"--{name}", default="us-east-1" if name == "region" else "testing")
    parser.add_argument("--table", action="append", required=True, metavar="NS.T[@SNAPSHOT]")
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    parser.add_argument("query", help="one SQL query over the tables by their own names")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.exit(f"query.py: {type(error).__name__}: {error}")
