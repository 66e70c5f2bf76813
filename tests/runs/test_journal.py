"""The journal: lines in index order, torn ends cut back to whole chunks, nothing believed that is not whole."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from engines.composing.given import Given, Origin
from engines.errors import RunError
from engines.labels.boxes import Instances
from engines.labels.rules import Drop, DropReason
from engines.painting.jobs import chunk_ranges
from engines.runs.journal import (
    IMAGES,
    JOURNAL,
    PARTIAL,
    SPARE,
    Entry,
    Journal,
    Progress,
    read_entries,
    read_progress,
    remove_images_from,
)


def entry(index: int, kept: bool = True) -> Entry:
    return Entry(
        index=index,
        prompt='a "photo" with ß',
        reference="sub/ref.jpg" if index % 2 else None,
        strength=0.4567 if index % 2 else None,
        drop=None if kept else Drop(DropReason.NO_BOX, "no box scores 0.3"),
        file=f"{index:08d}.jpg" if kept else None,
        sha256="0" * 64 if kept else None,
        instances=Instances.from_rows([[0.0, 1.25, 10.5, 20.0, 0.9876, 2], [3.0, 3.0, 4.0, 4.0, 0.05, 0]]),
    )


def write(folder: Path, indices: range, chunk: int, dropped: tuple[int, ...] = ()) -> None:
    (folder / IMAGES).mkdir(exist_ok=True)
    with Journal(folder, (folder / JOURNAL).stat().st_size if (folder / JOURNAL).exists() else 0) as journal:
        for start in range(indices.start, indices.stop, chunk):
            journal.begin(range(start, start + chunk))
            for index in range(start, min(start + chunk, indices.stop)):
                journal.add(entry(index, index not in dropped))
        journal.flush()


def test_entries_come_back_as_they_went_in(tmp_path: Path) -> None:
    write(tmp_path, range(5), 5, dropped=(1, 2))
    assert list(read_entries(tmp_path / JOURNAL)) == [entry(i, i not in (1, 2)) for i in range(5)]


@pytest.mark.parametrize("reason", DropReason)
def test_every_reason_comes_back_with_its_words(reason: DropReason) -> None:
    dropped = replace(entry(3, kept=False), drop=Drop(reason, 'a "broken" reference: ß.png'))
    found = Entry.from_line(dropped.to_line())
    assert found == dropped
    assert found.drop is not None
    assert isinstance(found.drop.reason, DropReason)
    assert json.loads(dropped.to_line())["drop"] == reason.value


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("no box scores 0.3", DropReason.NO_BOX),
        ("no box scores what its class needs", DropReason.NO_BOX),
        ("doubtful labels: quality below 0.5", DropReason.DOUBTFUL),
        ("/data/1.png is a broken image", DropReason.UNREADABLE),
        ("broken reference: 1.png is no image", DropReason.UNREADABLE),
    ],
)
def test_lines_of_a_dengine_before_reasons_had_names_are_read(words: str, reason: DropReason) -> None:
    line = json.loads(entry(3, kept=False).to_line())
    assert line.pop("drop") == "no box"
    assert list(line) == ["index", "outcome", "reason", "prompt", "reference", "strength", "boxes"], "as they were"
    found = Entry.from_line(json.dumps(line | {"reason": words}))
    assert found == replace(entry(3, kept=False), drop=Drop(reason, words))
    kept = json.loads(entry(3).to_line())
    assert list(kept) == ["index", "outcome", "file", "sha256", "prompt", "reference", "strength", "boxes"]


def test_a_reason_that_nobody_gives_is_no_line(tmp_path: Path) -> None:
    line = json.loads(entry(0, kept=False).to_line()) | {"drop": "mood"}
    with pytest.raises(ValueError, match="mood"):
        Entry.from_line(json.dumps(line))
    (tmp_path / JOURNAL).write_text(json.dumps(line) + "\n", "utf-8")
    with refused(RunError, None, "line 1"):
        list(read_entries(tmp_path / JOURNAL))


def test_lines_are_in_index_order_whatever_the_order_of_arrival(tmp_path: Path) -> None:
    with Journal(tmp_path, 0) as journal:
        journal.begin(range(4))
        for index in (2, 0, 3):
            journal.add(entry(index))
        journal.flush()
        assert journal.next_index == 1
        assert [e.index for e in read_entries(tmp_path / JOURNAL)] == [0]
        journal.add(entry(1))
        journal.flush()
    assert [e.index for e in read_entries(tmp_path / JOURNAL)] == [0, 1, 2, 3]


def test_entries_of_the_next_chunk_wait_for_those_of_the_one_before_and_a_whole_chunk_is_on_the_disk(
    tmp_path: Path,
) -> None:
    """As where shards leave out the chunks between them."""
    with Journal(tmp_path, 0) as journal:
        journal.begin(range(3))
        journal.add(entry(0))
        journal.begin(range(9, 12))
        for index in (10, 2):
            journal.add(entry(index))
        assert journal.next_index == 1
        journal.add(entry(1))
        assert [e.index for e in read_entries(tmp_path / JOURNAL)] == [0, 1, 2]
        assert journal.next_index == 9
        assert journal.waiting == {10}
        journal.add(entry(11))
        journal.add(entry(9))
        assert [e.index for e in read_entries(tmp_path / JOURNAL)] == [0, 1, 2, 9, 10, 11]


def test_a_chunk_that_is_given_up_keeps_the_lines_it_has_and_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, range(3), 3)
    with Journal(tmp_path, (tmp_path / JOURNAL).stat().st_size) as journal:
        journal.begin(range(3, 9))
        for index in (7, 3, 5):
            journal.add(entry(index))
        assert journal.waiting == {5, 7}
        journal.flush()
        assert [e.index for e in read_entries(tmp_path / JOURNAL)] == [0, 1, 2, 3]
        journal.flush(gaps=True)
        assert journal.waiting == frozenset()
    assert [e.index for e in read_entries(tmp_path / JOURNAL)] == [0, 1, 2, 3, 5, 7]
    progress = read_progress(tmp_path / JOURNAL, chunk_ranges(3, None))
    assert (progress.chunks, progress.next_index) == (1, 3)


def test_a_journal_grows_on_disk_batch_by_batch(tmp_path: Path) -> None:
    with Journal(tmp_path, 0) as journal:
        journal.begin(range(100))
        for index in range(70):
            journal.add(entry(index))
        assert len(list(read_entries(tmp_path / JOURNAL))) == 64


def test_progress_counts_whole_chunks(tmp_path: Path) -> None:
    write(tmp_path, range(8), 4, dropped=(1, 4, 5, 6, 7))
    size = (tmp_path / JOURNAL).stat().st_size
    progress = read_progress(tmp_path / JOURNAL, chunk_ranges(4, 12))
    assert progress == Progress(size=size, chunks=2, jobs=8, kept=3, unkept=4, next_index=8)
    assert read_progress(tmp_path / JOURNAL, chunk_ranges(4, 8)).next_index is None


def test_every_cut_goes_back_to_a_whole_chunk(tmp_path: Path) -> None:
    write(tmp_path, range(6), 3)
    data = (tmp_path / JOURNAL).read_bytes()
    lines = data.splitlines(keepends=True)
    chunk_ends = [0, len(b"".join(lines[:3])), len(data)]
    for size in range(0, len(data), 43):
        (tmp_path / JOURNAL).write_bytes(data[:size])
        progress = read_progress(tmp_path / JOURNAL, chunk_ranges(3, None))
        assert progress.size == max(end for end in chunk_ends if end <= size)
        assert progress.next_index == 3 * progress.chunks


@pytest.mark.parametrize("damage", [b"{}\n", b"not json\n", b"\n", b'{"index": 9', b"[1, 2]\n", b"\x00\x00\n"])
def test_a_line_that_is_not_one_ends_what_counts(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, range(4), 2)
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join(lines[:3]) + damage)
    assert read_progress(tmp_path / JOURNAL, chunk_ranges(2, 4)).chunks == 1


def test_lines_of_other_indices_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, range(4, 8), 4)
    assert read_progress(tmp_path / JOURNAL, chunk_ranges(4, None)).chunks == 0
    assert read_progress(tmp_path / JOURNAL, chunk_ranges(4, 16, (2, 2))) == replace(
        read_progress(tmp_path / JOURNAL, chunk_ranges(4, 16, (2, 2))), chunks=1, next_index=12
    )


def test_a_last_chunk_that_was_short_is_not_whole_once_the_jobs_grow(tmp_path: Path) -> None:
    write(tmp_path, range(6), 4)
    assert read_progress(tmp_path / JOURNAL, chunk_ranges(4, 6)).next_index is None
    assert read_progress(tmp_path / JOURNAL, chunk_ranges(4, 20)).next_index == 4


def test_opening_cuts_the_journal_back(tmp_path: Path) -> None:
    write(tmp_path, range(4), 2)
    size = len(b"".join((tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)[:2]))
    with Journal(tmp_path, size) as journal:
        journal.begin(range(2, 4))
        journal.add(entry(2, kept=False))
        journal.flush()
    assert [e.drop is None for e in read_entries(tmp_path / JOURNAL)] == [True, True, False]


def test_reading_names_a_broken_line_and_forgives_a_torn_end(tmp_path: Path) -> None:
    write(tmp_path, range(3), 3)
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join(lines) + lines[0][:30])
    assert len(list(read_entries(tmp_path / JOURNAL))) == 3
    (tmp_path / JOURNAL).write_bytes(lines[0] + b"oops\n" + lines[2])
    with refused(RunError, None, "line 2"):
        list(read_entries(tmp_path / JOURNAL))


@pytest.mark.parametrize("name", ["../00000000.jpg", "/etc/00000000.jpg", "00000000.exe", "a.jpg", ""])
def test_a_line_whose_image_lies_elsewhere_is_not_believed(name: str) -> None:
    with pytest.raises(ValueError, match="an image of a run"):
        Entry.from_line(replace(entry(0), file=name).to_line())


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: len(data) // 2])

    real = os.write
    with Journal(tmp_path, 0) as journal:
        journal.begin(range(3))
        journal.add(entry(0))
        journal.flush()
        before = (tmp_path / JOURNAL).read_bytes()
        monkeypatch.setattr(os, "write", half)
        journal.add(entry(1))
        with pytest.raises(OSError, match="No space"):
            journal.flush()
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_an_interrupted_flush_leaves_no_line_that_the_next_one_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", real)
        raise KeyboardInterrupt

    real = os.fsync
    with Journal(tmp_path, 0) as journal:
        journal.begin(range(2))
        journal.add(entry(0))
        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.flush()
        journal.flush(gaps=True)
    assert [found.index for found in read_entries(tmp_path / JOURNAL)] == [0]


def test_images_without_a_line_and_unfinished_files_are_removed_and_others_are_not(tmp_path: Path) -> None:
    gone = [f"{IMAGES}/00000007.jpg", f"{IMAGES}/00000012.png", f"{IMAGES}/.00000001.jpg.tmp", f"{SPARE}/00000008.jpg"]
    gone.append(f"{PARTIAL}/.00000002.jpg.tmp")
    stay = [f"{IMAGES}/00000006.jpg", f"{IMAGES}/holiday.jpg", f"{IMAGES}/metadata.jsonl", f"{IMAGES}/99.jpg"]
    for name in (*gone, *stay):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_images_from(tmp_path, 7)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted(stay)


def test_images_that_are_to_stay_stay(tmp_path: Path) -> None:
    (tmp_path / IMAGES).mkdir()
    for index in range(6):
        (tmp_path / IMAGES / f"{index:08d}.jpg").touch()
    remove_images_from(tmp_path, 2, but={3, 5})
    left = sorted(int(path.stem) for path in (tmp_path / IMAGES).iterdir())
    assert left == [0, 1, 3, 5]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("given", "boxes"), ("given", [[0, 0, 1, 1]]), ("given", [[0, 0, 1, 1, 0.5]]), ("given", [[0, 0, 1, 1, 0, 2]]),
        ("given", [[0, 0, float("nan"), 1, 0]]), ("pasted", [["a.png", 0, 0, 0, 1, 1]] * 2),
        ("pasted", [["a.png", True, 0, 0, 1, 1]]), ("pasted", [["\ud800", 0, 0, 0, 1, 1]]),
        ("pasted", [[1, 0, 0, 0, 1, 1]]),
    ],
)  # fmt: skip
def test_labels_by_construction_are_read_back_or_refused(key: str, value: Any) -> None:
    given = Given(
        Instances.of(np.array([[0.0, 0.0, 4.25, 5.5]]), [1], np.ones(1), [True]), (Origin("a.png", 3, (1, 2, 3, 4.5)),)
    )
    line = replace(entry(0), given=given).to_line()
    read = Entry.from_line(line)
    assert read.to_line() == line
    assert read.given == given
    assert given.origins == [(0, given.pasted[0])]
    with pytest.raises(ValueError, match=key):
        Entry.from_line(json.dumps(json.loads(line) | {key: value}))
