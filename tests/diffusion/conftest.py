"""The toy models as single files, made once a session."""

import shutil
from pathlib import Path

import pytest
from ldm import ldm_layout
from safetensors.torch import save_file

from engines.diffusion.base_model import BaseModel, load_base


@pytest.fixture(scope="session")
def configs(toy_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configurations of the toy models, in the place of those of real ones."""
    root = tmp_path_factory.mktemp("configs")
    for name, kind in (("sd1", "sd1"), ("sd2", "sd2"), ("sd2_v", "sd2")):
        shutil.copytree(toy_bases[kind], root / name, ignore=shutil.ignore_patterns("*.safetensors"))
    return root


@pytest.fixture(scope="session")
def files(toy_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The toy models as single files. Read only."""
    root = tmp_path_factory.mktemp("single files")
    for kind, folder in toy_bases.items():
        save_file(ldm_layout(load_base(folder), open_clip=kind == "sd2"), root / f"{kind}.safetensors")
    return {kind: root / f"{kind}.safetensors" for kind in toy_bases}


@pytest.fixture
def sd1(toy_bases: dict[str, Path]) -> BaseModel:
    return load_base(toy_bases["sd1"])
