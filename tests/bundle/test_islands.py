"""Islands: what stays in float32, what is cast, and that the numbers are those of float32 where half would overflow."""

from pathlib import Path

import pytest
import torch
from refusals import refused
from torch import nn

from engines.backends.modules import VaeDecoder, VaeEncoder, run_module
from engines.bundle.graphs import TOLERANCES
from engines.bundle.islands import apply_islands, outermost, upcast_scores
from engines.diffusion.base_model import load_base
from engines.errors import ModelError


class Block(nn.Module):
    """Two layers; the number between them is beyond float16, what comes out is not."""

    def __init__(self, scale: float = 4000.0) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.eye(8) * scale)
            self.down.weight.copy_(torch.eye(8) / scale)

    def forward(self, x: torch.Tensor, *, offset: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(self.up(x)) + offset
        return y


class Graph(nn.Module):
    """A block between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(4, 8), Block(), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.first(x)
        out = self.block(100 * hidden, offset=hidden)
        return self.last(out), out


def make_graph() -> Graph:
    """A graph whose weights are halves, in float32."""
    torch.manual_seed(0)
    return Graph().half().float().requires_grad_(False)


INPUT = torch.linspace(-2, 2, 12).half().float().reshape(3, 4)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_without_its_island_a_block_overflows_and_with_it_the_numbers_are_those_of_float32() -> None:
    expected = run_module(make_graph(), (INPUT,))
    plain = run_module(apply_islands(make_graph(), ()), (INPUT.half(),))
    assert not plain[1].isfinite().all()
    for islands in (("block",), ("",)):
        found = run_module(apply_islands(make_graph(), islands), (INPUT.half(),))
        assert [tensor.dtype for tensor in found] == [torch.float16, torch.float16]
        assert all(error(x, y) < TOLERANCES["float16"] for x, y in zip(found, expected, strict=True))


def test_only_the_island_keeps_float32_weights() -> None:
    graph = apply_islands(make_graph(), ("block",))
    dtypes = {name: value.dtype for name, value in graph.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {
        "block.up.weight",
        "block.up.bias",
        "block.down.weight",
    }
    assert set(dtypes) == set(dict(make_graph().named_parameters()))


def test_inputs_may_be_float32_too() -> None:
    for islands in ((), ("block",), ("",)):
        graph = apply_islands(make_graph(), islands)
        if islands:
            assert torch.equal(graph(INPUT)[0], graph(INPUT.half())[0])


def test_a_part_of_a_float32_stream_is_cast_before_half_layers() -> None:
    """The VAE's decoder casts to the dtype of its first block, which may be an island while the others are not."""

    class Leaky(Graph):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = self.first(x).to(self.block.up.weight.dtype)
            out = self.block(hidden, offset=hidden) + hidden
            return self.last(out), out

    graph = Leaky().requires_grad_(False)
    assert all(x.dtype == torch.float16 for x in apply_islands(graph, ("block",))(INPUT.half()))


def test_an_island_the_network_does_not_have_is_refused() -> None:
    with refused(ModelError, None, '"block.middle"'):
        apply_islands(make_graph(), ("block", "block.middle", "else.where"))


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("a.b", "a", "c"), ("a", "c")),
        (("a.b", "ab"), ("a.b", "ab")),
        (("a.scores", "a"), ("a",)),
        (("a.b.scores", "a.c"), ("a.b.scores", "a.c")),
        (("a.b", "", "a.scores"), ("",)),
    ],
)
def test_islands_inside_others_are_part_of_them(names: tuple[str, ...], kept: tuple[str, ...]) -> None:
    assert outermost(names) == kept


def attention(upcast: bool) -> nn.Module:
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(1)
    module: nn.Module = Attention(query_dim=16, heads=2, dim_head=8, upcast_attention=upcast)
    with torch.no_grad():
        for name in ("to_q", "to_k"):  # scores of some thousands, from numbers that half holds
            getattr(module, name).weight.mul_(150)
    return nn.Sequential(module).half().float().requires_grad_(False)


def test_attention_scores_in_float32_leave_the_projections_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> torch.Tensor:
        seen.extend(tensor.dtype for tensor in (query, key, value))
        return fused(query, key, value, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    module = attention(upcast=True)
    assert upcast_scores(module) == ("0.scores",)
    assert upcast_scores(attention(upcast=False)) == ()
    found = apply_islands(module, upcast_scores(module))(x.half())
    assert seen == [torch.float32] * 3
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float16}
    assert found.dtype == torch.float16
    seen.clear()
    apply_islands(attention(upcast=False), ())(x.half())
    assert seen == [torch.float16] * 3


def test_the_halves_of_a_vae_are_cast_on_their_own(toy_bases: dict[str, Path]) -> None:
    vae = load_base(toy_bases["sd1"]).vae
    encoder, decoder = VaeEncoder(vae), VaeDecoder(vae)
    apply_islands(decoder, ("",))
    apply_islands(encoder, ())
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}
    assert len(list(encoder.parameters())) + len(list(decoder.parameters())) == len(list(vae.parameters()))
