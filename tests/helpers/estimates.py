"""How good the time left that verbs say is.

    PYTHONPATH=. python tests/helpers/estimates.py WORK [--cpu] [--small] [VERB...]

Each verb works once, at toy size or, with --small, on the bundled model and its own preset; at a tenth of its time
behind the preparation, at a third and at a half, what it last said is left is held against what it then took. Prints a
line a verb. --cpu counts the seconds of the processor in place of the clock's, for machines that do other things
meanwhile: set OMP_NUM_THREADS=1 with it.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

if "--cpu" in sys.argv:  # before anything of ours takes the clock
    time.monotonic = time.process_time

from kill_scenes import write_pictures
from made_worth import TINY, make_dataset
from toy import make_toy_adapter, make_toy_base

from engines.common.events import Event, Report

POINTS = (0.1, 0.33, 0.5)
SMALL = "--small" in sys.argv
NETWORK = {"width": 16, "heads": 2, "ffn_width": 16, "decoder_layers": 1, "queries": 8, "denoising": 0}


class Heard:
    """What a verb says is left, and when."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.said: list[tuple[float, float]] = []  # seconds since it began, seconds left

    def __call__(self, event: Event) -> None:
        if event.seconds_left is not None and not event.stage.endswith("-seed0"):
            self.said.append((time.monotonic() - self.begun, event.seconds_left))

    def line(self, verb: str) -> str:
        """How far off that was, as shares of what was left."""
        total = time.monotonic() - self.begun
        prepared = self.said[0][0]
        found = []
        for point in POINTS:
            moment = prepared + point * (total - prepared)
            when, left = [one for one in self.said if one[0] <= moment][-1]
            found.append(f"{(left - (moment - when)) / (total - moment) - 1:+.0%} at {point:.0%}")
        return f"{verb:14s} {total:6.1f} s, of which {prepared:5.1f} s prepare; {', '.join(found)}"


def train_base(work: Path, report: Report) -> None:
    from engines.training import presets
    from engines.training.train_base import TrainBaseSettings, train_base

    if SMALL:
        asked = TrainBaseSettings(data=work / "pictures", out=work / "base-out", labels="all", steps_scale=0.02)
    else:
        small = presets.PRESETS["small"]
        vae = {"block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2}
        vae |= {"up_block_types": ("UpDecoderBlock2D",) * 2}
        unet = {
            "block_out_channels": (32, 32), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 2,
        }  # fmt: skip
        phases = (presets.Phase(64, 64, 4, 80, 128), presets.Phase(96, 64, 4, 80, 64))
        tiny = replace(
            small, short_side=96, vae={**small.vae, **vae}, unet={**small.unet, **unet}, vae_size=48, vae_batch=4,
            vae_steps=100, phases=phases,
        )  # fmt: skip
        presets.PRESETS = {"tiny": tiny}
        asked = TrainBaseSettings(data=work / "pictures", out=work / "base-out", labels="all", preset="tiny")
    train_base(asked, report=report)


def train_adapter(work: Path, report: Report) -> None:
    from engines.bundle.bundle import default_bundle
    from engines.training.train_adapter import TrainAdapterSettings, train_adapter

    usual: dict[str, Any] = {"data": work / "pictures", "out": work / "adapter-out", "dev_fraction": 0.2}
    if SMALL:
        asked = TrainAdapterSettings(base=default_bundle(), steps=60, eval_every=20, **usual)
    else:
        make_toy_base(work / "base")
        asked = TrainAdapterSettings(
            base=work / "base", steps=150, eval_every=50, short_side=64, warmup=10, network=NETWORK, **usual
        )
    train_adapter(asked, report=report)


def export(work: Path, report: Report) -> None:
    from engines.bundle.bundle import default_bundle
    from export.assemble import export
    from export.settings import ExportSettings

    base = default_bundle() if SMALL else make_toy_base(work / "export-base")
    adapter = default_bundle() / "adapter" if SMALL else make_toy_adapter(work / "export-adapter", base)
    export(ExportSettings(base, adapter, work / "bundle", threads=1), report=report)


def generate(work: Path, report: Report) -> None:
    from engines.painting.settings import GenerateSettings
    from engines.runs.generate import generate

    few = GenerateSettings(out=work / "run", count=24, engine="torch", threads=1, keep_empty=True)
    generate(few if SMALL else replace(few, jobs=24, count=None, steps=8, size=(96, 64), slots=4), report=report)


def evaluate(work: Path, report: Report) -> None:
    from engines.worth.evaluate import evaluate
    from engines.worth.settings import EvaluateSettings

    make_dataset(work / "val", range(100, 120))
    changes = {"steps": 120} if SMALL else TINY | {"steps": 60}
    asked = EvaluateSettings(
        work / "pictures", (), work / "val", work / "worth", preset="quick", seeds=2, changes=changes,
        short_side=64 if not SMALL else None, resamples=100,
    )  # fmt: skip
    evaluate(asked, report=report)


VERBS: dict[str, Callable[[Path, Report], None]] = {
    "train-base": train_base,
    "train-adapter": train_adapter,
    "export": export,
    "generate": generate,
    "evaluate": evaluate,
}


def main() -> None:
    work, *chosen = [word for word in sys.argv[1:] if not word.startswith("--")]
    folder = Path(work)
    folder.mkdir(parents=True)
    write_pictures(folder / "pictures", 24, labels=True)
    for verb in chosen or VERBS:
        heard = Heard()
        VERBS[verb](folder, heard)
        sys.stdout.write(heard.line(verb) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
