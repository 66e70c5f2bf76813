"""Plans built by the real TensorRT for RTX, without a GPU: all graphs, as this project makes them.

What runs on a GPU is not here: no plan is loaded. `pytest -m tensorrt --durations=0` prints the time of each build.
"""

import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from command_line import dengine
from kept import kept
from rtx import export_unchecked, load_rtx
from small_graphs import small_bundle

from engines.backends.tensorrt.backend import probe
from engines.backends.tensorrt.flavours import RTX, Library
from engines.backends.tensorrt.plans import Bounds, Machine, Needs, PlanStore, missing_plans, plan_key, plans_folder
from engines.bundle.bundle import Bundle, default_bundle, open_bundle
from engines.bundle.graphs import GRAPH_NAMES
from engines.common.events import Event, Report
from engines.errors import ExportError
from engines.painting.needs import painted_graphs
from export.tensorrt.build import build_plans
from export.tensorrt.builder import PlanBuilder
from export.tensorrt.profiles import wanted_profiles
from export.tensorrt.settings import BuildPlansSettings

pytestmark = pytest.mark.tensorrt
SMALL: Bounds = {"B": (1, 1, 1), "h": (4, 4, 4), "w": (4, 4, 4)}
# Model, what the graphs compute in, their opset, whether batch and size are ranges, and which graphs. float16 at opset
# 23 is built with an island, over ranges, in `test_plans_built_ahead_are_kept_and_found`. Opset 18 is exported for
# these tests alone, at ten seconds and more a graph: all five in float16, which is what it is for, three in float32.
CASES = (
    ("bundled", "float32", 23, False, GRAPH_NAMES),
    ("sd1", "float32", 23, True, GRAPH_NAMES),
    ("sd2", "float32", 23, False, GRAPH_NAMES),
    ("bundled", "float16", 18, False, ("text_encoder", "vae_decoder")),
    ("sd2", "float16", 18, True, ("vae_encoder", "unet", "adapter")),
    ("sd1", "float32", 18, False, ("text_encoder", "vae_encoder", "vae_decoder")),
)


@pytest.fixture(scope="session")
def rtx() -> Library:
    return load_rtx()


@pytest.fixture(scope="session")
def exported(
    rtx: Library,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str, int], Bundle]:
    """A bundle with such graphs: one that other tests use where there is one, else exported for these."""
    shared = {
        ("sd1", "float32", 23): lambda: request.getfixturevalue("toy_bundle"),
        ("sd2", "float32", 23): lambda: request.getfixturevalue("toy_bundle_sd2"),
        ("bundled", "float32", 23): default_bundle,
    }
    made: dict[tuple[str, str, int], Bundle] = {}

    def export(model: str, dtype: str, opset: int) -> Bundle:
        case = (model, dtype, opset)
        if case not in made:
            made[case] = open_bundle(shared[case]() if case in shared else fresh(*case))
        return made[case]

    def fresh(model: str, dtype: str, opset: int) -> Path:
        if model == "bundled":
            base, adapter = default_bundle(), default_bundle() / "adapter"
        else:
            base, adapter = (request.getfixturevalue(name)[model] for name in ("toy_bases", "toy_adapters"))
        (graphs,) = (case[4] for case in CASES if (case[0], case[1], case[2]) == (model, dtype, opset))
        digest = open_bundle(default_bundle(), verify=False).digest[:8]
        name = "-".join(("unchecked", model, dtype, str(opset), *graphs, digest))
        export = partial(export_unchecked, base, adapter, dtype=dtype, opset=opset, graphs=graphs)
        return kept(name, tmp_path_factory.mktemp("exported") / "bundle", export)

    return export


def builder(library: Library, bundle: Bundle, capability: str = "8.9", **options: Any) -> PlanBuilder:
    told: dict[str, Any] = {"workspace": None, "report": lambda progress: None} | options
    return PlanBuilder(library, bundle, Machine(library.flavour.title, library.version, capability), **told)


def is_whole(library: Library, plan: Any) -> bool:
    """Whether TensorRT takes these bytes for a plan, whatever it says of this machine."""
    return "malformed engine" not in library.objections(library.trt.Runtime(library.log), bytes(plan))


@pytest.mark.parametrize(
    ("model", "dtype", "opset", "ranges", "graph"), [(*case[:4], graph) for case in CASES for graph in case[4]]
)
def test_every_graph_builds(
    rtx: Library,
    exported: Callable[[str, str, int], Bundle],
    model: str,
    dtype: str,
    opset: int,
    ranges: bool,
    graph: str,
) -> None:
    bundle = exported(model, dtype, opset)
    width, height = bundle.frame
    frames = ((width, height), (width, height), (2 * width, height))
    profiles = wanted_profiles(bundle, (1, 2, 4), frames) if ranges else wanted_profiles(bundle)
    assert len(profiles[graph]) == 1 + (graph == "unet" and not ranges)
    told: list[Event] = []
    plan = builder(rtx, bundle, report=told.append).build(graph, profiles[graph], threading.Event())
    assert is_whole(rtx, plan)
    assert not is_whole(rtx, b"no plan" * 100)
    done = [progress.done or 0 for progress in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 100)
    assert {progress.stage for progress in told} == {f"{graph} (sm89)"}
    assert any(0 < (progress.done or 0) < 100 and progress.seconds_left is not None for progress in told)


