"""`benchmarks/proof`: fixed lists, stages in order that go on where they stopped, and a report that is plain.

The commands of the stages are stand-ins here, which leave what the real ones leave: boxes that are right, or not.
"""

import datetime
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from fake_proof import NAMES, PLAN, Fake, make_place, start, write, write_annotations, write_dataset
from made_runs import make_run

from benchmarks.proof import actions, choices, lists, report, tuning
from benchmarks.proof import run as program
from benchmarks.proof.draws import draws, interval, read_draws
from benchmarks.proof.lanes import shares_of_cores
from benchmarks.proof.lists import LISTS, check, fraction_of, prepare, read_list
from benchmarks.proof.markdown import shown
from benchmarks.proof.order import build
from benchmarks.proof.plan import TOY, Plan
from benchmarks.proof.progress import to_do
from benchmarks.proof.summary import Bar, Gain
from benchmarks.proof.workplace import OutOfTimeError, ProofError, Workplace
from dengine_cli import main as dengine
from engines.common.rng import generator
from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError, UsageError
from engines.labels.average_precision import Detections
from engines.runs.finalize import finalize
from engines.worth.figures import Result, compare

BCCD = Path(__file__).parents[3] / "shared" / "bccd"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("proof") / "voc")


@pytest.fixture
def place(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return make_place(tmp_path, dataset, monkeypatch)


def test_the_lists_in_the_repository_are_tenths_that_share_nothing() -> None:
    found = {name: set(read_list(name)) for name in (*Plan().lists, *Plan().extra_lists)}
    assert [len(found[name]) for name in found] == [20, 20, 20, 10, 51]
    assert not found["10-0"] & found["10-1"] | found["10-0"] & found["10-2"] | found["10-1"] & found["10-2"]
    assert found["5-0"] < found["10-0"] < found["25-0"]


@pytest.mark.skipif(not BCCD.exists(), reason="the dataset is not here")
def test_the_lists_are_what_the_seed_draws_and_know_no_val_image() -> None:
    train, val = open_dataset(BCCD, split="train"), open_dataset(BCCD, split="val")
    check(train.records, train.class_names, [Path(record.name).stem for record in val.records], Plan(), LISTS)


def test_a_list_that_was_changed_or_names_a_val_image_is_refused(place: Fake) -> None:
    train = open_dataset(place.dataset, split="train")
    drawn = read_list("10-0", place.lists)
    with pytest.raises(DatasetError, match=rf"names validation images, {drawn[0]} first"):
        check(train.records, train.class_names, drawn, PLAN, place.lists)
    (place.lists / "10-0.txt").write_text("\n".join(drawn[1:]))
    with pytest.raises(DatasetError, match="is not what seed 2309 draws"):
        prepare(place.dataset, place.work, PLAN, place.lists)


def test_the_data_is_laid_out_with_its_parts_apart(place: Fake) -> None:
    found = prepare(place.dataset, place.work, PLAN, place.lists)
    splits = {path.stem: set(path.read_text().split()) for path in (place.data / "ImageSets" / "Main").iterdir()}
    for name in (*PLAN.lists, "full"):
        fit, tune = splits[f"{name}-fit"], splits[f"{name}-tune"]
        assert not fit & tune
        assert fit | tune == splits["train" if name == "full" else name]
    assert [len(splits[f"{name}-tune"]) for name in PLAN.lists] == [2, 2]
    assert splits["val"] - splits["val-kept"] == {"copy_0"} == set(found["left_out_of_val"])  # type: ignore[call-overload]
    rest = {file.stem for file in (place.work / "pseudo-10-0" / "images").iterdir()}
    assert rest == splits["train"] - splits["10-0"]
    assert not list((place.work / "train-images").glob("*.xml"))
    assert len(open_dataset(place.work / "train-images", require_boxes=False).records) == 20


def test_the_tune_part_has_the_images_that_were_asked_for() -> None:
    names = [f"image_{number}.jpg" for number in range(20)]
    records: Any = [type("R", (), {"name": name})() for name in names]
    from engines.training.adapter import split_tune

    assert [len(split_tune(records, lists.tune_fraction(names, count))[1]) for count in (1, 5, 19)] == [1, 5, 19]
    with pytest.raises(DatasetError, match="A tune part of 20 cannot be cut out of 20"):
        lists.tune_fraction(names, 20)
    assert fraction_of("full", PLAN) == 0.1


@pytest.mark.parametrize("plan", [Plan(), TOY, PLAN])
def test_stages_come_after_what_they_need(plan: Plan) -> None:
    seen: set[str] = set()
    for stage in build(plan):
        assert stage.name not in seen
        assert {*stage.needs, *stage.reads} <= seen, stage.name
        seen.add(stage.name)


def test_the_whole_proof_reads_val_in_the_last_trainings_alone(place: Fake) -> None:
    assert start(place) == []
    groups = {stage.name: stage.group for stage in build(PLAN)}
    assert {path.stem for path in place.results.glob("*.json")} == set(groups)
    reading = {stage for stage, words in place.ran if any(word in ("--val", "val", "val-kept") for word in words)}
    assert reading == {name for name, group in groups.items() if group == "detectors"}
    labelled = [words for stage, words in place.ran if stage.startswith(("base", "generated-10"))]
    assert labelled
    assert not any(str(place.work / "data") in word for words in labelled for word in words)
    text = "".join(path.read_text() for path in place.results.glob("*.json"))
    assert str(place.work.parent) not in text


def test_every_command_is_one_that_dengine_takes(place: Fake) -> None:
    start(place)
    group: Any = typer.main.get_command(dengine.app)
    verbs = set()
    for _, words in place.ran:
        if words[1] == "-c":
            group.commands[words[3]].make_context(words[3], words[4:])  # raises for an option that is not known
            verbs.add(words[3])
    assert verbs == {"train-base", "train-adapter", "export", "label", "generate", "finalize", "evaluate"}


def test_an_adapter_learns_once_more_from_a_teacher_that_saw_no_more_than_it_may(place: Fake) -> None:
    start(place, "self")
    trained = {}
    for stage, words in place.ran:
        if stage == "adapter-10-1-self" and "train-adapter" in words:
            named = {word: words[number + 1] for number, word in enumerate(words[:-1]) if word.startswith("--")}
            trained[Path(named["--out"]).name] = named
    assert set(trained) == {"adapter-10-1-self-fit", "adapter-10-1-self"}
    fit, final = trained["adapter-10-1-self-fit"], trained["adapter-10-1-self"]
    assert (Path(fit["--pseudo"]).name, Path(final["--pseudo"]).name) == ("pseudo-10-1-fit", "pseudo-10-1")
    assert float(fit["--tune-fraction"]) > 0
    assert final["--tune-fraction"] == "0"
    labelled = {
        Path(words[words.index("--out") + 1]).name: Path(words[words.index("--bundle") + 1]).name
        for _, words in place.ran if "label" in words and "--split" not in words
    }  # fmt: skip
    assert labelled["pseudo-10-1-fit"] == "bundle-10-1-fit"
    assert labelled["generated-10-1-self"] == labelled["pseudo-10-1-self"] == "bundle-10-1-self"
    text = (place.results.parent / "proof.md").read_text()
    assert "## An adapter that learns once more, from its own labels (lists 10-0, 10-1)" in text
    rows = [line for line in text.splitlines() if line.startswith(("| once |", "| once more |"))]
    assert len(rows) == 2
    assert all("50.0 ± 0.0" in row for row in rows)


def test_other_labels_go_on_copies_of_the_same_images(place: Fake) -> None:
    start(place, "generated-10-1-matched", "pseudo-10-1-matched")
    labelled = [words for stage, words in place.ran if stage.endswith("matched") and "label" in words]
    assert len(labelled) == 2
    for words in labelled:
        assert Path(words[words.index("--bundle") + 1]).name == "bundle-10-1-self"
        assert words[words.index("--score") + 1] == "matched"
        assert "--uncertain" not in words
    one, other = (place.folder(f"generated-10-1{own}") / "images" for own in ("", "-matched"))
    assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in other.iterdir())


