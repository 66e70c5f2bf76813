"""Self-training: which images an adapter may learn from once more, and how they are mixed with the labelled ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from command_line import assert_fails, dengine
from PIL import Image
from refusals import refused

from engines.adapter.losses import cxcywh_to_xyxy
from engines.adapter.model import load_adapter
from engines.common.events import Event
from engines.common.rng import generator
from engines.datasets.dataset import Dataset, Record, open_dataset
from engines.datasets.writers import AnnotatedImage, write_coco
from engines.diffusion.base_model import load_base
from engines.errors import DatasetError, TrainingError
from engines.labels.boxes import Instances
from engines.training.adapter import fit_adapter
from engines.training.adapter_options import AdapterTrainOptions
from engines.training.augment import FrameOptions
from engines.training.pseudo import blend, open_pseudo
from engines.training.pyramids import BatchSource, FrozenPyramid, SourceOptions

NAMES = ("square", "bar")
SIZE = (64, 48)
BOX = (10.0, 12.0, 30.0, 32.0)
NETWORK = {"width": 16, "heads": 2, "ffn_width": 16, "decoder_layers": 1, "queries": 8, "denoising": 4}
OPTIONS = AdapterTrainOptions(short_side=48, steps=2, batch=2, dev_fraction=0.25, network=NETWORK, precision="f32")


def _folder(
    root: Path,
    numbers: Sequence[int],
    *,
    names: Sequence[str] = NAMES,
    boxes: int = 1,
    crowds: int = 0,
    info: Mapping[str, object] = MappingProxyType({}),
) -> Path:
    """A folder as `dengine label` leaves it: image n is the same picture wherever it is made."""
    (root / "images").mkdir(parents=True)
    images = []
    for number in numbers:
        pixels = generator(3, number).integers(0, 255, size=(SIZE[1] // 8, SIZE[0] // 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC).save(root / "images" / f"{number}.png")
        count = boxes + crowds
        places = [np.add(BOX, place) for place in range(count)]  # none is there twice
        found = Instances.of(places, [0] * count, [0.9] * count, np.arange(count) >= boxes)
        images.append(AnnotatedImage(f"{number}.png", *SIZE, found))
    write_coco(root / "annotations.json", images, names, info)
    return root


def _record(name: str) -> Record:
    return Record(Path(name), name, *SIZE, Instances.none(), None)


def _names(records: Sequence[Record]) -> list[str]:
    return [record.name for record in records]


@pytest.mark.parametrize(
    ("labelled", "pseudo", "share", "times"),
    [(2, 18, 0.5, (9, 1)), (20, 5, 0.5, (1, 4)), (10, 10, 0.5, (1, 1)), (20, 180, 0.9, (1, 1)), (2, 6, 0.25, (9, 1))],
)
def test_either_kind_is_repeated_until_the_share_holds(
    labelled: int, pseudo: int, share: float, times: tuple[int, int]
) -> None:
    first, second = [_record(f"a{i}") for i in range(labelled)], [_record(f"b{i}") for i in range(pseudo)]
    found = _names(blend(first, second, share))
    assert found == _names(first) * times[0] + _names(second) * times[1]


def test_without_such_images_nothing_is_repeated() -> None:
    assert _names(blend([_record("a"), _record("b")], [], 0.5)) == ["a", "b"]


def test_images_that_repeat_labelled_ones_are_left_out(tmp_path: Path) -> None:
    labelled = open_dataset(_folder(tmp_path / "labelled", [0, 1, 2]))
    found, repeats = open_pseudo(_folder(tmp_path / "found", [2, 3, 4, 0]), labelled)
    assert (_names(found.records), repeats) == (["3.png", "4.png"], 2)


def test_so_are_images_that_are_nearly_labelled_ones(tmp_path: Path) -> None:
    labelled = open_dataset(_folder(tmp_path / "labelled", [0, 1]))
    again = _folder(tmp_path / "found", [1, 2])
    with Image.open(again / "images" / "1.png") as image:
        brighter = image.point(lambda value: value // 2 + 90)
    brighter.save(again / "images" / "1.png")
    found, repeats = open_pseudo(again, labelled)
    assert (_names(found.records), repeats) == (["2.png"], 1)


def test_what_is_broken_is_refused_or_left_out_and_listed(tmp_path: Path) -> None:
    labelled = open_dataset(_folder(tmp_path / "labelled", [0, 1]))
    with refused(DatasetError, None, "nowhere"):
        open_pseudo(tmp_path / "nowhere", labelled)
    broken = _folder(tmp_path / "broken", [2, 3])
    (broken / "images" / "2.png").unlink()
    with refused(DatasetError, None, '"2.png"'):
        open_pseudo(broken, labelled)
    found, _ = open_pseudo(broken, labelled, skip_bad=True)
    assert _names(found.records) == ["3.png"]
    assert "2.png" in found.skipped[0]


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    labelled = open_dataset(_folder(tmp_path / "labelled", [0]))
    found, _ = open_pseudo(_folder(tmp_path / "found", [1], names=("bar", "square")), labelled)
    assert found.class_names == NAMES
    assert [labelled.class_names[label] for label in found.records[0].instances.labels] == ["bar"]


def test_other_classes_and_folders_without_a_box_are_refused(tmp_path: Path) -> None:
    labelled = open_dataset(_folder(tmp_path / "labelled", [0, 1]))
    with refused(DatasetError, None, "bar, disc", "square, bar"):
        open_pseudo(_folder(tmp_path / "other", [2], names=("bar", "disc")), labelled)
    with pytest.raises(DatasetError, match="2 images, 2 of which nearly repeat labelled ones"):
        open_pseudo(_folder(tmp_path / "same", [0, 1]), labelled)
    with pytest.raises(DatasetError, match="no box in the rest"):
        open_pseudo(_folder(tmp_path / "crowds", [2, 3], boxes=0, crowds=1), labelled)


def test_boxes_of_every_score_are_no_labels(tmp_path: Path) -> None:
    labelled = open_dataset(_folder(tmp_path / "labelled", [0, 1]))
    info = {"description": "labelled by dengine"}
    with refused(DatasetError, "score", "annotations.json", "`score={}`"):
        open_pseudo(_folder(tmp_path / "all", [2, 3], info=info), labelled)
    assert open_pseudo(_folder(tmp_path / "sure", [2, 3], info=info | {"score": {"bar": 0.5}}), labelled)[1] == 0


@pytest.mark.slow
def test_none_of_them_is_held_out_and_adapter_json_counts_them(tmp_path: Path, toy_bases: dict[str, Path]) -> None:
    labelled = open_dataset(_folder(tmp_path / "labelled", range(4)))
    more, _ = open_pseudo(_folder(tmp_path / "found", range(4, 10), boxes=3), labelled)
    fit_adapter(
        labelled, toy_bases["sd1"], tmp_path / "out", OPTIONS, pseudo=more.records, resume=False, report=lambda _: None
    )
    _, info = load_adapter(tmp_path / "out")
    assert info.figures["train_images"] + info.figures["tune_images"] == 4
    assert info.figures["pseudo_images"] == 6
    assert {counts["square"] for counts in info.class_statistics} == {1}, "prompts count labelled images alone"


@pytest.mark.slow
def test_a_training_resumes_with_the_same_images_and_boxes_alone(tmp_path: Path, toy_bases: dict[str, Path]) -> None:
    labelled = open_dataset(_folder(tmp_path / "labelled", range(4)))
    more, _ = open_pseudo(_folder(tmp_path / "found", range(4, 10)), labelled)
    other, _ = open_pseudo(_folder(tmp_path / "other", range(4, 10), boxes=2), labelled)
    options = replace(OPTIONS, checkpoint_minutes=0.0)

    def run(pseudo: Sequence[Record], *, resume: bool, stop: bool = False) -> None:
        def report(event: Event) -> None:
            if stop and "loss" in event.figures:  # steps were taken
                raise KeyboardInterrupt

        base, out = toy_bases["sd1"], tmp_path / "out"
        fit_adapter(labelled, base, out, options, pseudo=pseudo, resume=resume, report=report)

    with pytest.raises(KeyboardInterrupt):
        run(more.records, resume=False, stop=True)
    with pytest.raises(TrainingError, match="pseudo_images"):
        run((), resume=True)
    with pytest.raises(TrainingError, match="annotations"):
        run(other.records, resume=True)
    run(more.records, resume=True)
    assert load_adapter(tmp_path / "out")[1].figures["pseudo_images"] == 6


def test_what_the_adapter_half_saw_is_no_background(tmp_path: Path, toy_bases: dict[str, Path]) -> None:
    plain = FrameOptions(*SIZE, short_side=SIZE[1], scale=(1.0, 1.0), flips=False, colour=0.0)
    options = SourceOptions(plain, "photo", {"generic": 1.0}, batch=1, seed=0)
    frozen = FrozenPyramid(load_base(toy_bases["sd1"]), 1, "f32", "cpu")
    folder = _folder(tmp_path / "crowd", [5], boxes=0, crowds=1)
    dataset: Dataset = open_dataset(folder, class_names=NAMES, require_boxes=False)
    (target,) = BatchSource(dataset.records, NAMES, frozen, options).at(0).targets
    assert len(target["boxes"]) == len(target["class_labels"]) == 0, "a crowd is no target"
    assert len(target["crowd_labels"]) == 1
    torch.testing.assert_close(cxcywh_to_xyxy(target["crowds"]) * torch.tensor([*SIZE, *SIZE]), torch.tensor([BOX]))


@pytest.mark.slow
def test_the_verb_learns_from_them_and_says_how_many(tmp_path: Path, toy_bases: dict[str, Path]) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text('{"network": {"width": 16, "heads": 2, "ffn_width": 16, "decoder_layers": 1, "denoising": 4}}')
    words: tuple[object, ...] = (
        "train-adapter",
        _folder(tmp_path / "labelled", range(4)),
        "--model",
        toy_bases["sd1"],
        "--steps",
        1,
    )
    words += ("--short-side", 48, "--batch", 2, "--settings", settings, "--out", tmp_path / "out", "--queries", 8)
    result = dengine(*words, "--pseudo", _folder(tmp_path / "found", [3, 4, 5]), "--pseudo-share", 0.3)
    assert result.exit_code == 0, result.output
    assert "2 images that an adapter labelled" in result.stderr
    assert "without 1 that nearly repeat those" in result.stderr
    _, info = load_adapter(tmp_path / "out")
    assert info.figures["pseudo_images"] == 2


def test_a_share_of_nothing_is_refused(tmp_path: Path) -> None:
    words = ("train-adapter", _folder(tmp_path / "labelled", [0]), "--model", "sd", "--out", tmp_path / "out")
    assert_fails(dengine(*words, "--pseudo-share", 0.3), 2, "--pseudo")
