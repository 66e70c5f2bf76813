"""The page's other views in a real browser: one image and its boxes, crops, near duplicates, what is left out, balance,
an audit's findings; and what axe-core says of all of them.
"""

from pathlib import Path
from typing import Any

import pytest
from browsing import Look, expect, violations
from made_audit import write_audit
from made_datasets import PICTURES, coco_content, picture, write_coco_file
from reviewing import CLASSES, decisions_in, make_review_run

from engines.datasets.dataset import open_dataset
from engines.runs.decisions import read_decisions
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.journal import JOURNAL, read_entries

pytestmark = pytest.mark.browser


def saved(page: Any, count: int) -> None:
    words = "n => document.querySelector('#saved')?.textContent?.startsWith(n + ' decision')"
    page.wait_for_function(
        words + " && document.querySelector('#saved')?.textContent?.endsWith('disk')", arg=str(count)
    )


def opened(page: Any) -> Any:
    """The first image, over the page."""
    page.wait_for_selector(".tile[data-place='0']:not(.empty)")
    page.locator(".grid").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".viewer[data-row='0'] .box-row")
    return page.locator(".viewer")


def test_boxes_are_chosen_deleted_reclassed_moved_confirmed_and_drawn_by_keys(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 10)
    page = look(run)
    opened(page)
    first = next(read_entries(run / JOURNAL)).instances
    page.keyboard.press("n")
    page.keyboard.press("f")
    saved(page, 1)
    other = 1 + (int(first.labels[0]) + 1) % 3
    page.keyboard.press(str(other))
    saved(page, 2)
    page.keyboard.press("m")
    page.keyboard.press("Control+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    saved(page, 3)
    page.keyboard.press("n")
    page.keyboard.press("d")
    saved(page, 4)
    page.keyboard.press("a")
    page.keyboard.press("1")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    saved(page, 5)
    page.keyboard.press("a")
    page.keyboard.press("Escape")
    page.keyboard.press("k")
    page.wait_for_selector(".viewer[data-row='1']")
    saved(page, 6)
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(".viewer[data-row='0']")
    page.keyboard.press("Escape")
    page.wait_for_selector(".viewer:not([open])", state="attached")
    lines = decisions_in(run)
    assert [one["do"] for one in lines] == ["confirm", "change", "change", "delete", "draw", "keep"]
    assert {tuple(one["images"]) for one in lines} == {("00000000.jpg",)}
    box = [round(one, 2) for one in first.boxes[0].tolist()]
    assert lines[0]["was"] == {"box": box, "label": CLASSES[first.labels[0]]}
    assert (lines[1]["box"], lines[1]["label"]) == (box, CLASSES[other - 1])
    x0, y0, _, y1 = lines[2]["box"]
    assert [x0 - box[0], y0 - box[1], y1 - box[3]] == pytest.approx([min(10, 160 - box[2]), 0, min(1, 120 - box[3])])
    assert lines[4]["label"] == CLASSES[0]
    assert page.evaluate("() => document.activeElement.getAttribute('role')") == "listbox"
    page.keyboard.press("u")
    saved(page, 5)
    summary = finalize(FinalizeSettings(run))
    assert summary.images == 9


def test_boxes_are_drawn_moved_and_resized_by_pointer(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 10)
    page = look(run)
    opened(page)
    stage = page.locator(".stage").bounding_box()
    middle = (stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2)
    page.keyboard.press("a")
    page.mouse.move(middle[0] - 60, middle[1] - 50)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1] + 50, steps=4)
    page.mouse.up()
    saved(page, 1)
    drawn = decisions_in(run)[0]["box"]
    page.wait_for_selector(".box-row[aria-pressed=true]")
    page.mouse.move(middle[0] + 60, middle[1] + 50)
    page.mouse.down()
    page.mouse.move(middle[0] + 90, middle[1] + 70, steps=4)
    page.mouse.up()
    saved(page, 2)
    resized = decisions_in(run)[1]
    assert resized["was"]["box"] == drawn
    assert resized["box"][:2] == drawn[:2]
    assert resized["box"][2] > drawn[2]
    assert resized["box"][3] > drawn[3]
    page.keyboard.press("+")
    page.mouse.wheel(0, -200)
    page.keyboard.press("0")


