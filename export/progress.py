"""How far an export is.

Knows: that it is made of steps, counted from the start, and how long each is thought to take. Knows nothing about what
a step does, or how it is shown.
"""

from collections.abc import Mapping, Sequence

from engines.common.events import Event, EventKind, Report
from engines.common.forecast import Forecast, Part

STAGE = "export"  # in events
# Seconds of one core, between those of toys and of the bundled model (`tests/helpers/estimates.py`). A machine's own
# speed corrects them as the first steps are over. Models of full size take longer everywhere, and paint longest.
EXPORTING: Mapping[str, float] = {
    "text_encoder": 3.7, "vae_encoder": 6.2, "vae_decoder": 6.0, "unet": 15.0, "adapter": 16.0
}  # fmt: skip
READING, STORING, MEASURING, LOADING, RUNNING, CHECKING, PAINTING = 1.0, 0.4, 1.0, 0.3, 0.2, 1.0, 3.0


class Steps:
    """Counts steps off: call it with a line of text as each begins."""

    def __init__(self, seconds: Sequence[float], report: Report) -> None:
        """`seconds`: that each step is thought to take, in their order."""
        self._total, self._report, self._done = len(seconds), Forecast(report), -1
        self._report.plan([Part(STAGE, 1, each) for each in seconds], quiet=True)

    def __call__(self, text: str) -> None:
        self._done += 1
        self._report(Event(EventKind.STEP, STAGE, text, self._done, self._total))
