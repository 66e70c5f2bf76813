"""What `bench` may be asked to measure, and the report that comes of it.

Knows: the options and the report's parts. Does not know how anything is measured (`bench`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines.backends.base import PRECISIONS
from engines.backends.registry import ENGINES
from engines.common.schema import AnyPath, settle, to_object
from engines.errors import Mistake, refuse
from engines.measure.roofline import SIZES

FORMAT = 1  # of the report
COUNT = 32  # images, unless the user says otherwise
MEASURED = tuple(name for name in ENGINES if name != "auto")  # each is called as the package it needs

Figures = dict[str, Any]


@dataclass(frozen=True)
class BenchSettings:
    """What `bench` is asked to measure. Paths may be text. Raises UsageError that lists every mistake at once.

    >>> BenchSettings("bundles/mine", engines=["torch", "openvino"], count=8).steps
    25
    """

    bundle: AnyPath | None = None  # None: the bundled model
    references: AnyPath | None = None  # images to repaint; None: text to image
    engines: Sequence[str] = ()  # empty: all that are installed
    count: int = COUNT  # images
    size: tuple[int, int] | None = None  # (width, height) in pixels; None: the bundle's frame
    steps: int = 25  # of the schedule
    seed: int = 0
    precision: str = "auto"  # of the engines
    compiled: bool = False  # the engines' networks through torch.compile (torch on CUDA)
    threads: int | None = None  # of engines, baseline and matmul; None: PyTorch's choice
    slots: int | None = None  # images in work at once; None: as `generate` has it
    device: str | None = None  # cpu, cuda or cuda:N; None: what each engine is fastest on
    baseline: bool = True  # measure the diffusers pipeline too
    matmul_sizes: Sequence[int] = SIZES  # sides of the matrices that the machine's rate is measured with

    def __post_init__(self) -> None:
        settle(self)
        mistakes: list[Mistake] = []
        if self.count < 1:
            mistakes.append(("count", f"`count` is {self.count}; 1 or more was expected"))
        if self.precision not in PRECISIONS:
            text = f"`precision` is {self.precision:.60}; one of {', '.join(PRECISIONS)} was expected"
            mistakes.append(("precision", text))
        if unknown := [name for name in self.engines if name not in MEASURED]:
            text = f"`engines` holds {', '.join(unknown):.60}, which is unknown; {', '.join(MEASURED)} are known"
            mistakes.append(("engines", text))
        refuse(mistakes)


@dataclass(frozen=True)
class BenchSummary:
    """What `bench` measured: each field is as `to_json` has it, in JSON's own types.

    >>> BenchSummary({}, {}, {}, engines=[], baseline=[], roofline={}).to_json()["format"]
    1
    """

    machine: Figures  # processor, cores, memory, GPUs
    versions: Figures  # of the packages
    settings: Figures  # as they were resolved, with the workload
    engines: list[Figures]  # of each engine its figures, or its `error`
    baseline: list[Figures]  # the plain diffusers pipeline, by `role`
    roofline: Figures  # the machine's matmul rates, by device
    format: int = FORMAT  # of the report

    def to_json(self) -> Figures:
        """The report as a JSON object."""
        return {"format": self.format} | to_object(self)
