"""Builds: what the real TensorRT for RTX does not show of them (`test_real_builds`); a call that is none fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorrt_checks.scene import VERSION, Builder, classic
from tensorrt_stubs_fake import SPECS, FakeTensorRt, PlanBundle

from engines.backends import base
from engines.backends.tensorrt.plans import plans_folder
from engines.errors import ExportError

pytest_plugins = ["tensorrt_checks.fixtures"]


def test_a_call_that_this_version_does_not_have_fails(fake: FakeTensorRt) -> None:
    trt: Any = fake.module()
    builder: Any = trt.Builder(trt.Logger())
    config = builder.create_builder_config()
    wrong_calls: tuple[Callable[[], Any], ...] = (
        lambda: builder.create_network("flags"),
        lambda: builder.create_network(1, 2),
        lambda: builder.create_network(flag=1),
        lambda: builder.build_serialized_network(config, config),
        lambda: config.set_flag(trt.MemoryPoolType.WORKSPACE),
        lambda: trt.OnnxParser(trt.Logger()),
    )
    for wrong in wrong_calls:
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AttributeError):
        builder.build_cuda_engine()
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1
    with pytest.raises(AssertionError, match="no answer"):
        builder.reset()


def test_attention_may_be_taken_apart_in_every_version(bindings: Any) -> None:
    assert hasattr(bindings.LayerType, "ATTENTION_INPUT")
    assert hasattr(bindings.IAttentionInputLayer, "attention")
    assert hasattr(bindings.IAttention, "decomposable")


def test_networks_are_strongly_typed_and_no_flag_is_set(fake: FakeTensorRt, build: Builder, bundle: PlanBundle) -> None:
    build()
    flags = fake.trt.BuilderFlag
    assert [each.graph for each in fake.builds] == list(SPECS)
    for each in fake.builds:
        assert each.network_flags == 1 << int(fake.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert each.path == str(bundle.folder / f"{each.graph}.onnx")  # beside its weights
        assert each.set_flags == []
        assert {flags.REFIT, flags.WEIGHT_STREAMING} <= set(each.cleared_flags)
        assert (flags.TF32 in each.cleared_flags) == (each.graph in base.ALWAYS_F32)
        assert each.targets == (["SM89"] if VERSION == "rtx" else [])
    assert len(fake.loggers) == 1  # TensorRT keeps the first logger of a process


@classic
def test_what_was_measured_is_kept_for_the_next_build(fake: FakeTensorRt, build: Builder) -> None:
    build()
    assert fake.builds[0].timing_given == [b""]
    assert fake.builds[1].timing_given == [f"timings of {fake.builds[0].graph}".encode()]
    fake.takes_timings = False  # measured on another GPU
    build((2, 2, 2))
    assert fake.builds[-1].timing_given[0].startswith(b"timings of ")
    assert fake.builds[-1].timing_given[-1] == b""


def test_every_plan_is_compared_with_pytorch(build: Builder) -> None:
    summary = build()
    assert [plan.graph for plan in summary.plans] == list(SPECS)
    assert all(0 < (plan.error or 0) < 5e-3 for plan in summary.plans)
    assert summary.boxes > 0
    assert summary.boxes_missing <= 0.05 * summary.boxes


def _nan(graph: str, outputs: dict[str, torch.Tensor]) -> None:
    if graph == "unet":
        outputs["div2"][0, 0, 0, 0] = torch.nan


def _black(graph: str, outputs: dict[str, torch.Tensor]) -> None:
    if graph == "vae_decoder":
        outputs["pixels"].fill_(-1.0)


def _off(graph: str, outputs: dict[str, torch.Tensor]) -> None:
    if graph == "vae_encoder":
        outputs["latents"] *= 1.02


@pytest.mark.parametrize(
    ("spoil", "graph", "message"),
    [
        (_nan, "unet", "unet: its plan gives div2 with NaN or infinite values"),
        (_black, "vae_decoder", "vae_decoder: its plan paints black"),
        (_off, "vae_encoder", r"vae_encoder on tensorrt: latents differs from PyTorch by 2\.0e-02"),
    ],
)
def test_a_plan_that_is_wrong_is_removed_and_the_others_stay(
    fake: FakeTensorRt, build: Builder, spoil: Any, graph: str, message: str
) -> None:
    fake.spoil = spoil
    with pytest.raises(ExportError, match=rf"{message}.*The plan of {graph} was removed\."):
        build()
    assert [path.name.split("-")[0] for path in plan_files()] == sorted(set(SPECS) - {graph})
    with pytest.raises(ExportError, match="was removed"):
        build()
    assert sum(each.graph == graph for each in fake.builds) == 2  # built again, the others not
    assert len(fake.builds) == len(SPECS) + 1


def plan_files() -> list[Path]:
    """What is in the plans' folder, finished or not."""
    return sorted(plans_folder().rglob("*")) if plans_folder().exists() else []
