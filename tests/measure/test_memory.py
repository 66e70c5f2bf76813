"""Memory of this process."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engines.measure import memory
from engines.measure.memory import read_memory

MEGABYTES = 200
SLACK = 1 << 20  # the kernel counts pages in batches


def test_the_peak_stays_when_memory_is_given_back() -> None:
    before = read_memory()
    assert before.rss is not None
    array = np.ones(MEGABYTES << 17)  # eight bytes each
    during = read_memory()
    del array
    after = read_memory()
    assert during.rss is not None
    assert after.rss is not None
    assert during.rss - before.rss > 0.9 * (MEGABYTES << 20)
    assert after.rss < during.rss - 0.5 * (MEGABYTES << 20)
    assert after.rss_peak >= during.rss - SLACK
    assert after.vram_peak == 0


def test_without_the_kernels_file_the_peak_is_about_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = read_memory().rss_peak
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    found = read_memory()
    assert found.rss is None
    assert found.rss_peak == pytest.approx(known, rel=0.05)


def test_the_gpu_that_is_used_counts_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved = [0, 5 << 30]  # the second one is used, and the first one current
    for name, value in {"is_available": True, "is_initialized": True, "device_count": 2}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda index=0: reserved[index])
    assert read_memory().vram_peak == 5 << 30
