"""Trino, Athena's family, as a judge: a server of its own on loopback with nothing but the Iceberg connector.

It needs LAKEHOUSE_TRINO_406 or LAKEHOUSE_TRINO_483, folders that deploy/lib.sh makes (lib, plugin, java). The kernel kills
the server when this process ends, however it ends.

A metadata file becomes a table of a catalog of plain files in a temporary folder; nothing is ever dropped, as that would
delete its data. Values are taken from the protocol's JSON and not from a client's types, which end at year 9999.
"""

import base64
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

import canonical

# A loaded machine starts it in a minute.
START_SECONDS = 240


class Trino:
    def __init__(self, release):
        self.home = Path(os.environ[f"LAKEHOUSE_TRINO_{release}"])
        self.version = str(release)
        self.folder = Path(tempfile.mkdtemp(prefix="judge-trino-"))
        self.port = free_port()
        self.configure(release)
        self.server = self.start(release)
        self.tables = {}
        self.wait_until_started()

    def configure(self, release):
        server = {
            "coordinator": "true",
            "node-scheduler.include-coordinator": "true",
            "node.environment": "judge",
            "node.id": "judge",
            "node.internal-address": "127.0.0.1",
            "node.bind-ip": "127.0.0.1",
            "http-server.http.port": self.port,
            "discovery.uri": f"http://127.0.0.1:{self.port}",
            "plugin.dir": self.home / "plugin",
            "catalog.config-dir": self.folder / "catalog",
        }
        scheme, more = "file", {}
        if release >= 483:
            # Its own file system instead of Hadoop's, with the whole machine below it.
            scheme = "local"
            more = {"fs.local.enabled": "true", "local.location": "/", "iceberg.metadata-cache.enabled": "false"}
        lake = {
            "connector.name": "iceberg",
            "iceberg.catalog.type": "TESTING_FILE_METASTORE",
            "hive.metastore.catalog.dir": f"{scheme}://{self.folder}/metastore",
            "iceberg.register-table-procedure.enabled": "true",
            **more,
        }
        for name in ("catalog", "metastore"):
            (self.folder / name).mkdir()
        write_properties(self.folder / "config.properties", server)
        write_properties(self.folder / "catalog" / "lake.properties", lake)

    def start(self, release):
        # Tests ask small questions: a short start is worth more than fast code.
        flags = ["-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError"]
        flags += ["-Djdk.attach.allowAttachSelf=true", "-Dfile.encoding=UTF-8", f"-Djava.io.tmpdir={self.folder}"]
        if release >= 483:
            flags += ["--add-modules=jdk.incubator.vector", "--sun-misc-unsafe-memory-access=allow"]
            flags += ["--enable-native-access=ALL-UNNAMED", "-XX:+EnableDynamicAgentLoading"]
        flags += [f"-Dconfig={self.folder}/config.properties", "-cp", f"{self.home}/lib/launch:{self.home}/lib/*"]
        command = ["setpriv", "--pdeathsig", "KILL", "--", str(self.home / "java/bin/java"), *flags, "Launch"]
        with open(self.folder / "server.log", "wb") as log:
            return subprocess.Popen(
                [*command, str(release)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )

    def wait_until_started(self):
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self.run("CREATE SCHEMA IF NOT EXISTS lake.judge")
            except (OSError, Refused) as error:
                if self.server.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "server.log").read_text(errors="replace")
                    raise RuntimeError(f"Trino does not start: {error}\n{log[-4000:]}") from error
            time.sleep(0.1)

    def query(self, metadata, snapshot, sql):
        """Rows as JSON values, and the names and Trino types of their columns; the query sees the table as t."""
        at = f" FOR VERSION AS OF {snapshot}" if snapshot else ""
        scan = f"SELECT * FROM lake.judge.{self.register(metadata)}{at}"
        rest = re.match("(?i)with ", sql)
        sql = f"WITH t AS ({scan})" + (f", {sql[rest.end():]}" if rest else f" {sql}")
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self.run(sql)
            except Refused as error:
                # It answers what it need not read for, before it has found itself among its nodes.
                if not str(error).startswith("NO_NODES_AVAILABLE") or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def register(self, metadata):
        if metadata not in self.tables:
            name = f"t{len(self.tables)}"
            # The procedure wants the location letter by letter as the file says it.
            location = json.loads(Path(metadata).read_text())["location"]
            arguments = ", ".join(quoted(text) for text in ("judge", name, location, Path(metadata).name))
            self.run(f"CALL lake.system.register_table({arguments})")
            self.tables[metadata] = name
        return self.tables[metadata]

    def run(self, sql):
        """The client protocol: ask, then follow until there is no next page."""
        page, rows, columns = self.page(f"http://127.0.0.1:{self.port}/v1/statement", sql), [], []
        while True:
            if "error" in page:
                raise Refused(f"{page['error']['errorName']}: {page['error'].get('message')}")
            columns = page.get("columns", columns)
            rows += page.get("data", [])
            if "nextUri" not in page:
                return rows, [(column["name"], column["type"]) for column in columns]
            page = self.page(page["nextUri"])

    def page(self, address, sql=None):
        headers = {"X-Trino-User": "judge", "X-Trino-Source": "judge", "X-Trino-Time-Zone": "UTC"}
        # Without it, moments come with three digits.
        headers["X-Trino-Client-Capabilities"] = "PARAMETRIC_DATETIME"
        request = urllib.request.Request(address, sql.encode() if sql else None, headers)
        with OPENER.open(request, timeout=300) as answer:
            return json.load(answer)

    def close(self):
        self.server.kill()
        self.server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Refused(Exception):
    """What the server says instead of rows."""


