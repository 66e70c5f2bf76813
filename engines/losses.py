"""The parts of a detector's loss, as a training reports them. Knows how transformers names them; computes none."""

from collections.abc import Mapping

from torch import Tensor


def sums_by_kind(parts: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
    """Losses of all layers added up by kind (vfl, bbox, giou); those of denoising queries as one."""
    sums: dict[str, float | Tensor] = {}
    for name, value in parts.items():
        kind = "denoising" if "_dn_" in name else name.removeprefix("loss_").split("_aux")[0]
        sums[kind] = sums.get(kind, 0.0) + value.detach()
    return sums
