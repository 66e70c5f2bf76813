"""Whether a folder has a text encoder and a tokenizer as Stable Diffusion's are published."""

from pathlib import Path

from engines.common.weight_file import read_header


def assert_published(folder: Path) -> None:
    """What releases of transformers before 5 need: every weight's prefix, and the vocabulary in CLIP's two files."""
    names = read_header(folder / "text_encoder" / "model.safetensors").tensors
    assert names
    assert all(name.startswith("text_model.") for name in names)
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (folder / "tokenizer").iterdir()}