def test_an_adapter_learns_a_third_time_from_matched_labels_and_labels_with_regions_of_doubt(place: Fake) -> None:
    start(place, "generated-10-1-third", "rt_detr-10-1-third-generated", "adapter-val-10-1-third")
    ran = {stage: words for stage, words in place.ran if "third" in stage and "export" not in words}
    trained = ran["adapter-10-1-third"]
    assert Path(trained[trained.index("--pseudo") + 1]).name == "pseudo-10-1-matched"
    assert trained[trained.index("--tune-fraction") + 1] == "0"
    labelled = ran["generated-10-1-third"]
    assert Path(labelled[labelled.index("--bundle") + 1]).name == "bundle-10-1-third"
    assert labelled[labelled.index("--uncertain") + 1] == "0.4"
    worth = ran["rt_detr-10-1-third-generated"]
    assert Path(worth[worth.index("--synthetic") + 1]).name == "generated-10-1-third"
    text = (place.results.parent / "proof.md").read_text()
    (row,) = [
        line
        for line in text.splitlines()
        if line.startswith("| generated | as tune chose | a third time | matched | 0.4 |")
    ]
    assert "(list 10-1 alone)" in row


def test_what_was_chosen_goes_into_the_last_trainings(place: Fake) -> None:
    start(place, "rt_detr-10-1-generated")
    words = next(words for stage, words in place.ran if stage == "rt_detr-10-1-generated")
    assert words[words.index("--lr") + 1] == "0.001"
    assert words[words.index("--seed") + 1] == "1"
    assert words[words.index("--images") + 1] == str(place.lists / "10-1.txt")
    painted = next(words for stage, words in place.ran if stage == "generated-10-1")
    assert painted[painted.index("--strength") + 1] == "0.3:0.6"


