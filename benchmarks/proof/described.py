"""What the suffixes of stages stand for, in words: who labelled the images, by which score, and how they were painted.

Knows: the words of the report for what a plan tries. Knows no figures.
"""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.proof.plan import SELF, THIRD, Plan, Repaint

AS_CHOSEN = "as tune chose"


class Described(NamedTuple):
    """Images and their labels."""

    strengths: str  # that generated images were painted with
    learned: str  # how often the adapter had learned that labels
    score: str
    uncertain: str  # from which score on regions are uncertain


def scarce_images(plan: Plan) -> dict[str, Described]:
    """With 10% of the labels: by suffix, the images of the arms with every kind of labels, and other images."""
    below = f"{plan.uncertain:g}"
    found = {suffix: Described(AS_CHOSEN, learned(suffix), "chosen on tune", below) for suffix in ("", SELF)}
    for suffix, how in plan.relabels.items():
        uncertain = f"{how.uncertain:g}" if how.uncertain else "-"
        found[suffix] = Described(AS_CHOSEN, learned(how.adapter), how.score, uncertain)
    for suffix, painted in plan.repaints.items():
        found[suffix] = Described(strengths(painted), learned(painted.adapter), painted.score, "-")
    return found


def full_images(plan: Plan) -> dict[str, Described]:
    """The same with all labels, where the bundled model paints and labels."""
    found = {"": Described(AS_CHOSEN, learned(""), "chosen on tune", f"{plan.uncertain:g}")}
    for suffix, how in plan.relabels_full.items():
        found[suffix] = Described(AS_CHOSEN, learned(""), how.score, "-")
    for suffix, painted in plan.repaints.items():
        found[suffix] = Described(strengths(painted), learned(""), painted.score, "-")
    return found


def learned(adapter: str) -> str:
    """How often an adapter has learned, by its suffix."""
    return {"": "once", SELF: "once more", THIRD: "a third time"}.get(adapter, adapter)


def strengths(how: Repaint) -> str:
    """`0.1 to 0.3`."""
    return "{:g} to {:g}".format(*how.strength)


def only(done: Sequence[str], planned: Sequence[str], what: str) -> str:
    """A note that some of the lists or seeds were run, and not all."""
    return f" ({what} {', '.join(done)} alone)" if 0 < len(done) < len(planned) else ""