# No proxy of the environment between loopback and loopback.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def lines(rows, types):
    """Rows of JSON values as canonical lines; types: Iceberg types in order."""
    return [canonical.line([canonical_value(value, kind) for value, kind in zip(row, types)]) for row in rows]


def canonical_value(value, kind):
    if value is None:
        return None
    if isinstance(kind, dict):
        if kind["type"] == "list":
            return [canonical_value(item, kind["element"]) for item in value]
        if kind["type"] == "struct":
            return [canonical_value(item, field["type"]) for item, field in zip(value, kind["fields"])]
        pairs = [[canonical_value(key, kind["key"]), canonical_value(item, kind["value"])] for key, item in value.items()]
        return sorted(pairs, key=lambda pair: canonical.line(pair[0]))
    return TEXTS[kind.split("(")[0].split("[")[0]](value)


def moment(value):
    """A date or timestamp: years beyond four digits get their sign, as canonical.py writes them."""
    sign, year, rest = re.fullmatch("([+-]?)([0-9]+)(-.*)", value).groups()
    sign = sign if sign == "-" else "+" if len(year) > 4 else ""
    return f"{sign}{int(year):04}{rest.replace(' UTC', 'Z').replace(' ', 'T')}"


def single(value):
    return canonical.real_text(struct.unpack("f", struct.pack("f", float(value)))[0])


TEXTS = {
    "boolean": lambda value: "true" if value else "false",
    "int": str,
    "long": str,
    "float": single,
    "double": lambda value: canonical.real_text(float(value)),
    "decimal": str,
    "date": moment,
    "time": str,
    "timestamp": moment,
    "timestamptz": moment,
    "string": str,
    "uuid": lambda value: str(uuid.UUID(value)),
    "binary": lambda value: base64.b64decode(value).hex(),
    "fixed": lambda value: base64.b64decode(value).hex(),
}


def iceberg_type(trino):
    """The Iceberg type of an expression's Trino type: an SQL answer has no schema of its own."""
    name = re.sub("[(][0-9, ]*[)]", "", trino)
    names = {
        "integer": "int", "smallint": "int", "tinyint": "int", "bigint": "long", "real": "float",
        "varchar": "string", "char": "string", "unknown": "string", "varbinary": "binary",
        "timestamp with time zone": "timestamptz",
    }  # fmt: skip
    if (kind := names.get(name, name)) not in TEXTS:
        raise ValueError(f"no canonical text for {trino}")
    return kind


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_properties(path, settings):
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))


def quoted(text):
    return "'" + text.replace("'", "''") + "'"