def test_a_proof_that_is_cut_short_goes_on(place: Fake) -> None:
    left = start(place, seconds=250, pace=60.0)
    assert [why for _, why in left][:2] == ["goes on next time", "time is up"]
    done = {path.stem for path in place.results.glob("*.json")}
    assert 0 < len(done) < len(build(PLAN))
    assert start(place, pace=60.0) == []
    finished = [stage for stage, _ in place.ran]
    assert all(finished.count(stage) == (stage != "lists") for stage in done)
    before = len(place.ran)
    assert start(place) == []
    assert len(place.ran) == before


def test_lanes_do_the_same_stages_each_after_what_it_needs(place: Fake) -> None:
    left = start(place, seconds=250, pace=60.0, lanes=2)
    assert "goes on next time" in {why for _, why in left}
    assert start(place, lanes=3) == []
    records = {stage.name: (place.results / f"{stage.name}.json").stat().st_mtime_ns for stage in build(PLAN)}
    for stage in build(PLAN):
        assert all(records[name] <= records[stage.name] for name in (*stage.needs, *stage.reads))


def test_a_lane_that_fails_stops_the_others_and_says_so(place: Fake) -> None:
    with pytest.raises(ProofError, match="no luck"):
        start(place, lanes=2, broken=True)


def test_a_lane_keeps_to_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 5, 6}, raising=False)
    assert shares_of_cores(1) == [set()]
    assert shares_of_cores(2) == [{4, 6}, {5}]
    assert shares_of_cores(4) == [{4}, {5}, {6}, {4}]


def test_a_stage_that_cannot_go_on_waits_for_time_enough(place: Fake) -> None:
    start(place, "adapter-10-0")
    left = start(place, "bundle-10-0", seconds=100)
    assert [(stage.name, why) for stage, why in left] == [("bundle-10-0", "too little time to finish it")]


def test_what_a_broken_off_attempt_cost_counts(place: Fake) -> None:
    start(place, "lists")
    start(place, "base", seconds=90, pace=100.0)
    start(place, "base", pace=7.0)
    assert place.record("base-nolabels")["seconds"] == pytest.approx(107.0)  # type: ignore[index]


def test_files_that_are_gone_are_made_again_where_something_reads_them(place: Fake) -> None:
    start(place)
    shutil.rmtree(place.work)
    (place.results / "rt_detr-10-0-pseudo.json").unlink()
    names = [stage.name for stage in to_do(place, build(PLAN), set())]
    painted = ["base-nolabels", "adapter-10-0", "bundle-10-0", "pseudo-10-0"]
    assert names == ["lists", *painted, "rt_detr-10-0-real", "rt_detr-10-0-pseudo"]
    assert start(place) == []


def test_a_record_of_another_plan_is_refused(place: Fake) -> None:
    start(place, "lists")
    changed = replace(PLAN, seed=1)
    with pytest.raises(ProofError, match=r"lists\.json was made with .*'seed': 2309"):
        to_do(replace(place, plan=changed), build(changed), set())


def test_without_torchvision_the_second_detector_waits(place: Fake) -> None:
    left = start(place, python=None)
    assert all(stage.torchvision for stage, _ in left)
    assert {stage.name for stage, _ in left} == {stage.name for stage in build(PLAN) if stage.torchvision}
    with pytest.raises(ProofError, match="--only names nothing"):
        start(place, "nothing")


