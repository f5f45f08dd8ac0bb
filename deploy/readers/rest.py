#!/usr/bin/env python3
"""Opens an Iceberg REST catalog with PyIceberg or DuckDB, as somebody else's engine would.

    rest.py CATALOG list                                         as catalog.py
    rest.py CATALOG create  --table NS.T                         a table (id long, name string) and its namespace
    rest.py CATALOG delete  --table NS.T --where 'id > 3'        rows away, by an overwrite commit
    rest.py CATALOG append  --table NS.T --rows FILE|-           one JSON object per row
    rest.py CATALOG rewrite --table NS.T                         all live rows into new files, by an overwrite commit
    rest.py CATALOG compact --table NS.T                         the same as compaction does it: by a replace, deletes gone
    rest.py CATALOG rows    --table NS.T                         all rows, sorted
    rest.py CATALOG duckdb  --sql 'SELECT … FROM lake.ns.t'      the rows of a query; the catalog is attached as `lake`

CATALOG is --uri URI [--warehouse NAME] [--header NAME=VALUE] and, for objects in S3, --s3 ENDPOINT --key KEY --secret
SECRET --region REGION. Prints one JSON document: that of catalog.py, or {"rows": […]}; `compact` adds "files", how many
it replaced.

    rest.py --serve    takes {"arguments": [CATALOG, verb, …], "input": "…"}, one a line, and answers each in a line:
                       the same document, or {"error": "…"}. Loading the engines costs more than most questions.
"""

import argparse
import io
import json
import sys

import catalog as sql_catalog


def main():
    if sys.argv[1:] == ["--serve"]:
        return serve()
    print(json.dumps(run(sys.argv[1:]), default=str))


def serve():
    questions = sys.stdin
    for line in questions:
        question = json.loads(line)
        sys.stdin = io.StringIO(question["input"])
        try:
            answer = run(question["arguments"])
        except (Exception, SystemExit) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, default=str), flush=True)


def run(arguments):
    options = parse(arguments)
    return duckdb(options) if options.verb == "duckdb" else pyiceberg(options)


def pyiceberg(options):
    catalog = open_catalog(options)
    if options.verb == "list":
        names = catalog.list_namespaces()
        return {"namespaces": [sql_catalog.describe(catalog, namespace) for namespace in names]}
    if options.verb == "create":
        return create(catalog, options)
    table = catalog.load_table(options.table)
    if options.verb == "rows":
        rows = table.scan().to_arrow().to_pylist()
        return {"rows": sorted(([*row.values()] for row in rows), key=str)}
    verbs = {"delete": sql_catalog.delete, "append": sql_catalog.append, "rewrite": sql_catalog.rewrite}
    result = {**verbs, "compact": compact}[options.verb](table, options)
    # As the commit left it, whatever others have done since.
    snapshot = table.current_snapshot()
    answer = {"table": options.table, "metadata_location": table.metadata_location}
    return {**answer, "snapshot_id": snapshot and str(snapshot.snapshot_id), **(result or {})}


def open_catalog(options):
    from pyiceberg.catalog.rest import RestCatalog

    settings = {"uri": options.uri}
    if options.warehouse:
        settings["warehouse"] = options.warehouse
    if options.s3:
        settings |= {
            "s3.endpoint": options.s3,
            "s3.access-key-id": options.key,
            "s3.secret-access-key": options.secret,
            "s3.region": options.region,
        }
    settings |= {f"header.{name}": value for name, value in (pair.split("=", 1) for pair in options.header)}
    return RestCatalog("rest", **settings)


def create(catalog, options):
    from pyiceberg.exceptions import NamespaceAlreadyExistsError
    from pyiceberg.schema import Schema
    from pyiceberg.types import LongType, NestedField, StringType

    try:
        catalog.create_namespace(options.table.split(".")[0])
    except NamespaceAlreadyExistsError:
        pass
    schema = Schema(NestedField(1, "id", LongType()), NestedField(2, "name", StringType()))
    table = catalog.create_table(options.table, schema)
    return {"table": options.table, "metadata_location": table.metadata_location}


