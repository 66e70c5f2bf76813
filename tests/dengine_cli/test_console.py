"""What verbs show while they work, and how they read values that are written as text."""

import contextlib
import io
import os
import re
import shlex
import signal

import pytest

from dengine_cli import console
from dengine_cli.tables import table
from engines.common.events import Event, EventKind, ImageNews, note
from engines.common.interrupts import held


def test_a_table_aligns_numbers_to_the_right_and_words_to_the_left() -> None:
    assert console.table([("rbc", "1234", "yes"), ("platelets", "7", "no")], ("class", "boxes", "ok")) == (
        "class      boxes  ok\nrbc         1234  yes\nplatelets      7  no"
    )


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


def test_a_stage_that_comes_again_and_again_does_not_fill_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    with console.ProgressBars(stream) as bars:
        for _ in range(10):
            for done in (0, 1, 2):
                bars.update("measuring", done, 2, seconds_left=5.0)
    assert stream.getvalue().splitlines() == ["measuring: 0/2, 5.0 s left", "measuring: 2/2"] * 3, "ten seconds apart"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_progress_is_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with console.ProgressBars(stream) as bars:
        bars.line("opening [the bundle]")
        bars.update("painting", 3, 32, "17 boxes", seconds_left=61.0)
    assert "opening [the bundle]" in stream.getvalue()
    for part in ("painting", "3/32", "17 boxes", "61 s left"):
        assert part in stream.getvalue()


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_no_line_of_a_bar_wraps_or_is_cut(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with console.ProgressBars(stream) as bars:
        text = "12353 boxes, 123 dropped, 0.83 images/s"
        bars.update("painting", 1235, 10000, text, seconds_left=12_000.0, reached=1235.5)
    drawn = next(line for line in reversed(stream.getvalue().splitlines()) if "painting" in line)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn).rstrip()
    assert len(shown) <= columns
    for part in ("1235/10000", text, "left"):
        assert part in shown
    assert "…" not in shown


def test_a_remark_is_cut_between_words_on_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    text = f"Platelets: many more labels an image than annotations; see {'/folder' * 8} for near-copies of them"
    for stream, lines in ((Terminal(), 4), (io.StringIO(), 1)):
        monkeypatch.setattr("sys.stderr", stream)
        console.note(text)
        shown = stream.getvalue().splitlines()
        assert " ".join(shown) == text
        assert len(shown) == lines
        assert all(len(line) <= 40 or " " not in line for line in shown) == (lines > 1)


def test_results_are_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for stream, lines in ((Terminal(), 3), (io.StringIO(), 1)):
        monkeypatch.setattr("sys.stdout", stream)
        console.echo(f"packages       {' '.join(f'number{i}' for i in range(8))}")
        shown = stream.getvalue().splitlines()
        assert len(shown) == lines
        assert all(line.startswith(" " * 15 + "number") for line in shown[1:]), "behind the name"
        assert all(len(line) <= 40 for line in shown) == (lines > 1)


def test_the_next_command_is_ready_to_copy_however_narrow_the_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    words = ("--model", "bases/mine", "--adapter", "adapters/my own", "--out", "bundles/mine", "--int8")
    for stream, lines in ((Terminal(), 4), (io.StringIO(), 1)):
        monkeypatch.setattr("sys.stdout", stream)
        console.next_step("export", *words)
        shown = stream.getvalue()
        assert (len(shown.splitlines()), all(len(line) <= 40 for line in shown.splitlines())) == (lines, lines > 1)
        assert shlex.split(shown.replace("\\\n", "")) == ["next:", "dengine", "export", *words]


def test_a_table_that_is_too_wide_goes_on_below_itself() -> None:
    names = [f"class{i}" for i in range(7)]
    rows = [("missing", *map(str, range(7))), ("spurious", *map(str, range(10, 17)))]
    whole, parts = table(rows, ("finding", *names)), table(rows, ("finding", *names), 30).split("\n\n")
    assert len(whole.splitlines()) == 3
    assert len(parts) == 4
    cells = [[line.split() for line in part.splitlines()] for part in parts]
    assert all(len(line) <= 30 for part in parts for line in part.splitlines())
    assert all([row[0] for row in part] == ["finding", "missing", "spurious"] for part in cells)
    joined = [[row[0], *(word for part in cells for word in part[number][1:])] for number, row in enumerate(cells[0])]
    assert joined == [line.split() for line in whole.splitlines()]


