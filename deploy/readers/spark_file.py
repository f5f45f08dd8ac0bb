#!/usr/bin/env python3
"""Runs a file of SQL statements with Spark, as `command` in [maintenance.spark] is called: the file comes last.

    spark_file.py --database FILE STATEMENTS     on the SQLite catalog, which the statements call `lakehouse`

Each statement ends its line with a semicolon. Exits with 1 at the first that Spark refuses. It needs what spark.py needs.
"""

import argparse
from pathlib import Path

from spark import Spark


def main():
    parser = argparse.ArgumentParser(description="Runs a file of SQL statements with Spark.")
    parser.add_argument("--database", required=True, help="the catalog's SQLite file")
    parser.add_argument("statements", help="a file, of a statement a line")
    options = parser.parse_args()
    lines = Path(options.statements).read_text().splitlines()
    spark = Spark()
    try:
        for statement in filter(None, (line.rstrip(";") for line in lines)):
            print(statement, spark.run({"database": options.database}, statement), flush=True)
    finally:
        spark.close()


if __name__ == "__main__":
    main()
