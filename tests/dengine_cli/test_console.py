"""What verbs show while they work, and how they read values that are written as text."""

import io
import os
import signal
from pathlib import Path

import pytest

from dengine_cli import console
from dengine_cli.options import parse_labels, parse_list, parse_range, parse_size
from engines.errors import UsageError
from engines.training.trainer import Progress

NAMES = ("a/one.jpg", "a/two.jpg", "three.png")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (45.3, "45 s"), (119.4, "119 s"), (119.6, "2 min"), (12_000, "3 h 20 min")],
)
def test_times_are_in_words(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_a_table_aligns_numbers_to_the_right_and_words_to_the_left() -> None:
    assert console.table([("rbc", "1234", "yes"), ("platelets", "7", "no")], ("class", "boxes", "ok")) == (
        "class      boxes  ok\nrbc         1234  yes\nplatelets      7  no"
    )


def test_findings_are_counted_and_only_the_first_are_shown() -> None:
    assert console.findings([], []) == ""
    assert console.findings(["a"], [str(i) for i in range(7)]).splitlines() == [
        "degenerate boxes dropped: 1",
        "  a",
        "bad items left out: 7",
        *(f"  {i}" for i in range(5)),
        "  and 2 more",
    ]


def test_away_from_a_terminal_progress_is_a_line_at_the_start_and_at_the_end() -> None:
    stream = io.StringIO()
    with console.ProgressBars(stream) as bars:
        for done in range(101):
            bars.update("painting", done, 100, f"{done} boxes", seconds_left=100.0 - done)
        bars.update("painting", 100, 100)
    assert stream.getvalue().splitlines() == ["painting: 0/100, 0 boxes, 100 s left", "painting: 100/100, 100 boxes"]


def test_away_from_a_terminal_lines_of_a_stage_are_ten_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    with console.ProgressBars(stream) as bars:
        for done in range(26):
            bars.update("painting", done, 50)
    lines = stream.getvalue().splitlines()
    assert lines == ["painting: 0/50", "painting: 10/50, 40 s left", "painting: 20/50, 30 s left"]


def test_on_a_terminal_progress_is_a_bar_with_the_time_left() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with console.ProgressBars(stream) as bars:
        bars.line("opening [the bundle]")
        bars.update("painting", 3, 32, "17 boxes", seconds_left=61.0)
    assert "opening [the bundle]" in stream.getvalue()
    for part in ("painting", "3/32", "17 boxes", "61 s left"):
        assert part in stream.getvalue()


def test_an_evaluation_in_training_gets_a_line_of_its_own() -> None:
    stream = io.StringIO()
    with console.ProgressBars(stream) as bars:
        report = console.training_report(bars)
        report(Progress("adapter", 500, 3000, 1.25, 60.0, {"AP50": 0.5, "giou": 0.1}))
    assert stream.getvalue().splitlines() == [
        "step 500: AP50 0.500",
        "adapter: 500/3000, loss 1.2500, 60 s left",
    ]


def test_the_first_interrupt_asks_for_a_stop_and_the_second_one_stops() -> None:
    before = signal.getsignal(signal.SIGINT)
    said: list[str] = []
    with console.stop_at_a_good_place(said.append) as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_request_to_terminate_asks_for_a_stop_too() -> None:
    with console.stop_at_a_good_place(lambda text: None) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()


def test_ranges_sizes_and_lists_are_read() -> None:
    assert parse_range("0.4:0.8", "--x") == (0.4, 0.8)
    assert parse_range("0.6", "--x") == (0.6, 0.6)
    assert parse_range(None, "--x") is None
    assert parse_size("320x256", "--x") == (320, 256)
    assert parse_list(" coco, yolo,,coco") == ("coco", "yolo")


@pytest.mark.parametrize("text", ["", "a:b", "0.4:", ":0.8", "0.4-0.8"])
def test_a_wrong_range_names_its_option(text: str) -> None:
    with pytest.raises(UsageError, match="--strength is"):
        parse_range(text, "--strength")


@pytest.mark.parametrize("text", ["", "320", "320x", "x256", "-1x2", "3.5x2", "1x2x3"])
def test_a_wrong_size_names_its_option(text: str) -> None:
    with pytest.raises(UsageError, match="--size is"):
        parse_size(text, "--size")


def test_labels_may_be_read_of_none_of_all_or_of_listed_images(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("one\n a/two.jpg \n\n", "utf-8")
    assert parse_labels("none", NAMES) == set()
    assert parse_labels("all", NAMES) is None
    assert parse_labels(str(listed), NAMES) == {"a/one.jpg", "a/two.jpg"}


def test_a_list_that_names_an_unknown_image_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("one\nfour\n", "utf-8")
    with pytest.raises(UsageError, match="'four'"):
        parse_labels(str(listed), NAMES)


def test_labels_that_are_no_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none, all, or a file"):
        parse_labels("some", NAMES)
    with pytest.raises(UsageError, match="cannot be read"):
        parse_labels(str(tmp_path), NAMES)
