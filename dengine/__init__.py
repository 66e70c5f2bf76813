"""dengine in Python: load a bundle, paint and label; every verb of the command line as a function of its settings.

    import dengine

    bundle = dengine.load()
    for image in bundle.paint(8, seed=0):
        image.show()
    found = bundle.label("photo.jpg")
    dengine.generate(dengine.GenerateSettings(out="run", count=100), report=print)

`verb(settings, *, report=None)` gives a summary; `report` is told of `Event`s. Nothing is printed. What goes wrong is
a `DengineError` with the `field` that is at fault.

Knows: where each name is. Nothing is imported before it is used, and there is no logic here.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.audit.audit import audit
    from engines.audit.settings import AuditSettings, AuditSummary
    from engines.cluster.gather import GatherSettings, gather
    from engines.cluster.generate import ClusterSummary, generate_on_cluster
    from engines.cluster.settings import ClusterSettings
    from engines.cluster.status import Status, StatusSettings, status
    from engines.cluster.work import WorkSettings, WorkSummary, work
    from engines.common.events import Event, EventKind, ImageNews
    from engines.doctor import Diagnosis, examine
    from engines.errors import (
        BackendError,
        BundleError,
        DatasetError,
        DengineError,
        ExportError,
        ModelError,
        NumericalError,
        RunError,
        TrainingError,
        UsageError,
    )
    from engines.labelling import LabelSettings, LabelSummary, label
    from engines.labels.boxes import Instances
    from engines.measure.bench import bench
    from engines.measure.settings import BenchSettings, BenchSummary
    from engines.painting.settings import GenerateSettings
    from engines.push.push import push
    from engines.push.settings import PushSettings, PushSummary
    from engines.report.report import ReportSettings, ReportSummary, report
    from engines.review.server import ReviewSettings, ReviewSummary, review
    from engines.runs.finalize import FinalizeSettings, finalize
    from engines.runs.generate import generate
    from engines.runs.merge import MergeSettings, merge
    from engines.runs.summaries import DatasetSummary, GenerateSummary
    from engines.session.image import PaintedImage
    from engines.session.load import load
    from engines.session.loaded import LoadedBundle
    from engines.training.train_adapter import TrainAdapterSettings, TrainAdapterSummary, train_adapter
    from engines.training.train_base import TrainBaseSettings, TrainBaseSummary, train_base
    from engines.worth.evaluate import EvaluateSummary, evaluate
    from engines.worth.settings import EvaluateSettings, Times
    from export.assemble import ExportSummary, export
    from export.settings import ExportSettings
    from export.tensorrt.build import BuildPlansSummary, build_plans
    from export.tensorrt.settings import BuildPlansSettings

_MODULES = {
    "engines.audit.audit": ("audit",),
    "engines.audit.settings": ("AuditSettings", "AuditSummary"),
    "engines.cluster.gather": ("GatherSettings", "gather"),
    "engines.cluster.generate": ("ClusterSummary", "generate_on_cluster"),
    "engines.cluster.settings": ("ClusterSettings",),
    "engines.cluster.status": ("Status", "StatusSettings", "status"),
    "engines.cluster.work": ("WorkSettings", "WorkSummary", "work"),
    "engines.common.events": ("Event", "EventKind", "ImageNews"),
    "engines.doctor": ("Diagnosis", "examine"),
    "engines.errors": (
        "BackendError", "BundleError", "DatasetError", "DengineError", "ExportError", "ModelError", "NumericalError",
        "RunError", "TrainingError", "UsageError",
    ),
    "engines.labelling": ("LabelSettings", "LabelSummary", "label"),
    "engines.labels.boxes": ("Instances",),
    "engines.measure.bench": ("bench",),
    "engines.measure.settings": ("BenchSettings", "BenchSummary"),
    "engines.painting.settings": ("GenerateSettings",),
    "engines.push.push": ("push",),
    "engines.push.settings": ("PushSettings", "PushSummary"),
    "engines.report.report": ("ReportSettings", "ReportSummary", "report"),
    "engines.review.server": ("ReviewSettings", "ReviewSummary", "review"),
    "engines.runs.finalize": ("FinalizeSettings", "finalize"),
    "engines.runs.generate": ("generate",),
    "engines.runs.merge": ("MergeSettings", "merge"),
    "engines.runs.summaries": ("DatasetSummary", "GenerateSummary"),
    "engines.session.image": ("PaintedImage",),
    "engines.session.load": ("load",),
    "engines.session.loaded": ("LoadedBundle",),
    "engines.training.train_adapter": ("TrainAdapterSettings", "TrainAdapterSummary", "train_adapter"),
    "engines.training.train_base": ("TrainBaseSettings", "TrainBaseSummary", "train_base"),
    "engines.worth.settings": ("EvaluateSettings", "Times"),
    "engines.worth.evaluate": ("EvaluateSummary", "evaluate"),
    "export.assemble": ("ExportSummary", "export"),
    "export.settings": ("ExportSettings",),
    "export.tensorrt.build": ("BuildPlansSummary", "build_plans"),
    "export.tensorrt.settings": ("BuildPlansSettings",),
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AuditSettings",
    "AuditSummary",
    "BackendError",
    "BenchSettings",
    "BenchSummary",
    "BuildPlansSettings",
    "BuildPlansSummary",
    "BundleError",
    "ClusterSettings",
    "ClusterSummary",
    "DatasetError",
    "DatasetSummary",
    "DengineError",
    "Diagnosis",
    "EvaluateSettings",
    "EvaluateSummary",
    "Event",
    "EventKind",
    "ExportError",
    "ExportSettings",
    "ExportSummary",
    "FinalizeSettings",
    "GatherSettings",
    "GenerateSettings",
    "GenerateSummary",
    "ImageNews",
    "Instances",
    "LabelSettings",
    "LabelSummary",
    "LoadedBundle",
    "MergeSettings",
    "ModelError",
    "NumericalError",
    "PaintedImage",
    "PushSettings",
    "PushSummary",
    "ReportSettings",
    "ReportSummary",
    "ReviewSettings",
    "ReviewSummary",
    "RunError",
    "Status",
    "StatusSettings",
    "Times",
    "TrainAdapterSettings",
    "TrainAdapterSummary",
    "TrainBaseSettings",
    "TrainBaseSummary",
    "TrainingError",
    "UsageError",
    "WorkSettings",
    "WorkSummary",
    "audit",
    "bench",
    "build_plans",
    "evaluate",
    "examine",
    "export",
    "finalize",
    "gather",
    "generate",
    "generate_on_cluster",
    "label",
    "load",
    "merge",
    "push",
    "report",
    "review",
    "status",
    "train_adapter",
    "train_base",
    "work",
]


if not TYPE_CHECKING:  # a type checker knows every name, and that there is no other

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
