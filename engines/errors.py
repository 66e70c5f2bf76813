"""The errors that users meet.

Knows: one base class and one subclass for each kind of trouble. Knows nothing about how they are shown:
`dengine_cli.main` turns each into one line and an exit code.

Every message says what was found, what was expected, and how to mend it. It names a setting as Python does, between
backticks: `score`, or with a value that is advised, `precision=auto`; advice to call a verb is that call, its settings
with literals: `build_plans(BuildPlansSettings('bundles/mine', batches=(1, 8, 8)))`. The command line shows these as its
flags and verbs (`dengine_cli.flags`); no flag is spelt here or anywhere in `engines` and `export`.
"""

from collections.abc import Iterable, Iterator

Mistake = tuple[str, str]  # the setting, and what is wrong with it: a sentence without its full stop


class DengineError(Exception):
    """Base of every error a user can mend; never raised itself. Exit code 1 unless a subclass says otherwise.

    `field` is the setting, or the field of a file, that is wrong: the name that Python knows it by; None where the
    trouble is not with one.

    >>> try:
    ...     dengine.GenerateSettings(out="run", count=8, steps=0)
    ... except dengine.DengineError as error:
    ...     print(error.field, error.exit_code)
    steps 2
    """

    exit_code = 1

    def __init__(self, message: str = "", *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, with what became of the work.

    >>> str(Interrupted("stopped at unet, step 120 of 3000", kept=True))
    'stopped at unet, step 120 of 3000'
    """

    def __init__(self, message: str, *, kept: bool) -> None:
        super().__init__(message)
        self.kept = kept  # whether the same work can go on from here


class UsageError(DengineError):
    """Options that contradict each other or lie outside their range. Exit code 2.

    >>> dengine.GenerateSettings(out="run")
    Traceback (most recent call last):
    UsageError: `count` or `jobs` is missing: say how many images to paint.
    """

    exit_code = 2


class DatasetError(DengineError):
    """A dataset folder, annotation file or image that cannot be read as what it claims to be.

    >>> dengine.TrainBaseSettings(data="nowhere", out="base").data.exists()
    False
    >>> dengine.train_base(dengine.TrainBaseSettings(data="nowhere", out="base"))
    Traceback (most recent call last):
    DatasetError: nowhere does not exist; ...
    """


class ModelError(DengineError):
    """A base model or adapter folder that is missing something, or does not fit its partner.

    >>> ModelError("bases/mine has no unet.", field="base").field
    'base'
    """


class BundleError(DengineError):
    """A bundle that is incomplete, changed, or of another version.

    >>> dengine.load("nowhere")
    Traceback (most recent call last):
    BundleError: nowhere does not exist; ...
    """


class BackendError(DengineError):
    """A runtime that is missing, or cannot execute a graph.

    >>> BackendError("openvino is not installed.", field="engine").field
    'engine'
    """


class ExportError(DengineError):
    """A graph that could not be exported, or failed its parity gate.

    >>> ExportError("out cannot be written.", field="out").field
    'out'
    """


class RunError(DengineError):
    """An output folder that cannot be written, is in use, or belongs to other settings.

    >>> dengine.finalize(dengine.FinalizeSettings("nowhere"))
    Traceback (most recent call last):
    RunError: nowhere does not exist; give the folder of a run.
    """


class TrainingError(DengineError):
    """Training that cannot start, cannot resume, or diverged.

    >>> TrainingError("adapters/mine holds an unfinished training.", field="resume").field
    'resume'
    """


class NumericalError(DengineError):
    """NaN, infinite or black output, named with the graph it came from.

    >>> NumericalError("graph unet: the output for image 3 is NaN.", field="precision").field
    'precision'
    """


def refuse(mistakes: Iterable[Mistake], kind: type[DengineError] = UsageError, where: str = "") -> None:
    """Raise one error that lists every mistake behind `where`, with the first one's field; nothing where none is."""
    if found := list(mistakes):
        raise kind(f"{where}{'; '.join(text for _, text in found)}.", field=found[0][0])


def wrong_values(settings: object, checks: Iterable[tuple[str, str, bool]]) -> Iterator[Mistake]:
    """What is wrong with fields of a settings object, of (field, what was expected, whether it is so)."""
    for name, expected, fits in checks:
        if not fits:
            yield name, f"`{name}` must be {expected}, not {getattr(settings, name)!r:.60}"
