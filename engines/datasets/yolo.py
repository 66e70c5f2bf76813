"""Reads YOLO: a text file of normalised boxes beside every image, with or without a settings file.

Knows: where images and label files lie: `images/...` with `labels/...`, `<split>/images` with `<split>/labels`, both
in one folder (labelImg, Darknet, CVAT's YOLO 1.1), in any case; and what belongs to which. An image without a label
file has no boxes. Classes are by index. What settings files say is in `yolo_settings`, what lines say in `yolo_lines`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from engines.common.quote import shorten
from engines.datasets.assemble import finish
from engines.datasets.classes import Classes
from engines.datasets.fields import listed, read_text
from engines.datasets.paths import Finder
from engines.datasets.readings import YOLO
from engines.datasets.records import Dataset, Draft, Findings, ReadOptions
from engines.datasets.splits import SPLITS, families, is_part, is_split, no_split, split_folders, split_names
from engines.datasets.tree import Tree, fold, folders_of, is_image
from engines.datasets.yolo_lines import looks_like_labels, parse_file
from engines.datasets.yolo_settings import NAME_FILES, Settings, class_names, read_settings, settings_files
from engines.errors import DatasetError

LOOKS = "YOLO labels/*.txt beside images/, or text files beside the images"
_IMAGE_WORDS = {"images", "image", "imgs", "img", "jpegimages", "data"}
_LABEL_WORDS = ("labels", "Labels", "LABELS", "label", "Label", "annotations", "Annotations", "txt")
_PROBED = 20  # label files that are looked at before a folder counts as one of labels


def find(tree: Tree) -> list[str]:
    """The settings file; else label files in label folders, or beside their images."""
    if files := settings_files(tree):
        return files
    if not tree.with_suffix(".txt"):
        return []
    labels = _Labels(tree)
    near = [name for name in tree.images if name.count("/") < 2 or is_split(name.partition("/")[0])]
    near += [name for name in tree.images if name.count("/") >= 2 and fold(name.partition("/")[0]) in _IMAGE_WORDS]
    found: list[str] = []
    for image in near:
        label = labels.of(image)
        if label is not None and label not in found and tree.path(label).stat().st_size:
            found.append(label)
        if len(found) == _PROBED:
            break
    in_folder = any(fold(part) in map(fold, _LABEL_WORDS) for name in found[:1] for part in name.split("/")[:-1])
    return found if found and (in_folder or any(looks_like_labels(tree.path(name)) for name in found)) else []


def read(tree: Tree, files: Sequence[str], options: ReadOptions, findings: Findings) -> Dataset:
    """The dataset, or one split of it; DatasetError naming file and line."""
    settings = read_settings(tree, findings)
    sources = _sources(tree, settings, options.split, findings)
    images = sorted({image for source in sources for image in _images_of(tree, source, findings)}, key=_by_parts)
    names = class_names(tree, settings, options.class_names, findings)
    classes = None if names is None else Classes(names, options.class_names, findings, settings.file or "names")
    labels, drafts = _Labels(tree), list[Draft]()
    parents = [source if source in tree.folders or not source else source.rpartition("/")[0] for source in sources]
    common = os.path.commonpath([parent or "." for parent in parents]) if all(parents) else ""
    for image in images:
        with findings.item():
            label = labels.take(image)
            name = image.removeprefix(common + "/") if common else image
            draft = Draft(tree.path(image), name, image)
            drafts.append(draft)
            if label is not None:
                labels.drafts[label] = draft
    if options.split is None:
        drafts = _without_unlabelled_parts(drafts, labels, findings)
        _remark_elsewhere(tree, images, sources, findings)
    parse_file(tree, labels.drafts, settings.keypoints, names, classes, findings)
    _check_orphans(tree, images, labels, findings)
    labelled = set(labels.drafts.values())
    unlabelled = [draft.where for draft in drafts if draft not in labelled]
    if unlabelled and not labelled:
        findings.remark("No image has a label file, in labels/ beside images/ or beside itself.")
    elif unlabelled:
        findings.remark(
            f"{len(unlabelled)} of {len(drafts)} images have no label file and are read as images without objects "
            f"(first: {shorten(unlabelled[0])})."
        )
    if classes is None:
        count = 1 + max((label for draft in drafts for label in draft.labels), default=-1)
        classes = Classes([f"class{index}" for index in range(count)], None)
        findings.remark("No file names the classes, so they are class0, class1, ...: put names into a classes.txt.")
    source = "YOLO" + (f", split {options.split}" if options.split else "")
    return finish(tree, drafts, YOLO, classes.names, options, findings, source)


def _by_parts(name: str) -> list[str]:
    return name.split("/")


@dataclass
class _Labels:
    """Which label file belongs to which image."""

    tree: Tree
    drafts: dict[str, Draft] = field(default_factory=dict)  # label file -> its image
    _taken: dict[str, str] = field(default_factory=dict)  # label file -> its image

    def of(self, image: str) -> str | None:
        """`images/a/b.jpg` has `labels/a/b.txt` (the last `images` counts); else the text is beside it, or in a folder
        of labels beside it or beside one of the folders that it lies in: `a/b.jpg` has `labels/a/b.txt`.
        """
        parts = list(PurePosixPath(image).with_suffix(".txt").parts)
        if fold(parts[-1]) not in self.tree.folded:
            return None
        for index in range(len(parts) - 2, -1, -1):
            if fold(parts[index]) in _IMAGE_WORDS:
                for word in _LABEL_WORDS:
                    if found := self._there([*parts[:index], word, *parts[index + 1 :]]):
                        return found
        places = [(index, word) for index in range(len(parts) - 1, -1, -1) for word in _LABEL_WORDS]
        beside = (found for at, word in places if (found := self._there([*parts[:at], word, *parts[at:]])))
        return self._there(parts) or next(beside, None) or self._elsewhere(image, parts[-1])

    def take(self, image: str) -> str | None:
        """The same, for one image alone: DatasetError for a second image of a label file."""
        label = self.of(image)
        if label is not None and (other := self._taken.setdefault(label, image)) != image:
            raise DatasetError(
                f"{label} has two images, {shorten(other)} and {shorten(image)}; rename one with its labels."
            )
        return label

    def _elsewhere(self, image: str, base: str) -> str | None:
        """The only label file of that name in any folder of labels, where images and labels lie in unlike folders."""
        words = {fold(word) for word in _LABEL_WORDS}
        same = [name for name in self.tree.folded.get(fold(base), []) if words & folders_of(name)]
        stems = self.tree.image_stems.get(fold(PurePosixPath(base).stem), [])
        if len(same) != 1 or len(stems) != 1:
            return None
        mine, its = (set(families(name.split("/")[:-1])) for name in (image, same[0]))
        return None if mine and its and mine.isdisjoint(its) else same[0]

    def _there(self, parts: Sequence[str]) -> str | None:
        name = "/".join(parts)
        if name in self.tree.known:
            return name
        same = [one for one in self.tree.folded.get(fold(parts[-1]), []) if fold(one) == fold(name)]
        return same[0] if len(same) == 1 else None


def _sources(tree: Tree, settings: Settings, split: str | None, findings: Findings) -> list[str]:
    """Folders of images and lists of images, as settings name them, else where they usually are."""
    wanted = sorted(split_names(split)) if split else list(SPLITS)
    listed = settings.sources(tree, wanted, findings)
    if listed:
        return listed
    if split is None:
        usual = [name for name in tree.folders if name.count("/") < 2 and fold(name.rpartition("/")[2]) == "images"]
        inside = [name for name in usual if tree.inside(name)]
        outer = [name for name in inside if not any(name.startswith(other + "/") for other in inside)]
        return outer or [""]
    found = [name for name in split_folders(tree, split) if tree.inside(name)]
    lists = [name for name in tree.files if "/" not in name and name.lower() in {f"{one}.txt" for one in wanted}]
    if not found and not lists:
        tried = ", ".join(f"images/{name}, {name}/images" for name in wanted)
        raise DatasetError(f"{no_split(tree, split, _known_splits(tree))} Tried {tried}.", field="split")
    return found or lists


def _known_splits(tree: Tree) -> set[str]:
    return {name.rpartition("/")[2] for name in tree.folders if is_split(name)}


def _images_of(tree: Tree, source: str, findings: Findings) -> list[str]:
    if source in tree.folders or not source:
        for link in tree.outside:
            if is_image(link) and (not source or link.startswith(source + "/")):
                with findings.item():
                    raise DatasetError(f"{tree.refusal(link)}.", field="follow_links")
        return tree.inside(source)
    files: list[str] = []
    finder = Finder(tree, findings, source.rpartition("/")[0], frozenset({fold(PurePosixPath(source).stem)}))
    for index, line in enumerate(read_text(tree.path(source)).splitlines(), start=1):
        if line.strip():
            with findings.item():
                name = line.strip().removeprefix("./")
                files.append(finder(name, f"{source}, line {index}"))
    return files


def _without_unlabelled_parts(drafts: list[Draft], labels: _Labels, findings: Findings) -> list[Draft]:
    """Drafts without those of a split of which no image has a label file: a test part that nobody labelled."""
    labelled = set(labels.drafts.values())
    parts: dict[str, list[Draft]] = {}
    for draft in drafts:
        parts.setdefault(next(filter(is_part, draft.where.split("/")[:-1]), ""), []).append(draft)
    without = {part: mine for part, mine in parts.items() if part and labelled.isdisjoint(mine)}
    if len(without) == len(parts):
        return drafts
    for part, mine in without.items():
        findings.remark(
            f"None of the {len(mine)} images of {shorten(part)} has a label file, so they are left out "
            f"(`split={shorten(part)}` reads them)."
        )
    left_out = {draft for mine in without.values() for draft in mine}
    return [draft for draft in drafts if draft not in left_out]


def _remark_elsewhere(tree: Tree, images: Sequence[str], sources: Sequence[str], findings: Findings) -> None:
    """Say how many images are in no folder and no list that was read."""
    others = sorted(set(tree.inside("")) - set(images), key=_by_parts)
    if others:
        findings.remark(
            f"{len(others)} images are not in {listed(sources)}, and are left out (first: {shorten(others[0])})."
        )


def _check_orphans(tree: Tree, images: Sequence[str], labels: _Labels, findings: Findings) -> None:
    """A label file without its image is a bad item; a text of another kind is passed over."""
    used = {fold(name) for name in labels.drafts}
    folders = {name.rpartition("/")[0] for name in labels.drafts}
    for name in tree.with_suffix(".txt"):
        folder, _, base = name.rpartition("/")
        if fold(name) in used or folder not in folders or fold(base) in NAME_FILES:
            continue
        if looks_like_labels(tree.path(name)) and not labels_elsewhere(tree, name, images):
            with findings.item():
                raise DatasetError(f"{name}: its image is missing from {tree.root}.")
        elif not looks_like_labels(tree.path(name)) and read_text(tree.path(name)).strip():
            findings.count("text files hold no labels, and are passed over", name)


def labels_elsewhere(tree: Tree, name: str, images: Sequence[str]) -> bool:
    """Whether a label file's image is in the folder, but in another part of it than is read."""
    stem = fold(PurePosixPath(name).stem)
    return any(image not in images for image in tree.image_stems.get(stem, []))
