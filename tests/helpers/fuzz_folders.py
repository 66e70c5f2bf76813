"""What verbs leave in folders and read again, spoilt file by file, and what its reader makes of each.

Knows: a small folder of every kind, which of its files are spoilt, and who reads them. Journals and datasets are
spoilt in `fuzz_runs` and `fuzz_datasets`, models in `fuzz_models`. Knows nothing about how anything is read.

`python tests/helpers/fuzz_folders.py 20000 7 [KIND...]` tries so many mutations, as many of each kind of
folder as of the others.
"""

import json
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import made_reports
import numpy as np
import torch
from command_line import dengine
from fuzz import Report, judge, mutated_file
from fuzz_datasets import mutated_text
from fuzz_runs import mutated_lines
from made_audit import write_audit
from made_datasets import coco_content, make_coco, text, write_coco_file
from many_machines import SOURCE, PurePainter, cluster_settings
from reviewing import make_review_run
from torch import nn

from engines.cluster.assets import find_references, leave_assets
from engines.cluster.commits import unpack, write_block, write_chunk
from engines.cluster.gather import GatherSettings, gather
from engines.cluster.lease import DRIVER, take_lease
from engines.cluster.paint import paint_chunk
from engines.cluster.records import read_asked, write_asked, write_progress, write_run
from engines.cluster.status import StatusSettings, status
from engines.cluster.store import Store, open_store
from engines.common.events import silent
from engines.common.training_log import TrainingLog
from engines.datasets.copies import known_to
from engines.datasets.dataset import instances_of, open_dataset
from engines.datasets.duplicates import fingerprints
from engines.datasets.learned import LEARNED, read_learned, write_learned
from engines.diffusion.base_notes import bad_base
from engines.errors import UsageError
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.measure.compare import compare, read_report
from engines.painting.settings import GenerateSettings
from engines.report.report import ReportSettings, report
from engines.review.server import ReviewSettings, review
from engines.runs import preview
from engines.runs.decisions import REVIEW
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.saved_score import THRESHOLDS, save_score
from engines.training import train_base
from engines.training.ahead import FINDS
from engines.training.folds import read_finds
from engines.training.stopping import reached
from engines.training.trainer import FitOptions, fit, started_with
from engines.worth import data as data_of_worth
from engines.worth.data import ValSet
from engines.worth.detectors.config import DetectorOptions, NetworkConfig
from engines.worth.detectors.model import load_detector, new_detector, save_detector, start_from
from engines.worth.measured import read_measured, write_measured

_CORNERS = [4.0, 6.0, 20.0, 30.0]
_TINY = NetworkConfig(
    backbone_width=16, depths=(1, 1, 1, 1), width=32, heads=2, decoder_layers=2, queries=4, denoising=4
)
_DETECTOR = DetectorOptions(_TINY, short_side=64, steps=3, batch=2)
_FIT = FitOptions(steps=4, lr=1e-2, warmup=1, precision="f32", checkpoint_minutes=0.0, evaluate_every=1)


@dataclass(frozen=True)
class Kind:
    """A kind of folder."""

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    files: tuple[str, ...]  # patterns of those that are spoilt


def _make_store(root: Path) -> None:
    store, run = open_store(f"file://{root}/store", make=True), cluster_settings(count=None, jobs=8)
    write_run(store, run, new=True)
    asked = GenerateSettings(out=root / "out", jobs=8, score={"a": 0.3, "b": 0.4}, reference=root / "gone")
    write_asked(store, asked)
    write_progress(store, {"workers": 2, "images_per_second": 1.5, "lost": 0, "second_tries": 1})
    for number in range(2):
        write_chunk(store, paint_chunk(PurePainter(), SOURCE, run, number), "cpu", "me", 1)
    make_coco(root / "gone")
    leave_assets(Store(store._inner, store.where), asked, cast(Any, None), lambda told: None)  # as into a bucket
    shutil.rmtree(root / "gone")
    with take_lease(store):
        pass
    store.delete(f"{DRIVER}/00000001.end")


