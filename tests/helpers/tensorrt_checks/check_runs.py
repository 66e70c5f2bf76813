"""Runs: the memory, streams and contexts of a plan, and what a failure says."""

from dataclasses import replace

import pytest
import torch
from tensorrt_checks.scene import VERSION, opened, prepared
from tensorrt_stubs_fake import OWN_STREAM, SPECS, FakeStream, FakeTensorRt, PlanBundle

from engines.backends.tensorrt.backend import library_for
from engines.errors import BackendError

pytest_plugins = ["tensorrt_checks.fixtures"]


def test_every_tensor_has_a_shape_and_memory_of_its_own_before_a_plan_runs(
    fake: FakeTensorRt, exported: PlanBundle
) -> None:
    call = prepared(opened(exported, fake.gpu()), "unet", 16, ["model_output"])
    assert list(call.outputs) == ["model_output"]
    assert {name: tensor.dtype for name, tensor in call.inputs.items()} == {
        "sample": torch.float16,
        "timesteps": torch.int64,
        "encoder_hidden_states": torch.float16,
    }
    state = fake.contexts[-1]
    assert state.profile == 0
    assert state.shapes["sample"] == (16, 4, 8, 12)
    assert set(state.addresses) == {x.name for x in (*SPECS["unet"].inputs, *SPECS["unet"].outputs)}
    bound = call.inputs | call.outputs | call.scratch
    assert {name: tensor.data_ptr() for name, tensor in bound.items()} == state.addresses
    call.inputs["sample"].fill_(0.5)
    call.inputs["timesteps"].fill_(1000)
    call.run()
    torch.testing.assert_close(call.outputs["model_output"], torch.full((16, 4, 8, 12), 0.35, dtype=torch.float16))


def test_shapes_of_one_graph_share_an_engine_and_each_has_a_context(fake: FakeTensorRt, exported: PlanBundle) -> None:
    backend, loaded = opened(exported, fake.gpu()), fake.engines_loaded
    calls = [prepared(backend, "unet", 16), prepared(backend, "unet", 8)]
    assert fake.engines_loaded == loaded + 1
    assert [context.profile for context in fake.contexts[-2:]] == [0, 1]
    for batch, call in zip((16, 8), calls, strict=True):
        call.inputs["sample"].fill_(batch / 16)
        call.run()
    assert [float(call.outputs["div1"][0, 0, 0, 0]) for call in calls] == [1.0, 0.5]


def test_a_plan_runs_on_the_current_stream_unless_that_is_the_default_one(
    fake: FakeTensorRt, exported: PlanBundle
) -> None:
    call = prepared(opened(exported, fake.gpu()), "vae_decoder", 8)
    assert call.capturable
    fake.events.clear()
    call.run()
    assert fake.events == [("wait", OWN_STREAM, 0), ("run", OWN_STREAM, "vae_decoder"), ("wait", 0, OWN_STREAM)]
    fake.events.clear()
    fake.current = FakeStream(5, fake.events)  # what torch.cuda.graph captures on
    call.run()
    assert fake.events == [("run", 5, "vae_decoder")]


def test_a_run_that_fails_is_an_error_with_what_tensorrt_said(fake: FakeTensorRt, exported: PlanBundle) -> None:
    call = prepared(opened(exported, fake.gpu()), "vae_decoder", 8)
    fake.runs_fail = True
    library_for(fake.gpu()).log.log(fake.trt.ILogger.ERROR, "an illegal memory access\n was encountered.")
    with pytest.raises(BackendError, match="vae_decoder: an illegal memory access was encountered"):
        call.run()


@pytest.mark.skipif(VERSION != "rtx", reason="TensorRT compiles a plan to the end")
def test_what_is_compiled_at_load_is_kept_and_stays_the_same_while_a_run_goes_on(
    fake: FakeTensorRt, exported: PlanBundle
) -> None:
    call = prepared(opened(exported, fake.gpu()), "vae_decoder", 8)
    assert fake.kept == []
    call.run()
    call.run()
    backend = opened(exported, fake.gpu())
    prepared(backend, "vae_decoder", 8)
    assert fake.kept == [b"compiled here"]
    (last_step,) = backend._last_steps.values()
    strategy = last_step.config.dynamic_shapes_kernel_specialization_strategy
    assert strategy == fake.trt.DynamicShapesKernelSpecializationStrategy.EAGER
    prepared(opened(exported, replace(fake.gpu(), driver="581.0")), "vae_decoder", 8)  # the plan is for it, too
    assert fake.kept == [b"compiled here"]
