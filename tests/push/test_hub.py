"""Pushes to the hub: its commits and rights, its limits, and a hub that is not there."""

from pathlib import Path

import pytest
from hub_server import READ_ONLY, hub
from huggingface_hub import HfApi
from refusals import refused

from engines.errors import RunError
from engines.push.push import push
from engines.push.settings import PushSettings
from engines.runs.finalize import FinalizeSettings, finalize

pytestmark = pytest.mark.slow


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
