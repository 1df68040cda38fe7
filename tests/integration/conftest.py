"""What tests of object stores share: a local S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.remote import RemotePlace
from tests.integration.object_store import SECRET


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a local S3 server: one for all tests of a process, as file systems are kept per process."""
    server = pytest.importorskip("moto.server")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(scope="module")
def endpoint(s3_server: str) -> Iterator[str]:
    """The server, with an empty bucket where there is none, and the environment that points to it."""
    boto3 = pytest.importorskip("boto3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3_server)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="results")
        yield s3_server


@pytest.fixture
def place(endpoint: str, tmp_path: Path) -> RemotePlace:
    """A prefix that is the test's alone."""
    return RemotePlace(f"s3://results/{tmp_path.name}")
