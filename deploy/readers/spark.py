"""Spark with Iceberg's own runtime, the reference implementation: a judge, and somebody else's engine on a catalog.

It needs LAKEHOUSE_SPARK, a folder that deploy/lib.sh makes (jars, python, java), and to be run by that python. Its Java
process listens on loopback only, and ends when this one does: it reads from a pipe that closes then.
"""

import os
import shutil
import tempfile
from pathlib import Path


class Spark:
    def __init__(self):
        home = Path(os.environ["LAKEHOUSE_SPARK"])
        os.environ["JAVA_HOME"] = str(home / "java")
        os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
        import pyspark
        from pyspark.sql import SparkSession

        self.version = pyspark.__version__
        self.folder = tempfile.mkdtemp(prefix="judge-spark-")
        # Two threads, as a compaction waits for its own.
        builder = SparkSession.builder.master("local[2]").config(map=self.settings(home))
        self.spark = builder.getOrCreate()

    def settings(self, home):
        return {
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.driver.memory": "1g",
            "spark.driver.extraClassPath": f"{home}/jars/*",
            "spark.driver.extraJavaOptions": f"-Djava.io.tmpdir={self.folder}",
            "spark.log.level": "OFF",
            "spark.local.dir": self.folder,
            "spark.sql.warehouse.dir": f"file://{self.folder}/warehouse",
            "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.shuffle.partitions": "1",
        }

    def query(self, metadata, snapshot, sql):
        reader = self.spark.read.format("iceberg")
        if snapshot:
            reader = reader.option("versionAsOf", str(snapshot))
        reader.load(f"file://{metadata}").createOrReplaceTempView("t")
        return self.spark.sql(sql).toArrow()

    def compact(self, database, table):
        """Rewrites the data files of a table into as few as possible, position deletes applied: a replace commit."""
        options = "map('rewrite-all', 'true', 'remove-dangling-deletes', 'true')"
        call = f"CALL lakehouse.system.rewrite_data_files(table => '{table}', options => {options})"
        return self.run({"database": database}, call)[0]

    def run(self, catalog, statement):
        """Runs a statement on a catalog, which it sees as `lakehouse`: {"database"}, the SQLite file, or {"uri"}, a REST
        catalog. Returns the rows, every value as text."""
        # Without a timeout it gives up on a locked database after seconds.
        sqlite = lambda: {"type": "jdbc", "uri": f"jdbc:sqlite:file:{catalog['database']}?busy_timeout=30000"}
        place = {"type": "rest", "uri": catalog["uri"]} if "uri" in catalog else sqlite()
        settings = {
            **place,
            "jdbc.schema-version": "V1",
            "warehouse": f"file://{self.folder}/unused",
            "cache-enabled": "false",
        }
        # The name is that of the SQLite catalog's rows.
        self.spark.conf.set("spark.sql.catalog.lakehouse", "org.apache.iceberg.spark.SparkCatalog")
        for name, value in settings.items():
            self.spark.conf.set(f"spark.sql.catalog.lakehouse.{name}", value)
        return [[str(value) for value in row] for row in self.spark.sql(statement).collect()]

    def close(self):
        self.spark.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
