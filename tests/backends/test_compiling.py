"""torch.compile, with its own compiler on the CPU: what it made comes back from the cache folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from engines.backends.compiling import compile_network
from engines.common import cache

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler is here"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of ours."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache.cache_folder()


@pytest.fixture
def fresh() -> Iterator[None]:
    """A compiler that knows nothing, and forgets what it learned."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def start(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, int]:
    """Compile in a compiler's cache of its own, as after a restart; how often it found what it needed."""
    from torch._dynamo.utils import counters
    from torch._inductor.utils import fresh_cache

    torch._dynamo.reset()
    counters.clear()
    with fresh_cache(), torch.no_grad():
        compiled = compile_network(module, inputs, "toy", {"bundle": "a"})
        torch.testing.assert_close(compiled(*inputs), module(*inputs))
    return {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}


@pytest.mark.usefixtures("fresh")
def test_what_was_compiled_is_found_again_by_the_next_start(folder: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 8), nn.SiLU()).eval().requires_grad_(False)
    inputs = (torch.ones(2, 8),)
    assert start(module, inputs) == {"hit": 0, "miss": 1}
    (entry,) = folder.glob("*.blob")
    assert start(module, inputs) == {"hit": 1, "miss": 0}
    assert cache.store(entry.stem, b"whole, and nothing that a compiler made")
    assert start(module, inputs)["miss"] == 1


def test_what_was_compiled_is_of_one_network_and_one_shape(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"made", None))
    taken: list[bytes] = []
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", taken.append)
    module = nn.Linear(8, 8)
    for rows, key in ((2, "a"), (3, "a"), (2, "b"), (2, "a")):
        compile_network(module, (torch.ones(rows, 8),), "toy", {"bundle": key})
    assert len(list(folder.glob("*.blob"))) == 3
    assert taken == [b"made"]  # by the last, which is the first once more
    for entry in folder.glob("*.blob"):
        entry.write_bytes(entry.read_bytes()[:-1])  # not whole: it is made again
    compile_network(module, (torch.ones(2, 8),), "toy", {"bundle": "a"})
    assert taken == [b"made"]
