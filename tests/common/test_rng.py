"""Random streams: one a key, the same wherever it is drawn, and no two purposes on one."""

import ast
from pathlib import Path

import numpy as np

from engines.common.rng import Stream, generator, normal

ROOT = Path(__file__).parents[2]
# As trainings and runs that were begun have them: a number that changes changes what they go on with.
NUMBERS = {
    "VAE_VIEWS": 1, "VAE_LATENTS": 2, "UNET_VIEWS": 3, "UNET_STEP": 4, "UNET_NOISE": 5,
    "ADAPTER_ORDER": 20, "ADAPTER_GROUPS": 21, "ADAPTER_VIEWS": 22, "ADAPTER_NOISE": 23, "ADAPTER_DEV": 24,
    "ADAPTER_STATISTICS": 25,
    "DETECTOR_MIX": 40, "DETECTOR_ORDER": 41, "DETECTOR_VIEWS": 42, "BOOTSTRAP": 50,
    "INITIAL_NOISE": 1 << 20, "LABEL_NOISE": (1 << 20) + 1,
    "JOB": 1 << 21, "REFERENCE_ORDER": (1 << 21) + 1, "BALANCE": (1 << 21) + 2, "PIPELINE": (1 << 21) + 3,
}  # fmt: skip


def test_streams_that_have_a_number_keep_it() -> None:
    now = {name: int(stream) for name, stream in Stream.__members__.items()}
    assert {name: now.get(name) for name in NUMBERS} == NUMBERS


def test_no_two_streams_share_a_number() -> None:
    numbers = [stream.value for stream in Stream.__members__.values()]
    assert len(set(numbers)) == len(Stream.__members__)
    assert 0 not in numbers, "a key's last part 0 is no part"


def test_streams_of_one_seed_are_independent_of_each_other() -> None:
    draws = [generator(7, stream).standard_normal(4000) for stream in Stream]
    correlations = np.asarray(np.corrcoef(np.stack(draws)))
    assert np.abs(correlations - np.eye(len(draws))).max() < 5 / np.sqrt(4000)


def test_the_noise_of_a_step_is_never_that_of_a_stream() -> None:
    """Steps are the last part of a noise key too, from 1 on, and a schedule has fewer than 2**20."""
    painting = [Stream.INITIAL_NOISE, Stream.LABEL_NOISE, Stream.JOB, Stream.REFERENCE_ORDER, Stream.BALANCE]
    assert min([*painting, Stream.PIPELINE]) >= 1 << 20


def test_every_key_in_the_library_that_has_a_purpose_names_its_stream() -> None:
    """A bare number beside the streams could be one of theirs."""
    bare = []
    for path in sorted((ROOT / "engines").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "generator":
                continue
            if any(isinstance(part, ast.Constant) for part in node.args):
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert bare == []


def test_a_stream_depends_on_its_key_alone() -> None:
    first = normal((2, 3), 2**63 - 1, 5, Stream.JOB)
    generator(1).random(100)
    assert first.dtype == np.float32
    assert np.array_equal(first, normal((2, 3), 2**63 - 1, 5, Stream.JOB))
    assert np.array_equal(first, normal((2, 3), 2**63 - 1, 5, int(Stream.JOB)))
    for other in ((2**63 - 2, 5, Stream.JOB), (2**63 - 1, 6, Stream.JOB), (5, 2**63 - 1, Stream.JOB)):
        assert not np.array_equal(first, normal((2, 3), *other))
