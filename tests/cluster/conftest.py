"""Stores for tests of runs on many machines: a folder, and a bucket that a server on this machine keeps."""

from collections.abc import Callable, Iterator

import pytest
from object_server import bucket

from engines.cluster.store import Store, open_store

OpenFresh = Callable[[str], Store]


@pytest.fixture(scope="module", params=["folder", "s3"])
def open_fresh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenFresh]:
    """A store by name, empty when its name is new."""
    if request.param == "folder":
        place = tmp_path_factory.mktemp("stores")
        yield lambda name: open_store(f"file://{place / name}", make=True)
        return
    with bucket() as url:
        yield lambda name: open_store(f"{url}/{name}", make=True)
