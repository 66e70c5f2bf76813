"""Pushes to a bucket: files are known again by their hashes or by the manifest, and what is missing is said."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from engines.cluster.store import Store, open_store
from engines.errors import RunError
from engines.push.items import PART, item_of
from engines.push.push import push
from engines.push.settings import PushSettings

pytestmark = pytest.mark.slow


def test_large_files_are_known_again_by_the_hash_that_a_bucket_gives_them(tmp_path: Path, s3: str) -> None:
    """Sent in parts, their ETag is made of the parts' MD5s."""
    for size in (0, 5, PART, PART + 1):
        data = bytes(range(256)) * (size // 256) + b"\1" * (size % 256)
        (tmp_path / "file").write_bytes(data)
        store, item = open_store(f"{s3}/large"), item_of("file", tmp_path / "file")
        store.send("file", tmp_path / "file", PART)
        (there,) = store.objects()
        assert (there.size, (there.tag or "").strip('"')) == (size, item.md5)
        assert item_of("file", data).md5 == item.md5


def test_a_bucket_that_tells_no_hashes_is_believed_by_its_manifest(
    run: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.objects

    def without_tags(self: Store, *args: Any) -> Iterator[Any]:
        yield from (replace(one, tag="opaque") for one in real(self, *args))

    monkeypatch.setattr(Store, "objects", without_tags)
    to = f"{s3}/{tmp_path.name}-opaque"
    first = push(PushSettings(run, to))
    again = push(PushSettings(run, to))
    assert first.sent == first.files
    assert again.sent == 0


def test_a_bucket_that_is_none_is_said(run: Path, s3: str) -> None:
    with refused(RunError, "to", "s3://nowhere/cells"):
        push(PushSettings(run, "s3://nowhere/cells"))


def test_a_missing_extra_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with refused(RunError, "to", "dengine[cluster]"):
        push(PushSettings(run, "s3://bucket/cells"))
