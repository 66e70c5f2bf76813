"""What verbs show while they work, and how they read values that are written as text."""

import io
import os
import signal

import pytest

from dengine_cli import console
from engines.training.trainer import Progress


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
