"""Can TensorRT's ONNX parser read these graphs? A static answer in a second, before a build of minutes.

Knows: the parser's published list of operators (`tensorrt_operators.json`: types, limits, and since which version, each
with its source), and how to walk an ONNX model: functions, subgraphs, opset imports. Does not know TensorRT itself: it
need not be installed, and what it does with a graph that passes is seen only in a build.

The list's types are those of the data an operator works on. So the types that are compared are those of parameters
whose ONNX type may be a float; index and shape inputs, which ONNX itself fixes to integers, are not.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from engines.backends.tensorrt.flavours import CLASSIC
from engines.bundle.graphs import GRAPH_NAMES
from engines.errors import ExportError

LIST = Path(__file__).with_name("tensorrt_operators.json")
_STANDARD = ("", "ai.onnx")  # the two names of ONNX's own domain
_TYPE_NAMES = {"FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "FLOAT8E4M3FN": "FP8", "FLOAT4E2M1": "FP4"}
_FLOATS = {"tensor(float)", "tensor(float16)"}
_NO_DATA = {("Attention", "attn_mask")}  # a mask is what ONNX lets it be, while the list's types are those of Q, K, V
_SHOWN = 3  # findings that an error names


@dataclass(frozen=True)
class Operator:
    """What the list says of one operator."""

    types: frozenset[str]  # FP32, FP16, BF16, FP8, FP4, INT64, INT32, INT8, INT4, UINT8, BOOL
    since: tuple[tuple[int, str], ...]  # (opset in which ONNX defined a version of it, first TensorRT), where known
    limits: Mapping[str, Any]  # outputs (how many), without_inputs, ranks (input -> axes), attributes (name -> value)


@dataclass(frozen=True)
class OperatorList:
    """The parser's list of supported operators."""

    tensorrt: str  # the version it was published with
    opsets: tuple[int, int]  # smallest, largest
    operators: Mapping[str, Operator]


@dataclass(frozen=True)
class Unsupported:
    """Nodes of one graph that the parser would refuse, all for the same reason."""

    graph: str
    operator: str  # with its domain, where that is not ONNX's own
    opset: int  # of the operator's domain; 0 where the model imports none
    node: str  # name of the first one
    count: int  # of nodes
    problem: str  # what is wrong, as the end of a sentence that began with the operator

    def __str__(self) -> str:
        nodes = f'node "{self.node}"' + (f" and {self.count - 1} more" if self.count > 1 else "")
        return f"{self.graph}: {self.operator} at opset {self.opset} ({nodes}) {self.problem}"


@dataclass(frozen=True)
class OperatorCheck:
    """What `inspect_operators` found."""

    unsupported: tuple[Unsupported, ...]
    operators: int  # different ones in the graphs
    needs: str  # the earliest TensorRT that has all of them, as far as the list says; "" where it says nothing
    needed_for: tuple[str, ...]  # the operators that decide it

    def lines(self) -> list[str]:
        """For the user: one line when all is well, else one for each finding."""
        if self.unsupported:
            return [f"TensorRT would not read {found}" for found in self.unsupported]
        later = bool(self.needs) and _numbers(self.needs) > CLASSIC.oldest  # than any TensorRT that dengine runs with
        since = f", from {self.needs} on (for {', '.join(self.needed_for)})" if later else ""
        return [f"TensorRT supports all {self.operators} operators of the graphs{since}"]


@cache
def operator_list() -> OperatorList:
    """The published list that comes with dengine."""
    value = json.loads(LIST.read_text("utf-8"))
    operators = {
        name: Operator(
            types=frozenset(entry["types"]),
            since=tuple(sorted((int(opset), version) for opset, version in entry.get("since", {}).items())),
            limits=entry.get("limits", {}),
        )
        for name, entry in value["operators"].items()
    }
    return OperatorList(value["tensorrt"], (value["smallest_opset"], value["largest_opset"]), operators)


def unsupported_operators(bundle_folder: Path, version: str | None = None) -> list[Unsupported]:
    """What the parser of TensorRT `version` would refuse in a bundle's graphs; None asks for none in particular.

    Raises ExportError for a graph that cannot be read.
    """
    return list(inspect_operators(bundle_folder, version).unsupported)


