"""Times DuckDB over an Iceberg table and over the same rows in plain Parquet.

    read_cost.py METADATA FOLDER QUERIES

Writes the table's rows to FOLDER, runs the same query over both in turn, and prints one JSON object with the best wall
and processor time of each, the number of rows, and how many data and delete files the table has.
"""

import json
import os
import sys
import time

from judge import DuckDb, text


def main():
    metadata, folder, queries = sys.argv[1], sys.argv[2], int(sys.argv[3])
    connection = DuckDb().connection
    mirror = f"iceberg_scan({text(metadata)})"
    os.mkdir(folder)
    options = "FORMAT parquet, COMPRESSION zstd, PER_THREAD_OUTPUT true"
    connection.execute(f"COPY (SELECT * FROM {mirror}) TO {text(folder + '/rows')} ({options})")
    fresh = f"read_parquet({text(folder + '/rows/*.parquet')})"

    best = {}
    answers = set()
    for _ in range(queries):
        for name, source in (("mirror", mirror), ("fresh", fresh)):
            begun, cpu = time.perf_counter(), time.process_time()
            answers.add(connection.execute(f"SELECT count(*), sum(amount) FROM {source}").fetchone())
            timing = (time.perf_counter() - begun, time.process_time() - cpu)
            best[name] = tuple(map(min, best.get(name, timing), timing))
    if len(answers) != 1:
        sys.exit(f"the answers differ: {answers}")

    manifests = f"SELECT manifest_content, count(*) FROM iceberg_metadata({text(metadata)}) WHERE status <> 'DELETED'"
    files = dict(connection.execute(f"{manifests} GROUP BY 1").fetchall())
    print(
        json.dumps(
            {
                "rows": answers.pop()[0],
                "data_files": files.get("DATA", 0),
                "delete_files": files.get("DELETE", 0),
                **{name: dict(zip(("seconds", "cpu_seconds"), timing)) for name, timing in best.items()},
            }
        )
    )


main()
