"""What TensorRT for RTX compiles when a plan is loaded, kept for the next time.

Knows: its runtime cache, and where its bytes are kept. Does not know how a plan is loaded or run.

A plan of TensorRT for RTX holds kernels for a compute capability; the GPU at hand, its driver and the shapes decide the
rest, which is compiled when a context is made and at its first run. TensorRT itself refuses a cache of another GPU,
version or driver.
"""

import hashlib
from typing import Any

from engines.backends.tensorrt.flavours import Library
from engines.backends.tensorrt.gpu import Gpu
from engines.backends.tensorrt.plans import Machine, Plan
from engines.common import cache


class LastStep:
    """The runtime cache of one loaded plan, shared by its contexts."""

    def __init__(self, library: Library, config: Any, machine: Machine, gpu: Gpu, plan: Plan) -> None:
        """`config` is an IRuntimeConfig of the loaded plan; it becomes what contexts have to be made with."""
        self.config = config
        # Kernels for a range of shapes would otherwise be replaced, while a run goes on, by ones for the shape at hand
        # as they get ready: the same job would give other bits before and after.
        config.dynamic_shapes_kernel_specialization_strategy = (
            library.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._key = cache.cache_key(
            {"last step of": plan.path.name, "machine": str(machine), "gpu": gpu.name, "driver": gpu.driver}
        )
        self._cache = config.create_runtime_cache()
        kept = cache.load(self._key)
        if kept is not None:
            self._cache.deserialize(kept)  # False, and nothing loaded, for a cache of another GPU or driver
        config.set_runtime_cache(self._cache)
        self._kept = hashlib.sha256(kept or b"").digest()

    def keep(self) -> None:
        """After the first run of a context: keep what was compiled for it."""
        data = bytes(self._cache.serialize())
        digest = hashlib.sha256(data).digest()
        if digest != self._kept and cache.store(self._key, data):
            self._kept = digest
