"""Options that several verbs have.

Knows: their names and help. Knows nothing about how their text is read (`dengine_cli.parse`).
"""

from pathlib import Path
from typing import Annotated

import typer

Loras = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE:SCALE", help="LoRA to add to the base model; may be given again.  [default: none]"),
]
Vae = Annotated[
    Path | None,
    typer.Option(metavar="FILE|FOLDER", help="VAE for a single-file checkpoint without one, or in place of its own."),
]
PredictionType = Annotated[
    str | None, typer.Option(help="What a single-file SD 2.x checkpoint predicts: epsilon or v_prediction.")
]

Slots = Annotated[int | None, typer.Option(help="Images in work at once.  [default: by device]")]
Precision = Annotated[str, typer.Option(help="f32, bf16, f16, int8, or auto: the widest that is fast here.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.  [default: what suits the engine]")]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile the networks first (torch on CUDA; takes minutes).")]
Boxes = Annotated[
    str,
    typer.Option(
        metavar="WHAT",
        help="What boxes are: auto (as the files show), written (as their format has them, of the image as it is), of "
        "the stated or the stored size, or corners, sides, centres, fractions.",
    ),
]
Looks = Annotated[
    int,
    typer.Option(
        help="Test-time augmentation: looks that boxes are read from, 1, 2, 4 or 8: mirrored, upside down, turned."
    ),
]
FollowLinks = Annotated[bool, typer.Option("--follow-links", help="Follow links that lead outside the dataset.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.  [default: the engine's choice]")]