def verdicts(place: Fake) -> list[str]:
    lines = (place.results.parent / "proof.md").read_text().split("## ")[1].splitlines()
    return [line.split("|")[-2].strip() for line in lines if line.startswith("|") and "labels:" in line]


def test_the_report_says_not_run_before_anything_was(place: Fake) -> None:
    place.results.mkdir(parents=True)
    report.write(place)
    assert verdicts(place) == ["not run yet"] * 8


def test_gains_over_a_good_baseline_are_met(place: Fake) -> None:
    start(place)
    text = (place.results.parent / "proof.md").read_text()
    # Half of the images right: AP50 of the real arm is about 50, too little for any gain to count.
    assert [one.partition(":")[0] for one in verdicts(place)] == ["**not met**"] * 8
    assert "no gain counts yet, since the baseline's AP50 is" in verdicts(place)[0]
    assert "painting gives no more than labels on the other real images do (+0.0" in text
    assert "| `pseudo` | photographs | 2 | 0.50; 1.00 |" in text
    assert "| rt_detr | as tune chose | a third time | matched | 12 | 0.8:0.2 | +" in text  # 10% of the labels
    assert "| rt_detr | 0.1 to 0.3 | a third time | matched | 24 | as tune chose | +" in text
    assert "| 0.1 to 0.3 | matched | - | 0.6:0 | +" in text  # all labels
    shutil.rmtree(place.results)
    start(place, real_is_right=True, generated_is_right=False)
    assert verdicts(place) == ["**not met**"] * 4 + ["**not met**"] * 2 + ["met"] * 2


def test_what_was_typed_and_every_machine_are_told(
    place: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "FINDINGS", tmp_path / "findings.md")
    start(place, "lists", "tune-rt_detr-full-lr0.001", "tune-rt_detr-full-lr0.0005")
    other = place.results / "lists.json"
    record = json.loads(other.read_text())
    write(other, record | {"machine": record["machine"] | {"cpu": "Another"}})
    assert "What the figures suggest" not in "\n".join(report.sections(place, report.read_records(place.results), []))
    (tmp_path / "findings.md").write_text("Because.\n")
    text = "\n".join(report.sections(place, report.read_records(place.results), []))
    assert "## What the figures suggest\n\nBecause.\n" in text
    assert "Made on Another, " in text
    assert ": lists\n" in text
    assert ": most stages\n" in text


def test_a_stage_that_is_made_again_keeps_what_it_was(place: Fake) -> None:
    start(place, "lists")
    first = place.record("lists")
    assert first is not None
    place.perform("lists", {}, lambda _: {"images": 0})
    place.perform("lists", {}, lambda _: {"images": 1})
    again = place.record("lists")
    assert again is not None
    assert again["figures"] == {"images": 1}
    assert [one["figures"] for one in again["before"]] == [first["figures"], {"images": 0}]
    text = "\n".join(report.sections(place, report.read_records(place.results), []))
    assert "Made once more from the seed, since later stages read files that were gone: lists. " in text


def test_a_verdict_needs_the_bar_and_the_baseline() -> None:
    high = Gain(6.0, 1.0, 4.0, 8.0, (6.0,))
    assert report.verdict(Bar("x", "k", 5.0, high), 80.0) == "met"
    assert report.verdict(Bar("x", "k", 7.0, high), 80.0) == "**not met**"
    assert report.verdict(Bar("x", "k", 5.0, high), 74.9).startswith("**not met**: no gain counts yet")
    assert report.verdict(Bar("x", "k", 5.0, high), None).startswith("**not met**: no gain counts yet")
    assert report.verdict(Bar("x", "k", 5.0, None), 80.0) == "not run yet"
    assert report.verdict(Bar("x", "k", 75.0, 75.0), 75.0) == "met"
    assert Bar("x", "k", 0.0, replace(high, mean=0.0)).reached is False
    assert shown(high) == "+6.0 ± 1.0 [+4.0, +8.0]"


def test_intervals_from_records_are_those_of_evaluate(place: Fake) -> None:
    prepare(place.dataset, place.work, PLAN, place.lists)
    val = open_dataset(place.data, split="train")
    noisy: Callable[[int], list[Detections]] = lambda seed: [  # noqa: E731
        Detections(
            record.boxes + generator(seed, place).normal(0, 4, size=(3, 4)).astype(np.float32),
            np.ones(3, dtype=np.float32),
            record.labels,
        )
        for place, record in enumerate(val.records)
    ]
    found = {0: noisy(1), 9: noisy(2)}
    arms = compare([Result(arm, 0, one) for arm, one in found.items()], val.records, NAMES, resamples=40)
    kept = {arm: draws(val.records, one, NAMES, 40) for arm, one in found.items()}
    low, high = interval([kept[9]], [kept[0]], "AP")
    assert (low, high) == pytest.approx((arms[1].differences["AP"].low, arms[1].differences["AP"].high), abs=2e-4)
    assert len(read_draws(kept[0]["AP"])) == 40
    assert np.isnan(read_draws("12 -")[1])


