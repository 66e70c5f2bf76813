"""torch.compile for the torch backend, and where what it compiled is kept.

Knows: how a network is compiled for inputs of fixed shapes, and that the compiler's results go to the user's cache
folder and come back from there, so that a second start on the same machine compiles nothing. Does not know which
networks those are.

What is kept is code for this machine: like a compiled model or a plan, it is read from the user's own cache alone.

Deterministic: the compiler may not choose among kernels by the clock where that changes a number, so that a network
that is compiled again, here or on a machine like it, gives the same bytes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from engines.backends.modules import run_module
from engines.backends.probe import one_line
from engines.common import cache
from engines.common.devices import cpu_name
from engines.errors import BackendError

OPTIONS: Mapping[str, Any] = {"deterministic": True}  # of torch.compile's own backend


def compile_network(module: nn.Module, inputs: tuple[torch.Tensor, ...], graph: str, key: Mapping[str, Any]) -> Any:
    """The module through torch.compile for inputs of these shapes, compiled now; what it gives is not looked at.

    `key` is all that decides the module; with the inputs' shapes, the machine and the versions it names what is kept.
    Raises BackendError with the graph's name.
    """
    entry = _entry(inputs, graph, key)
    known = cache.load(entry)
    if known is not None:
        _take(known)
    compiled: Any = torch.compile(module, fullgraph=True, dynamic=False, options=dict(OPTIONS))
    try:
        run_module(compiled, inputs)
    except Exception as cause:  # the compiler's errors share no base class with its backend's
        raise BackendError(
            f"torch.compile does not compile {graph}: {one_line(cause)}. Take `compiled=False`.", field="compiled"
        ) from cause
    if known is None and (made := torch.compiler.save_cache_artifacts()) is not None:
        cache.store(entry, made[0])
    return compiled


def _take(artifacts: bytes) -> None:
    """Give the compiler what an earlier start kept; what it cannot read, it compiles again."""
    try:
        torch.compiler.load_cache_artifacts(artifacts)
    except Exception:  # whatever a damaged or foreign entry does: it is a cache
        return


def _entry(inputs: tuple[torch.Tensor, ...], graph: str, key: Mapping[str, Any]) -> str:
    device = inputs[0].device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    shapes = [[list(x.shape), str(x.dtype)] for x in inputs]
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    parts = {"compiled": graph, "inputs": shapes, "machine": machine, "options": dict(OPTIONS), **versions, **key}
    return cache.cache_key(parts)
