"""Half precision, with islands of float32 where a network needs it.

Knows: how to cast a graph's module to float16 and keep named parts of it in float32, with casts round them, so that
PyTorch computes, and an export writes, exactly that mixture. Does not know which parts need it: `export.ranges`
measures that, and the manifest of a bundle keeps it.

An island is named as `named_modules` names it; "" is the whole graph, whose inputs and outputs are float16 all the
same. A name that ends in ".scores" keeps only an attention's product of queries and keys, its softmax and the product
with the values in float32, and its projections, where nearly all the arithmetic is, in half: that is what
`upcast_attention` in a configuration asks for, and what diffusers' default processor would pass over.

Casts are hooks, so that attributes, names and weights of the modules stay as they were.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from engines.errors import ModelError

LARGEST = 65504.0  # of float16
SCORES = ".scores"  # ends the name of an attention of which only the scores are in float32
PROJECTIONS = ("to_q", "to_k", "to_v")  # of such an attention, as diffusers names them


def apply_islands(module: nn.Module, names: Sequence[str]) -> nn.Module:
    """Cast a graph's module to half, in place, but for its islands.

    Args:
        module: of a graph, in float32; it takes tensors and gives a tensor or a tuple of them.
        names: the islands; one inside another is part of it.

    Returns:
        `module`. It takes float inputs of either dtype; its float outputs are float16.

    Raises ModelError for a name that the module does not have.
    """
    parts = dict(module.named_modules())
    islands = outermost(names)
    if unknown := [name for name in names if name.removesuffix(SCORES) not in parts]:
        raise ModelError(f'The network has no part "{unknown[0]}" to keep in float32; export the bundle again.')
    blocks = [name for name in islands if not name.endswith(SCORES)]
    module.half()
    for name in blocks:
        parts[name].float()
    for part in parts.values() if islands else ():
        if _own_dtype(part) is not None:
            part.register_forward_pre_hook(_to_own_dtype, with_kwargs=True)
    for name in blocks:
        parts[name].register_forward_pre_hook(_to_float, with_kwargs=True)
        parts[name].register_forward_hook(_outputs_to_half)
    for name in islands:
        if name.endswith(SCORES):
            for projection in PROJECTIONS:
                part = parts[name.removesuffix(SCORES)].get_submodule(projection)
                part.register_forward_hook(_outputs_to_float)
    module.register_forward_hook(_outputs_to_half)
    return module


def outermost(names: Iterable[str]) -> tuple[str, ...]:
    """The islands that lie in no other, sorted; an attention's scores lie in the attention."""
    found = set(names)
    blocks = {name for name in found if not name.endswith(SCORES)}

    def covered(name: str) -> bool:
        part = name.removesuffix(SCORES)
        return any(other != name and _within(part, other) for other in blocks)

    return tuple(sorted(name for name in found if not covered(name)))


def upcast_scores(module: nn.Module) -> tuple[str, ...]:
    """The islands that the configuration of a module's attentions asks for, whatever was measured."""
    return tuple(
        name + SCORES
        for name, part in module.named_modules()
        if has_projections(part) and getattr(part, "upcast_attention", False)
    )


def has_projections(part: nn.Module) -> bool:
    """Whether an attention's scores can be an island of their own: its projections have the names we know."""
    return all(isinstance(getattr(part, name, None), nn.Module) for name in PROJECTIONS)


def _within(part: str, other: str) -> bool:
    """Whether a part is another, or lies in it."""
    return other in ("", part) or part.startswith(f"{other}.")


def _own_dtype(part: nn.Module) -> torch.dtype | None:
    """The dtype of the floats that a module holds itself; None where it holds none."""
    tensors = (*part.parameters(recurse=False), *part.buffers(recurse=False))
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """The same structure, with its float tensors in `dtype`."""
    return tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, values)


def _to_own_dtype(part: nn.Module, args: Any, kwargs: Any) -> Any:
    dtype = _own_dtype(part)
    assert dtype is not None
    return _cast(args, dtype), _cast(kwargs, dtype)


def _to_float(part: nn.Module, args: Any, kwargs: Any) -> Any:
    return _cast(args, torch.float32), _cast(kwargs, torch.float32)


def _outputs_to_float(part: nn.Module, args: Any, output: Any) -> Any:
    return _cast(output, torch.float32)


def _outputs_to_half(part: nn.Module, args: Any, output: Any) -> Any:
    return _cast(output, torch.float16)
