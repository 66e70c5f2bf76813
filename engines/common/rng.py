"""The one source of randomness.

Knows: how to turn a key of integers into an independent random stream. Nothing in dengine reads a clock, an
entropy pool or a library's global generator, so that the same command repeats.
"""

import numpy as np
import numpy.typing as npt


def generator(*key: int) -> np.random.Generator:
    """A Philox stream that depends on the key alone; keys are non-negative integers of any size.

    numpy pads short keys with zeros: (a, b) and (a, b, 0) are one stream, so no key's last part is 0 where a
    shorter key of the same beginning is used.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))


def normal(shape: tuple[int, ...], *key: int) -> npt.NDArray[np.float32]:
    """Standard normal float32 values of `shape`, a pure function of the key."""
    return generator(*key).standard_normal(shape, dtype=np.float32)
