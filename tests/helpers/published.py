"""Whether a folder has a text encoder and a tokenizer as Stable Diffusion's are published, for whoever may read it."""

from pathlib import Path

from engines.common.weight_file import read_header


def assert_published(folder: Path) -> None:
    """What releases of transformers before 5 need: every weight's prefix, and the vocabulary in CLIP's two files."""
    names = read_header(folder / "text_encoder" / "model.safetensors").tensors
    assert names
    assert all(name.startswith("text_model.") for name in names)
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (folder / "tokenizer").iterdir()}
    modes = {path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
    assert len(modes) == 1, "safetensors 0.8 makes its files for their owner alone"
