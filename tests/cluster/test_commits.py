"""What is committed of a chunk: once, whole, and told from what was changed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from many_machines import SOURCE, FragileStore, KilledError, PurePainter, cluster_settings

from engines.cluster.assemble import assemble
from engines.cluster.commits import (
    BLOCK,
    PaintedChunk,
    commit_name,
    committed_from,
    read_block,
    read_chunk,
    read_commit,
    read_segment,
    write_block,
    write_chunk,
)
from engines.cluster.ledger import Ledger
from engines.cluster.paint import paint_chunk
from engines.cluster.store import Store, open_store
from engines.errors import RunError
from engines.runs.run_folder import start_run

pytestmark = pytest.mark.cluster
OpenFresh = Callable[[str], Store]


@pytest.fixture(scope="module")
def painted() -> PaintedChunk:
    return paint_chunk(PurePainter(), SOURCE, cluster_settings(), 1)


def test_a_chunk_comes_back_as_it_was_committed(open_fresh: OpenFresh, painted: PaintedChunk) -> None:
    store = open_fresh("back")
    commit, mine = write_chunk(store, painted, "cpu", "me", 1)
    assert mine
    assert read_commit(store, 1) == commit
    assert read_chunk(store, commit) == (painted.segment, list(painted.images))
    assert read_segment(store, commit) == painted.segment
    assert list(committed_from(store, 0)) == [1]
    assert list(committed_from(store, 2)) == []
    indices = [json.loads(line)["index"] for line in painted.segment.splitlines()]
    assert indices == [4, 5, 6, 7]


def test_the_first_commit_stays_and_the_same_bytes_are_welcome(open_fresh: OpenFresh, painted: PaintedChunk) -> None:
    store = open_fresh("first")
    first, _ = write_chunk(store, painted, "cpu", "me", 1)
    assert write_chunk(store, painted, "gpu", "you", 2) == (first, False)


def test_other_bytes_are_an_error_that_names_both_devices(open_fresh: OpenFresh, painted: PaintedChunk) -> None:
    store = open_fresh("other")
    write_chunk(store, painted, "an H100", "me", 1)
    other = replace(painted, segment=painted.segment.replace(b"photo", b"image"))
    with pytest.raises(RunError, match=r"an L4.*an H100"):
        write_chunk(store, other, "an L4", "you", 1)


def test_data_without_a_commit_does_not_exist(open_fresh: OpenFresh, painted: PaintedChunk) -> None:
    store = open_fresh("half")
    with pytest.raises(KilledError):
        write_chunk(FragileStore(store, 1), painted, "cpu", "me", 1)
    assert read_commit(store, 1) is None
    assert list(committed_from(store, 0)) == []
    assert write_chunk(store, painted, "cpu", "you", 2)[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chunk", 2), ("kept", 99), ("unkept", -1), ("jobs", 0), ("sha256", "f" * 64), ("data", "chunks/../x"),
        ("journal_bytes", "many"), ("more", 1),
    ],
)  # fmt: skip
def test_a_commit_that_was_edited_is_refused_with_its_name(
    tmp_path: Path, painted: PaintedChunk, key: str, value: object
) -> None:
    store = open_store(f"file://{tmp_path}")
    write_chunk(store, painted, "cpu", "me", 1)
    path = tmp_path / commit_name(1)
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {key: value}), "utf-8")
    with pytest.raises(RunError, match=r"chunks/00000001/commit\.json"):
        read_commit(store, 1)


def test_data_that_was_changed_never_reaches_the_dataset(tmp_path: Path) -> None:
    run = cluster_settings(count=None, jobs=8)
    store = open_store(f"file://{tmp_path}/store", make=True)
    commits = [write_chunk(store, paint_chunk(PurePainter(), SOURCE, run, n), "cpu", "me", 1)[0] for n in (0, 1)]
    data = bytearray((tmp_path / "store" / commits[1].data).read_bytes())
    data[-2000] ^= 1
    (tmp_path / "store" / commits[1].data).write_bytes(data)
    start_run(tmp_path / "run", run, None)
    with pytest.raises(RunError, match="not what was committed"):
        assemble(store, tmp_path / "run", run, 2)
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == read_segment(store, commits[0])


def test_a_thousand_chunks_are_read_from_one_object(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    run = cluster_settings(count=10**6)
    write_block(store, 0, [[4, 3, 1]] * BLOCK)
    ledger = Ledger(run)
    ledger.read(store)
    assert (ledger.whole, ledger.state.kept, ledger.state.unkept) == (BLOCK, 3 * BLOCK, 1)
    assert read_block(store, 1) is None
    for number in range(BLOCK, 2 * BLOCK):
        ledger.add(number, 4, 0, 4)
    assert ledger.state.gave_up  # nothing was kept for long
    assert ledger.whole < 2 * BLOCK


def test_a_store_is_checked_for_refusing_a_second_writer(
    open_fresh: OpenFresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_fresh("checked").check()
    assert list(open_fresh("checked").names("probe")) == []
    monkeypatch.setattr(Store, "create", lambda self, name, data: True)
    with pytest.raises(RunError) as refused:
        open_fresh("careless").check()
    assert refused.value.field == "out"


@pytest.mark.parametrize("where", ["ftp://host/run", "nowhere/at/all"])
def test_what_is_no_store_is_said(where: str) -> None:
    with pytest.raises(RunError):
        open_store(where)


@pytest.mark.parametrize("open_fresh", ["s3"], indirect=True)
@pytest.mark.usefixtures("open_fresh")
def test_a_bucket_that_is_not_there_is_said_in_one_line() -> None:
    with pytest.raises(RunError) as refused:
        open_store("s3://no-such-bucket/run").check()
    assert len(str(refused.value).splitlines()) == 1
