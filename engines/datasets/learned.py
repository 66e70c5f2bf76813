"""What a model learned from, small enough to go along with it: a hash, a thumbnail and the size of every image.

Knows: the file of it, both ways. What makes two images nearly one is `duplicates`' matter.

With it, an image that a model is to be measured on can be told from those that it knows. It holds no photographs, but
grey pictures of 24 x 24 pixels: who must not pass these on removes the file before the export. N images.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.common.files import write_atomic
from engines.common.quote import shorten
from engines.datasets.duplicates import SIDE, Thumbnails, pixel_hash, thumbnail
from engines.datasets.records import Record
from engines.errors import DatasetError, ModelError

LEARNED = "learned.safetensors"  # in the folder of a base or an adapter
_HASH = 16  # bytes of an image's `pixel_hash` that are kept


@dataclass(frozen=True, eq=False)
class Learned:
    """N images that a model learned from."""

    hashes: Mapping[bytes, int]  # the first 16 bytes of each `pixel_hash` -> its row
    thumbnails: Thumbnails  # [N, D], to one part in 127 of the largest value
    aspects: npt.NDArray[np.float64]  # [N], width / height

    def without(self, hashes: Set[bytes]) -> "Learned":
        """All of them but these."""
        kept = {one: row for one, row in self.hashes.items() if one not in hashes}
        rows = list(kept.values())
        return Learned(dict(zip(kept, range(len(rows)), strict=True)), self.thumbnails[rows], self.aspects[rows])


def short_hash(digest: str) -> bytes:
    """What is kept of a `pixel_hash`."""
    return bytes.fromhex(digest)[:_HASH]


def write_learned(path: Path, records: Sequence[Record], *, before: Path | None = None) -> None:
    """Write what a model that learned from `records` is known by, and, where there is a file `before`, from what the
    model that it goes on from is known by. An image that cannot be read was never learned from, and is left out: no
    finished training is lost to it. Raises ModelError for another file.
    """
    from safetensors.numpy import save

    hashes = np.zeros((len(records), _HASH), dtype=np.uint8)
    thumbnails = np.zeros((len(records), SIDE * SIDE), dtype=np.int8)
    sizes = np.zeros((len(records), 2), dtype=np.int32)
    row = 0
    for record in records:
        try:
            pixels = record.pixels()
        except DatasetError:
            continue
        hashes[row] = np.frombuffer(short_hash(pixel_hash(pixels)), dtype=np.uint8)
        values = thumbnail(pixels)
        thumbnails[row] = np.rint(values * (127 / max(float(np.abs(values).max()), 1e-12)))
        sizes[row] = pixels.shape[1], pixels.shape[0]
        row += 1
    hashes = hashes[:row]
    found: dict[str, npt.NDArray[Any]] = {"hashes": hashes, "thumbnails": thumbnails[:row], "sizes": sizes[:row]}
    if before is not None and before.exists():
        earlier = _arrays(before)
        new = ~np.isin(_as_one(hashes), _as_one(earlier["hashes"]))
        found = {name: np.concatenate([earlier[name], array[new]]) for name, array in found.items()}
    write_atomic(path, save(found))


def read_learned(path: Path) -> Learned | None:
    """Read what `write_learned` wrote; None where there is no such file. Raises ModelError for any other content."""
    if not path.exists():
        return None
    found = _arrays(path)
    values = found["thumbnails"].astype(np.float32)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    aspects = found["sizes"][:, 0] / np.maximum(found["sizes"][:, 1], 1)
    rows = {one.tobytes(): row for row, one in enumerate(found["hashes"])}
    return Learned(rows, values, np.maximum(aspects, 1e-3))


def _as_one(hashes: npt.NDArray[np.uint8]) -> npt.NDArray[np.void]:
    """[N, 16] bytes as N values."""
    return np.ascontiguousarray(hashes).view(np.dtype((np.void, _HASH)))[:, 0]


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """What `write_learned` wrote, by name. Raises ModelError for any other content."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = load(path.read_bytes())
        hashes, small, sizes = found["hashes"], found["thumbnails"], found["sizes"]
    except (OSError, KeyError, ValueError, SafetensorError) as cause:
        raise ModelError(
            f"{path} cannot be read as fingerprints of images ({shorten(cause, 200)}): remove it."
        ) from cause
    shapes = ((hashes, np.uint8, _HASH), (small, np.int8, SIDE * SIDE), (sizes, np.int32, 2))
    if any(array.dtype != kind or array.shape != (len(hashes), wide) for array, kind, wide in shapes):
        raise ModelError(f"{path} does not hold fingerprints of images as dengine writes them: remove it.")
    return {"hashes": hashes, "thumbnails": small, "sizes": sizes}
