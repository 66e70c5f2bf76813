"""The one source of randomness.

Knows: how to turn a key of integers into an independent random stream. Nothing in dengine reads a clock, an
entropy pool or a library's global generator, so that the same command repeats.
"""

from enum import IntEnum, unique

import numpy as np
import numpy.typing as npt


@unique
class Stream(IntEnum):
    """What a stream is for, as a part of its key, so that no two draws share one.

    The numbers are never changed: what was begun with them must repeat.
    """

    # A base model's training: (seed, stream, step, ...).
    VAE_VIEWS = 1
    VAE_LATENTS = 2
    UNET_VIEWS = 3
    UNET_STEP = 4
    UNET_NOISE = 5
    ASSESS_VIEWS = 6
    ASSESS_NOISE = 7
    # An adapter's training: (seed, stream, ...).
    ADAPTER_ORDER = 20
    ADAPTER_GROUPS = 21
    ADAPTER_VIEWS = 22
    ADAPTER_NOISE = 23
    ADAPTER_DEV = 24
    ADAPTER_STATISTICS = 25
    # A detector's training: (seed, stream, ...), and the intervals of its figures.
    DETECTOR_MIX = 40
    DETECTOR_ORDER = 41
    DETECTOR_VIEWS = 42
    BOOTSTRAP = 50
    # Painting: (seed, image, stream). Steps of a schedule come first, from 1: part 0 is left out, since the stream of
    # (seed, image, 0) is also that of (seed, image). There are never 2**20 steps.
    INITIAL_NOISE = 2**20
    LABEL_NOISE = 2**20 + 1
    JOB = 2**21
    REFERENCE_ORDER = 2**21 + 1
    BALANCE = 2**21 + 2
    PIPELINE = 2**21 + 3
    COMPOSE = 2**21 + 4


def generator(*key: int) -> np.random.Generator:
    """A Philox stream that depends on the key alone; keys are non-negative integers of any size.

    numpy pads short keys with zeros: (a, b) and (a, b, 0) are one stream, so no key's last part is 0 where a
    shorter key of the same beginning is used.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))


def normal(shape: tuple[int, ...], *key: int) -> npt.NDArray[np.float32]:
    """Standard normal float32 values of `shape`, a pure function of the key."""
    return generator(*key).standard_normal(shape, dtype=np.float32)
