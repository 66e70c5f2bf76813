"""Fixtures that several test files share, each made once a session."""

from pathlib import Path

import pytest
import toy


@pytest.fixture(scope="session")
def toy_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of random base models by kind: `sd1` and `sd2`. Read only: copy before changing."""
    root = tmp_path_factory.mktemp("bases")
    return {kind: toy.make_toy_base(root / kind, kind) for kind in toy.KINDS}
