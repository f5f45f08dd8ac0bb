#!/usr/bin/env python3
"""Moto's server, with two answers about S3 Tables mended that Amazon's Rust client refuses to parse, and one lock.

    moto_s3_tables.py PORT

Amazon leaves `managedByService` out of GetTable (moto says false, where a string belongs), and answers
UpdateTableMetadataLocation with the namespace as a list (moto: as a string). Its server answers each request in a thread
of its own and compares version tokens without a lock, so of two swaps at the same moment both could win; here one waits for
the other. Everything else is moto's.
"""

import json
import sys
import threading

from moto.s3tables.responses import S3TablesResponse
from moto.server import main


swapping = threading.Lock()


def mended(method, mend):
    original = getattr(S3TablesResponse, method)

    def call(self):
        with swapping:
            status, headers, body = original(self)
        answer = json.loads(body)
        mend(answer)
        return status, headers, json.dumps(answer)

    setattr(S3TablesResponse, method, call)


def without_service(answer):
    if not isinstance(answer.get("managedByService"), str):
        answer.pop("managedByService", None)


def with_namespace_list(answer):
    if isinstance(answer.get("namespace"), str):
        answer["namespace"] = [answer["namespace"]]


mended("get_table", without_service)
mended("update_table_metadata_location", with_namespace_list)
sys.exit(main(["-H", "127.0.0.1", "-p", sys.argv[1]]))
