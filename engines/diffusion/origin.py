"""Which hashes a base model goes by, alone and with LoRAs added: by these, adapters know it.

Knows: the names of a base's folder, and where those that it has from elsewhere are written. Knows nothing about
adapters.

A bundle's own folder may stand as a base, and has three names: that of its folder, that of the base its own adapter
was trained on, and, where LoRAs are in its weights, that of this base with them. A base that was copied from a bundle,
for another decoder, keeps them in its notes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.bundle.bundle import open_bundle
from engines.bundle.files import MANIFEST
from engines.common.files import read_json
from engines.common.schema import from_object
from engines.diffusion.base_model import BASE_NOTES, base_hash
from engines.errors import BundleError, ModelError

ORIGIN = "origin"  # key in a base's notes


@dataclass(frozen=True)
class Origin:
    """What a base model's folder is known by."""

    hash: str  # `base_hash` of the folder
    source: str | None = None  # of a bundle's unchanged weights: the hash of the base that its adapter was trained on
    loras: tuple[str, ...] = ()  # of such: the LoRAs in them, as `fuse_loras` names them

    def hashes(self, loras: Sequence[str] = ()) -> tuple[str, ...]:
        """The hashes of this base with further LoRAs (as `fuse_loras` names them) added: the folder's own first."""
        names = [fused_hash(self.hash, loras)]
        if self.source is not None:
            names += [fused_hash(self.source, loras), fused_hash(self.source, (*self.loras, *loras))]
        return tuple(dict.fromkeys(names))


def read_origin(folder: Path) -> Origin:
    """Hash a base model's folder, each of its files once. A bundle that was changed is a base like any other, and so is
    a copy of one. Raises ModelError for notes that cannot be read.
    """
    if (folder / MANIFEST).is_file():
        try:
            manifest = open_bundle(folder).manifest
        except BundleError:
            return Origin(base_hash(folder))
        return Origin(base_hash(folder, manifest.files), manifest.base_hash, manifest.loras)
    own, noted = Origin(base_hash(folder)), _noted(folder)
    return noted if noted is not None and noted.hash == own.hash else own


def fused_in(folder: Path) -> tuple[str, ...]:
    """The LoRAs in the weights of the base in `folder`, as `fuse_loras` names them, where it is a bundle or the copy of
    one; whether it was changed since is not looked at. Raises ModelError for notes that cannot be read.
    """
    if (folder / MANIFEST).is_file():
        try:
            return open_bundle(folder, verify=False).manifest.loras
        except BundleError:
            return ()  # a base like any other
    noted = _noted(folder)
    return () if noted is None else noted.loras


def _noted(folder: Path) -> Origin | None:
    """What a base's notes say that it goes by. Raises ModelError."""
    path = folder / BASE_NOTES
    notes = read_json(path, ModelError) if path.is_file() else {}
    if not isinstance(notes.get(ORIGIN), dict):
        return None
    return from_object(Origin, notes[ORIGIN], ModelError, f"{path}, {ORIGIN}")


def fused_hash(base_hash: str, names: Sequence[str]) -> str:
    """The hash that names a base with LoRAs fused into it, from the base's own and what `fuse_loras` returned.

    Files' names do not count, their order does not, their contents and scales do. Without LoRAs, the base's own.
    """
    if not names:
        return base_hash
    parts = sorted(f"{content_of(name)}:{name.rpartition(' ')[0].rpartition(':')[2]}" for name in names)
    return hashlib.sha256("\n".join([base_hash, *parts]).encode()).hexdigest()


def content_of(name: str) -> str:
    """The hash in a LoRA's name."""
    return name.rpartition(" ")[2]
