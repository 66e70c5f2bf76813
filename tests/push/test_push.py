"""A finished run is pushed whole, a second time at no cost, and never half: to a folder, a bucket, the hub."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import obstore
import pytest
import yaml
from command_line import assert_fails, dengine, next_command
from fakes import tree
from hub_server import READ_ONLY, HubServer, hub
from huggingface_hub import HfApi
from made_runs import run_settings
from many_machines import cluster_settings, one_machine
from object_server import bucket
from refusals import refused

from engines.cluster.store import Store, open_store
from engines.errors import RunError, UsageError
from engines.push.card import card_of
from engines.push.dataset import Dataset
from engines.push.items import PART, item_of
from engines.push.push import push
from engines.push.settings import PushSettings
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.run_folder import locked

pytestmark = pytest.mark.slow
FORMATS = ("coco", "yolo", "imagefolder")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 images, with a report. Read only: copy before changing."""
    folder = one_machine(tmp_path_factory.mktemp("runs") / "run", cluster_settings())
    finalize(FinalizeSettings(folder, formats=FORMATS))
    (folder / "report.html").write_text("<p>report</p>", "utf-8")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with bucket("pushed") as address:
        yield address


@pytest.fixture(params=["folder", "bucket", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Callable[[], dict[str, bytes]]]]:
    """An address, and what lies there."""
    if request.param == "folder":
        yield str(tmp_path / "there"), lambda: tree(tmp_path / "there")
    elif request.param == "bucket":
        address = f"{request.getfixturevalue('s3')}/{tmp_path.name}"
        yield address, lambda: objects(open_store(address))
    else:
        with hub(tmp_path / "cache") as server:
            yield "hub:owner/cells", lambda: without_attributes(server)


def objects(store: Store) -> dict[str, bytes]:
    return {name: store.get(name) or b"" for name in store.names("")}


def without_attributes(server: HubServer) -> dict[str, bytes]:
    files = server.repositories.get("owner/cells", {})
    return {name: data for name, data in files.items() if name != ".gitattributes"}


def expected(run: Path) -> set[str]:
    return {name for name in tree(run) if not name.startswith(".dengine/") and name != "review.jsonl"} | {"push.json"}


def head_of(card: bytes) -> dict[str, Any]:
    return dict(yaml.safe_load(card.decode().split("---\n")[1]))


def test_what_is_pushed_is_the_dataset_with_a_card_and_a_second_push_sends_nothing(
    run: Path, place: tuple[str, Callable[[], dict[str, bytes]]]
) -> None:
    to, there = place
    before = tree(run)
    dry = push(PushSettings(run, to, licence="CC-BY-4.0", dry_run=True))
    assert there() == {}
    first = push(PushSettings(run, to, licence="CC-BY-4.0"))
    files = there()
    assert (first.images, first.sent, first.files) == (20, len(files), len(files))
    assert (dry.sent, dry.sent_bytes) == (first.sent, first.sent_bytes) == (len(files), sum(map(len, files.values())))
    assert set(files) == expected(run)
    own = tree(run)
    assert {name: data for name, data in own.items() if name != ".dengine/lock"} == {
        name: data for name, data in before.items() if name != ".dengine/lock"
    }
    changed = {"README.md", "run.json", "push.json"}
    assert all(files[name] == own[name] for name in set(files) - changed)
    listed = json.loads(files["push.json"])["files"]
    assert {name: one["sha256"] for name, one in listed.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != "push.json"
    }
    assert head_of(files["README.md"])["license"] == "cc-by-4.0"

    second = push(PushSettings(run, to, licence="CC-BY-4.0"))
    assert (second.sent, second.removed) == (0, 0)
    assert there() == files


