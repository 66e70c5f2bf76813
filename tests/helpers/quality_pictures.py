"""Pictures that are varied, coloured and sharp, as photographs are, from a number."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw


def photograph(number: int, size: tuple[int, int] = (160, 120)) -> npt.NDArray[np.uint8]:
    """Coloured things of all sizes over a slow gradient, with grain: uint8 [H, W, 3], another one for each number."""
    rng = np.random.default_rng(1000 + number)
    width, height = size
    ground = np.linspace(rng.uniform(60, 200, 3), rng.uniform(60, 200, 3), width)[None].repeat(height, axis=0)
    image = Image.fromarray(ground.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(45):
        x, y = rng.uniform(-10, width), rng.uniform(-10, height)
        wide, high = rng.uniform(4, 0.3 * width), rng.uniform(4, 0.3 * height)
        colour = tuple(rng.integers(0, 256, 3).tolist())
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + wide, y + high), fill=colour)
    grain = rng.normal(0, 4, (height, width, 3))
    return np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