def test_weak_boxes_show_on_request_and_the_words_of_the_image_are_there(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 10)
    page = look(run)
    viewer = opened(page)
    entry = next(read_entries(run / JOURNAL))
    labels = int((entry.instances.scores >= 0.3).sum())
    assert viewer.locator(".box-row").count() == labels
    page.keyboard.press("w")
    page.wait_for_function("n => document.querySelectorAll('.box-row').length === n", arg=len(entry.instances))
    assert entry.prompt in viewer.locator(".words").inner_text()


def test_the_reference_is_beside_what_was_painted_from_it(look: Look, tmp_path: Path) -> None:
    data = tmp_path / "data"
    picture(data / "first.png")
    run = make_review_run(tmp_path / "run", 4, dataset=False, reference=str(data))
    lines = (run / JOURNAL).read_text("utf-8").replace('"reference": null', '"reference": "first.png"')
    (run / JOURNAL).write_text(lines, "utf-8")
    page = look(run)
    viewer = opened(page)
    page.wait_for_function("() => document.querySelector('.reference img')?.naturalWidth === 64")
    assert "first.png" in viewer.locator(".words").inner_text()


def test_crops_of_a_class_are_confirmed_and_deleted_by_keys(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run")
    page = look(run, "crops")
    page.get_by_label("Class", exact=True).first.select_option(label="spot")
    entries = [entry for entry in read_entries(run / JOURNAL) if entry.file]
    scores = [(entry.instances.scores, entry.instances.labels) for entry in entries]
    boxes = sorted(float(one) for score, label in scores for one in score[(label == 1) & (score >= 0.3)])
    page.wait_for_function("n => document.querySelector('.shown')?.textContent === n + ' boxes'", arg=str(len(boxes)))
    page.wait_for_selector(".tile[data-place='0']:not(.empty)")
    expect(page.locator(".tile[data-place='0'] .score")).to_have_text(f"{boxes[0]:.2f}")
    page.locator(".grid").focus()
    page.keyboard.press("k")
    saved(page, 1)
    page.keyboard.press("x")
    saved(page, 2)
    assert [one["do"] for one in decisions_in(run)] == ["confirm", "delete"]
    expect(page.locator(".tile.rejected")).to_have_count(1)
    page.keyboard.press("u")
    saved(page, 1)
    page.wait_for_function("() => !document.querySelector('.tile.rejected')")
    before = finalize(FinalizeSettings(run)).boxes_by_class["spot"]
    assert before == len(boxes)


def test_an_answer_that_comes_late_does_not_replace_a_newer_one(look: Look, tmp_path: Path) -> None:
    page = look(make_review_run(tmp_path / "run"), "crops")
    which, held = page.get_by_label("Class", exact=True).first, list[Any]()
    page.wait_for_selector(".tile[data-place='0']:not(.empty)")
    first = page.locator(".shown").inner_text()
    which.select_option(label="spot")
    expect(page.locator(".shown")).not_to_have_text(first)
    spots = page.locator(".shown").inner_text()

    def hold(route: Any) -> None:
        held.append(route) if not held else route.continue_()

    page.route("**/api/crops", hold)
    which.select_option(index=0)
    with page.expect_response("**/api/crops"):
        which.select_option(label="spot")
    with page.expect_response("**/api/crops"):
        held[0].continue_()
    page.wait_for_timeout(100)
    assert page.locator(".shown").inner_text() == spots


def test_near_duplicates_come_in_groups(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 20, dataset=False)
    first = (run / "images" / "00000000.jpg").read_bytes()
    for name in ("00000003.jpg", "00000012.jpg"):
        (run / "images" / name).write_bytes(first)
    page = look(run, "near")
    page.get_by_role("button", name="Look among").click()
    page.wait_for_function("() => document.querySelectorAll('.grid .tile:not(.empty):not([hidden])').length >= 3")
    titles = page.locator(".tile:not([hidden]) .name").all_inner_texts()
    assert titles[:3] == ["Group 1, 1 of 3", "Group 1, 2 of 3", "Group 1, 3 of 3"]
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Keep each group's first").click()
    saved(page, 1)
    assert set(decisions_in(run)[0]["images"]) >= {"00000003.jpg", "00000012.jpg"}
    assert "00000000.jpg" not in decisions_in(run)[0]["images"]


def test_what_is_left_out_says_why_and_can_be_kept(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 40, count=30, jobs=None)
    (run / "review.jsonl").write_text('{"id": "decision-1", "do": "reject", "images": ["00000002.jpg"]}\n', "utf-8")
    page = look(run, "left-out")
    page.wait_for_function("() => document.querySelectorAll('.reasons .chip').length === 3")
    chips = page.locator(".reasons .chip")
    assert chips.all_inner_texts() == ["No label 4", "Beyond the count 6", "Rejected in review 1"]
    page.wait_for_selector(".tile .absent:not(:empty)")
    assert page.locator(".tile .absent:not(:empty)").first.inner_text() == "no box scores 0.3"
    chips.nth(1).click()
    page.wait_for_selector(".tile[data-place='5']:not(.empty)")
    page.locator(".grid").focus()
    page.keyboard.press("k")
    saved(page, 2)
    page.wait_for_function("() => document.querySelectorAll('.reasons .chip')[1].textContent === 'Beyond the count 5'")
    summary = finalize(FinalizeSettings(run))
    assert (summary.images, summary.dropped["beyond the count"]) == (30, 5)


def test_balance_says_what_is_missing_and_how_to_paint_it(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run")
    page = look(run, "balance")
    page.wait_for_selector("table")
    first = page.locator("tbody tr > :first-child").all_text_contents()
    assert [name.strip() for name in first] == list(CLASSES)
    command = page.locator(".reading .command code").inner_text()
    assert command.startswith("dengine generate --count ")
    assert "--balance" in command
    assert str(run) + "-more" in command


@pytest.fixture
def audited(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    for name in PICTURES:
        picture(data / "images" / name)
    write_coco_file(data / "annotations.json", coco_content())
    write_audit(data)
    return data


def test_findings_of_an_audit_are_accepted_and_dismissed_by_keys(look: Look, audited: Path) -> None:
    page = look(audited, "findings")
    page.wait_for_selector(".tile[data-place='0']:not(.empty)")
    kinds = [text.split(" ·")[0] for text in page.locator(".tile .what").all_inner_texts()]
    assert kinds == ["Missing label", "Other class", "Nothing there", "Loose box"]
    page.locator(".grid").focus()
    for count, key in enumerate("kkxk", start=1):
        page.keyboard.press(key)
        saved(page, count)
    assert [one["do"] for one in decisions_in(audited)] == ["draw", "change", "dismiss", "change"]
    decisions = read_decisions(audited)
    dataset = open_dataset(audited)
    fixed = {record.name: decisions.apply(record, dataset.class_names) for record in dataset.records}
    a, b = fixed["a.png"], fixed["b.png"]
    assert a is not None
    assert b is not None
    assert a.instances.boxes[-1].tolist() == [50, 20, 60, 30]
    assert [dataset.class_names[label] for label in a.instances.labels] == ["dog", "dog", "cat", "cat"]
    assert b.instances.boxes[0].tolist() == [4, 4, 28, 38]
    page.keyboard.press("u")
    saved(page, 3)


def test_every_view_is_free_of_what_axe_finds(look: Look, tmp_path: Path, audited: Path) -> None:
    found: dict[str, list[str]] = {}
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 375)):
        run = make_review_run(tmp_path / f"{scheme}{width}")
        page = look(run, scheme=scheme, width=width)
        page.wait_for_selector(".tile[data-place='0']:not(.empty)")
        for view in ("images", "crops", "near", "left-out", "balance"):
            page.evaluate("view => { location.hash = view }", view)
            page.wait_for_selector(f"main[data-view='{view}']")
            page.wait_for_selector("table" if view == "balance" else ".near, .grid")
            page.wait_for_timeout(150)
            found[f"{view} {scheme} {width}"] = violations(page)
        page.evaluate("() => { location.hash = 'images' }")
        page.wait_for_selector("main[data-view=images] .tile[data-place='0']:not(.empty)")
        page.locator(".grid").focus()
        page.keyboard.press("x")
        page.keyboard.press("?")
        found[f"help {scheme} {width}"] = violations(page)
        page.keyboard.press("Escape")
        page.locator(".grid").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".viewer .box-row")
        page.keyboard.press("n")
        found[f"viewer {scheme} {width}"] = violations(page)
    page = look(audited, "findings")
    page.wait_for_selector(".tile[data-place='0']:not(.empty)")
    found["findings"] = violations(page)
    assert {view: wrong for view, wrong in found.items() if wrong} == {}