def _read_store(root: Path) -> None:
    store = open_store(f"file://{root}/store")
    for data in (root / "store" / "chunks" / "00000000").glob("*.tar"):
        unpack(data.read_bytes())
    said = status(StatusSettings(store.where))
    json.dumps(vars(said), allow_nan=False)
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    find_references(store, read_asked(store))
    with take_lease(store, beat=0.01, patience=0.0):
        gather(GatherSettings(store.where, out=root / "out"))


def _make_index(root: Path) -> None:
    store = open_store(f"file://{root}/store", make=True)
    write_run(store, cluster_settings(count=None, jobs=8000), new=True)
    write_block(store, 0, [[4, 3, 0]] * 1000)


def _read_index(root: Path) -> None:
    found = status(StatusSettings(f"file://{root}/store"))
    assert found.done <= found.target


_DECISIONS: list[dict[str, Any]] = [
    {"do": "keep", "images": ["00000009.jpg"]},
    {"do": "reject", "images": ["00000001.jpg", "00000002.jpg"]},
    {"do": "draw", "images": ["00000003.jpg"], "box": _CORNERS, "label": "spot"},
    {"do": "delete", "images": ["00000003.jpg"], "was": {"box": _CORNERS, "label": "cell"}},
    {"do": "change", "images": ["a.png"], "was": {"box": _CORNERS, "label": "cat"}, "box": _CORNERS, "label": "dog"},
    {"do": "dismiss", "images": ["a.png"], "finding": "f" * 20},
    {"do": "undo", "of": "decision1"},
]


def _write_decisions(folder: Path) -> None:
    lines = [json.dumps({"id": f"decision{number}", **one}) + "\n" for number, one in enumerate(_DECISIONS)]
    text(folder / REVIEW, "".join(lines))


def _make_reviewed(root: Path) -> None:
    make_review_run(root / "run", images=6)
    _write_decisions(root / "run")
    save_score(root / "run", {"cell": 0.4, "spot": 0.5, "rod": 0.3})


def _read_reviewed(root: Path) -> None:
    review(ReviewSettings(root / "run", format="coco", out=root / "decided.json"))
    report(ReportSettings(root / "run"))
    finalize(FinalizeSettings(root / "run"))


def _make_corrected(root: Path) -> None:
    make_coco(root / "data")
    write_audit(root / "data")
    _write_decisions(root / "data")
    write_coco_file(root / "coco.json", coco_content())
    value = {"x": 10, "y": 10, "width": 40, "height": 50, "rotation": 0, "rectanglelabels": ["cat"]}
    box = {"type": "rectanglelabels", "value": value, "original_width": 64, "original_height": 48}
    tasks = [{"data": {"image": name}, "annotations": [{"result": [box]}]} for name in ("a.png", "up/1-b.png")]
    write_coco_file(root / "tasks.json", tasks)


def _read_corrected(root: Path) -> None:
    for name, kind in (("coco.json", "cvat"), ("tasks.json", "labelstudio")):
        review(ReviewSettings(root / "data", corrections=root / name, format=kind, out=root / "decided.json"))
        json.loads((root / "decided.json").read_text("utf-8"), parse_constant=_never)


def _never(said: str) -> None:
    raise AssertionError(f"{said} was written")


def _make_reports(root: Path) -> None:
    for make in (made_reports.adapter, made_reports.base, made_reports.comparison):
        make(root / make.__name__)
    folder = made_reports.labelled(root / "labelled", root / "labelled" / "images", score=0.25)
    found = (folder / "annotations.json").read_text("utf-8")
    text(folder / "annotations.json", found.replace(str(root), "work"))  # where copies are read


def _read_report(root: Path) -> None:
    """The report of the folder whose file is spoilt."""
    folder = _newest(root).parent
    report(ReportSettings(folder))
    bad_base(folder)


