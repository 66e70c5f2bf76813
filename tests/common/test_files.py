"""Atomic writes, JSON that names its file, and paths that stay inside their folder."""

import os
from pathlib import Path

import pytest
from refusals import refused

from engines.common.files import read_json, safe_join, sha256_file, sync_tree, usual_mode, write_atomic, write_json
from engines.errors import BundleError


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail(_: Path, __: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"new")
    assert read_json(path, BundleError) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_sha256_is_the_standard_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize("text", ["{", "[1]", "", '{"a": \xff}'])
def test_malformed_json_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"m\.json"):
        read_json(tmp_path / "m.json", BundleError)


def test_a_missing_json_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="missing"):
        read_json(tmp_path / "m.json", BundleError)


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "C:\\a", "\\a", "a\\..\\..\\b", ""])
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=r"manifest\.files"):
        safe_join(tmp_path, name, BundleError, "manifest.files")


def test_a_link_that_leads_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tmp_path)
    with refused(BundleError, None, '"link/a"'):
        safe_join(tmp_path / "inside", "link/a", BundleError, "m")


def test_a_name_inside_is_joined(tmp_path: Path) -> None:
    assert safe_join(tmp_path, "a/b.txt", BundleError, "m") == tmp_path / "a" / "b.txt"


def test_a_whole_tree_is_flushed_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part").mkdir()
    for name in ("a.json", "part/b.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    flushed: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    sync_tree(tmp_path)
    root = str(tmp_path.resolve())
    assert sorted(flushed) == [root, f"{root}/a.json", f"{root}/part", f"{root}/part/b.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="files have no modes there")
def test_weights_can_be_read_by_whoever_can_read_other_files(tmp_path: Path) -> None:
    """safetensors 0.8 makes files for their owner alone."""
    (tmp_path / "unet").mkdir()
    weights, other = tmp_path / "unet" / "a.safetensors", tmp_path / "config.json"
    for file in (weights, other):
        file.write_bytes(b"{}")
    weights.chmod(0o600)
    usual_mode(tmp_path)
    assert weights.stat().st_mode == other.stat().st_mode
    weights.chmod(0o600)
    usual_mode(weights)
    assert weights.stat().st_mode == other.stat().st_mode
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.safetensors", "config.json", "unet"]
