"""A network with some of its parts exchanged for others, beside the network itself.

Knows: PyTorch's modules as a tree of names. Does not know what any of them computes.
"""

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def exchanged(network: Module, parts: Mapping[str, nn.Module]) -> Module:
    """A shallow copy of `network` in which the modules of these names are others.

    Weights, hooks and all other modules are the very ones of `network`, which stays as it is: what is cast, moved or
    hooked there is so here. Only the modules on the way to a named one are copies. A part may hold the module whose
    place it takes.
    """
    twin = copy.copy(network)
    children = dict(network._modules)
    inner: dict[str, dict[str, nn.Module]] = {}
    for name, part in parts.items():
        first, _, rest = name.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = part
        else:
            children[first] = part
    for first, below in inner.items():
        child = children[first]
        assert child is not None, first
        children[first] = exchanged(child, below)
    twin._modules = children
    return twin
