"""The command line: what each verb hands on and prints, and one line for each bad folder, file or disk."""

import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import assert_fails, dengine, next_command
from PIL import Image
from typer.testing import Result

from engines.common.events import Event, EventKind, Report, note


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two images without annotations."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def labelled(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as a COCO dataset with a box each; the second image has a degenerate box besides."""
    folder = tmp_path_factory.mktemp("labelled")
    boxes = [(1, [5, 5, 20, 20]), (2, [8, 4, 30, 30]), (2, [8, 4, 0, 30])]
    dataset = {
        "images": [{"id": i + 1, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(2)],
        "annotations": [
            {"id": i + 1, "image_id": image, "category_id": 1, "bbox": box, "area": 1, "iscrowd": 0}
            for i, (image, box) in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "rbc"}],
    }
    (folder / "annotations.json").write_text(json.dumps(dataset), "utf-8")
    for file in photographs.iterdir():
        shutil.copy(file, folder)
    return folder


def painting(bundle: Path, out: Path, *more: object) -> list[object]:
    """The command line of a small run."""
    fast = ("--engine", "torch", "--threads", 1, "--steps", 2, "--guidance", 1, "--keep-empty")
    return ["generate", "--bundle", bundle, "--out", out, *fast, *more]


@pytest.fixture(scope="module")
def run(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run of two images, and what its command printed. Read only."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, dengine(*painting(toy_bundle, out, "--count", 2))


def test_generate_prints_what_it_made_and_where_it_is(run: tuple[Path, Result]) -> None:
    out, result = run
    assert result.exit_code == 0, result.output
    assert len(list((out / "images").iterdir())) == 2
    boxes = len(json.loads((out / "annotations.json").read_text("utf-8"))["annotations"])
    assert f"2 images with {boxes} boxes" in result.stdout
    for name, path in (("images", "images"), ("annotations", "annotations.json"), ("preview", ".dengine/preview.png")):
        assert re.search(rf"^{name} +{re.escape(str(out / path))}$", result.stdout, re.MULTILINE)
        assert (out / path).exists()


def test_generate_again_paints_nothing_and_says_the_same(run: tuple[Path, Result], toy_bundle: Path) -> None:
    out, first = run
    again = dengine(*painting(toy_bundle, out, "--count", 2))
    assert again.exit_code == 0
    assert "painted" not in again.stdout
    assert first.stdout.endswith(again.stdout)
    assert next_command(again) == ["review", str(out)]


def test_generate_repaints_the_named_part_of_the_references_alone(
    toy_bundle: Path, photographs: Path, tmp_path: Path
) -> None:
    for part, name in (("train", "0.png"), ("val", "1.png")):
        (tmp_path / "data" / part).mkdir(parents=True)
        shutil.copy(photographs / name, tmp_path / "data" / part)
    command = painting(toy_bundle, tmp_path / "run", "--jobs", 4, "--reference", tmp_path / "data", "--strength", "0.9")
    assert dengine(*command, "--reference-split", "train").exit_code == 0
    lines = (tmp_path / "run" / "journal.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["reference"] for line in lines] == ["0.png"] * 4


def test_ctrl_c_finishes_and_says_how_to_go_on(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.painting import painter

    ticks: list[int] = []
    before = painter.Painter.paint_chunks

    def interrupted(self: Any, *arguments: Any) -> Any:
        if not ticks:
            os.kill(os.getpid(), signal.SIGINT)
        ticks.append(1)
        return before(self, *arguments)

    monkeypatch.setattr(painter.Painter, "paint_chunks", interrupted)
    command = painting(toy_bundle, tmp_path / "run", "--count", 2)
    stopped = dengine(*command)
    assert stopped.exit_code == 130, stopped.output
    assert stopped.stderr.splitlines()[-1] == "stopped at 0 of 2; the same command goes on"
    assert dengine(*command).exit_code == 0
    assert len(list((tmp_path / "run" / "images").iterdir())) == 2


def test_a_run_leaves_the_file_that_repeats_it(run: tuple[Path, Result], tmp_path: Path) -> None:
    result = dengine("generate", "--config", run[0] / ".dengine" / "generate.yaml", "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    for file in (*run[0].glob("images/*"), run[0] / "annotations.json", run[0] / "journal.jsonl"):
        assert (tmp_path / "again" / file.relative_to(run[0])).read_bytes() == file.read_bytes()


def test_finalize_writes_other_formats_of_the_same_run(run: tuple[Path, Result], tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    result = dengine("finalize", out, "--format", "yolo", "--score", "0.9")
    assert result.exit_code == 0, result.output
    assert (out / "data.yaml").exists()
    assert "2 images with" in result.stdout


def test_merge_joins_shards_to_the_unsplit_run(toy_bundle: Path, tmp_path: Path) -> None:
    few = ("--jobs", 4, "--chunk", 2)
    for out, more in (("one", ("--shard", "1/2")), ("two", ("--shard", "2/2")), ("whole", ())):
        assert dengine(*painting(toy_bundle, tmp_path / out, *few, *more)).exit_code == 0
    result = dengine("merge", tmp_path / "two", tmp_path / "one", "--out", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    assert "4 images with" in result.stdout
    for name in ("annotations.json", "journal.jsonl"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_label_prints_figures_where_the_images_have_annotations(
    toy_bundle: Path, labelled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    result = dengine("label", labelled, "--bundle", toy_bundle, "--out", out, "--engine", "torch", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert re.search(r"^class +boxes +AP +AP50 +precision +recall$", result.stdout, re.MULTILINE)
    assert re.search(r"^rbc +\d+( +\d\.\d{3}){2} +(-|\d\.\d{3}) +\d\.\d{3}$", result.stdout, re.MULTILINE)
    assert len(json.loads((out / "annotations.json").read_text("utf-8"))["images"]) == 2


def test_doctor_names_every_engine() -> None:
    found = json.loads(dengine("doctor", "--json").stdout)
    text = dengine("doctor").stdout
    assert {runtime["name"] for runtime in found["runtimes"]} >= {"torch", "openvino", "onnxruntime"}
    for runtime in found["runtimes"]:
        assert re.search(rf"^{runtime['name']} ", text, re.MULTILINE)


def test_train_base_hands_on_what_was_asked(toy_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.training import train_base as module
    from engines.training.train_base import TrainBaseSettings, TrainBaseSummary

    asked: list[TrainBaseSettings] = []

    def remember(settings: TrainBaseSettings, *, report: Report) -> TrainBaseSummary:
        asked.append(settings)
        report(note("2 images"))
        return TrainBaseSummary(settings.out, 2, 0, (), (), 1.0)

    monkeypatch.setattr(module, "train_base", remember)
    options = ("--style", "blood", "--labels", "list.txt", "--stages", "unet", "--rotate", "--split", "train")
    more = ("--continue-from", toy_bases["sd1"], "--steps-scale", "0.5", "--resume")
    result = dengine("train-base", "data", "--out", "base", *options, *more)
    assert result.exit_code == 0, result.output
    assert asked == [
        TrainBaseSettings(
            data=Path("data"), out=Path("base"), style="blood", labels="list.txt", stages=("unet",), rotate=True,
            split="train", continue_from=str(toy_bases["sd1"]), steps_scale=0.5, resume=True,
        )
    ]  # fmt: skip
    assert "2 images" in result.stderr
    assert result.stdout.startswith("base model  base\n")
    assert next_command(result)[:2] == ["train-adapter", "LABELLED-DATASET"]


def test_train_adapter_lets_options_go_before_a_settings_file(
    toy_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.training import train_adapter as module
    from engines.training.train_adapter import TrainAdapterSettings

    asked: list[TrainAdapterSettings] = []

    def remember(settings: TrainAdapterSettings, *, report: Report) -> Any:
        asked.append(settings)
        info = type("Info", (), {"figures": {"tune": {"generic": {"AP": 0.25, "AP50": 0.5}}}})()
        return type("Summary", (), {"info": info})()

    monkeypatch.setattr(module, "train_adapter", remember)
    settings = tmp_path / "settings.json"
    settings.write_text(
        json.dumps({"steps": 10, "colour": 0.5, "turns": False, "network": {"width": 64, "queries": 30}}), "utf-8"
    )
    options = ("--settings", settings, "--steps", 20, "--queries", 40, "--frame", "64x48", "--head", "deformable_detr",
               "--rotate", "--dev-fraction", 0.2)  # fmt: skip
    base = ("--model", toy_bases["sd1"], "--lora", "style.safetensors:0.5", "--lora", "c:/other.safetensors")
    result = dengine("train-adapter", "data", *base, "--out", tmp_path / "adapter", *options)
    assert result.exit_code == 0, result.output
    network = {"width": 64, "queries": 40, "head": "deformable_detr"}
    loras = ((Path("style.safetensors"), 0.5), (Path("c:/other.safetensors"), 1.0))
    assert asked == [
        TrainAdapterSettings(
            data=Path("data"), base=str(toy_bases["sd1"]), out=tmp_path / "adapter", loras=loras,
            steps=20, colour=0.5, frame=(64, 48), network=network, rotate=True, dev_fraction=0.2,
        )
    ]  # fmt: skip
    assert re.search(r"^generic +0\.250 +0\.500$", result.stdout, re.MULTILINE)


def test_a_training_setting_that_does_not_exist_is_named(labelled: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text('{"stepps": 10}', "utf-8")
    command = ("train-adapter", labelled, "--model", "sd", "--out", tmp_path / "adapter", "--settings", settings)
    assert_fails(dengine(*command), 2, "stepps", "settings.json")


def test_export_hands_on_what_was_asked_and_prints_the_checks(
    toy_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import assemble
    from export.agreement import Agreement
    from export.settings import ExportSettings
    from export.verify import GraphCheck

    asked: list[ExportSettings] = []

    def remember(settings: ExportSettings, *, report: Report) -> assemble.ExportSummary:
        asked.append(settings)
        report(Event(EventKind.STEP, "export", "exporting unet", 0, 2))
        check = GraphCheck("unet", "openvino", {"model_output": 2e-6, "div1": 1e-6})
        agreed = (Agreement("openvino", "bf16", 4, 41.5, 0.97),)
        return assemble.ExportSummary(settings.out, 12_345_678, (check,), agreed, unseen_loras=True)

    monkeypatch.setattr(assemble, "export", remember)
    defaults = tmp_path / "defaults.json"
    defaults.write_text('{"steps": 12}', "utf-8")
    options = ("--frame", "64x48", "--defaults", defaults, "--check-on", "openvino", "--weights-dtype", "float32")
    base = ("--model", toy_bases["sd1"], "--lora", "style.safetensors:0.5")
    result = dengine("export", *base, "--adapter", "a", "--out", tmp_path / "b", *options)
    assert result.exit_code == 0, result.output
    assert asked == [
        ExportSettings(
            str(toy_bases["sd1"]), Path("a"), tmp_path / "b", loras=((Path("style.safetensors"), 0.5),), frame=(64, 48),
            generate={"steps": 12}, engines=("openvino",), weights_dtype="float32",
        )
    ]  # fmt: skip
    assert "trained without the LoRA" in result.stderr
    assert "export: 1/2, exporting unet" in result.stderr
    assert re.search(r"^unet +openvino +2\.0e-06$", result.stdout, re.MULTILINE)
    assert re.search(r"^openvino +bf16 +41\.5 dB +0\.970$", result.stdout, re.MULTILINE)
    assert "12.3 MB" in result.stdout


@pytest.mark.parametrize("verb", ["train-base", "train-adapter", "label", "generate"])
@pytest.mark.parametrize(("kind", "words"), [("missing", "does not exist"), ("file", "file"), ("empty", "empty")])
def test_a_dataset_that_is_none_is_one_line(
    verb: str, kind: str, words: str, toy_bundle: Path, toy_bases: dict[str, Path], tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    if kind == "file":
        data.write_text("text", "utf-8")
    if kind == "empty":
        data.mkdir()
    command = {
        "train-base": ["train-base", data, "--out", out],
        "train-adapter": ["train-adapter", data, "--model", toy_bases["sd1"], "--out", out],
        "label": ["label", data, "--bundle", toy_bundle, "--out", out],
        "generate": painting(toy_bundle, out, "--count", 1, "--reference", data),
    }[verb]
    assert_fails(dengine(*command), 1, words, str(data))
    assert not out.exists()


def test_a_bundle_with_one_byte_changed_is_refused(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(toy_bundle, bundle)
    weights = bundle / "adapter" / "adapter.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert_fails(dengine(*painting(bundle, tmp_path / "run", "--count", 1)), 1, "adapter.safetensors")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_a_bundle_that_is_none_is_one_line(kind: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    if kind == "file":
        bundle.write_text("text", "utf-8")
    if kind == "empty":
        bundle.mkdir()
    assert_fails(dengine(*painting(bundle, tmp_path / "run", "--count", 1)), 1, str(bundle))


def test_an_engine_that_does_not_exist_is_a_usage_error(toy_bundle: Path, tmp_path: Path) -> None:
    command = ["generate", "--bundle", toy_bundle, "--out", tmp_path / "run", "--count", 1, "--engine", "steam"]
    assert_fails(dengine(*command), 2, "steam", "openvino")
    assert not (tmp_path / "run").exists()


def test_a_file_or_a_strange_folder_as_output_is_refused(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text", "utf-8")
    assert_fails(dengine(*painting(toy_bundle, tmp_path / "file", "--count", 1)), 1, "is a file")
    assert_fails(dengine(*painting(toy_bundle, tmp_path, "--count", 1)), 1, "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_runs_on_one_folder_are_refused(run: tuple[Path, Result], toy_bundle: Path) -> None:
    from engines.runs.run_folder import locked

    with locked(run[0]):
        assert_fails(dengine(*painting(toy_bundle, run[0], "--count", 2)), 1, "in use", str(run[0]))


def test_other_settings_for_a_run_are_refused_with_the_difference(run: tuple[Path, Result], toy_bundle: Path) -> None:
    command = painting(toy_bundle, run[0], "--count", 2, "--seed", 5)
    assert_fails(dengine(*command), 1, "seed is 0 in the run, 5 was asked for")


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "o space left"), (errno.EROFS, "cannot be written")])
def test_a_full_or_read_only_disk_is_one_line(
    number: int, words: str, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    assert_fails(dengine(*painting(toy_bundle, tmp_path / "run", "--count", 1)), 1, words)


def test_an_adapter_of_another_base_is_refused(
    toy_bases: dict[str, Path], toy_adapters: dict[str, Path], tmp_path: Path
) -> None:
    command = ["export", "--model", toy_bases["sd1"], "--adapter", toy_adapters["sd2"], "--out", tmp_path / "bundle"]
    assert_fails(dengine(*command), 1, "another base")
    assert list(tmp_path.iterdir()) == []
