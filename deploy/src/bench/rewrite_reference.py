"""DuckDB as a compactor: reads an Iceberg table, deletes applied, and writes its rows to Parquet.

    rewrite_reference.py METADATA [FOLDER]

With FOLDER it writes, in files of about 256 MiB, and prints nothing. Without, it prints one JSON object: how many rows
the table has, the sum of its keys, and how many data and delete files.
"""

import json
import sys

from judge import DuckDb, text


def main():
    connection = DuckDb().connection
    table = f"iceberg_scan({text(sys.argv[1])})"
    if len(sys.argv) > 2:
        options = "FORMAT parquet, COMPRESSION zstd, FILE_SIZE_BYTES '256MiB'"
        connection.execute(f"COPY (SELECT * FROM {table}) TO {text(sys.argv[2])} ({options})")
        return
    rows, keys = connection.execute(f"SELECT count(*), sum(id)::VARCHAR FROM {table}").fetchone()
    manifests = f"SELECT manifest_content, count(*) FROM iceberg_metadata({text(sys.argv[1])}) WHERE status <> 'DELETED'"
    files = dict(connection.execute(f"{manifests} GROUP BY 1").fetchall())
    counts = {"data_files": files.get("DATA", 0), "delete_files": files.get("DELETE", 0)}
    print(json.dumps({"rows": rows, "keys": keys, **counts}))


main()