def test_a_terminal_that_cannot_go_back_to_a_line_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with console.ProgressBars(stream) as bars:
        bars.update("painting", 0, 2)
        bars.update("painting", 2, 2)
    assert stream.getvalue().splitlines() == ["painting: 0/2", "painting: 2/2"]


@pytest.mark.parametrize("ends_well", [True, False])
def test_the_last_of_long_steps_is_over_where_all_went_well(ends_well: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with contextlib.suppress(KeyboardInterrupt), console.ProgressBars(stream) as bars:
        bars.step("export", 1, 2, "looking", 5.0)
        if not ends_well:
            raise KeyboardInterrupt
    last = stream.getvalue().rsplit("export", 1)[1]
    assert [words in last for words in ("2/2", "looking", "left")] == [ends_well, not ends_well, not ends_well]


def test_an_evaluation_in_training_gets_a_line_of_its_own() -> None:
    stream = io.StringIO()
    with console.ProgressBars(stream) as bars:
        report = console.reporter(bars)
        report(Event(EventKind.PROGRESS, "adapter", "", 500, 3000, 60.0, {"loss": 1.25, "AP50": 0.5, "giou": 0.1}))
    assert stream.getvalue().splitlines() == [
        "step 500: AP50 0.500",
        "adapter: 500/3000, loss 1.2500, 60 s left",
    ]


def test_quiet_verbs_show_no_progress_and_verbose_ones_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [note("opening"), *(Event(EventKind.PROGRESS, "unet", done=done, total=3) for done in range(4))]

    def shown() -> list[str]:
        stream = io.StringIO()
        with console.ProgressBars(stream) as bars:
            report = console.reporter(bars)
            for event in events:
                report(event)
        return stream.getvalue().splitlines()

    assert shown() == ["opening", "unet: 0/3", "unet: 3/3"]
    monkeypatch.setattr(console, "_quiet", True)
    assert shown() == []
    monkeypatch.setattr(console, "_quiet", False)
    monkeypatch.setattr(console, "_verbose", True)
    lines = shown()
    assert [line.split(" s  ")[1] for line in lines] == [str(event) for event in events]


def test_labels_of_kept_images_and_dropped_images_are_counted() -> None:
    stream = io.StringIO()
    with console.ProgressBars(stream) as bars:
        report = console.reporter(bars)
        report(note("opening the bundle"))
        report(Event(EventKind.STARTED, "painting", "torch, cpu", 0, 2))
        report(Event(EventKind.IMAGE, "painting", done=1, total=2, image=ImageNews(0, 3)))
        report(Event(EventKind.IMAGE, "painting", done=1, total=2, image=ImageNews(1, 2, "no box scores 0.9")))
        report(Event(EventKind.IMAGE, "painting", done=3, total=2, image=ImageNews(2, 4)))
    assert stream.getvalue().splitlines() == [
        "opening the bundle",
        "torch, cpu",
        "painting: 0/2",
        "painting: 2/2, 7 boxes, 1 dropped",
    ]


def test_the_first_interrupt_asks_for_a_stop_and_the_second_one_stops() -> None:
    before = signal.getsignal(signal.SIGINT)
    said: list[str] = []
    with held(lambda: said.append("stop")) as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_request_to_terminate_asks_for_a_stop_too() -> None:
    with held(lambda: None) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()


def test_settings_that_a_text_of_the_library_marks_are_shown_as_flags(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    with console.speaking(lambda: {"keep_empty": "--keep-empty"}), console.ProgressBars(stream) as bars:
        bars.line("`keep_empty`")
        bars.update("painting", 0, 2, "`keep_empty=True`")
        bars.step("export", 0, 2, "`keep_empty`")
        console.echo("found `keep_empty`")
        console.note("noted `keep_empty`")
        console.echo_json({"text": "`keep_empty`"})
    assert stream.getvalue().splitlines() == [
        "--keep-empty",
        "painting: 0/2, --keep-empty",
        "export: 1/2, --keep-empty",
    ]
    said = capsys.readouterr()
    assert said.out.splitlines() == ["found --keep-empty", '{"text": "`keep_empty`"}']
    assert said.err == "noted --keep-empty\n"
    console.echo("`keep_empty`")
    assert capsys.readouterr().out == "`keep_empty`\n", "no verb is at work"
