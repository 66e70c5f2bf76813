"""The options that decide an image, with all that was left open filled in: by a run that is there, the bundle, or here.

Knows: where each comes from, and the schedules that they make. Slots, chunks and engines are `resolve`'s.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.common.schema import key_of
from engines.diffusion.schedule import Schedules
from engines.errors import BundleError, UsageError
from engines.labels.scores import ScorePolicy, check_ignore_score
from engines.labels.scores import stored as stored_score
from engines.painting.run_settings import RunSettings
from engines.painting.settings import DEFAULTS, EARLIER, FROM_NOISE, OPEN, STEPS, GenerateSettings, PaintOptions

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle


def resolve_options(
    asked: GenerateSettings,
    bundle_defaults: Mapping[str, Any],
    thresholds: Mapping[str, float],
    class_names: Sequence[str],
    stored: RunSettings | None = None,
) -> dict[str, Any]:
    """The painting options of DEFAULTS' keys with all that is open filled in: from the bundle, then from DEFAULTS.

    Those of a run that is there, `stored`, are as they were when it was begun. A score has its stored form, and classes
    left out take the adapter's `thresholds`.
    Raises BundleError for a bundle whose defaults are unknown or out of range, UsageError where an option that was
    given contradicts one that was filled in.
    """
    names = {key_of(item): item.name for item in dataclasses.fields(PaintOptions) if item.name in DEFAULTS}
    unknown = sorted(set(bundle_defaults) - set(names))
    if unknown:
        raise BundleError(
            f'manifest.json: "generate" holds {", ".join(unknown)}; known are {", ".join(names)}. Export it again.'
        )
    of_bundle = {names[key]: value for key, value in bundle_defaults.items()}
    try:
        own = GenerateSettings(out=asked.out, count=1, reference=Path(), **of_bundle)
    except UsageError as cause:
        raise BundleError(f'manifest.json: "generate" cannot be used: {cause}', field=cause.field) from cause
    given = {key: getattr(asked, key) for key in DEFAULTS if getattr(asked, key) is not OPEN}
    earlier = EARLIER if stored is not None and stored.format < 4 else {}
    options = {**DEFAULTS, **earlier} | {key: getattr(own, key) for key in of_bundle} | given
    if options["steps"] is OPEN:
        from_noise = asked.reference is None or (stored is not None and stored.floored)
        options["steps"] = (FROM_NOISE if from_noise else STEPS)[options["sampler"]]
    wanted = ScorePolicy.of(options["score"]).thresholds(thresholds, class_names)
    options["score"] = stored_score(wanted)
    if "ignore_score" in given:
        check_ignore_score(asked.ignore_score, wanted)
    elif options["ignore_score"] >= max(wanted.values()):
        options["ignore_score"] = 0.0
    if options["sampler"] != "ddim" and "eta" not in given:
        options["eta"] = 0.0
    if options["guidance"] <= 1.0:
        options |= {key: DEFAULTS[key] for key in ("guidance_interval", "negative_prompt") if key not in given}
    if asked.reference is None:
        options["strength"] = None
    dataclasses.replace(asked, **options)  # raises UsageError where they contradict each other
    return options


def painting_options(
    asked: GenerateSettings, bundle: "Bundle", stored: RunSettings | None = None
) -> tuple[dict[str, Any], Schedules]:
    """The options of `resolve_options`, and the schedules they make: for a `stored` run, as it was begun."""
    floored = stored is not None and stored.floored
    thresholds = bundle.adapter_info.thresholds
    options = resolve_options(asked, bundle.generate_defaults, thresholds, bundle.class_names, stored)
    sampler, steps, eta = options["sampler"], options["steps"], options["eta"]
    return options, Schedules(bundle.scheduler_config, sampler, steps, eta, floored=floored)