def check_operators(bundle_folder: Path, version: str | None = None) -> None:
    """Raise ExportError, naming graphs and operators, unless TensorRT's parser supports all of them."""
    found = unsupported_operators(bundle_folder, version)
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        which = f"TensorRT {version}" if version else "TensorRT"
        raise ExportError(
            f"{which} does not read these graphs: {'; '.join(map(str, found[:_SHOWN]))}{more}. "
            f"Export the bundle again with `opset=18`, take a later TensorRT, or another `engine`.",
            field="opset",
        )


def inspect_operators(bundle_folder: Path, version: str | None = None) -> OperatorCheck:
    """Walk all five graphs of a bundle; see `unsupported_operators`."""
    walk = _Walk(version)
    for graph in GRAPH_NAMES:
        walk.model(graph, _load(bundle_folder / f"{graph}.onnx"))
    unsupported = [
        Unsupported(graph, operator, opset, nodes[0], len(nodes), problem)
        for (graph, operator, opset, problem), nodes in walk.found.items()
    ]
    needs = max(walk.since.values(), key=_numbers, default="")
    needed_for = tuple(sorted(name for name, since in walk.since.items() if since == needs))
    return OperatorCheck(tuple(unsupported), len(walk.seen), needs, needed_for)


def _load(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as cause:
        raise ExportError(f"{path} cannot be read as an ONNX graph: {cause}. Export the bundle again.") from cause


@dataclass(frozen=True)
class _Tensor:
    """What is known of a value in a graph; empty and None for what is not."""

    type: str = ""  # as the list spells it
    rank: int | None = None


class _Walk:
    """Goes through models node by node and collects what was found."""

    def __init__(self, version: str | None) -> None:
        self._list = operator_list()
        self._version = version
        self.found: dict[tuple[str, str, int, str], list[str]] = {}  # (graph, operator, opset, problem) -> nodes
        self.seen: set[str] = set()  # operators
        self.since: dict[str, str] = {}  # operator -> TensorRT version, where the list knows it

    def model(self, graph: str, model: Any) -> None:
        """A model whose weights need not be there. Functions are put in their callers' places first."""
        import onnx
        from onnx import inliner, shape_inference

        if model.functions:
            model = inliner.inline_local_functions(model)
        with contextlib.suppress(shape_inference.InferenceError):  # types that the file gives are checked all the same
            model = shape_inference.infer_shapes(model)
        # What is left was not inlined, since it has opsets of its own: its nodes are checked, without their types.
        functions = {(function.domain, function.name): function for function in model.functions}
        called: set[tuple[str, str]] = set()
        pending = [(model.graph.node, _scope(model.graph, {}), _opsets(model))]
        while pending:
            nodes, scope, opsets = pending.pop()
            for node in nodes:
                key = (node.domain, node.op_type)
                if key in functions:
                    if key not in called:
                        called.add(key)
                        pending.append((functions[key].node, {}, _opsets(functions[key])))
                    continue
                self._node(graph, node, scope, opsets)
                for attribute in node.attribute:
                    subgraphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
                    pending += [(subgraph.node, _scope(subgraph, scope), opsets) for subgraph in subgraphs]

    def _node(self, graph: str, node: Any, scope: Mapping[str, _Tensor], opsets: Mapping[str, int]) -> None:
        domain = "" if node.domain in _STANDARD else node.domain
        operator = f"{domain}::{node.op_type}" if domain else node.op_type
        opset = opsets.get(domain, 0)
        self.seen.add(operator)
        for problem in self._problems(node, domain, opset, scope):
            self.found.setdefault((graph, operator, opset, problem), []).append(node.name)

    def _problems(self, node: Any, domain: str, opset: int, scope: Mapping[str, _Tensor]) -> Iterator[str]:
        from onnx import defs

        listed = None if domain else self._list.operators.get(node.op_type)
        if listed is None:
            yield f"is not among the operators that TensorRT {self._list.tensorrt} supports"
            return
        smallest, largest = self._list.opsets
        if not smallest <= opset <= largest:
            yield f"is outside the opsets {smallest} to {largest} that TensorRT {self._list.tensorrt} supports"
            return
        try:
            schema = defs.get_schema(node.op_type, opset, "")
        except defs.SchemaError:
            yield "is no operator of ONNX at that opset"
            return
        since = next((version for first, version in reversed(listed.since) if first <= schema.since_version), None)
        if since is not None:
            self.since[node.op_type] = max(since, self.since.get(node.op_type, since), key=_numbers)
            if self._version is not None and _numbers(self._version) < _numbers(since):
                yield f"needs TensorRT {since} or later"
        yield from _wrong_types(node, schema, listed.types, scope)
        yield from _beyond_limits(node, schema, listed.limits, scope)


def _wrong_types(node: Any, schema: Any, types: frozenset[str], scope: Mapping[str, _Tensor]) -> Iterator[str]:
    """Inputs and outputs that carry data of a type the operator is not supported for; each type once."""
    data = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if _FLOATS & set(constraint.allowed_type_strs)
    }
    wrong: dict[str, str] = {}
    for formals, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for formal, name in _paired(formals, names):
            found = scope.get(name, _Tensor()).type
            carries = formal.type_str in data and (node.op_type, formal.name) not in _NO_DATA
            if carries and found and found not in types:
                wrong.setdefault(found, formal.name)
    for found, parameter in wrong.items():
        yield f"is not supported for {found} ({parameter}), only for {', '.join(sorted(types))}"


