"""Which verbs there are, in the order of the help.

Knows: their names and files. Knows nothing about what they do.
"""

from types import ModuleType

from dengine_cli import (
    audit,
    bench,
    cache,
    config,
    doctor,
    evaluate,
    export,
    finalize,
    generate,
    label,
    merge,
    report,
    review,
    train_adapter,
    train_base,
)

VERBS: dict[str, ModuleType] = {
    "train-base": train_base,
    "train-adapter": train_adapter,
    "export": export,
    "generate": generate,
    "label": label,
    "finalize": finalize,
    "merge": merge,
    "audit": audit,
    "review": review,
    "report": report,
    "evaluate": evaluate,
    "bench": bench,
    "doctor": doctor,
    "config": config,
    "cache": cache,
}