@pytest.mark.parametrize("capability", RTX.capabilities)
def test_plans_are_for_every_architecture_of_the_flavour(rtx: Library, tmp_path: Path, capability: str) -> None:
    bundle = small_bundle(tmp_path)
    plan = builder(rtx, bundle, capability).build("adapter", [SMALL], threading.Event())
    assert is_whole(rtx, plan)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_doctor_says_what_can_be_built_without_a_gpu(rtx: Library) -> None:
    found = probe()
    assert not found.ready
    assert (found.version, found.details["flavour"]) == (rtx.version, RTX.title)
    assert found.details["builds plans for"] == "sm75, sm86, sm89, sm120, sm121"
    assert found.advice


def test_a_workspace_that_is_too_little_is_said_so(rtx: Library, exported: Callable[[str, str, int], Bundle]) -> None:
    bundle = exported("bundled", "float32", 23)
    with pytest.raises(ExportError) as error:
        builder(rtx, bundle, workspace=1e-6).build(
            "vae_decoder", wanted_profiles(bundle)["vae_decoder"], threading.Event()
        )
    assert error.value.field == "workspace"
    assert "workspace limit" in str(error.value)  # TensorRT's own words


@pytest.mark.parametrize("damage", ["operator", "shape", "cut"])
def test_a_broken_graph_is_refused_by_name(rtx: Library, tmp_path: Path, damage: str) -> None:
    bundle, path = small_bundle(tmp_path), tmp_path / "adapter.onnx"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        model = onnx.load(str(path))
        node = model.graph.node[0 if damage == "shape" else 2]
        node.name = "the node"
        if damage == "operator":
            node.op_type = "ReduceMost"
            model.graph.node[1].op_type = "Transposed"
        else:
            model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array([0, 7, 5]), "tokens"))
        onnx.save(model, str(path))
    with pytest.raises(ExportError) as error:
        builder(rtx, bundle).build("adapter", [SMALL], threading.Event())
    assert "adapter" in str(error.value)
    if damage == "operator":
        assert f"{path}: {rtx} does not read it: node" in str(error.value)
        assert "node the node (ReduceMost)" in str(error.value)
        assert "(Transposed)" in str(error.value)


@pytest.fixture
def no_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("no_plans")
def test_plans_built_ahead_are_kept_and_found(rtx: Library, toy_bundle_fp16: Path, tmp_path: Path) -> None:
    bundle = open_bundle(toy_bundle_fp16)
    width, height = bundle.frame
    options = ["--batch", "1:1:2", "--size", f"{width}x{height}:{width}x{height}:{2 * width}x{height}"]
    command = ["export", "--bundle", toy_bundle_fp16, "--engine", "tensorrt", "--for", "sm89", *options]
    first = dengine(*command)
    assert first.exit_code == 0, first.output
    files = sorted(plans_folder().iterdir())
    assert [path.name.split("-")[0] for path in files] == sorted(GRAPH_NAMES)
    assert dengine(*command).stdout.count("found") == len(GRAPH_NAMES)
    assert sorted(plans_folder().iterdir()) == files
    store, here = PlanStore(), Machine(RTX.title, rtx.version, "8.9")
    needs = Needs(tuple(painted_graphs(bundle, 2, 4, (2 * width, height), references=True)))
    assert missing_plans(store, bundle, here, needs) is None
    frames = ((width, height), (width, height), (2 * width, height))
    for graph, profiles in wanted_profiles(bundle, (1, 1, 2), frames).items():
        plan = store.holding(plan_key(bundle, graph, here), profiles[0])
        assert plan is not None
        with plan.data() as data:
            assert is_whole(rtx, data)
    # Another version, architecture or flavour: not used, and said.
    for other in (
        Machine(RTX.title, "1.6.0", "8.9"),
        Machine(RTX.title, rtx.version, "12.0"),
        Machine("TensorRT", "11.4.0", "8.9", "Some GPU", "580.1"),
    ):
        line = missing_plans(store, bundle, other, needs)
        assert line is not None
        assert str(here) in line
        assert f"`build_plans(BuildPlansSettings({str(bundle.folder)!r}))`" in line
        assert "\n" not in line


@pytest.mark.usefixtures("no_plans", "rtx")
@pytest.mark.parametrize("how", ["stop", "Ctrl-C"])
def test_a_build_that_is_cancelled_leaves_nothing(toy_bundle_fp16: Path, how: str) -> None:
    told: list[Event] = []

    def report(progress: Event) -> None:
        if how == "Ctrl-C" and not told:
            signal.raise_signal(signal.SIGINT)
        told.append(progress)

    with pytest.raises(KeyboardInterrupt):
        build_plans(
            BuildPlansSettings(toy_bundle_fp16, targets=["sm89"]),
            report=report,
            stop=lambda: how == "stop" and bool(told),
        )
    assert {progress.stage for progress in told} == {f"{GRAPH_NAMES[0]} (sm89)"}
    assert list(plans_folder().iterdir()) == []


@pytest.mark.usefixtures("no_plans", "rtx")
def test_an_error_of_whoever_is_told_ends_the_build_and_nothing_else(toy_bundle_fp16: Path) -> None:
    def report(progress: Event) -> None:
        raise BrokenPipeError("nobody reads")

    told: Report = report
    with pytest.raises(ExportError, match="cannot be written"):  # an OSError of any kind
        build_plans(BuildPlansSettings(toy_bundle_fp16, targets=["sm89"]), report=told)
    assert list(plans_folder().iterdir()) == []
