"""`dengine.load`: a bundle opened on an engine.

Knows: what may be asked for. Knows nothing about what is done with it (`loaded`).
"""

import os
from dataclasses import dataclass

from engines.backends.registry import open_backend
from engines.bundle.bundle import default_bundle, open_bundle
from engines.common.schema import AnyPath, settle
from engines.common.verbs import setting
from engines.painting.needs import generate_needs
from engines.painting.settings import GenerateSettings
from engines.session.loaded import LoadedBundle


@dataclass(frozen=True)
class _Asked:
    """What `load` was asked for."""

    bundle: AnyPath | None
    engine: str
    precision: str
    device: str | None
    threads: int | None

    def __post_init__(self) -> None:
        settle(self)


def load(
    bundle: str | os.PathLike[str] | None = None,
    *,
    engine: str = "auto",
    precision: str = "auto",
    device: str | None = None,
    threads: int | None = None,
) -> LoadedBundle:
    """Open a bundle's folder, or the bundled model, on an engine.

    Args:
        bundle: what `export` wrote; None for the model that comes with dengine.
        engine: torch, openvino, onnxruntime or tensorrt; auto takes the first that suits this machine.
        precision: f32, bf16, f16, int8, or auto for the widest that is fast here.
        device: cpu, cuda or cuda:N; None for what the engine is fastest on.
        threads: CPU threads; None for the engine's choice.

    Raises BundleError, BackendError, UsageError.

    >>> import dengine
    >>> dengine.load(engine="torch", threads=1)
    <LoadedBundle blood-cells on torch ...>
    """
    asked = _Asked(bundle, engine, precision, device, threads)
    with setting("bundle"):
        opened = open_bundle(default_bundle() if asked.bundle is None else asked.bundle)
    needs = generate_needs(GenerateSettings(out="unused", jobs=1), opened, None)
    backend = open_backend(
        opened, asked.engine, precision=asked.precision, threads=asked.threads, device=asked.device, needs=needs
    )
    return LoadedBundle(opened, backend)
