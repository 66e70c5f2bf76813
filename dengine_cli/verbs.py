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
    push,
    report,
    review,
    status,
    train_adapter,
    train_base,
    work,
)

VERBS: dict[str, ModuleType] = {
    "train-base": train_base,
    "train-adapter": train_adapter,
    "export": export,
    "generate": generate,
    "label": label,
    "finalize": finalize,
    "merge": merge,
    "push": push,
    "work": work,
    "status": status,
    "audit": audit,
    "review": review,
    "report": report,
    "evaluate": evaluate,
    "bench": bench,
    "doctor": doctor,
    "config": config,
    "cache": cache,
}
