"""`dengine cache`: what is shown and removed."""

from pathlib import Path

import pytest
from command_line import dengine, next_command

from engines.common import cache


def test_the_cache_is_shown_by_kind_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    empty = dengine("cache")
    assert (empty.exit_code, cache.cached()) == (0, ())
    assert "next:" not in empty.stdout
    cache.store("a", b"0" * 1000)
    (tmp_path / "dengine" / "plans" / "sm89").mkdir(parents=True)
    (tmp_path / "dengine" / "plans" / "sm89" / "unet.plan").write_bytes(b"0" * 2_000_000)
    (tmp_path / "others").mkdir()
    assert [(one.name, one.files) for one in cache.cached()] == [("plans", 1), (cache.COMPILED, 1)]
    shown = dengine("cache")
    assert "plans" in shown.stdout
    assert "2.0" in shown.stdout
    assert next_command(shown) == ["cache", "--clear"]
    cleared = dengine("cache", "--clear")
    assert cleared.exit_code == 0
    assert (cache.cached(), [path.name for path in tmp_path.iterdir()]) == ((), ["others"])
