"""What a run's store says of the run itself, beside its chunks.

Knows: what was asked for (`asked.json`), what that came to (`run.json`, as in a run's folder), and how far it is
(`progress.json`). Knows nothing about chunks.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from engines.cluster.settings import OTHERS, ClusterSettings
from engines.cluster.store import Store
from engines.common.quote import quote, shorten
from engines.common.schema import key_of, to_object
from engines.errors import RunError
from engines.labels.scores import ScorePolicy
from engines.painting.run_settings import RunSettings
from engines.painting.settings import GenerateSettings
from engines.runs.run_folder import RUN

ASKED, PROGRESS = "asked.json", "progress.json"


def write_run(store: Store, run: RunSettings, *, new: bool) -> RunSettings:
    """Write what a run does; where it is `new` and somebody was faster, what he wrote. Gives what is there."""
    data = _dump(run.to_json())
    if not new:
        store.put(RUN, data)
    elif not store.create(RUN, data):
        return require_run_of(store)
    return run


def read_run_of(store: Store) -> RunSettings | None:
    """What a run does; None where nobody knows yet."""
    value = _load(store, RUN)
    return None if value is None else RunSettings.from_json(value, f"{store.where}, {RUN}")


def require_run_of(store: Store) -> RunSettings:
    """What a run does. Raises RunError where nobody knows yet."""
    run = read_run_of(store)
    if run is None:
        raise RunError(f"{store.where} has no {RUN}: give the address that `dengine generate` was given.", field="run")
    return run


def write_asked(store: Store, asked: GenerateSettings) -> None:
    """Write what was asked for, so that others can begin with it."""
    score = None if asked.score is None else ScorePolicy.of(asked.score).plain
    said = to_object(dataclasses.replace(asked, score=score))
    store.put(ASKED, _dump({name: value for name, value in said.items() if value is not None}))


def read_asked(store: Store) -> GenerateSettings:
    """What was asked for. Raises RunError where nobody asked."""
    value = _load(store, ASKED)
    if value is None:
        raise RunError(
            f"{store.where} has no {ASKED}: begin the run with `dengine generate` and a cluster first.", field="run"
        )
    names = {key_of(item): item.name for item in dataclasses.fields(GenerateSettings)}
    if unknown := sorted(set(value) - set(names)):
        raise RunError(f"{store.where}, {ASKED} holds {quote(unknown[0])}: a newer dengine began this run. Take that.")
    if "out" not in value:
        raise RunError(f"{store.where}, {ASKED} is not as dengine wrote it: `out` is missing.", field="out")
    return GenerateSettings(**{names[key]: item for key, item in value.items()})


def write_progress(store: Store, progress: Mapping[str, Any]) -> None:
    """Write how far a run is."""
    store.put(PROGRESS, _dump(progress))


def read_progress_of(store: Store) -> dict[str, Any] | None:
    """How far a run is, as its driver said last; None where it never did."""
    return _load(store, PROGRESS)


def for_workers(asked: GenerateSettings, cluster: ClusterSettings) -> GenerateSettings:
    """What every worker is asked for, wherever it stands: with absolute paths, and with threads, which a cluster's own
    limits would decide otherwise."""
    threads = asked.threads if cluster.cluster == OTHERS else asked.threads or cluster.worker_cpus or 1
    places = {name: getattr(asked, name) for name in ("bundle", "reference", "out")}
    absolute: dict[str, Any] = {name: path if path is None else path.absolute() for name, path in places.items()}
    return dataclasses.replace(asked, threads=threads, **absolute)


def _dump(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _load(store: Store, name: str) -> dict[str, Any] | None:
    data = store.get(name)
    if data is None:
        return None
    value: Any = None
    try:
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as cause:
        raise RunError(f"{store.where}, {name} is not readable as JSON: {shorten(cause)}.") from None
    return dict(value)
