"""The dataset formats there are. To add one: write its file, with `LOOKS`, `find` and `read`, and add it here.

Knows: their names and order, which decides where a folder looks like several. Knows nothing about any of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engines.datasets import coco, csv_tables, cvat, labelme, voc, yolo
from engines.datasets.records import Dataset, Findings, ReadOptions
from engines.datasets.tree import Tree


@dataclass(frozen=True)
class Format:
    """How a format is found and read."""

    looks: str  # what a folder of it has, for messages
    find: Callable[[Tree], list[str]]  # the files that show it; empty for a folder of something else
    read: Callable[[Tree, Sequence[str], ReadOptions, Findings], Dataset]  # from those files


FORMATS: tuple[Format, ...] = tuple(
    Format(module.LOOKS, module.find, module.read) for module in (coco, voc, yolo, csv_tables, cvat, labelme)
)


def detect(tree: Tree) -> tuple[Format, list[str]] | None:
    """The first format that a folder looks like, and the files that show it; None for none of them."""
    for one in FORMATS:
        if files := one.find(tree):
            return one, files
    return None
