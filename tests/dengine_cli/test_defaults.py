"""What help says a setting is, where nobody says, is what it is: the library's settings decide, and help follows."""

import dataclasses
import importlib
import re
from typing import Any

import pytest
import typer

from dengine_cli import main as program
from dengine_cli.flags import spelt
from dengine_cli.settings import values_of
from engines.adapter.info import AdapterConfig
from engines.cluster.settings import ClusterSettings
from engines.common.devices import AUTO
from engines.labels.boxes import SCORE_FLOOR
from engines.labels.scores import FALLBACK
from engines.painting.resolve import GPU_SLOTS, LONG_RUN
from engines.painting.settings import DEFAULTS, FROM_NOISE, JPEG_QUALITY, STEPS
from engines.training.adapter_options import AdapterTrainOptions
from engines.worth.detectors.config import DetectorOptions
from export.tensorrt.settings import BuildPlansSettings

MORE = {"train-adapter": AdapterConfig, "generate": ClusterSettings, "export": BuildPlansSettings}
MORE |= {"evaluate": DetectorOptions}
COMMANDS = typer.main.get_command(program.app).commands  # type: ignore[attr-defined]
VERBS = [verb for verb, module in program.VERBS.items() if hasattr(module, "SETTINGS")]
OWN = {"config", "quiet", "verbose", "dry_run", "no_report"}  # the command line's own
# Settings that a verb has by other ways than their fields.
BY_VERB: dict[str, dict[str, Any]] = {
    "generate": {"cluster": None},  # this machine, and no settings of a cluster
    "evaluate": {"steps": None, "batch": None, "lr": None, "device": AUTO},  # the presets', and see `_options` there
}
# Defaults with numbers that do not stand in the settings' fields.
TOLD = {
    ("generate", "steps"): f"{STEPS['dpmpp']}, from text alone {FROM_NOISE['dpmpp']}; ddim {STEPS['ddim']} and "
    f"{FROM_NOISE['ddim']}",
    ("generate", "guidance_interval"): "0:1",  # everywhere
    ("generate", "score"): f"the {DEFAULTS['score']}'s own, else {FALLBACK:g}",
    ("generate", "max_overlap"): f"{DEFAULTS['max_overlap']:g}, both",
    ("generate", "compiled"): f"for {LONG_RUN} images or more",
    ("generate", "jpeg_quality"): f"{JPEG_QUALITY}",
    ("generate", "worker_cpus"): "--threads, or 1",
    ("generate", "worker_gpus"): "1 where there are some",
    ("export", "batches"): f"{GPU_SLOTS}",
}


def fields_of(verb: str) -> dict[str, Any]:
    """Every setting of a verb's parameters, and what it is where nobody says."""
    source, _, name = str(program.VERBS[verb].SETTINGS).partition(":")
    kinds = [getattr(importlib.import_module(source), name), *([MORE[verb]] if verb in MORE else [])]
    found: dict[str, Any] = {}
    for item in (item for kind in reversed(kinds) for item in dataclasses.fields(kind)):
        made = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        found[item.name] = item.metadata.get("otherwise", made)
    return found | BY_VERB.get(verb, {})


@pytest.mark.parametrize("verb", VERBS)
def test_the_defaults_that_help_shows_are_those_of_the_settings(verb: str) -> None:
    names = {option: field for field, option in getattr(program.VERBS[verb], "FIELDS", {}).items()}
    fields, wrong = fields_of(verb), []
    for one in COMMANDS[verb].params:
        field = one.name if one.name in fields else names.get(one.name, one.name)
        shown = re.search(r"\[default: (.*)\]$", one.help or "")
        told = None if shown is None else shown[1]
        if field not in fields:
            fits = one.name in OWN or (one.default, told) == (None, None)
        elif one.default is not None:
            kind = dataclasses.make_dataclass("Settings", [(field, Any)])
            fits = (values_of(kind, {field: one.default})[field], told) == (fields[field], None)
        elif told is None:
            fits = is_open(fields[field])
        elif (verb, field) in TOLD or re.search(r"\d", told):
            fits = told == TOLD.get((verb, field), text_of(fields[field]))
        else:
            fits = is_open(fields[field]) or told == text_of(fields[field])
        wrong += [] if fits else [f"{one.opts[0]}: {one.default}, told as {told}; it is {fields.get(field)}"]
    assert wrong == []


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("label", f"all that score {SCORE_FLOOR:g} or more"),
        ("label", f"{FALLBACK:g} at least"),
        ("train-adapter", {0.1: "A tenth of the images"}[AdapterTrainOptions().dev_fraction]),
    ],
)
def test_numbers_in_the_text_of_help_are_those_of_the_library(verb: str, told: str) -> None:
    said = [COMMANDS[verb].help, *(one.help or "" for one in COMMANDS[verb].params)]
    assert any(told in " ".join(text.split()) for text in said)


def is_open(value: Any) -> bool:
    """Whether a setting says that something else decides."""
    return value is dataclasses.MISSING or not value or (isinstance(value, tuple) and not any(value))


def text_of(value: Any) -> str:
    """A setting as help spells it."""
    if isinstance(value, tuple):
        return spelt(tuple(f"{one:g}" for one in value), ":")
    return f"{value:g}" if isinstance(value, float) else str(value)