def _trained(folder: Path, stop_at: int | None = None) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))

    def loss_at(step: int) -> tuple[torch.Tensor, Mapping[str, float]]:
        if step == stop_at:
            raise KeyboardInterrupt
        return module(torch.full((2, 2), 0.1 * step)).square().mean(), {}

    fit(
        module, loss_at, _FIT, folder, stage="toy", identity={"data": "a"}, resume=True, report=silent,
        evaluate=lambda step: {"AP": 0.1, "noise AP": 0.01}, score="AP", log=TrainingLog(folder, ("toy",)),
    )  # fmt: skip
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())


def _make_training(root: Path) -> None:
    try:
        _trained(root / "training", stop_at=2)
    except KeyboardInterrupt:
        return
    raise AssertionError("the training was not stopped")


def _read_training(root: Path) -> None:
    started_with(root / "training", {})
    reached(root / "training")
    _trained(root / "training")


def _val(root: Path) -> ValSet:
    return ValSet("val", list(open_dataset(root / "data").records), (), (), ())


_FOUND = [Instances.from_rows([[*_CORNERS, 0.5, number]]) for number in range(2)]


def _make_worth(root: Path) -> None:
    make_coco(root / "data")
    text(root / "names.txt", "a.png\nb\n")
    save_detector(root / "detector", new_detector(("cat", "dog"), _DETECTOR, 64, 0))
    write_measured(root / "measured.json", _val(root), {"seed": 0}, _FOUND, ("cat", "dog"))
    rows = [one.to_rows() for one in _FOUND]
    text(root / FINDS, json.dumps({"identity": {"fold": 0}, "finds": rows}))
    write_learned(root / LEARNED, _val(root).records)
    text(root / "bench.json", json.dumps(made_reports.bench()))


def _read_worth(root: Path) -> None:
    """What reads the newest file."""
    newest, data = _newest(root), root / "data"
    if newest.parent.name == "detector":
        load_detector(root / "detector")
        start_from(root / "detector", ("cat", "dog"), _DETECTOR, 64, 0)
    elif newest.name == "bench.json":
        compare(read_report(newest), made_reports.bench())
    elif newest.suffix == ".txt":
        train_base._labelled(newest, ["a.png", "b.png"])
        data_of_worth._chosen(open_dataset(data), newest)
    elif newest.name == LEARNED:
        learned, records = read_learned(newest), _val(root).records
        assert learned is None or known_to(records, fingerprints(records), learned, crops=True) is not None
    else:
        val = _val(root)
        found = read_finds(root, {"fold": 0}, val.records, 2)
        if newest.name != FINDS:
            found = read_measured(newest, {"seed": 0}, val, 2)
        assert found is not None
        mean_average_precision(instances_of(open_dataset(data).records), found, ("cat", "dog"))
        for one in found:
            assert np.isfinite(one.boxes).all()
            assert ((one.labels >= 0) & (one.labels < 2)).all()


