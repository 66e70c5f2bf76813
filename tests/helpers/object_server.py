"""A server on this machine that keeps objects as S3 does.

Knows: how it is begun, and what the environment must say so that clients find it. Knows nothing about who uses it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest


@contextmanager
def bucket(name: str = "runs") -> Iterator[str]:
    """The address of an empty bucket, while this lasts."""
    pytest.importorskip("moto")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    here = f"http://{host}:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    try:
        with mock.patch.dict(os.environ, {**keys, "AWS_ENDPOINT_URL": here}):
            boto3.client("s3", endpoint_url=here, region_name="us-east-1").create_bucket(Bucket=name)
            yield f"s3://{name}"
    finally:
        server.stop()
