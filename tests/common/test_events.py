"""What a verb reports: one kind of event, which reads as a line."""

import pytest

from engines.common.events import Event, EventKind, ImageNews, duration, left_out, note


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (note("opening the bundle"), "opening the bundle"),
        (Event(EventKind.STARTED, "painting", "torch, cpu, f32", 0, 8), "painting: 0/8, torch, cpu, f32"),
        (Event(EventKind.IMAGE, "painting", done=3, total=8, image=ImageNews(2, 12)), "painting: 3/8, 12 labels"),
        (
            Event(EventKind.IMAGE, "painting", done=3, total=8, image=ImageNews(2, 0, "no box scores 0.3")),
            "painting: 3/8, dropped: no box scores 0.3",
        ),
        (
            Event(EventKind.PROGRESS, "adapter", done=500, total=3000, seconds_left=700, figures={"loss": 1.25}),
            "adapter: 500/3000, loss 1.25, 12 min left",
        ),
        (Event(EventKind.STEP, "export", "exporting unet", 0, 9), "export: 0/9, exporting unet"),
        (Event(EventKind.PROGRESS, "unet", "Tactics", 12.5, 100.0), "unet: 12.5/100, Tactics"),
    ],
)
def test_an_event_reads_as_a_line(event: Event, line: str) -> None:
    assert str(event) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (45.3, "45 s"), (119.4, "119 s"), (119.6, "2 min"), (12_000, "3 h 20 min")],
)
def test_times_are_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_was_left_out_is_counted_and_only_the_first_are_shown() -> None:
    assert list(left_out([], [])) == []
    assert list(left_out(["a"], [str(i) for i in range(7)])) == [
        "degenerate boxes dropped: 1",
        "  a",
        "bad items left out: 7",
        *(f"  {i}" for i in range(5)),
        "  and 2 more",
    ]
