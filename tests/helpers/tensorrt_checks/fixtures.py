"""The real bindings of one version for the code under test, on a GPU that is none, with a fake bundle to build."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeBackend
from tensorrt_checks.scene import FOLDER, MODULE, VERSION, Builder
from tensorrt_stubs import load_bindings
from tensorrt_stubs_fake import FakeTensorRt, PlanBundle

from engines.backends.tensorrt.flavours import load_library
from engines.backends.tensorrt.plans import plans_folder
from engines.diffusion.capture import Recorded
from export.tensorrt import build as to_tensorrt
from export.tensorrt import check_plans
from export.tensorrt.build import BuildPlansSummary, build_here
from export.tensorrt.profiles import Batches, Frames
from export.tensorrt.settings import BuildPlansSettings


@pytest.fixture(scope="session")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real bindings, over stub libraries."""
    return load_bindings(FOLDER, VERSION, tmp_path_factory.mktemp("stubs"))


@pytest.fixture
def fake(bindings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRt]:
    """TensorRT for the code under test, on a GPU that is none."""
    yield install_fake(bindings, monkeypatch)
    load_library.cache_clear()


def install_fake(bindings: Any, patch: pytest.MonkeyPatch) -> FakeTensorRt:
    fake = FakeTensorRt(bindings)
    patch.setitem(sys.modules, MODULE, fake.module())
    patch.setattr("engines.backends.tensorrt.backend.find_gpu", lambda device=None: fake.gpu())
    load_library.cache_clear()
    return fake


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlanBundle:
    """A bundle in half precision, an empty cache folder, and "PyTorch" to compare plans with."""
    return install_bundle(tmp_path, monkeypatch)


def install_bundle(folder: Path, patch: pytest.MonkeyPatch) -> PlanBundle:
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    bundle = PlanBundle(folder / "bundle")
    patch.setattr("engines.bundle.bundle.open_bundle", lambda folder: bundle)
    patch.setattr(to_tensorrt, "open_bundle", lambda folder: bundle)
    patch.setattr(to_tensorrt, "check_operators", lambda folder, version: None)
    patch.setattr(check_plans, "open_backend", lambda *_, **__: FakeBackend())
    begin: Any = Recorded.__init__
    # A CUDA graph of a CPU's work is that work.
    patch.setattr(Recorded, "__init__", lambda self, *given: begin(self, *given[:3], lambda step, device: step))
    return bundle


@pytest.fixture
def build(fake: FakeTensorRt, bundle: PlanBundle) -> Builder:
    """`build_plans` for the fake bundle."""

    def run(batches: Batches | None = None, sizes: Frames | None = None, **options: Any) -> BuildPlansSummary:
        workspace = options.pop("workspace", None)
        settings = BuildPlansSettings(bundle.folder, batches=batches, sizes=sizes, workspace=workspace)
        return build_here(settings, gpu=fake.gpu(), **options)

    return run


@pytest.fixture(scope="session")
def default_plans(bindings: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the plans that a plain export builds."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        fake, bundle = install_fake(bindings, patch), install_bundle(folder, patch)
        build_here(BuildPlansSettings(bundle.folder), gpu=fake.gpu())
        load_library.cache_clear()
        return plans_folder()


@pytest.fixture
def exported(bundle: PlanBundle, default_plans: Path) -> PlanBundle:
    """The fake bundle after a plain export: its plans are in the cache folder."""
    shutil.copytree(default_plans, plans_folder())
    return bundle
