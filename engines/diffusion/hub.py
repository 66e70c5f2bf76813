"""Base models on the Hugging Face hub: which of their files are fetched.

Knows: that configurations come first, so that another family is refused before its weights come, and that only the
weights that are read do. Knows nothing about what is in them.
"""

from collections.abc import Sequence
from pathlib import Path

from engines.common.quote import shorten
from engines.diffusion.families import check_folder_family
from engines.diffusion.libraries import first_line
from engines.diffusion.weights import STEMS, choose_weights
from engines.errors import ModelError

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def hub_folder(name: str) -> Path:
    """The snapshot of a model on the hub: its configurations first, then the weights that `load_base` reads.

    Without a network, what an earlier call left in the hub's own cache.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    small = ["model_index.json", *(f"{part}/*{suffix}" for part in PARTS for suffix in (".json", ".txt"))]
    try:
        try:
            names = HfApi().list_repo_files(name)
        except HfHubHTTPError:
            raise
        except Exception:  # no network: each of its layers has errors of its own
            return Path(snapshot_download(name, local_files_only=True))
        folder = Path(snapshot_download(name, allow_patterns=small))
        check_folder_family(folder)
        return Path(snapshot_download(name, allow_patterns=[*small, *_hub_weights(names)]))
    except ModelError:
        raise
    except Exception as cause:  # the hub's client raises its own, the network's and the file system's errors
        raise ModelError(
            f'"{shorten(name)}" is no local folder, and the hub did not give it: {shorten(first_line(cause), 200)}'
        ) from cause


def _hub_weights(names: Sequence[str]) -> list[str]:
    """Of all files of a model, the weights that are read: not every variant of several gigabytes."""
    found = []
    for part in STEMS:
        inside = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        if weights := choose_weights(inside, part):
            found += [f"{part}/{name}" for name in weights.files]
    return found