def test_choices_take_the_best_and_the_strength_that_labels_stand() -> None:
    assert choices.best({0.5: [0.4, 0.6], 0.8: [0.7, 0.5], 0.3: [0.1, 0.2]}) == 0.8
    assert choices.best({0.5: [0.5], 0.3: [0.5]}) == 0.3
    rows = [
        {"setting": f"strength {s}", "f1": f1, "settings": {"strength": [s, s]}} for s, f1 in ((0.3, 0.7), (0.6, 0.68))
    ]
    assert choices.strength(rows, 0.3, 0.03) == (0.3, 0.6)
    assert choices.strength(rows, 0.3, 0.01) == (0.3, 0.3)
    assert choices.score_text({"b": None, "a": 0.5}, 0.3) == "a=0.5,b=0.3"


def test_a_command_ends_with_the_time_that_was_given(tmp_path: Path) -> None:
    place = Workplace(tmp_path, tmp_path / "results", tmp_path, PLAN, stage="slow")
    place.deadline = place.now() + 0.5
    with pytest.raises(OutOfTimeError):
        place.run([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"])
    assert place.now() - place.deadline < 20
    place.deadline = float("inf")
    threading.Timer(0.5, place.stop.set).start()
    with pytest.raises(OutOfTimeError):
        place.run([sys.executable, "-c", "import time; time.sleep(60)"])
    place.stop.clear()
    with pytest.raises(ProofError, match=r"slow failed \(3\): no luck"):
        place.run([sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"])


def test_the_clock_may_be_given_as_a_time_of_day() -> None:
    now = datetime.datetime(2026, 11, 22, 23, 0)
    assert program.seconds_until("23:30", now) == 1800
    assert program.seconds_until("01:00", now) == 7200
    with pytest.raises(UsageError, match="--until is 'soon'"):
        program.seconds_until("soon", now)


def test_generated_images_of_tune_images_are_left_out_of_choices(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", short_side=24)
    finalize(run)
    path = run / "journal.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry, name in zip(entries, "xyxyxyx", strict=True):
        entry["reference"] = f"{name}.jpg"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    everything = tuning.synthetic_samples(run, ("a", "b"), set(), 48)
    without = tuning.synthetic_samples(run, ("a", "b"), {"x.jpg"}, 48)
    assert [sample.short_side for sample in everything] == [48] * len(everything)
    kept = {sample.record.name for sample in without}
    assert kept == {entry.get("file") for entry in entries if entry["reference"] == "y.jpg"} - {None}
    assert 0 < len(kept) < len(everything)


def test_a_training_for_a_choice_is_measured_on_the_way_and_ends_once(place: Fake, tmp_path: Path) -> None:
    prepare(place.dataset, place.work, PLAN, place.lists)
    spec = tuning.Spec(
        data=str(place.data), fit="10-0-fit", tune="10-0-tune", kind="rt_detr", steps=2, lr=1e-3, batch=2,
        short_side=96, seed=0, points=1,
    )  # fmt: skip
    out = tmp_path / "tuned"
    out.mkdir()
    found = tuning.train(spec, out)
    assert found["images"] == {"fit": 2, "generated": 0, "tune": 2}
    assert [point["step"] for point in found["curve"]] == [2]
    assert found["curve"][0]["AP"] == pytest.approx(found["figures"]["AP"], abs=0.02)
    again = tuning.train(spec, out)
    assert again["figures"] == found["figures"]
    assert again["curve"] == found["curve"]


def test_labels_come_back_in_the_order_of_the_images(place: Fake, tmp_path: Path) -> None:
    val = open_dataset(place.dataset, split="val")
    write_annotations(tmp_path, [record.name for record in reversed(val.records)])
    found = actions.labelled(tmp_path / "annotations.json", val.records, val.class_names)
    assert [one.boxes.tolist() for one in found] == [[[1, 1, 6, 6]]] * 4
    assert found[0].labels.tolist() == [0]
