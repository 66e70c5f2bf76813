"""Images without annotations, and what to say of a folder that holds something else.

Knows: how to name what was passed over, and the nearest thing that would have been read. Knows nothing about how
annotations are read.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath

from engines.common.quote import shorten
from engines.datasets.assemble import finish
from engines.datasets.classes import Classes
from engines.datasets.coco import sections
from engines.datasets.readings import CORNERS
from engines.datasets.records import Dataset, Draft, Findings, ReadOptions
from engines.datasets.splits import no_split, split_folders
from engines.datasets.tree import Tree, fold, is_image
from engines.datasets.xml_files import root_tag
from engines.datasets.yolo_lines import looks_like_labels
from engines.errors import DatasetError

_HARMLESS = (".md", ".html", ".pdf", ".py", ".ipynb", ".zip", ".db", ".log", ".onnx", ".pt", ".safetensors")
_DEEP = "but lies more folders down than is looked"


def read_plain(tree: Tree, options: ReadOptions, findings: Findings, expected: Sequence[str]) -> Dataset:
    """The images of a folder (of its folder `split`, where one is named), without annotations."""
    folder = ""
    if options.split and tree.images:
        folders = split_folders(tree, options.split)
        if not folders:
            known = {name.partition("/")[0] for name in tree.images if "/" in name}
            raise DatasetError(f"{no_split(tree, options.split, known)} It is a folder of images without annotations.")
        folder = folders[0]
    images = tree.inside(folder)
    if not images:
        raise DatasetError(
            f"{tree.path(folder)} holds no dataset: {_content(tree)}; expected {', or '.join(expected)}."
            f"{_outside(tree)}"
        )
    if others := passed_over(tree):
        findings.remark(f"No annotations were found, so these are images alone: {others}")
    return images_alone(tree, folder, options, findings)


def images_alone(tree: Tree, folder: str, options: ReadOptions, findings: Findings) -> Dataset:
    """All images below a folder, without annotations; links out of it are bad items."""
    within = folder + "/" if folder else ""
    for link in tree.outside:
        if link.startswith(within) and (is_image(link) or tree.path(link).is_dir()):
            with findings.item():
                raise DatasetError(f"{tree.refusal(link)}.", field="follow_links")
    drafts = [Draft(tree.path(name), name.removeprefix(within), name) for name in tree.inside(folder)]
    names = Classes((), options.class_names).names
    return finish(tree, drafts, CORNERS, names, options, findings, "images without annotations")


def passed_over(tree: Tree) -> str:
    """What a folder has besides images, and what is nearest to being read; "" where there is nothing to say."""
    images = set(tree.images)
    others = [name for name in tree.files if name not in images and not _is_harmless(name.rpartition("/")[2].lower())]
    if not others:
        return ""
    return f"{tree.counts()} passed over.{_nearest(tree)}"


def _is_harmless(base: str) -> bool:
    return base.endswith(_HARMLESS) or base.startswith(("readme", "license", "licence", "copying"))


def _nearest(tree: Tree) -> str:
    """What is wrong with the file that is nearest to being annotations."""
    for name in tree.with_suffix(".json")[:50]:
        if found := sections(tree, name):
            missing = ", ".join(sorted({"images", "annotations", "categories"} - found))
            what = f"but for {missing}" if missing else _DEEP
            return f" Nearest is {shorten(name)}, which is COCO {what}."
    for name in tree.with_suffix(".xml")[:1]:
        tag = root_tag(tree, name)
        what = f"holds <{shorten(tag)}>; <annotation> is read" if tag != "annotation" else f"is Pascal VOC {_DEEP}"
        return f" Nearest is {shorten(name)}, which {what}."
    for name in tree.with_suffix(".csv")[:1]:
        with tree.path(name).open("rb") as file:
            head = file.readline(200).decode("utf-8", "replace")
        return f" Nearest is {shorten(name)}, whose columns are {shorten(head.strip())}; Open Images' are read."
    texts = [name for name in tree.with_suffix(".txt") if fold(PurePosixPath(name).stem) in tree.image_stems]
    if labels := [name for name in texts if looks_like_labels(tree.path(name))][:1]:
        return f" Nearest is {shorten(labels[0])}, whose lines are YOLO's: labels/ is to lie beside images/."
    return f" Nearest is {shorten(texts[0])}, whose lines are not YOLO's." if texts else ""


def _content(tree: Tree) -> str:
    """What a folder has, in a few words: "it is empty", "it has 2 folders, 12 .csv"."""
    folders = len([name for name in tree.folders if "/" not in name])
    shown = ", ".join(filter(None, [tree.counts(), f"{folders} folders" if folders else ""]))
    return f"it has {shown}" if shown else "it is empty"


def _outside(tree: Tree) -> str:
    return (
        f" {shorten(tree.outside[0])} is a link that leads outside it; `follow_links` reads such."
        if tree.outside
        else ""
    )
