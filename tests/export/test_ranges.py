"""Ranges: every place where a number can be too large for half precision is seen, and gets the right island."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from PIL import Image
from refusals import refused
from torch import Tensor, nn

from engines.adapter.model import load_adapter
from engines.backends.modules import graph_modules, run_module
from engines.bundle.graphs import GRAPH_NAMES, TOLERANCES
from engines.bundle.islands import LARGEST, apply_islands
from engines.datasets.dataset import Record
from engines.diffusion.base_model import load_base
from engines.errors import DatasetError, ExportError
from export.ranges import (
    LIMIT,
    OWN_PICTURES,
    PICTURES,
    Measured,
    Ranges,
    choose_islands,
    figures,
    largest,
    measure,
    measure_graphs,
    open_pictures,
)

BIG = 2 * LIMIT


class Scale(nn.Module):
    """x times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Part(nn.Module):
    """Children `a` and `b`, and what is done with them."""

    def __init__(self, how: Callable[["Part", Tensor], Tensor], a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.how, self.a, self.b = how, a, b

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def chain(part: Part, x: Tensor) -> Tensor:
    y: Tensor = part.b(part.a(x))
    return y


def inner_only(part: Part, x: Tensor) -> Tensor:
    """A number beyond the limit that no child reads or gives."""
    y: Tensor = part.b((part.a(x) * BIG) / BIG)
    return y


def stream(part: Part, x: Tensor) -> Tensor:
    """A residual stream that is beyond the limit between the children."""
    y: Tensor = part.b(x * BIG + part.a(x)) / BIG
    return y


ONES = torch.ones(1, 3)


def ranges_of(module: nn.Module) -> Ranges:
    ranges: Ranges = {}
    measure(module, (ONES,), ranges)
    return ranges


def islands_of(module: nn.Module) -> tuple[str, ...]:
    return choose_islands("unet", module, ranges_of(module))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Part(chain, Scale(2.0), Scale(3.0)), ()),
        # What a leaf gives crosses to its sibling: both are in the island, and the block round them is not.
        (Part(chain, Part(chain, Scale(BIG), Scale(1 / BIG)), Scale(1.0)), ("a",)),
        (Part(chain, Part(inner_only, Scale(1.0), Scale(1.0)), Scale(1.0)), ("a",)),
        # Two blocks that hand on a large number: only what is round both can be in float32.
        (Part(chain, Part(chain, Scale(1.0), Scale(BIG)), Part(chain, Scale(1 / BIG), Scale(1.0))), ("",)),
        (Part(chain, Scale(1.0), Part(stream, Scale(1.0), Scale(1.0))), ("b",)),
    ],
    ids=["small", "leaf", "inside", "crossing", "stream"],
)
def test_an_island_is_the_smallest_block_round_the_large_number(module: nn.Module, expected: tuple[str, ...]) -> None:
    assert islands_of(module) == expected


def test_the_limit_keeps_a_factor_of_four() -> None:
    assert LIMIT == LARGEST / 4
    for scale, expected in ((0.99 * LIMIT, ()), (1.01 * LIMIT, ("a",))):
        assert islands_of(Part(chain, Part(chain, Scale(scale), Scale(1 / scale)), Scale(1.0))) == expected


def test_a_graph_that_itself_gives_too_large_a_number_is_refused() -> None:
    with refused(ExportError, "graph_dtype", "unet", f"{BIG:.0f}", "`graph_dtype=float32`"):
        islands_of(Part(chain, Scale(1.0), Scale(BIG)))


def test_masks_and_unused_memory_are_no_magnitudes_and_nan_is_named() -> None:
    def masked(part: Part, x: Tensor) -> Tensor:
        mask = torch.tensor([[0.0, torch.finfo(x.dtype).min, -math.inf]])
        empty = torch.empty(100_000).view(-1)
        empty.fill_(1.0)
        y: Tensor = part.b((part.a(x) + mask).softmax(-1)) + empty[0]
        return y

    assert largest(ranges_of(Part(masked, Scale(1.0), Scale(2.0))))[""] == 3.0
    with refused(ExportError, "weights_dtype", '"b"'):
        ranges_of(Part(chain, Scale(1.0), Scale(math.nan)))