def compact(table, _):
    import uuid

    from pyiceberg.io.pyarrow import _dataframe_to_data_files
    from pyiceberg.manifest import ManifestContent
    from pyiceberg.table.snapshots import Operation
    from pyiceberg.table.update.snapshot import _OverwriteFiles

    class ReplaceFiles(_OverwriteFiles):
        """PyIceberg itself commits no replace. All data files go, so no delete file has anything left to delete."""

        def _summary(self, *properties):
            summary = super()._summary(*properties)
            for kind in ("delete-files", "position-deletes", "equality-deletes"):
                if (removed := summary.get(f"total-{kind}", "0")) != "0":
                    summary[f"removed-{kind}"] = removed
                    summary[f"total-{kind}"] = "0"
            return summary.model_copy(update={"operation": Operation.REPLACE})

        def _existing_manifests(self):
            return [file for file in super()._existing_manifests() if file.content == ManifestContent.DATA]

    files = [task.file for task in table.scan().plan_files()]
    rows = table.scan().to_arrow()
    if files:
        with table.transaction() as transaction:
            with ReplaceFiles(Operation.OVERWRITE, transaction, table.io) as snapshot:
                for file in files:
                    snapshot.delete_data_file(file)
                for file in _dataframe_to_data_files(table.metadata, rows, table.io, write_uuid=uuid.uuid4()):
                    snapshot.append_data_file(file)
    return {"files": len(files)}


def duckdb(options):
    import importlib.util

    import duckdb as engine

    connection = engine.connect()
    for name in ("avro", "httpfs", "iceberg"):
        folder = importlib.util.find_spec(f"duckdb_extension_{name}").submodule_search_locations[0]
        connection.execute(f"LOAD '{folder}/extensions/v{engine.__version__}/{name}.duckdb_extension'")
    for statement in attach(options):
        connection.execute(statement)
    return {"rows": [[*row] for row in connection.execute(options.sql).fetchall()]}


def attach(options):
    """The statements with which DuckDB sees the catalog as `lake`."""
    statements = []
    if options.s3:
        scheme, _, host = options.s3.partition("://")
        secure = "true" if scheme == "https" else "false"
        statements.append(
            f"CREATE SECRET (TYPE s3, KEY_ID '{options.key}', SECRET '{options.secret}', REGION '{options.region}',\n"
            f"    ENDPOINT '{host}', URL_STYLE 'path', USE_SSL {secure})"
        )
    statements.append(
        f"ATTACH '{options.warehouse or ''}' AS lake (TYPE iceberg, ENDPOINT '{options.uri}',\n"
        "    AUTHORIZATION_TYPE 'none', ACCESS_DELEGATION_MODE 'none')"
    )
    return statements


def parse(arguments):
    parser = argparse.ArgumentParser(description="Opens an Iceberg REST catalog with PyIceberg or DuckDB.")
    parser.add_argument("--uri", required=True, help="the catalog, without /v1")
    parser.add_argument("--warehouse", help="of S3 Tables: a table bucket's ARN")
    parser.add_argument("--header", action="append", default=[], help="NAME=VALUE, sent with every request")
    parser.add_argument("--s3", help="where objects are, such as http://127.0.0.1:4566")
    for name in ("key", "secret", "region"):
        parser.add_argument(f"--{name}", default="us-east-1" if name == "region" else "testing")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list")
    verbs.add_parser("duckdb").add_argument("--sql", required=True)
    for name in ("create", "delete", "append", "rewrite", "compact", "rows"):
        verb = verbs.add_parser(name)
        verb.add_argument("--table", required=True, help="namespace.table")
        if name == "delete":
            verb.add_argument("--where", required=True, help="a PyIceberg row filter")
        if name == "append":
            verb.add_argument("--rows", required=True, help="file of JSON objects, one per line; - for standard input")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
