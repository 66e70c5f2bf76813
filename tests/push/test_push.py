"""A finished run is pushed whole, a second time at no cost, and never half: to a folder, a bucket, the hub."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import obstore
import pytest
import yaml
from command_line import assert_fails, dengine, next_command
from fakes import tree
from huggingface_hub import HfApi
from made_runs import run_settings
from many_machines import cluster_settings, one_machine
from pushing import There, expected
from refusals import refused

from engines.errors import RunError
from engines.push.card import card_of
from engines.push.dataset import Dataset
from engines.push.push import push
from engines.push.settings import PushSettings
from engines.runs.finalize import FinalizeSettings, finalize

pytestmark = pytest.mark.slow


def head_of(card: bytes) -> dict[str, Any]:
    return dict(yaml.safe_load(card.decode().split("---\n")[1]))


def test_what_is_pushed_is_the_dataset_with_a_card_and_a_second_push_sends_nothing(
    run: Path, place: tuple[str, There]
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
    run: Path, place: tuple[str, There]
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
    run: Path, place: tuple[str, There], monkeypatch: pytest.MonkeyPatch
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


def test_paths_of_this_machine_stay_here(tmp_path: Path) -> None:
    place = "/home/someone/secret"
    settings = cluster_settings(bundle=f"{place}/mine", reference=f"{place}/cells", reference_hash="1" * 64)
    run = one_machine(tmp_path / "run", settings)
    finalize(FinalizeSettings(run))
    push(PushSettings(run, str(tmp_path / "there")))
    assert not [name for name, data in tree(tmp_path / "there").items() if b"secret" in data]
    asked = json.loads((tmp_path / "there" / "run.json").read_text("utf-8"))
    assert (asked["bundle"], asked["reference"]) == ("mine", "cells")


def test_the_report_stays_here_where_that_is_asked(run: Path, tmp_path: Path) -> None:
    push(PushSettings(run, str(tmp_path / "there"), include_report=False))
    assert set(tree(tmp_path / "there")) == expected(run) - {"report.html"}


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
