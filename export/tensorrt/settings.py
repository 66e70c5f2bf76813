"""What `build_plans` may be asked for.

Knows: its options. Knows nothing about TensorRT.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engines.common.schema import AnyPath, settle
from engines.errors import UsageError
from export.tensorrt.profiles import Batches, Frames


@dataclass(frozen=True)
class BuildPlansSettings:
    """What `build_plans` is asked for. Paths may be text. Raises UsageError for a workspace that is none.

    >>> BuildPlansSettings("bundles/mine-fp16", batches=(1, 8, 16)).workspace is None
    True
    """

    bundle: AnyPath  # a bundle whose graphs are in float16
    batches: Batches | None = None  # images in work at once: least, usual, most; see `profiles.wanted_profiles`
    sizes: Frames | None = None  # (width, height) of images: least, usual, largest
    workspace: float | None = None  # most GPU memory for a kernel's intermediate results, in GB; None: no limit
    targets: Sequence[str] | None = None  # GPU architectures to build for without a GPU, such as sm89; None: this GPU

    def __post_init__(self) -> None:
        settle(self)
        check_workspace(self.workspace)


def check_workspace(workspace: float | None) -> None:
    """Raise UsageError unless it is None or a positive number of GB."""
    if workspace is not None and not workspace > 0:
        raise UsageError(f"`workspace` is {workspace:g}; a number of GB above 0 was expected.", field="workspace")
