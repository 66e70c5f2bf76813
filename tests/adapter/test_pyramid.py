"""The pyramid of a frozen UNet."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engines.adapter.pyramid import PyramidUNet, label_pass, pyramid_channels, tap_levels
from engines.diffusion.base_model import load_base

SD2 = {"block_out_channels": (320, 640, 1280, 1280)}


def test_channels_of_stable_diffusion_2_are_those_of_the_paper() -> None:
    assert pyramid_channels(SD2) == (960, 1600, 1920, 3840)


def test_taps_follow_the_place_of_their_block() -> None:
    assert tap_levels(4) == (1, 2, 3, 3, 3, 2, 1, 0, 0)


def _unet(folder: Path) -> Any:
    return load_base(folder).unet


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_levels_halve_and_the_model_output_is_the_unets_own(kind: str, toy_bases: dict[str, Path]) -> None:
    unet = _unet(toy_bases[kind])
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, 16, generator=generator)
    states = torch.randn(2, 5, unet.config.cross_attention_dim, generator=generator)
    timesteps = torch.tensor([1, 500])
    network = PyramidUNet(unet)
    with torch.no_grad():
        output, *levels = network(sample, timesteps, states)
        alone = unet(sample, timesteps, states).sample
    assert torch.equal(output, alone)
    channels = pyramid_channels(unet.config)
    assert len(levels) == network.levels == len(channels)
    for level, (features, width) in enumerate(zip(levels, channels, strict=True)):
        assert features.shape == (2, width, 8 >> level, 16 >> level)


def test_taps_are_the_blocks_outputs_in_the_order_down_mid_up(toy_bases: dict[str, Path]) -> None:
    unet = _unet(toy_bases["sd2"])
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.update({name: output[0] if isinstance(output, tuple) else output})

    unet.down_blocks[1].register_forward_hook(keep("down1"))
    unet.mid_block.register_forward_hook(keep("mid"))
    unet.up_blocks[2].register_forward_hook(keep("up2"))
    with torch.no_grad():
        _, div1, _, div4 = PyramidUNet(unet)(
            torch.ones(1, 4, 8, 8), torch.tensor([1]), torch.ones(1, 3, unet.config.cross_attention_dim)
        )
    assert torch.equal(div1[:, -seen["up2"].shape[1] :], seen["up2"])
    down = seen["down1"].shape[1]
    assert torch.equal(div4[:, :down], seen["down1"])
    assert torch.equal(div4[:, -seen["mid"].shape[1] :], seen["mid"])


def test_nothing_is_hooked_on_the_unet_and_a_call_that_failed_leaves_nothing(toy_bases: dict[str, Path]) -> None:
    unet = _unet(toy_bases["sd1"])
    network = PyramidUNet(unet)
    states = torch.ones(1, 3, unet.config.cross_attention_dim)
    before = network(torch.ones(1, 4, 8, 8), torch.tensor([1]), states)
    hook = unet.up_blocks[0].register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # when some blocks have been tapped
        network(torch.ones(1, 4, 8, 8), torch.tensor([1]), states)
    hook.remove()
    after = network(torch.ones(1, 4, 8, 8), torch.tensor([1]), states)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not any(module._forward_hooks for module in unet.modules())
    assert list(network.state_dict()) == [f"unet.{name}" for name in unet.state_dict()]


def test_what_is_cast_or_hooked_on_the_unet_later_holds_for_the_taps(toy_bases: dict[str, Path]) -> None:
    unet = _unet(toy_bases["sd1"])
    network = PyramidUNet(unet)
    twin = network.twin()
    unet.double()
    unet.down_blocks[0].register_forward_hook(lambda module, inputs, output: (output[0] * 0.0, output[1]))
    inputs = torch.ones(1, 4, 8, 8).double(), torch.tensor([1]), torch.ones(1, 3, 32).double()
    with torch.no_grad():
        output, _, div2 = network(*inputs)
        assert torch.equal(output, unet(*inputs).sample)
        assert all(torch.equal(one, other) for one, other in zip(network(*inputs), twin(*inputs), strict=True))
    assert div2.dtype == torch.float64
    assert not div2[:, : unet.config.block_out_channels[0]].any()
    assert network._taps is not twin._taps


@pytest.mark.slow
def test_torch_compile_takes_the_whole_of_it_and_the_values_are_equal(toy_bases: dict[str, Path]) -> None:
    unet = _unet(toy_bases["sd2"])
    network = PyramidUNet(unet)
    inputs = torch.ones(2, 4, 8, 8), torch.tensor([1, 1]), torch.ones(2, 3, unet.config.cross_attention_dim)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend="eager")
    with torch.no_grad():
        for _ in range(2):
            for found, expected in zip(compiled(*inputs), network(*inputs), strict=True):
                assert torch.equal(found, expected)
    assert torch._dynamo.utils.counters["graph_break"] == {}
    assert network._taps == []


def test_label_pass_is_one_conditional_call_at_its_timestep(toy_bases: dict[str, Path]) -> None:
    unet = _unet(toy_bases["sd1"])
    network = PyramidUNet(unet)
    noisy = torch.full((1, 4, 8, 8), 2.0)
    states = torch.ones(1, 3, unet.config.cross_attention_dim)
    levels = label_pass(network, noisy, states, timestep=1)
    with torch.no_grad():
        _, *expected = network(noisy, torch.tensor([1]), states)
    assert all(torch.allclose(level, other, atol=1e-6) for level, other in zip(levels, expected, strict=True))
    assert not any(level.requires_grad for level in levels)
