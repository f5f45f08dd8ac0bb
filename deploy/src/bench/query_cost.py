"""Times one engine over two Iceberg tables that hold the same rows.

    query_cost.py ENGINE MIRROR FRESH QUERIES

MIRROR and FRESH are metadata files, ENGINE one of judge.py's that speak SQL. Runs the same query over both in turn, and
prints one JSON object with the best wall and processor time of each, and the number of rows.
"""

import json
import os
import sys
import time

from judge import ENGINES


def main():
    name, mirror, fresh, queries = sys.argv[1:]
    engine = ENGINES[name]()
    best = {}
    answers = set()
    for _ in range(int(queries)):
        for table, metadata in (("mirror", mirror), ("fresh", fresh)):
            begun, cpu = time.perf_counter(), time.process_time()
            answer = engine.query(metadata, None, "SELECT count(*) AS n, sum(amount) AS total FROM t").to_pylist()
            timing = (time.perf_counter() - begun, time.process_time() - cpu)
            answers.add(tuple(answer[0].values()))
            best[table] = tuple(map(min, best.get(table, timing), timing))
    if len(answers) != 1:
        sys.exit(f"{name}: the answers differ: {answers}")
    timings = {table: dict(zip(("seconds", "cpu_seconds"), timing)) for table, timing in best.items()}
    print(json.dumps({"rows": answers.pop()[0], **timings}), flush=True)
    # Sail's server and ClickHouse's threads do not end by themselves.
    os._exit(0)


main()
