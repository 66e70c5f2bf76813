"""What is not pushed: a run that is not whole or is in use, over what is not its own, to what is no place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import tree
from many_machines import cluster_settings, one_machine
from pushing import There, objects
from refusals import refused

from engines.cluster.store import open_store
from engines.errors import RunError, UsageError
from engines.push.push import push
from engines.push.settings import PushSettings
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.run_folder import locked

pytestmark = pytest.mark.slow


def test_another_dataset_and_foreign_files_are_not_touched(run: Path, tmp_path: Path, place: tuple[str, There]) -> None:
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


def test_a_card_of_the_users_own_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    (run / "README.md").write_text("# Mine\n", "utf-8")
    with refused(UsageError, "licence", "README.md"):
        push(PushSettings(run, str(tmp_path / "there"), licence="mit"))
    push(PushSettings(run, str(tmp_path / "there")))
    assert (tmp_path / "there" / "README.md").read_text("utf-8") == "# Mine\n"


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
    for to in (run, run / "images" / "there", tmp_path):
        with refused(RunError, "to", f"{to} is the run's own folder"):
            push(PushSettings(run, str(to)))
    with refused(RunError, "to", f"{tmp_path / 'file'} is a file"):
        push(PushSettings(run, str(tmp_path / "file")))