def _newest(root: Path) -> Path:
    """The file that was spoilt."""
    return max((path for path in root.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)


_OPTIONS = {  # what each verb is given beside a file of options: nothing that it could begin with
    "generate": ("--bundle", "nowhere", "--out", "out"),
    "label": ("nowhere", "--out", "out"),
    "finalize": ("nowhere",),
    "train-adapter": ("nowhere", "--model", "nowhere", "--out", "out"),
    "train-base": ("nowhere", "--out", "out"),
    "evaluate": ("--real", "nowhere", "--val", "nowhere", "--out", "out"),
    "export": ("--model", "nowhere", "--adapter", "nowhere", "--out", "out"),
    "audit": ("nowhere", "--bundle", "nowhere", "--out", "out"),
    "merge": ("nowhere", "--out", "out"),
    "review": ("nowhere", "--no-open"),
}


def _make_options(root: Path) -> None:
    for verb in _OPTIONS:
        lines = dengine("config", verb).stdout.splitlines()
        # what stands behind a # with its default is given, too, where that can be read again
        told = [line.removeprefix("# ").replace(":  # default:", ":") for line in lines]
        text(root / f"{verb}.yaml", "\n".join(line for line in told if _is_key(line)) + "\n")
    write_coco_file(root / "train-adapter.json", {"steps": 20, "lr": 1e-4, "network": {"width": 64}, "scale": [0.5, 2]})
    write_coco_file(root / "export.json", {"steps": 20, "strength": [0.4, 0.8], "score": {"a": 0.5}})


def _is_key(line: str) -> bool:
    key, _, value = line.partition(": ")
    return bool(value) and key.replace("-", "_").isidentifier() and key not in ("out", "real", "val", "base", "bundle")


def _read_options(root: Path) -> None:
    """The verb of the newest file, on the command line. Its one line of an error is handed on."""
    newest = _newest(root)
    option = {".yaml": "--config", ".json": "--settings" if newest.stem == "train-adapter" else "--defaults"}
    result = dengine(newest.stem, *_OPTIONS[newest.stem], option[newest.suffix], newest)
    assert "not foreseen" not in result.stderr, result.stderr
    assert "Traceback" not in result.output
    assert result.exit_code in (0, 1, 2), result.exception
    raise UsageError(result.stderr.strip() or "nothing was said")


KINDS: dict[str, Kind] = {
    "store": Kind(_make_store, _read_store, ("store/**/*.json", "store/**/*.tar", "store/**/*.beat")),
    "index": Kind(_make_index, _read_index, ("store/index/*.json",)),
    "reviewed": Kind(_make_reviewed, _read_reviewed, ("run/*.jsonl", f"run/{REVIEW}", f"run/{THRESHOLDS}")),
    "corrected": Kind(_make_corrected, _read_corrected, ("*.json", "data/audit.json", f"data/{REVIEW}")),
    "reports": Kind(_make_reports, _read_report, ("*/*.json", "*/*.jsonl")),
    "training": Kind(_make_training, _read_training, ("training/*",)),
    "worth": Kind(_make_worth, _read_worth, ("*.json", "*.txt", LEARNED, "detector/*")),
    "options": Kind(_make_options, _read_options, ("*",)),
}  # fmt: skip


def fuzz_kind(name: str, folder: Path, count: int, seed: int = 0) -> Report:
    """Spoil the files of a kind of folder in `count` ways, one at a time, and judge what its reader does."""
    kind, whole, work, found = KINDS[name], folder / "whole", folder / "work", Report()
    kind.make(whole)
    files = [
        path.relative_to(whole) for pattern in kind.files for path in sorted(whole.glob(pattern)) if path.is_file()
    ]
    with _quiet(folder):
        for number in range(count):
            file = files[number % len(files)]
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(whole, work)
            (work / file).unlink()
            rng = random.Random(f"{seed}/{name}/{file}/{number}")
            (work / file).write_bytes(_mutated(whole / file, rng))
            judge(partial(kind.read, work), f"{name}: {file} number {number} of seed {seed}", found, work)
    return found


def _mutated(file: Path, rng: random.Random) -> bytes:
    if file.suffix == ".jsonl":
        return mutated_lines(file.read_bytes(), rng)
    return (mutated_text if file.suffix in (".yaml", ".txt") else mutated_file)(file.read_bytes(), rng)


@contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    """Warnings are errors, previews are small, and the folder is the one at work, with a cache of its own."""
    before, cache = os.getcwd(), os.environ.get("XDG_CACHE_HOME")
    cell, preview._CELL = preview._CELL, 16
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "work" / "cache")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        preview._CELL = cell
        os.chdir(before)
        os.environ.pop("XDG_CACHE_HOME")
        os.environ |= {} if cache is None else {"XDG_CACHE_HOME": cache}


def main(count: int, seed: int, names: Any) -> int:
    """Spoil every kind, print what came of it, and return how many problems there were."""
    problems = 0
    for name in names or KINDS:
        with tempfile.TemporaryDirectory() as place:
            found = fuzz_kind(name, Path(place), count // len(names or KINDS), seed)
        sys.stdout.write(f"{name}: {found}\n")
        sys.stdout.flush()
        problems += len(found.problems)
    return problems


if __name__ == "__main__":
    sys.exit(min(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]), 1))
