"""What `export` may be asked for.

Knows: its options and which of them contradict each other. Knows nothing about models or graphs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.backends.registry import ENGINES
from engines.bundle.bundle import GRAPH_DTYPES, WEIGHTS_DTYPES
from engines.common.quote import quote
from engines.common.schema import AnyPath, settle
from engines.errors import Mistake, refuse
from export.to_onnx import OPSETS


@dataclass(frozen=True)
class ExportSettings:
    """What `export` is asked for. Paths may be text. Raises UsageError that lists every mistake at once.

    >>> ExportSettings("bases/mine", "adapters/mine", "bundles/mine", frame=(320, 256)).graph_dtype
    'float32'
    """

    base: str | AnyPath  # a diffusers folder, a .safetensors file, a bundle's folder, or a name on the hub
    adapter: AnyPath  # an adapter's folder, trained on that base
    out: AnyPath  # the bundle's folder: new, or empty. It appears when every check has passed, and not before
    loras: Sequence[tuple[AnyPath, float]] = ()  # LoRA files and their scales, added to the base's weights first
    prediction_type: str | None = None  # of a single-file SD 2.x checkpoint: epsilon or v_prediction
    vae: AnyPath | None = None  # VAE of a checkpoint that has none: a diffusers folder, or a .safetensors file
    frame: tuple[int, int] | None = None  # usual (width, height) of painted images in pixels; None: the adapter's
    weights_dtype: str = "float16"  # how weights are stored: one of WEIGHTS_DTYPES
    graph_dtype: str = "float32"  # what graphs compute in; float16 has islands of float32 where it would overflow
    opset: int = OPSETS["default"]  # of the graphs, one of the values of OPSETS
    ranges: AnyPath | None = None  # images to measure on where float16 would overflow; None: the checks' own inputs
    generate: Mapping[str, Any] = field(default_factory=dict)  # this bundle's defaults of `generate`, by setting
    engines: Sequence[str] | None = None  # what to check on; None: all that are installed
    int8: bool = False  # measure how large the numbers get, so that it can run in int8; for float32 graphs
    threads: int | None = None  # CPU threads of the checks; None: each runtime's own choice

    def __post_init__(self) -> None:
        settle(self)
        refuse(self._mistakes())

    def _mistakes(self) -> list[Mistake]:
        opsets = " or ".join(f"{number} ({what})" for what, number in OPSETS.items())
        checks = (
            ("weights_dtype", self.weights_dtype in WEIGHTS_DTYPES,
             f"`weights_dtype` is {self.weights_dtype:.60}; one of {', '.join(WEIGHTS_DTYPES)} was expected"),
            ("graph_dtype", self.graph_dtype in GRAPH_DTYPES,
             f"`graph_dtype` is {self.graph_dtype:.60}; one of {', '.join(GRAPH_DTYPES)} was expected"),
            ("weights_dtype", self.graph_dtype != "float16" or self.weights_dtype == "float16",
             f"float16 graphs read their weights as they are stored, and {self.weights_dtype:.60} was asked for: use "
             "`weights_dtype=float16`, or `graph_dtype=float32`"),
            ("opset", self.opset in OPSETS.values(),
             f"opset {self.opset} is not one that was checked; {opsets} was expected"),
            ("int8", not self.int8 or self.graph_dtype == "float32",
             "`int8` is for CPUs and float32 graphs: leave it or `graph_dtype=float16` out"),
            ("ranges", self.ranges is None or self.graph_dtype != "float32",
             "`ranges` measures for float16 graphs: add `graph_dtype=float16`, or leave it out"),
            ("threads", self.threads is None or 1 <= self.threads <= 1024,
             f"`threads` is {quote(self.threads)}; a whole number from 1 to 1024 was expected"),
            *(("engines", name in ENGINES[1:], f"`engines` holds {name:.60}; {', '.join(ENGINES[1:])} are known")
              for name in self.engines or ()),
        )  # fmt: skip
        return [(name, text) for name, fits, text in checks if not fits]
