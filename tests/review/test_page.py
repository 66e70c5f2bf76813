"""The page in a real browser: the grid, thresholds, filters and the keys that keep and reject."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Look, page_of
from reviewing import CLASSES, decisions_in, make_review_run

from engines.datasets.writers import AnnotatedImage, write_coco
from engines.labels.rules import chosen
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.journal import JOURNAL, Entry, read_entries
from engines.runs.run_folder import require_run

pytestmark = pytest.mark.browser


def entries(run: Path) -> list[Entry]:
    return [entry for entry in read_entries(run / JOURNAL) if entry.file]


def shown(page: Any, count: int) -> None:
    """Wait until so many images are said to be shown."""
    page.wait_for_function("n => document.querySelector('.shown')?.textContent?.startsWith(n + ' ')", arg=str(count))


def saved(page: Any, count: int) -> None:
    """Wait until so many decisions are said to be on the disk."""
    page.wait_for_function(
        "n => document.querySelector('#saved')?.textContent?.startsWith(n + ' decision')", arg=str(count)
    )
    page.wait_for_function("() => document.querySelector('#saved')?.textContent?.endsWith('on the disk')")


def labels_at(run: Path, thresholds: list[float]) -> tuple[int, int]:
    """Images with a label, and labels, counted here."""
    marks = [entry.instances.scores >= np.array(thresholds)[entry.instances.labels] for entry in entries(run)]
    return sum(bool(one.any()) for one in marks), sum(int(one.sum()) for one in marks)


def test_a_hundred_images_are_curated_by_keys_alone_and_finalize_obeys_byte_for_byte(
    look: Look, tmp_path: Path
) -> None:
    run = make_review_run(tmp_path / "run", 100)
    page = look(run)
    images = entries(run)
    shown(page, len(images))
    rejected = set()
    for place, entry in enumerate(images):
        page.keyboard.press("x" if place % 3 == 1 else "k")
        if place % 3 == 1:
            rejected.add(entry.file)
    saved(page, len(images))
    assert len(decisions_in(run)) == len(images)
    finalize(FinalizeSettings(run))
    settings = require_run(run)
    left = [
        AnnotatedImage(str(one.file), *settings.frame, chosen(one.instances, settings.rules), prompt=one.prompt)
        for one in images
        if one.file not in rejected
    ]
    info = json.loads((run / "annotations.json").read_text("utf-8"))["info"]
    write_coco(tmp_path / "expected.json", left, CLASSES, info)
    assert (run / "annotations.json").read_bytes() == (tmp_path / "expected.json").read_bytes()
    assert {path.name for path in (run / "images").iterdir()} == {one.file_name for one in left}


def test_thresholds_are_moved_by_slider_and_key_count_live_and_are_obeyed(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run")
    page = look(run)
    slider = page.locator("#threshold-0")
    slider.fill("0.6")
    page.wait_for_function("() => document.querySelector('output')?.textContent === '0.60'")
    page.locator(".grid").focus()
    page.keyboard.press("2")
    for _ in range(5):
        page.keyboard.press("]")
    page.keyboard.press("[")
    thresholds = [0.6, 0.34, 0.3]
    images, labels = labels_at(run, thresholds)
    words = f"{images} images with {labels} labels"
    page.wait_for_function("words => document.querySelector('#totals')?.textContent === words", arg=words)
    page.wait_for_function(
        "n => document.querySelector('.shown')?.textContent === n + ' images'", arg=str(len(entries(run)))
    )
    kept = run / ".dengine" / "thresholds.json"
    for _ in range(100):
        if kept.exists() and json.loads(kept.read_text())["score"] == dict(zip(CLASSES, thresholds, strict=True)):
            break
        page.wait_for_timeout(50)
    summary = finalize(FinalizeSettings(run))
    assert (summary.images, summary.boxes) == (images, labels)


def test_the_filter_finds_by_class_count_size_score_prompt_strength_and_decision(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", reference="gone", reference_hash="1" * 64)
    page = look(run)
    images = [(entry, entry.instances.take(entry.instances.scores >= 0.3)) for entry in entries(run)]
    rods = [found for _, found in images if (found.labels == 2).any()]
    form = page.locator(".filters")
    form.locator("[name=label]").select_option(label="rod")
    shown(page, len(rods))
    form.locator("[name=least]").fill("2")
    shown(page, sum((found.labels == 2).sum() >= 2 for _, found in images))
    page.get_by_role("button", name="Clear the filter").click()
    shown(page, len(images))
    form.locator("[name=most]").fill("2")
    shown(page, sum(len(found) <= 2 for _, found in images))
    form.locator("[name=most]").fill("")
    form.locator("[name=largest]").fill("16")
    sides = [np.sqrt(np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1)) for _, found in images]
    shown(page, sum(bool((one.astype(np.float16) <= 16).any()) for one in sides))
    form.locator("[name=largest]").fill("")
    form.locator("[name=lowest]").fill("0.9")
    shown(page, sum(bool((found.scores >= 0.9).any()) for _, found in images))
    form.locator("[name=lowest]").fill("")
    form.locator("[name=prompt]").fill("MANY")
    shown(page, sum("many" in entry.prompt for entry, _ in images))
    form.locator("[name=prompt]").fill("")
    form.locator("[name=weakest]").fill("0.5")
    shown(page, 0)
    form.locator("[name=weakest]").fill("")
    shown(page, len(images))
    page.locator(".grid").focus()
    page.keyboard.press("x")
    saved(page, 1)
    form.locator("[name=status]").select_option("rejected")
    shown(page, 1)
    form.locator("[name=status]").select_option("undecided")
    shown(page, len(images) - 1)


def test_the_order_is_by_how_sure_and_how_many(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run")
    page = look(run)
    most = max(entries(run), key=lambda entry: len(entry.instances))
    page.locator("[name=order]").select_option("many")
    first = page.locator(".tile[data-place='0']")
    page.wait_for_function(
        "n => document.querySelector('.tile[data-place=\"0\"] .name')?.textContent === n", arg=str(most.index)
    )
    assert first.get_attribute("aria-selected") == "true"


def test_all_that_a_filter_shows_is_rejected_in_one_line_and_taken_back(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run")
    page = look(run)
    page.locator("[name=prompt]").fill("few")
    few = [entry.file for entry in entries(run) if "few" in entry.prompt]
    shown(page, len(few))
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Reject all shown").click()
    saved(page, 1)
    assert [one["images"] for one in decisions_in(run)] == [few]
    page.wait_for_selector(".tile.rejected")
    page.locator(".grid").focus()
    page.keyboard.press("u")
    saved(page, 0)
    page.wait_for_function("() => !document.querySelector('.tile.rejected:not([hidden])')")
    assert finalize(FinalizeSettings(run)).images == len(entries(run))


def test_a_decision_that_gets_no_answer_is_sent_again_and_counts_once(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 10)
    page = look(run)
    lost: list[int] = []

    def lose_the_answer(route: Any) -> None:
        if lost:
            route.continue_()
            return
        lost.append(route.fetch().status)  # the server has it; the page does not know
        route.abort()

    page.route("**/api/decide", lose_the_answer)
    page.locator(".grid").focus()
    page.wait_for_selector(".tile[data-place='0']:not(.empty)")
    page.keyboard.press("x")
    saved(page, 1)
    assert lost == [200]
    assert len(decisions_in(run)) == 1
    page.wrong.clear()  # the browser says that a request failed


def test_another_window_sees_what_was_decided(look: Look, browser: Any, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 10)
    page = look(run)
    with page_of(browser, page.review.url) as other:
        other.wait_for_selector(".tile[data-place='0']:not(.empty)")
        page.wait_for_selector(".tile[data-place='0']:not(.empty)")
        page.locator(".grid").focus()
        page.keyboard.press("x")
        saved(page, 1)
        other.evaluate("() => dispatchEvent(new Event('focus'))")
        other.wait_for_selector(".tile.rejected[data-place='0']")
        saved(other, 1)


def test_the_grid_is_walked_by_keys_and_holds_only_what_is_seen(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 300)
    page = look(run)
    images = len(entries(run))
    shown(page, images)
    grid = page.locator(".grid")
    grid.focus()
    page.keyboard.press("End")
    page.wait_for_selector(f".tile.active[data-place='{images - 1}']:not(.empty)")
    last = page.locator(".tile.active").get_attribute("aria-label")
    assert last.startswith(str(entries(run)[-1].file))
    assert page.locator(".tile:not([hidden])").count() < 60
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    columns = int(page.locator(".tile.active").get_attribute("data-place"))
    assert columns >= 3
    active = grid.get_attribute("aria-activedescendant")
    assert page.locator(f"#{active}").get_attribute("aria-selected") == "true"
    place = page.locator(".tile.active").bounding_box()
    frame = grid.bounding_box()
    assert frame["y"] <= place["y"]
    assert place["y"] + place["height"] <= frame["y"] + frame["height"] + 1


def test_a_narrow_window_has_everything_within_its_width(look: Look, tmp_path: Path) -> None:
    page = look(make_review_run(tmp_path / "run"), width=375, height=700)
    page.wait_for_selector(".tile:not(.empty)")
    assert page.evaluate("() => document.documentElement.scrollWidth") == 375
    toggle = page.get_by_role("button", name="Filter", exact=True)
    toggle.click()
    assert toggle.get_attribute("aria-expanded") == "true"
    page.locator("[name=status]").select_option("kept")
    toggle.click()
    shown(page, 0)


def test_what_holds_the_focus_shows_it(look: Look, tmp_path: Path) -> None:
    page = look(make_review_run(tmp_path / "run", 10))
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "() => { const e = document.activeElement, s = getComputedStyle(e);"
            " return [e.tagName + (e.id || e.name || e.textContent), s.outlineStyle + ' ' + s.outlineWidth] }"
        )
        if name in seen or name.startswith("BODY"):  # round again, past the browser's own bar
            break
        seen.add(name)
        assert re.match(r"(solid|auto) [1-9]", outline), name
    assert len(seen) > 20


def test_a_journal_with_a_bad_line_is_said_on_the_page(look: Look, tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 10)
    lines = (run / JOURNAL).read_text("utf-8").splitlines(keepends=True)
    (run / JOURNAL).write_text("".join([*lines[:5], "{}\n", *lines[5:]]), "utf-8")
    page = look(run)
    page.wait_for_function("() => document.querySelector('#trouble')?.textContent?.includes('line 6')")
