"""`generate` on a real Ray cluster of this machine: two nodes, one of which goes, and another comes.

`make test` paints a few images; DENGINE_CLUSTER_IMAGES=500 paints that many, with two workers a node.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import assert_fails, dengine
from fakes import tree

from engines.cluster.generate import generate_on_cluster
from engines.cluster.settings import ClusterSettings
from engines.cluster.status import StatusSettings, status
from engines.common.events import Event, EventKind
from engines.common.files import LOG_FILE
from engines.errors import BackendError, DengineError, UsageError
from engines.painting.settings import GenerateSettings
from engines.runs.generate import generate

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
IMAGES = int(os.environ.get("DENGINE_CLUSTER_IMAGES", "24"))
CORES = 2 if IMAGES > 100 else 1  # of a node, and so its workers: each imports torch first
SMALL = {"object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes; this process is its driver."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=CORES, **SMALL)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def without_chunks(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if not name.startswith(".dengine/cluster/")}


def test_a_cluster_that_loses_a_node_and_gets_another_leaves_the_files_of_one_process(
    two_nodes: Any, toy_bundle: Path, tmp_path: Path
) -> None:
    settings = GenerateSettings(
        out=tmp_path / "many", bundle=toy_bundle, count=IMAGES, chunk=4, slots=2, steps=3, threads=1, seed=5,
        engine="torch", keep_empty=True,
    )  # fmt: skip
    changed: list[float] = []

    def report(event: Event) -> None:
        if event.kind is EventKind.PROGRESS and event.stage == "painting" and event.done and not changed:
            changed.append(event.done)
            two_nodes.remove_node(sorted(two_nodes.worker_nodes, key=str)[0], allow_graceful=False)
            two_nodes.add_node(num_cpus=CORES, **SMALL)

    summary = generate_on_cluster(settings, ClusterSettings(cluster="auto"), report=report)
    generate(replace(settings, out=tmp_path / "one"))
    assert without_chunks(tmp_path / "many") == tree(tmp_path / "one")
    assert not summary.interrupted
    assert changed
    found = status(StatusSettings(str(tmp_path / "many")))
    assert (found.over, found.done) == (True, IMAGES)

    again = generate_on_cluster(settings, ClusterSettings(cluster="auto"))
    assert again.painted == 0
    assert without_chunks(tmp_path / "many") == tree(tmp_path / "one")


@pytest.mark.parametrize(
    ("cluster", "error", "field"),
    [
        ({"worker_gpus": 1}, UsageError, "worker_gpus"),
        ({"worker_cpus": 64}, UsageError, "worker_cpus"),
    ],
)
def test_a_cluster_without_such_workers_is_said_at_once(
    two_nodes: Any, toy_bundle: Path, tmp_path: Path, cluster: dict[str, Any], error: type[DengineError], field: str
) -> None:
    settings = GenerateSettings(out=tmp_path / "run", bundle=toy_bundle, count=4, steps=2)
    with pytest.raises(error) as refused:
        generate_on_cluster(settings, ClusterSettings(**cluster))
    assert refused.value.field == field


def test_a_run_that_is_stopped_drains_and_goes_on_from_the_command_line(
    two_nodes: Any, toy_bundle: Path, tmp_path: Path
) -> None:
    settings = GenerateSettings(
        out=tmp_path / "run", bundle=toy_bundle, jobs=64, chunk=4, slots=2, steps=3, threads=1, engine="torch",
        keep_empty=True,
    )  # fmt: skip
    seen: list[float] = []

    def report(event: Event) -> None:
        if event.kind is EventKind.PROGRESS and event.done:
            seen.append(event.done)

    first = generate_on_cluster(settings, ClusterSettings(), report=report, stop=lambda: bool(seen))
    assert (first.interrupted, first.target) == (True, 64)
    assert first.dataset is not None
    assert first.dataset.images == first.done < 64
    asked = (
        "--jobs",
        64,
        "--chunk",
        4,
        "--slots",
        2,
        "--steps",
        3,
        "--threads",
        1,
        "--engine",
        "torch",
        "--keep-empty",
    )
    command = ("generate", "--bundle", toy_bundle, *asked, "--no-report")
    done = dengine(*command, "--out", tmp_path / "run", "--cluster", "auto")
    assert done.exit_code == 0, done.output
    assert "64 images" in done.stdout
    generate(replace(settings, out=tmp_path / "one"))
    ours = without_chunks(tmp_path / "run")
    for name in (".dengine/generate.yaml", LOG_FILE):
        ours.pop(name)
    assert ours == tree(tmp_path / "one")
    assert json.loads(dengine("status", tmp_path / "run", "--json").stdout)["done"] == 64


def test_an_address_needs_a_cluster() -> None:
    assert_fails(dengine("generate", "--count", 4, "--out", "s3://bucket/run"), 2, "--cluster")
    assert_fails(dengine("status", "nowhere"), 1, "nowhere")
    assert_fails(dengine("work", "ftp://host/run"), 1, "ftp://")


def test_a_cluster_that_is_not_there_is_said() -> None:
    from engines.cluster.ray_pool import _reach

    class Unreachable:
        def init(self, **_: object) -> None:
            raise ConnectionError("Could not find any running Ray instance.")

    with pytest.raises(BackendError) as refused:
        _reach(Unreachable(), "127.0.0.1:1")
    assert refused.value.field == "cluster"