def test_after_a_finalize_what_differs_is_sent_and_what_left_the_dataset_is_removed(
    run: Path, place: tuple[str, Callable[[], dict[str, bytes]]]
) -> None:
    to, there = place
    push(PushSettings(run, to))
    before = there()
    fewer = finalize(FinalizeSettings(run, score={"b": 0.95}, formats=["coco", "imagefolder"])).images
    assert 0 < fewer < 20
    again = push(PushSettings(run, to))
    after = there()
    gone = set(before) - set(after)
    assert again.removed == len(gone)
    away = {f"images/{image.name}" for image in (run / ".dengine" / "spare").iterdir()}
    assert {name for name in gone if name.endswith(".jpg")} == away & set(before)
    assert not [name for name in after if name.startswith("labels/") or name == "data.yaml"]
    assert set(after) == expected(run)
    assert again.sent == len([name for name, data in after.items() if data != before.get(name)])


def test_a_push_that_ended_early_goes_on_and_has_no_labels_meanwhile(
    run: Path, place: tuple[str, Callable[[], dict[str, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    to, there = place
    if to.startswith("hub:"):
        monkeypatch.setattr("engines.push.hub._COMMIT", 8)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", failing_after(15, shutil.copyfile))
        patch.setattr(obstore, "put", failing_after(15, obstore.put))
        patch.setattr(HfApi, "create_commit", failing_after(2, HfApi.create_commit))
        with refused(RunError, "to"):
            push(PushSettings(run, to))
    half = there()
    assert 8 < len(half) < len(expected(run))
    assert not {"annotations.json", "push.json"} & set(half)
    rest = push(PushSettings(run, to))
    assert set(there()) == expected(run)
    assert rest.sent == len(expected(run)) - len([name for name in half if not name.startswith(".push.tmp/")])


def failing_after(calls: int, real: Callable[..., Any]) -> Callable[..., Any]:
    left = calls

    def call(*args: Any, **keywords: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(5, "the line is gone")
        return real(*args, **keywords)

    return call


def test_datasets_reads_the_pushed_folder(run: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    push(PushSettings(run, str(tmp_path / "there")))
    loaded = datasets.load_dataset(str(tmp_path / "there"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 20
    names = loaded.features["objects"]["category"].feature.names
    assert names == ["a", "b"]
    boxes = json.loads((run / "annotations.json").read_text("utf-8"))["annotations"]
    assert sum(len(row["objects"]["bbox"]) for row in loaded) == len(boxes)


def test_another_dataset_and_foreign_files_are_not_touched(
    run: Path, tmp_path: Path, place: tuple[str, Callable[[], dict[str, bytes]]]
) -> None:
    to, there = place
    push(PushSettings(run, to))
    files = there()
    other = one_machine(tmp_path / "other", cluster_settings(seed=8))
    finalize(FinalizeSettings(other))
    with refused(RunError, "to", "seed"):
        push(PushSettings(other, to))
    assert there() == files


def test_what_is_no_dataset_is_not_touched(run: Path, tmp_path: Path, s3: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.tex").write_text("years of work", "utf-8")
    store = open_store(f"{s3}/theses")
    store.put("thesis.tex", b"years of work")
    for to in (str(tmp_path / "there"), f"{s3}/theses"):
        with refused(RunError, "to", "thesis.tex"):
            push(PushSettings(run, to))
    assert list(tree(tmp_path / "there")) == list(objects(store)) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("harm", "holds"),
    [
        (lambda run: (run / "images" / "00000099.jpg").write_bytes(b"jpeg"), "00000099.jpg"),
        (lambda run: next((run / "images").glob("*.jpg")).write_bytes(b"jpeg"), ".jpg"),
        (lambda run: next((run / "images").glob("*.jpg")).unlink(), "annotations.json"),
        (lambda run: (run / "annotations.json").unlink(), "annotations.json"),
        (lambda run: replace_in(run / "annotations.json", '"area": ', '"area": 1'), "annotations.json"),
        (lambda run: cut_lines(run / "journal.jsonl", 5), "of 20"),
        (lambda run: replace_in(run / "journal.jsonl", '"outcome": "kept"', '"outcome": "lost"'), "line 1"),
        (lambda run: replace_in(run / "run.json", '"count": 20', '"count": 40'), "of 40"),
        (lambda run: (run / "run.json").unlink(), "run.json"),
    ],
    ids=["extra", "changed", "missing", "unlabelled", "edited", "cut", "line", "more", "no run"],
)
def test_a_run_that_is_not_whole_is_refused(
    run: Path, tmp_path: Path, harm: Callable[[Path], object], holds: str
) -> None:
    harm(run)
    with refused(RunError, "run", holds):
        push(PushSettings(run, str(tmp_path / "there")))
    assert not (tmp_path / "there").exists()


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def cut_lines(path: Path, number: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-number]))


def test_a_run_in_use_and_a_shard_are_refused(run: Path, tmp_path: Path) -> None:
    with locked(run), refused(RunError, "run"):
        push(PushSettings(run, str(tmp_path / "there")))
    replace_in(run / "run.json", '"count": 20', '"count": null')
    replace_in(run / "run.json", '"jobs": null', '"jobs": 40')
    replace_in(run / "run.json", '"shard": null', '"shard": [1, 2]')
    with refused(RunError, "run", "1 of 2"):
        push(PushSettings(run, str(tmp_path / "there")))


def test_a_review_that_no_finalize_obeyed_yet_is_said(run: Path, tmp_path: Path) -> None:
    name = min(path.name for path in (run / "images").glob("*.jpg"))
    (run / "review.jsonl").write_text(json.dumps({"id": "decided-1", "do": "reject", "images": [name]}) + "\n", "utf-8")
    with refused(RunError, "run", "finalize"):
        push(PushSettings(run, str(tmp_path / "there")))
    finalize(FinalizeSettings(run))
    assert push(PushSettings(run, str(tmp_path / "there"))).images == 19
    there = tree(tmp_path / "there")
    assert f"images/{name}" not in there
    assert "review.jsonl" not in there
    assert "1 decision" in there["README.md"].decode()


def test_paths_of_this_machine_stay_here(tmp_path: Path) -> None:
    place = "/home/someone/secret"
    settings = cluster_settings(bundle=f"{place}/mine", reference=f"{place}/cells", reference_hash="1" * 64)
    run = one_machine(tmp_path / "run", settings)
    finalize(FinalizeSettings(run))
    push(PushSettings(run, str(tmp_path / "there")))
    assert not [name for name, data in tree(tmp_path / "there").items() if b"secret" in data]
    asked = json.loads((tmp_path / "there" / "run.json").read_text("utf-8"))
    assert (asked["bundle"], asked["reference"]) == ("mine", "cells")


def test_a_card_of_the_users_own_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    (run / "README.md").write_text("# Mine\n", "utf-8")
    with refused(UsageError, "licence", "README.md"):
        push(PushSettings(run, str(tmp_path / "there"), licence="mit"))
    push(PushSettings(run, str(tmp_path / "there")))
    assert (tmp_path / "there" / "README.md").read_text("utf-8") == "# Mine\n"


def test_the_report_stays_here_where_that_is_asked(run: Path, tmp_path: Path) -> None:
    push(PushSettings(run, str(tmp_path / "there"), include_report=False))
    assert set(tree(tmp_path / "there")) == expected(run) - {"report.html"}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"to": "ftp://server/cells"}, "to"),
        ({"to": "hub:cells"}, "to"),
        ({"to": "s3:bucket"}, "to"),
        ({"to": "s3://"}, "to"),
        ({"to": ""}, "to"),
        ({"to": "there", "private": False}, "private"),
        ({"to": "there", "licence": "do what: you like"}, "licence"),
    ],
)
def test_addresses_and_licences_that_are_none_are_refused(given: dict[str, Any], field: str) -> None:
    with refused(UsageError, field):
        PushSettings("run", **given)


def test_a_folder_that_overlaps_the_run_and_a_file_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    for to in (run, run / "images" / "there", tmp_path, tmp_path / "file"):
        with refused(RunError, "to"):
            push(PushSettings(run, str(to)))


def test_a_bucket_that_is_none_is_said(run: Path, s3: str) -> None:
    with refused(RunError, "to", "s3://nowhere/cells"):
        push(PushSettings(run, "s3://nowhere/cells"))


def test_a_missing_extra_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with refused(RunError, "to", "dengine[cluster]"):
        push(PushSettings(run, "s3://bucket/cells"))


@pytest.mark.parametrize("token", ["", READ_ONLY])
def test_the_hub_without_a_token_or_a_right_is_said(run: Path, tmp_path: Path, token: str) -> None:
    with hub(tmp_path / "cache", token) as server:
        with refused(RunError, "to", "hub:owner/cells", "token"):
            push(PushSettings(run, "hub:owner/cells"))
        assert server.repositories == {}


def test_a_hub_that_is_not_there_is_said(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(tmp_path / "cache"):
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between tries
        with refused(RunError, "to", "hub:owner/cells"):
            push(PushSettings(run, "hub:owner/cells"))


def test_a_licence_that_the_hub_does_not_know_is_said_before_anything_is_there(run: Path, tmp_path: Path) -> None:
    with hub(tmp_path / "cache") as server:
        with refused(RunError, "to", "README.md"):
            push(PushSettings(run, "hub:owner/cells", licence="mine"))
        assert server.commits == []


def test_the_hub_is_given_one_commit_or_the_labels_in_the_last_of_several(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(tmp_path / "cache") as server:
        push(PushSettings(run, "hub:owner/cells"))
        assert len(server.commits) == 1
        assert server.private["owner/cells"]
        push(PushSettings(run, "hub:owner/open", private=False))
        assert not server.private["owner/open"]
        finalize(FinalizeSettings(run, score={"b": 0.95}, formats=["coco", "yolo"]))
        server.commits.clear()
        monkeypatch.setattr("engines.push.hub._COMMIT", 3)
        push(PushSettings(run, "hub:owner/cells"))
        assert len(server.commits) > 1
        assert set(server.commits[0]["deleted"]) == {"annotations.json", "push.json"}
        assert server.commits[-1]["added"] == ["README.md", "annotations.json", "push.json"]
        assert [name for name in server.commits[-1]["deleted"] if name.startswith("images/")]


def test_more_images_than_the_hub_takes_in_a_folder_go_as_parquet(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("engines.push.hub.Hub.most_in_folder", 20)
    with hub(tmp_path / "cache") as server:
        with refused(RunError, "to", "parquet"):
            push(PushSettings(run, "hub:owner/cells"))
        finalize(FinalizeSettings(run, formats=["coco", "yolo", "parquet"]))
        push(PushSettings(run, "hub:owner/cells"))
        files = server.repositories["owner/cells"]
    assert not [name for name in files if name.startswith(("images/", "labels/"))]
    for name, data in files.items():
        (tmp_path / "got" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / name).write_bytes(data)
    loaded = datasets.load_dataset(str(tmp_path / "got"), split="train", cache_dir=str(tmp_path / "read"))
    assert len(loaded) == 20


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


def test_on_the_command_line_it_says_what_was_sent_and_where_it_is(run: Path, tmp_path: Path) -> None:
    words = ["push", str(run), "--to", str(tmp_path / "there")]
    would = dengine(*words, "--dry-run")
    assert would.exit_code == 0
    assert next_command(would) == words
    assert not (tmp_path / "there").exists()
    assert dengine(*words).exit_code == 0
    assert "sent 0 of" in dengine(*words).stdout
    assert_fails(dengine("push", str(run), "--to", "ftp://server"), 2, "--to")


def test_the_card_says_how_labels_were_made_and_no_more(tmp_path: Path) -> None:
    def labels(**rules: Any) -> str:
        settings = run_settings(near_duplicates=0.95)
        found = Dataset(settings, replace(settings.rules, **rules), tmp_path)
        return card_of(found, "mine", None, False).decode().partition("## How the labels were made")[2]

    assert "at least 0.3" in labels()
    assert "at least 0.3" in labels(labels="both")
    assert "adapter" not in labels(labels="reference", ignore_score=0.1).partition("## Settings")[0]
    assert "that nearly repeat another or a reference (correlation of 0.95) were left out" in labels()
