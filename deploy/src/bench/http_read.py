"""Reads a whole Iceberg table once, and prints one JSON object: rows, the sum of the keys, wall and processor time.

    http_read.py duckdb METADATA
    http_read.py http ADDRESS

duckdb: DuckDB scans the table, and its rows are taken as Arrow, batch by batch; the query runs once before, so that what is
measured is warm. Its processor time is this process's for the scan. http: an Arrow stream at ADDRESS is read to its end
mark; the service's processor time is for who asks to find out, and what is printed is this client's.
"""

import json
import sys
import time
import urllib.request

import pyarrow as pa
import pyarrow.compute as pc

BATCH_ROWS = 65_536


def main():
    way, place = sys.argv[1:]
    if way == "duckdb":
        from judge import DuckDb, text

        connection = DuckDb().connection
        scan = f"SELECT * FROM iceberg_scan({text(place)})"
        rows, keys = drained(connection.execute(scan).to_arrow_reader(BATCH_ROWS))
        begun, cpu = time.perf_counter(), time.process_time()
        counted = sum(batch.num_rows for batch in connection.execute(scan).to_arrow_reader(BATCH_ROWS))
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
        if counted != rows:
            sys.exit(f"{rows} rows, and then {counted}")
    else:
        request = urllib.request.Request(place, headers={"accept": "application/vnd.apache.arrow.stream"})
        begun, cpu = time.perf_counter(), time.process_time()
        with urllib.request.urlopen(request) as answer, pa.ipc.open_stream(answer) as stream:
            rows, keys = drained(stream)
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    print(json.dumps({"rows": rows, "keys": str(keys), "seconds": seconds, "cpu_seconds": cpu_seconds}))


def drained(batches):
    rows = keys = 0
    for batch in batches:
        rows += batch.num_rows
        keys += pc.sum(batch.column("id")).as_py() or 0
    return rows, keys


main()
