#!/usr/bin/env python3
"""Opens the SQLite catalog (JDBC schema, catalog_name "lakehouse") with PyIceberg, as somebody else's engine would.

    catalog.py --database FILE list
    catalog.py --database FILE delete  --table NS.T --where 'id > 3'    rows away, by an overwrite commit
    catalog.py --database FILE rewrite --table NS.T                     all live rows into new files, one commit
    catalog.py --database FILE replace --table NS.T [--files N] [--wrong lost|doubled|exchanged]
                                                                        the same as a compaction says it, or part of it
    catalog.py --database FILE append  --table NS.T --rows FILE|-       one JSON object per row

`list` prints {"namespaces": [{"namespace", "properties", "tables": [{"name", "metadata_location", "format_version",
"properties", "current_snapshot_id", "snapshots"}]}]}; the other verbs {"table", "metadata_location", "snapshot_id"}.
Snapshot ids are decimal strings.

PyIceberg itself commits no replace; ReplaceFiles makes one. It rewrites the data files, or the N largest of them, into
new ones, position deletes applied. --wrong breaks its promise to keep the rows: the first row is lost, or is there twice,
or its place is taken by a second one of the last row.

Not here: judging rows (judge.py).
"""

import argparse
import json
import sys
import uuid


def main():
    options = arguments()
    from pyiceberg.catalog.sql import SqlCatalog

    # A foreign engine must find the catalog's tables, not make them.
    catalog = SqlCatalog("lakehouse", uri=f"sqlite:///{options.database}", init_catalog_tables="false")
    if options.verb == "list":
        answer = {"namespaces": [describe(catalog, namespace) for namespace in catalog.list_namespaces()]}
    else:
        table = catalog.load_table(options.table)
        {"delete": delete, "rewrite": rewrite, "replace": replace, "append": append}[options.verb](table, options)
        table = catalog.load_table(options.table)
        snapshot = table.current_snapshot()
        answer = {
            "table": options.table,
            "metadata_location": table.metadata_location,
            "snapshot_id": snapshot and str(snapshot.snapshot_id),
        }
    print(json.dumps(answer))


def describe(catalog, namespace):
    tables = [describe_table(catalog.load_table(name), name[-1]) for name in catalog.list_tables(namespace)]
    properties = catalog.load_namespace_properties(namespace)
    return {"namespace": ".".join(namespace), "properties": properties, "tables": tables}


def describe_table(table, name):
    snapshot = table.current_snapshot()
    return {
        "name": name,
        "metadata_location": table.metadata_location,
        "format_version": table.metadata.format_version,
        "properties": table.properties,
        "current_snapshot_id": snapshot and str(snapshot.snapshot_id),
        "snapshots": [str(entry.snapshot_id) for entry in table.metadata.snapshots],
    }


def delete(table, options):
    table.delete(options.where)


def rewrite(table, _):
    # Table.overwrite would make two snapshots, one of them empty; a compaction makes one.
    with table.transaction() as transaction, transaction.update_snapshot().overwrite() as snapshot:
        tasks = [*table.scan().plan_files()]
        exchange(table, snapshot, tasks, live_rows(table, tasks))


def replace(table, options):
    from pyiceberg.table.snapshots import Operation
    from pyiceberg.table.update.snapshot import _OverwriteFiles

    class ReplaceFiles(_OverwriteFiles):
        def _summary(self, *properties):
            return super()._summary(*properties).model_copy(update={"operation": Operation.REPLACE})

    tasks = sorted(table.scan().plan_files(), key=lambda task: -task.file.record_count)[: options.files]
    rows = WRONG[options.wrong](live_rows(table, tasks))
    with table.transaction() as transaction:
        with ReplaceFiles(Operation.OVERWRITE, transaction, table.io) as snapshot:
            exchange(table, snapshot, tasks, rows)


def live_rows(table, tasks):
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.io.pyarrow import ArrowScan

    return ArrowScan(table.metadata, table.io, table.schema(), AlwaysTrue()).to_table(tasks)


def exchange(table, snapshot, tasks, rows):
    """New files with the rows instead of the files that were planned to be read. Their deletes stay, without effect."""
    from pyiceberg.io.pyarrow import _dataframe_to_data_files

    for task in tasks:
        snapshot.delete_data_file(task.file)
    for file in _dataframe_to_data_files(table.metadata, rows, table.io, write_uuid=uuid.uuid4()):
        snapshot.append_data_file(file)


def doubled(rows):
    import pyarrow as pa

    return pa.concat_tables([rows, rows.slice(0, 1)])


def exchanged(rows):
    import pyarrow as pa

    return pa.concat_tables([rows.slice(1), rows.slice(len(rows) - 1)])


WRONG = {None: lambda rows: rows, "lost": lambda rows: rows.slice(1), "doubled": doubled, "exchanged": exchanged}


def append(table, options):
    import pyarrow as pa

    with sys.stdin if options.rows == "-" else open(options.rows) as source:
        rows = [json.loads(line) for line in source if line.strip()]
    schema = table.schema().as_arrow()
    columns = [column([row.get(field.name) for row in rows], field.type) for field in schema]
    table.append(pa.Table.from_arrays(columns, schema=schema))


def column(values, kind):
    """JSON values as an Arrow array; what JSON has no literal for (dates, times, decimals) is written as text."""
    import pyarrow as pa

    texts = any(isinstance(value, str) for value in values) and not pa.types.is_large_string(kind)
    return pa.array(values).cast(kind) if texts else pa.array(values, kind)


def arguments():
    parser = argparse.ArgumentParser(description="Opens the SQLite catalog with PyIceberg.")
    parser.add_argument("--database", required=True, help="the catalog's SQLite file")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list")
    for name in ("delete", "rewrite", "replace", "append"):
        verb = verbs.add_parser(name)
        verb.add_argument("--table", required=True, help="namespace.table")
        if name == "delete":
            verb.add_argument("--where", required=True, help="a PyIceberg row filter")
        if name == "replace":
            verb.add_argument("--files", type=int, help="how many data files; without it all")
            verb.add_argument("--wrong", choices=[wrong for wrong in WRONG if wrong], help="break the promise")
        if name == "append":
            verb.add_argument("--rows", required=True, help="file of JSON objects, one per line; - for standard input")
    return parser.parse_args()


if __name__ == "__main__":
    main()
