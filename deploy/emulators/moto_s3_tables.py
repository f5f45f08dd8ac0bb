#!/usr/bin/env python3
"""Moto's server, with two answers about S3 Tables mended that Amazon's Rust client refuses to parse.

    moto_s3_tables.py PORT

Amazon leaves `managedByService` out of GetTable (moto says false, where a string belongs), and answers
UpdateTableMetadataLocation with the namespace as a list (moto: as a string). Everything else is moto's.
"""

import json
import sys

from moto.s3tables.responses import S3TablesResponse
from moto.server import main


def mended(method, mend):
    original = getattr(S3TablesResponse, method)

    def call(self):
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
