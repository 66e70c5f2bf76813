"""The files of a bundle: is each one there, the one that was exported, and unable to do harm?

Knows: which files a bundle has, and what is wrong with a folder that should hold those of a manifest. Does not know
what a manifest says otherwise (`bundle`), or what the graphs compute.

Nothing in a bundle can run code or reach outside its folder: names are relative and without "..", no link leads out,
the external data of every graph lies inside, and weights are safetensors. A file that the manifest does not list is
refused, since a library might load it unasked; hidden files, `*.md` and `LICENSE` are for people, and passed over.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.bundle.graphs import GRAPH_NAMES
from engines.common.files import safe_join, sha256_file
from engines.common.quote import quote, shorten
from engines.errors import BundleError

MANIFEST = "manifest.json"
SUFFIXES = (".json", ".onnx", ".safetensors", ".txt")  # of what a bundle may hold
REQUIRED = (
    *(f"{graph}.onnx" for graph in GRAPH_NAMES),
    "adapter/adapter.json",
    "adapter/adapter.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "vae/config.json",
)

Files = Mapping[str, str]  # POSIX path relative to the folder -> SHA-256, for every file but the manifest


def wrong_files(folder: Path, files: Files, verify: bool) -> Iterator[str]:
    """What is wrong with the files that the manifest lists, or should list."""
    yield from (f"the manifest does not list {name}" for name in REQUIRED if name not in files)
    for name, digest in sorted(files.items()):
        try:
            path = safe_join(folder, name, BundleError, MANIFEST)
        except BundleError as cause:
            yield str(cause).removesuffix(".")
            continue
        if not _for_people(path.name) and path.suffix not in SUFFIXES:
            yield f"{shorten(name)} is none of {', '.join(SUFFIXES)}, and could hold code"
        elif not path.is_file():
            yield f"{shorten(name)} is missing"
        elif verify and sha256_file(path) != digest:
            yield f"{shorten(name)} was changed (its SHA-256 is not the manifest's)"


def unlisted(folder: Path, files: Files) -> Iterator[str]:
    """Files, and folders that are links, which the manifest does not list."""
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in sorted([*names, *links]):
            relative = (here / name).relative_to(folder).as_posix()
            if relative not in files and relative != MANIFEST and not _for_people(name):
                yield f"{shorten(relative)} is not in the manifest"


def _for_people(name: str) -> bool:
    """Whether a file is documentation or hidden, which no library loads."""
    return name.startswith(".") or name.endswith(".md") or name == "LICENSE"


def wrong_external_data(folder: Path, graph: str, files: Files) -> Iterator[str]:
    """What is wrong with where a graph's weights are: they must be in files of the bundle, and whole."""
    import onnx
    from google.protobuf.message import DecodeError

    name = f"{graph}.onnx"
    try:
        model = onnx.load(str(folder / name), load_external_data=False)
    except DecodeError:
        yield f"{name} is not an ONNX graph"
        return
    sizes = {file: (folder / file).stat().st_size for file in files}
    seen: set[str] = set()
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        numbers = [entries.get(key, "0") for key in ("offset", "length")]
        if location not in sizes:
            if location not in seen:
                yield f"{name} reads weights from {quote(location)}, which is not a file of the bundle"
            seen.add(location)
        elif not all(number.isdecimal() for number in numbers) or sum(map(int, numbers)) > sizes[location]:
            yield f"{name}: {quote(tensor.name)} reaches past the end of {shorten(location)}"


def _tensors(model: Any) -> Iterator[Any]:
    """Every TensorProto of a model: initializers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)
