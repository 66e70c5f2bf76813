"""`merge`: shards become the run that was never split, or an error says why they cannot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeBackend, FakeCall, make_bundle, tree
from refusals import refused

from engines.errors import RunError, UsageError
from engines.painting.settings import GenerateSettings
from engines.runs import preview as preview_module
from engines.runs.generate import generate
from engines.runs.journal import JOURNAL
from engines.runs.merge import MergeSettings, merge
from engines.runs.near_duplicates import REPEATS_IMAGE
from engines.runs.run_folder import RUN

Paint = Callable[..., Path]


@pytest.fixture
def paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paint:
    """A run of 13 jobs on the fake backend: paint(name, shard=(k, n))."""
    bundle = make_bundle(tmp_path / "bundle")
    monkeypatch.setattr("engines.bundle.bundle.open_bundle", lambda folder: bundle, raising=False)
    monkeypatch.setattr("engines.backends.registry.open_backend", lambda *_, **__: FakeBackend(), raising=False)
    monkeypatch.setattr(preview_module, "_CELL", 16)

    def run(name: str, **options: Any) -> Path:
        folder = tmp_path / name
        defaults: dict[str, Any] = {"jobs": 13, "chunk": 3, "slots": 2, "formats": ("coco", "yolo")}
        generate(GenerateSettings(out=folder, bundle=tmp_path / "bundle", **defaults | options))
        return folder

    return run


def test_what_one_shard_alone_knows_of_the_classes_is_kept(paint: Paint, tmp_path: Path) -> None:
    shards = [paint(f"shard-{k}", shard=(k, 2)) for k in (1, 2)]
    run = json.loads((shards[0] / RUN).read_text("utf-8"))
    assert run.pop("frequencies") == {"rbc": 9.0}
    (shards[0] / RUN).write_text(json.dumps(run), "utf-8")  # as an earlier dengine left it
    merge(MergeSettings(tuple(shards), tmp_path / "merged"))
    assert json.loads((tmp_path / "merged" / RUN).read_text("utf-8"))["frequencies"] == {"rbc": 9.0}


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "views"), [(1, 1), (3, 1), (3, 2), (6, 1)])
def test_merged_shards_equal_the_unsplit_run_byte_for_byte(
    paint: Paint, tmp_path: Path, parts: int, views: int
) -> None:
    whole = paint("whole", tta=views)
    shards = [paint(f"shard-{k}", shard=(k, parts), tta=views) for k in range(1, parts + 1)]
    before = [tree(shard) for shard in shards]
    summary = merge(MergeSettings(tuple(shards[::-1]), tmp_path / "merged"))
    assert tree(tmp_path / "merged") == tree(whole)
    assert summary.jobs == 13
    assert summary.annotations.exists()
    assert [tree(shard) for shard in shards] == before


def test_merged_shards_are_freed_of_near_duplicates_as_the_unsplit_run_is(
    paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alike(graph: str, call: FakeCall) -> None:
        if graph == "vae_decoder":  # one of three looks, by what the picture is
            for row in call.outputs["pixels"]:
                row[:] = torch.linspace(-1, 1, row.shape[-1]).roll(16 * int(1000 * row[0, 0, 0]) % 48)

    monkeypatch.setattr(
        "engines.backends.registry.open_backend", lambda *_, **__: FakeBackend(after=alike), raising=False
    )
    options: dict[str, Any] = {"near_duplicates": 0.95, "keep_empty": True}
    whole = paint("whole", **options)
    shards = [paint(f"shard-{k}", shard=(k, 3), **options) for k in (1, 2, 3)]
    summary = merge(MergeSettings(tuple(shards), tmp_path / "merged"))
    assert tree(tmp_path / "merged") == tree(whole)
    assert summary.images + summary.dropped[REPEATS_IMAGE] == 13
    assert summary.images < sum(len(list((shard / "images").glob("*.jpg"))) for shard in shards)


def test_what_is_not_all_the_shards_of_one_finished_run_is_refused(paint: Paint, tmp_path: Path) -> None:
    first, second, whole = paint("1", shard=(1, 2)), paint("2", shard=(2, 2)), paint("whole")
    other, third = paint("other", shard=(2, 2), seed=1), paint("third", shard=(2, 3))
    out = tmp_path / "merged"
    for folders, field, said in (
        ([first], "runs", "2/2"),
        ([first, second, tmp_path / "no"], "runs", tmp_path / "no"),
        ([first, whole], "runs", whole),
        ([first, other], "seed", other),
        ([first, third], "shard", third),
    ):
        with refused(RunError, field, said):
            merge(MergeSettings(tuple(folders), out))
    data = (second / JOURNAL).read_bytes()
    (second / JOURNAL).write_bytes(data[:-5])
    with refused(RunError, "runs", second):
        merge(MergeSettings((first, second), out))
    with refused(UsageError, "runs"):
        merge(MergeSettings((), out))
    assert not out.exists()


def test_the_merged_folder_must_be_new(paint: Paint, tmp_path: Path) -> None:
    first, second = paint("1", shard=(1, 2)), paint("2", shard=(2, 2))
    with refused(RunError, "out", first):
        merge(MergeSettings((first, second), first))


def test_a_merge_that_fails_leaves_nothing_and_works_once_mended(paint: Paint, tmp_path: Path) -> None:
    first, second = paint("1", shard=(1, 2)), paint("2", shard=(2, 2))
    image = next(path for path in (second / "images").iterdir() if path.suffix == ".jpg")
    data = image.read_bytes()
    image.unlink()
    with refused(RunError, None, image):
        merge(MergeSettings((first, second), tmp_path / "merged"))
    assert [path for path in tmp_path.iterdir() if "merge" in path.name] == []
    image.write_bytes(data)
    merge(MergeSettings((first, second), tmp_path / "merged"))
    assert tree(tmp_path / "merged") == tree(paint("whole"))


def test_what_an_interrupted_merge_left_is_in_nobodys_way(paint: Paint, tmp_path: Path) -> None:
    shard = paint("1", shard=(1, 1))
    (tmp_path / ".merged.merge" / "images").mkdir(parents=True)
    (tmp_path / ".merged.merge" / "images" / "00000000.jpg").write_bytes(b"half")
    merge(MergeSettings((shard,), tmp_path / "merged"))
    assert tree(tmp_path / "merged") == tree(paint("whole"))
