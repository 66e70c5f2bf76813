"""A finished run to push, and the places that it goes to: a folder, a bucket and the hub, on this machine."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import tree
from hub_server import hub
from many_machines import cluster_settings, one_machine
from object_server import bucket
from pushing import There, objects, without_attributes

from engines.cluster.store import open_store
from engines.runs.finalize import FinalizeSettings, finalize


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 images, with a report. Read only: copy before changing."""
    folder = one_machine(tmp_path_factory.mktemp("runs") / "run", cluster_settings())
    finalize(FinalizeSettings(folder, formats=("coco", "yolo", "imagefolder")))
    (folder / "report.html").write_text("<p>report</p>", "utf-8")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run, to do with as a test likes."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a bucket, of a file's tests alone: while it lasts, the environment says where it is."""
    with bucket("pushed") as address:
        yield address


@pytest.fixture(params=["folder", "bucket", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, There]]:
    """An address, and what lies there."""
    if request.param == "folder":
        yield str(tmp_path / "there"), lambda: tree(tmp_path / "there")
    elif request.param == "bucket":
        address = f"{request.getfixturevalue('s3')}/{tmp_path.name}"
        yield address, lambda: objects(open_store(address))
    else:
        with hub(tmp_path / "cache") as server:
            yield "hub:owner/cells", lambda: without_attributes(server)
