"""The vendor's real Python bindings of TensorRT, without its libraries.

Knows: how to load a version of the bindings against stub libraries made here, and how to make an object of one of its
classes that takes only calls which that class has, with the arguments its documented signature has, of the types it
has. Does not know what such an object should answer: `tensorrt_stubs_fake` does.

`mock.create_autospec` alone sees only names, since compiled methods carry no signature for `inspect`; their
documentation, which the bindings make from the compiled code itself, does.
"""

import ast
import ctypes
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from engines.backends.tensorrt.flavours import RTX, load_library

ROOT = Path(__file__).parents[2]
VERSIONS = ("11", "10", "rtx")  # the folders that `make test` installs into; numbers are in the libraries' names
MODULES = {"rtx": "tensorrt_rtx_bindings"}  # Python package, where it is not what a version before it has
VARIABLE = "DENGINE_TEST_TENSORRT"  # names the folder of the bindings to a child process
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


def bindings_folder(version: str) -> Path:
    """Where `make test` puts a version of the bindings."""
    return ROOT / "build" / "tensorrt" / version


def missing(version: str) -> str | None:
    """Why the bindings cannot be loaded here; None if they can."""
    if not (bindings_folder(version) / MODULES.get(version, "tensorrt_bindings")).is_dir():
        return (
            f"no TensorRT {version} bindings in {bindings_folder(version).relative_to(ROOT)}; `make test` fetches them"
        )
    if shutil.which("gcc") is None:
        return "no gcc to make the stub libraries of the TensorRT bindings with"
    return None


def make_stub_libraries(folder: Path, version: str) -> None:
    """Compile the three libraries that a version of the bindings wants to be linked with; they do nothing."""
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS))
    for library in _LIBRARIES:
        name = f"lib{library}.so.{version}"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)], check=True
        )


def load_bindings(folder: Path, version: str, stubs: Path) -> ModuleType:
    """Import the bindings in `folder` with stub libraries, made in `stubs`; those of TensorRT for RTX with their own.

    One version a process.
    """
    sys.path.insert(0, os.fspath(folder))
    if version == "rtx":
        return load_library(RTX).trt  # type: ignore[no-any-return]
    make_stub_libraries(stubs, version)
    for library in _LIBRARIES:
        ctypes.CDLL(os.fspath(stubs / f"lib{library}.so.{version}"), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_bindings")


class _Specced(mock.NonCallableMock):
    """What `mock.create_autospec` makes of a compiled class, but that a call fails which no answer is prepared for."""

    def _get_child_mock(self, /, **kwargs: Any) -> mock.Mock:
        return mock.Mock(side_effect=AssertionError(f"{kwargs.get('name')} was called, and no answer is prepared"))


def specced(trt: ModuleType, name: str, answers: dict[str, Callable[..., Any]], **attributes: Any) -> Any:
    """An object of the class `trt.<name>` that answers the calls in `answers`, and fails for every other.

    A call, or setting an attribute, that the class does not have fails too, and so do arguments and results that are
    not what its signature says. `attributes` are set on it.
    """
    kind = getattr(trt, name)
    made = _Specced(spec_set=kind)
    for method, answer in answers.items():
        if hasattr(kind, method):
            getattr(made, method).side_effect = _checked(trt, f"{name}.{method}", getattr(kind, method), answer)
    unknown = [method for method in answers if not hasattr(kind, method)]
    assert not unknown, f"{name} of TensorRT {trt.__version__} has no {unknown}"
    for attribute, value in attributes.items():
        setattr(made, attribute, value)
    return made


def constructor(trt: ModuleType, name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """What stands for the class `trt.<name>` where it is called: `make`, for arguments its `__init__` would take."""

    def construct(*args: Any, **kwargs: Any) -> Any:
        kind = getattr(trt, name)
        _match(trt, f"{name}()", kind.__init__, (None, *args), kwargs)
        return make(*args, **kwargs)

    return construct


def _checked(trt: ModuleType, where: str, method: Any, answer: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        signature = _match(trt, where, method, (None, *args), kwargs)
        result = answer(*args, **kwargs)
        expected = signature.return_annotation
        assert result is None or _fits(trt, expected, result), f"the fake's {where} gave {result!r}, not {expected}"
        return result

    return call


def _match(
    trt: ModuleType, where: str, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> inspect.Signature:
    """The overload that takes these arguments (the first is self). Raises TypeError, as the bindings would."""
    overloads = signatures(method.__name__, method.__doc__ or "")
    assert overloads, f"{where} has no signature in its documentation"
    for signature in overloads:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            continue
        values = list(bound.arguments.items())[1:]
        if all(_fits(trt, signature.parameters[name].annotation, value) for name, value in values):
            return signature
    shown = ", ".join([*map(repr, args[1:]), *(f"{name}={value!r}" for name, value in kwargs.items())])
    raise TypeError(f"{where}({shown}) in TensorRT {trt.__version__} fits none of: {'; '.join(map(str, overloads))}")


@cache
def signatures(name: str, documentation: str) -> tuple[inspect.Signature, ...]:
    """The overloads of a compiled method, read from its documentation; annotations are text."""
    found = []
    for match in re.finditer(rf"^(?:\d+\. )?{name}\((self.*)\) -> (.+)$", documentation, re.MULTILINE):
        text = re.sub(r"<[^<>]*>", "...", match[1]).replace("::", ".")
        arguments = ast.parse(f"def f({text}): pass").body[0].args  # type: ignore[attr-defined]
        defaults = [inspect.Parameter.empty] * (len(arguments.args) - len(arguments.defaults)) + [...] * len(
            arguments.defaults
        )
        parameters = [
            inspect.Parameter(
                argument.arg,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=default,
                annotation=ast.unparse(argument.annotation),
            )
            for argument, default in zip(arguments.args, defaults, strict=True)
        ]
        found.append(inspect.Signature(parameters, return_annotation=match[2].strip().replace("::", ".")))
    return tuple(found)


def _fits(trt: ModuleType, annotation: str, value: Any) -> bool:
    """Whether the bindings would take `value` where they say `annotation`."""
    kind = annotation.removeprefix("typing.").removeprefix("typing_extensions.").removeprefix("collections.abc.")
    if kind == "SupportsInt":
        return hasattr(value, "__int__") and not isinstance(value, float)
    if kind == "Buffer" or kind.endswith(".IHostMemory"):  # which documents that it is a buffer
        return _is_buffer(value)
    if kind.startswith(("Sequence[", "list[")):
        return isinstance(value, (list, tuple))
    if kind == "None":
        return value is None
    if kind in ("int", "str", "bool", "tuple", "list"):
        return isinstance(value, {"int": int, "str": str, "bool": bool, "tuple": tuple, "list": list}[kind])
    name = kind.rpartition(".")[2]
    if name == "Dims":  # made of any sequence of whole numbers
        return isinstance(value, (trt.Dims, tuple, list)) and all(isinstance(n, int) for n in value)
    name = {"IParserError": "ParserError"}.get(name, name)
    assert hasattr(trt, name), f"what is {annotation}?"
    return isinstance(value, getattr(trt, name))


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value)
    except TypeError:
        return False
    return True