class Attention(nn.Module):
    """Fused attention of one head between its projections, named as diffusers names them."""

    def __init__(self, scale: float, to_q: str = "to_q") -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(3, 3, bias=False) for _ in range(3))
        self.first = to_q
        if to_q != "to_q":
            self.add_module(to_q, self._modules.pop("to_q"))
        for name, factor in ((to_q, scale), ("to_k", scale), ("to_v", 1.0)):
            nn.init.constant_(getattr(self, name).weight, factor / 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.get_submodule(name)(x)[None, None] for name in (self.first, "to_k", "to_v"))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)[0, 0]


def test_scores_of_a_fused_attention_are_seen_and_get_an_island_of_their_own() -> None:
    module = Part(chain, Attention(200.0), Scale(1.0)).requires_grad_(False)
    ranges = ranges_of(module)
    assert ranges["a"].scores == pytest.approx(200 * 200 * 3 / math.sqrt(3), rel=1e-4)
    assert ranges["a"].inside < LIMIT
    assert choose_islands("unet", module, ranges) == ("a.scores",)
    assert next(iter(largest(ranges))) == "a.scores"


def test_an_attention_with_other_names_or_larger_numbers_is_an_island_as_a_whole() -> None:
    assert islands_of(Part(chain, Attention(200.0, "query"), Scale(1.0)).requires_grad_(False)) == ("a",)
    assert islands_of(Part(chain, Attention(BIG), Scale(1.0)).requires_grad_(False)) == ("a",)


def measured(paths: tuple[Path, Path], files: list[Record] | None) -> tuple[dict[str, nn.Module], Measured]:
    base, (adapter, info) = load_base(paths[0]), load_adapter(paths[1])
    modules = graph_modules(base, adapter)
    return modules, measure_graphs(modules, base, info, (48, 32), files, lambda text: None)


def test_a_block_of_a_base_that_overflows_is_found_and_mended_by_its_island(overflowing_toy: tuple[Path, Path]) -> None:
    modules, found = measured(overflowing_toy, None)
    islands = {name: choose_islands(name, modules[name], found.ranges[name]) for name in GRAPH_NAMES}
    assert {name: names for name, names in islands.items() if names} == {"unet": (toy.OVERFLOWING,)}
    assert next(iter(figures(found)["unet"].values())) > LARGEST
    generator = torch.Generator().manual_seed(3)
    inputs = (torch.randn(2, 4, 4, 6, generator=generator), torch.tensor([1, 700]), torch.randn(2, 32, 32))
    expected = run_module(modules["unet"], inputs)
    found_half = run_module(apply_islands(modules["unet"], islands["unet"]), tuple(_half(x) for x in inputs))
    for x, y in zip(found_half, expected, strict=True):
        assert float((x.double() - y.double()).norm() / y.double().norm()) < TOLERANCES["float16"]
    plain = apply_islands(graph_modules(load_base(overflowing_toy[0]), nn.Identity())["unet"], ())
    assert not all(bool(x.isfinite().all()) for x in run_module(plain, tuple(_half(x) for x in inputs)))


def _half(x: Tensor) -> Tensor:
    return x.half() if x.is_floating_point() else x


def test_every_graph_is_measured_on_a_folder_of_images(
    toy_bases: dict[str, Path], toy_adapters: dict[str, Path], tmp_path: Path
) -> None:
    for place in range(11):
        pixels = np.full((40, 60, 3), 20 * place, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{place:02}.png")
    files = open_pictures(tmp_path).records
    assert [record.name for record in files] == [f"{place * 11 // PICTURES:02}.png" for place in range(PICTURES)]
    told: list[str] = []
    base, (adapter, info) = load_base(toy_bases["sd2"]), load_adapter(toy_adapters["sd2"])
    modules = graph_modules(base, adapter)
    found = measure_graphs(modules, base, info, (48, 32), files[:2], told.append)
    assert found.source == f"2 images of {tmp_path.name}"
    assert told == ["measuring ranges on picture 1 of 2", "measuring ranges on picture 2 of 2"]
    assert set(found.ranges) == set(figures(found)) == set(GRAPH_NAMES)
    called = found.ranges["unet"]
    assert called["unet.conv_in"].callers == {"unet"}
    assert called["unet"].callers == {""}
    assert max(block.scores for block in called.values()) > 0
    assert all(0 < block.crossing < LIMIT for block in called.values())
    assert found.ranges["text_encoder"][""].gives > 0
    assert all(choose_islands(name, modules[name], found.ranges[name]) == () for name in GRAPH_NAMES)


def test_without_a_folder_the_summary_says_so_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    assert OWN_PICTURES > 0
    with refused(DatasetError, "ranges", tmp_path):
        open_pictures(tmp_path)