def _beyond_limits(node: Any, schema: Any, limits: Mapping[str, Any], scope: Mapping[str, _Tensor]) -> Iterator[str]:
    """What the list's remarks exclude, those of them that are kept as data."""
    import onnx

    most = limits.get("outputs")
    if most is not None and any(node.output[most:]):
        yield f"has more than {most} output in use"
    inputs = {formal.name: name for formal, name in _paired(schema.inputs, node.input)}
    for name in limits.get("without_inputs", ()):
        if inputs.get(name):
            yield f"must not have the input {name}"
    for name, axes in limits.get("ranks", {}).items():
        rank = scope.get(inputs.get(name, ""), _Tensor()).rank
        if rank is not None and rank != axes:
            yield f"has {name} of {rank} axes; {axes} are supported"
    for attribute in node.attribute:
        only = limits.get("attributes", {}).get(attribute.name)
        if only is not None:
            value = onnx.helper.get_attribute_value(attribute)
            value = value.decode() if isinstance(value, bytes) else value
            if value != only:
                yield f"has {attribute.name} {value}; only {only} is supported"


def _paired(formals: Iterable[Any], names: Iterable[str]) -> Iterator[tuple[Any, str]]:
    """Each value a node reads or gives, with its parameter; a variadic one takes all that are left."""
    formals = list(formals)
    for place, name in enumerate(names):
        if name and formals:
            yield formals[min(place, len(formals) - 1)], name


def _scope(graph: Any, outer: Mapping[str, _Tensor]) -> dict[str, _Tensor]:
    """What is known of every value that nodes of `graph` may name."""
    scope = dict(outer)
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if tensor.elem_type:
            scope[value.name] = _Tensor(
                _type_name(tensor.elem_type), len(tensor.shape.dim) if tensor.HasField("shape") else None
            )
    for initializer in graph.initializer:
        scope[initializer.name] = _Tensor(_type_name(initializer.data_type), len(initializer.dims))
    return scope


def _type_name(number: int) -> str:
    import onnx

    name = str(onnx.TensorProto.DataType.Name(number))
    return _TYPE_NAMES.get(name, name)


def _opsets(model: Any) -> dict[str, int]:
    """Domain -> version, of a model or a function."""
    return {"" if entry.domain in _STANDARD else entry.domain: entry.version for entry in model.opset_import}


def _numbers(version: str) -> tuple[int, ...]:
    """ "10.14.1" as (10, 14, 1); what follows a part that is not a number does not count."""
    return tuple(int(part) for part in takewhile(str.isdecimal, version.split(".")))
