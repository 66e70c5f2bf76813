"""The networks of a bundle at fixed batches, as `generate` and `label` call them.

Knows: how items are laid into a call of a fixed batch, the text encoder with the embeddings it keeps, and which numbers
are refused. Knows nothing about jobs, slots or files.

B batch, L tokens, D text width.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import torch

from engines.backends.registry import backend_info
from engines.common.streams import Lane, begin_fetch, hand_over, send
from engines.common.tokenizer import cut_remark, read_words, tokenize
from engines.errors import NumericalError

if TYPE_CHECKING:
    from engines.backends.base import Backend, Call, Role
    from engines.bundle.bundle import Bundle

LARGEST_BATCH = 8  # images decoded and labelled in one call, at most
ADVICE = "Take a wider precision (`precision=f32`), or another `engine`."
# Embeddings kept on a GPU, where an encoder of full size takes a share of every image: the prompts of a run repeat.
# On a CPU it is nothing beside the UNet, and none are kept (`benchmarks/results/tried.md`).
_PROMPTS_KEPT = 128
T = TypeVar("T")


class TextEncoder:
    """Prompts to embeddings, one at a time, so that an embedding depends on its prompt alone."""

    def __init__(self, bundle: "Bundle", backend: "Backend", told: Callable[[str], None] = lambda text: None) -> None:
        """Ready the network; the tokenizer, whose libraries take a second to import, loads in a thread meanwhile.

        `told` hears of the first prompt of each kind that is longer than the network reads.
        """
        loader = ThreadPoolExecutor(1, "tokenizer")
        self._tokenizer = loader.submit(bundle.tokenizer)
        loader.shutdown(wait=False)
        self._call = prepare(bundle, backend, "text_encoder", {"B": 1})
        self._lane = Lane(backend.device)
        self._kept: OrderedDict[str, Callable[[], torch.Tensor]] = OrderedDict()
        self._read: dict[str, str] = {}
        self._told, self._said = told, set[str]()
        self._most = _PROMPTS_KEPT if backend.device.type == "cuda" else 0

    def read(self, prompt: str, kind: str = "prompt") -> str:
        """What of a prompt is read: all of it, or its beginning where it has more tokens than the network takes."""
        if (known := self._read.get(prompt)) is not None:
            return known
        tokenizer = self._tokenizer.result()
        read, _ = read_words(tokenizer, prompt)
        if kind not in self._said and (remark := cut_remark(tokenizer, prompt, kind)) is not None:
            self._said.add(kind)
            self._told(remark)
        if len(self._read) >= _PROMPTS_KEPT:
            self._read.clear()
        self._read[prompt] = read
        return read

    def __call__(self, prompt: str) -> torch.Tensor:
        """encoder_hidden_states [L, D] of a prompt, kept for the next time on a GPU."""
        return self.begin(prompt)()

    def begin(self, prompt: str) -> Callable[[], torch.Tensor]:
        """The same, begun: what comes back waits for it. Raises NumericalError there."""
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        tokens = tokenize(self._tokenizer.result(), [prompt])
        with self._lane.after():
            buffer = self._call.inputs["input_ids"]
            buffer.copy_(send(tokens, buffer.device))
            self._call.run()
            states = self._call.outputs["encoder_hidden_states"][0].clone()
            finite = begin_fetch(finite_rows(states[None]))
            hand_over(states)

        def take() -> torch.Tensor:
            check_flags("text_encoder", finite()[0], [f'prompt "{prompt}"'])
            return states

        self._kept[prompt] = take
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return take


def fill(buffer: torch.Tensor, items: Sequence[torch.Tensor]) -> None:
    """Write n <= B items into a call's input [B, ...]; spare rows repeat the last one."""
    spare = buffer.shape[0] - len(items)
    buffer.copy_(send(torch.stack([*items, *[items[-1]] * spare]), buffer.device))


def finite_rows(values: torch.Tensor) -> torch.Tensor:
    """Whether all values of each row of [n, ...] are finite: bool [n], where the values are."""
    return values.isfinite().flatten(1).all(dim=1)


def check_finite(graph: str, values: torch.Tensor, names: Sequence[str]) -> None:
    """Raise NumericalError, naming the graph and the first image whose values [n, ...] are not all finite."""
    check_flags(graph, finite_rows(values), names)


def check_flags(graph: str, finite: torch.Tensor, names: Sequence[str]) -> None:
    """The same, of `finite_rows`."""
    for name, good in zip(names, finite.tolist(), strict=True):
        if not good:
            raise NumericalError(
                f"graph {graph}: the output for {name} is NaN or infinite. {ADVICE}", field="precision"
            )


def prepare(
    bundle: "Bundle",
    backend: "Backend",
    graph: str,
    sizes: Mapping[str, int],
    outputs: Sequence[str] | None = None,
    varies: str | None = None,
    role: "Role | None" = None,
) -> "Call":
    """Ready a graph at these sizes, for the named outputs (all for None); `varies`, `role` as in `Backend.prepare`."""
    return backend.prepare(graph, bundle.specs[graph].input_shapes(sizes), outputs, varies, role)


class Preparing:
    """Makes graphs ready side by side where the engine gains by that, else one by one; a context manager.

    OpenVINO reads a compiled model back, or compiles one, on a single core, and lets other threads go on meanwhile.
    """

    def __init__(self, backend: "Backend", stage: Callable[[str], None]) -> None:
        """`stage` is told what is begun."""
        self._stage = stage
        self._threads = ThreadPoolExecutor(2, "prepare") if backend_info(backend.name).prepares_beside else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def __call__(self, what: str, make: Callable[[], T]) -> Callable[[], T]:
        """Begin to make something ready; what comes back gives it, or raises the error that came of it."""
        self._stage(f"preparing {what}")
        if self._threads is not None:
            return self._threads.submit(make).result
        made = make()
        return lambda: made


@contextlib.contextmanager
def cores_for_graphs(backend: "Backend") -> Iterator[None]:
    """Leave the cores to the runtime while this lasts: PyTorch's operations between the graphs take one thread.

    They are small, but a large one would wake PyTorch's own threads, which then wait for more by spinning, on the cores
    where the runtime is at work again. Where PyTorch runs the graphs itself, nothing changes.
    """
    if backend.name == "torch":
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
