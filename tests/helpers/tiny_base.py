"""`train-base` with the preset `tiny`, for processes that `beside` starts by the name of what they do."""

from tiny_preset import tiny_preset

from engines.common.events import Report
from engines.training import presets
from engines.training.train_base import TrainBaseSettings, TrainBaseSummary, _train


def tiny_train(settings: TrainBaseSettings, report: Report, started: float) -> TrainBaseSummary:
    """The training that the verb does."""
    presets.PRESETS = {"tiny": tiny_preset()}
    return _train(settings, report, started)
