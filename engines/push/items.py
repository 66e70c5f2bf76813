"""The files that a push is about, each with the hashes that places tell their files by.

Knows: names, sizes, hashes. Knows nothing about what the files mean.
"""

import contextlib
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

PART = 16 << 20  # bytes of the parts that a larger file is sent in


@dataclass(frozen=True, slots=True)
class Item:
    """A file as it is to lie there."""

    name: str  # POSIX path
    source: Path | bytes
    size: int
    sha256: str
    md5: str  # as object stores tell it: of a file in several parts, the MD5 of their MD5s and how many they are

    def git_hash(self) -> str:
        """What git names the content by."""
        data = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def item_of(name: str, source: Path | bytes) -> Item:
    """An item, whose file is read once."""
    whole, parts, size = hashlib.sha256(), list[bytes](), 0
    with contextlib.closing(io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")) as file:
        while block := file.read(PART):
            whole.update(block)
            parts.append(hashlib.md5(block, usedforsecurity=False).digest())
            size += len(block)
    joined = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    md5 = f"{joined}-{len(parts)}" if len(parts) > 1 else parts[0].hex() if parts else joined
    return Item(name, source, size, whole.hexdigest(), md5)
