"""Which plan is used: none of another machine, version or weights, and no damaged one; what is missing is said."""

import json
import sys
from dataclasses import replace
from typing import Any, cast

import pytest
from tensorrt_checks.scene import MODULE, Builder, classic, opened, prepared
from tensorrt_stubs_fake import SPECS, FakeTensorRt, PlanBundle

from engines.backends.tensorrt.plans import PlanStore, plans_folder
from engines.errors import BackendError

pytest_plugins = ["tensorrt_checks.fixtures"]


def test_a_missing_plan_is_an_error_with_the_call_that_builds_it(
    fake: FakeTensorRt, exported: PlanBundle, build: Builder
) -> None:
    backend = opened(exported, fake.gpu())
    with pytest.raises(BackendError) as error:
        backend.prepare("unet", SPECS["unet"].input_shapes({"B": 5, "h": 8, "w": 16}))
    text = str(error.value)
    assert "no TensorRT plan of unet (batch 5, 64x32) for this machine (TensorRT " in text
    sizes = ((64, 32),) * 3
    assert text.endswith(
        f"`build_plans(BuildPlansSettings({str(exported.folder)!r}, batches=(1, 5, 5), sizes={sizes}))`."
    )
    build((1, 5, 5), sizes)  # what it says
    backend.prepare("unet", SPECS["unet"].input_shapes({"B": 5, "h": 8, "w": 16})).run()


@classic
@pytest.mark.parametrize(
    "change",
    [{"name": "Other GPU"}, {"capability": "9.1"}, {"driver": "581.0"}],
    ids=["gpu", "capability", "driver"],
)
def test_a_plan_of_another_machine_is_not_used(
    fake: FakeTensorRt, exported: PlanBundle, change: dict[str, str]
) -> None:
    with pytest.raises(BackendError, match="no TensorRT plan"):
        prepared(opened(exported, replace(fake.gpu(), **cast(Any, change))), "vae_decoder", 8)


@pytest.mark.parametrize("what", ["tensorrt", "weights", "graph"])
def test_a_plan_of_another_version_or_other_weights_is_not_used(
    fake: FakeTensorRt, exported: PlanBundle, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "tensorrt":
        monkeypatch.setattr(sys.modules[MODULE], "__version__", "99.0.0")
    else:
        exported.manifest.files["weights.safetensors" if what == "weights" else "vae_decoder.onnx"] = "1" * 64
    with pytest.raises(BackendError, match="no TensorRT plan"):
        prepared(opened(exported, fake.gpu()), "vae_decoder", 8)


def test_a_damaged_plan_is_not_used_and_is_said_so(fake: FakeTensorRt, exported: PlanBundle, build: Builder) -> None:
    (path,) = plans_folder().glob("vae_decoder-*.plan")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    loaded = fake.engines_loaded
    with pytest.raises(BackendError, match=r"vae_decoder-\w+\.plan is damaged and was not used"):
        prepared(opened(exported, fake.gpu()), "vae_decoder", 8)
    assert fake.engines_loaded == loaded
    build()
    prepared(opened(exported, fake.gpu()), "vae_decoder", 8).run()


def test_a_plan_that_tensorrt_does_not_load_or_that_has_other_tensors_is_refused(
    fake: FakeTensorRt, exported: PlanBundle
) -> None:
    fake.wrong_dtype = "latents"
    with pytest.raises(BackendError, match="latents is not what the graph vae_decoder has"):
        prepared(opened(exported, fake.gpu()), "vae_decoder", 8)
    fake.wrong_dtype = None
    (path,) = plans_folder().glob("vae_decoder-*.plan")
    with path.open("rb") as file:
        header = json.loads(file.readline())
    profiles = [{size: tuple(bounds) for size, bounds in profile.items()} for profile in header["profiles"]]
    PlanStore().write(header["key"], profiles, b"whole, but no plan")
    with pytest.raises(BackendError, match=r"Magic tag does not match\. Remove it and build it again"):
        prepared(opened(exported, fake.gpu()), "vae_decoder", 8)
