"""How good a bundle's autoencoder is: its reconstruction of real images.

    python benchmarks/quality.py --data DATA --split val

Prints a report, and one JSON line last.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.records import Record, here, measured_on, parser, write_report
from engines.adapter.inference import prepare_frame
from engines.bundle.bundle import Bundle, default_bundle, open_bundle
from engines.datasets.dataset import open_dataset
from engines.diffusion.base_model import load_base
from engines.training.vae import psnr


def reconstruction(bundle: Bundle, data: Path, split: str | None) -> tuple[int, float, float]:
    """Images, and mean and lowest PSNR in dB of encode and decode, on whole frames at the adapter's scale."""
    base = load_base(bundle.folder)
    records = open_dataset(data, split=split, require_boxes=False).records
    ratios = []
    for record in records:
        pixels, _, _ = prepare_frame(record.pixels(), bundle.short_side, bundle.size_multiple)
        original = torch.from_numpy(pixels)[None]
        ratios.append(psnr(base.decode_latents(base.encode_images(original)), original))
    return len(ratios), float(np.mean(ratios)), float(np.min(ratios))


def main() -> None:
    """Measure, and print."""
    options = parser(__doc__, "bundle", "out")
    options.add_argument("--data", type=Path, required=True, help="dataset to rebuild with the VAE")
    options.add_argument("--split", default=None, help="part of the dataset")
    given = options.parse_args()
    bundle = open_bundle(given.bundle or default_bundle())
    value: Record = here()
    count, mean, lowest = reconstruction(bundle, given.data, given.split)
    told = f"VAE, encode and decode of {count} images: PSNR {mean:.2f} dB, {lowest:.2f} dB at the lowest."
    value["vae_psnr"] = {"images": count, "mean": round(mean, 2), "lowest": round(lowest, 2)}
    write_report(("# Quality of a bundle", measured_on(value), told), value, given.out)


if __name__ == "__main__":
    main()
