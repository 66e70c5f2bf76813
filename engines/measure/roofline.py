"""The machine's own matmul rate: what no network can go past.

Knows: how fast PyTorch and the CPU runtimes multiply square matrices here, with the threads a graph would have.
Knows nothing about networks. A share of this rate says how much of the machine a graph uses; convolutions that save
operations (Winograd) may go a little beyond it.

n side of a matrix; one product is 2 n^3 operations.
"""

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from engines.backends.base import import_runtime
from engines.backends.openvino.core import open_core
from engines.backends.openvino.signal_stack import same_signal_stack
from engines.bundle.bundle import default_bundle, open_bundle
from engines.common.devices import cpu_has_bf16, resolve_threads
from engines.measure.timing import synchronise

SIZES = (1024, 2048, 4096)
REPEATS = 5  # products of which the fastest counts, at least
PATIENCE = 0.5  # seconds that products of one size are repeated for, at least
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_OPSET, _IR_VERSION = 17, 8  # of the one-node graph: old enough for every runtime

Tell = Callable[[str], None]
Product = Callable[[], Any]


@dataclass(frozen=True)
class Rate:
    """How fast one runtime multiplied matrices of one size."""

    precision: str  # f32, bf16 or f16
    runtime: str  # torch, openvino or onnxruntime
    size: int  # n
    flops_per_second: float  # of the fastest product


def matmul_rates(
    device: torch.device,
    threads: int,
    *,
    sizes: Sequence[int] = SIZES,
    patience: float = PATIENCE,
    tell: Tell = lambda line: None,
) -> list[Rate]:
    """Every rate that can be measured here: each size, precision and runtime.

    On a CPU: f32 and, where the processor has it, bf16, with torch, OpenVINO (both) and ONNX Runtime (f32). On a GPU:
    f32 (without TF32), bf16 and f16 with torch, whose matmul is the vendor's own. A runtime that is not installed, or
    fails, is left out, and `tell` is told of it. PyTorch's threads are set for the whole process.
    """
    if device.type == "cpu":
        torch.set_num_threads(threads)
        precisions = ("f32", "bf16") if cpu_has_bf16() else ("f32",)
        runtimes: dict[str, tuple[Callable[..., Product], tuple[str, ...]]] = {
            "torch": (_torch_product, precisions),
            "openvino": (_openvino_product, precisions),
            "onnxruntime": (_ort_product, ("f32",)),
        }
    else:
        runtimes = {"torch": (_torch_product, ("f32", "bf16", "f16"))}
    rates = []
    for runtime, (build, own) in runtimes.items():
        for precision in own:
            for size in sizes:
                tell(f"multiplying {size} x {size} in {precision} with {runtime}")
                try:
                    product = build(size, precision, device, threads)
                    seconds = _fastest(product, device, patience)
                except Exception as cause:  # runtimes raise errors of many kinds
                    tell(f"{runtime} does not multiply in {precision} here: {cause}")
                    break
                rates.append(Rate(precision, runtime, size, 2 * size**3 / seconds))
    return rates


def best_rates(rates: Sequence[Rate]) -> dict[str, Rate]:
    """The fastest of each precision."""
    best: dict[str, Rate] = {}
    for rate in rates:
        if rate.precision not in best or rate.flops_per_second > best[rate.precision].flops_per_second:
            best[rate.precision] = rate
    return best


def rate_of(best: Mapping[str, Mapping[str, Any]], precision: str) -> Mapping[str, Any] | None:
    """The rate that a precision's share is of; for a precision that was not measured (int8) the fastest other's.

    `best` is `best_rates` as JSON. None where nothing was measured.
    """
    return best.get(precision) or max(best.values(), key=lambda rate: float(rate["flops_per_second"]), default=None)


def roofline_task(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """For `alone`: rates, and the operations of a bundle's graphs.

    Arguments: `bundle` (folder or None), `frame`, `threads` (or None), `device` (or None: a GPU where there is one)
    and, where they differ from SIZES, `sizes`. Returns `machine`, `versions`, `device`, `threads`, `rates`, `best` by
    precision, and `flops`, for one image, by graph.
    """
    from pathlib import Path

    from engines.measure.flops import graph_flops
    from engines.measure.machine import machine, versions

    name = arguments["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    device, threads = torch.device(name), resolve_threads(arguments["threads"])
    folder = default_bundle() if arguments["bundle"] is None else Path(arguments["bundle"])
    tell("counting the operations of every graph")
    width, height = arguments["frame"]
    flops = graph_flops(open_bundle(folder, verify=False), (width, height))
    rates = matmul_rates(device, threads, sizes=arguments.get("sizes", SIZES), tell=tell)
    return {
        "machine": machine(),
        "versions": versions(),
        "device": device.type,
        "threads": threads,
        "rates": [asdict(rate) for rate in rates],
        "best": {precision: asdict(rate) for precision, rate in best_rates(rates).items()},
        "flops": flops,
    }


def _fastest(product: Product, device: torch.device, patience: float) -> float:
    """Seconds of the fastest product, after one that is not counted."""
    product()
    synchronise(device)
    return min(_seconds(product, device, patience))


def _seconds(product: Product, device: torch.device, patience: float) -> Iterator[float]:
    begun, done = time.perf_counter(), 0
    while done < REPEATS or time.perf_counter() - begun < patience:
        start = time.perf_counter()
        product()
        synchronise(device)
        yield time.perf_counter() - start
        done += 1


def _matrices(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(size)
    first, second = (torch.randn((size, size), generator=random) for _ in range(2))
    return first, second


def _torch_product(size: int, precision: str, device: torch.device, threads: int) -> Product:
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    a, b = (matrix.to(device, DTYPES[precision]) for matrix in _matrices(size))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def half_product(device: torch.device, shape: tuple[int, int, int], *, fp8: bool = False) -> Product:
    """A product of a network's own shape, [m, k] x [k, n]: in float16, or on a GPU in fp8 (e4m3), its left side being
    quantised on the way, as an activation would be. On a CPU in float32."""
    m, k, n = shape
    half = torch.float16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(*size, device=device).to(half) for size in ((m, k), (n, k)))
    if not fp8:
        return lambda: left @ right.t()
    stored, one = right.to(torch.float8_e4m3fn), torch.ones((), device=device)

    def run() -> Any:
        scale = left.abs().amax().float() / torch.finfo(stored.dtype).max
        return torch._scaled_mm((left / scale).to(stored.dtype), stored.t(), scale, one, out_dtype=half)

    return run


def _openvino_product(size: int, precision: str, device: torch.device, threads: int) -> Product:
    """One matrix is constant, as weights are, so that the runtime may lay it out as it likes."""
    ov: Any = import_runtime("openvino", "openvino")
    a, b = (matrix.numpy() for matrix in _matrices(size))
    operations = ov.opset13
    rows = operations.parameter([size, size], np.float32)
    model = ov.Model([operations.matmul(rows, operations.constant(b), False, False)], [rows], "product")
    config = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    with same_signal_stack():
        request = open_core(ov, threads).compile_model(model, "CPU", config).create_infer_request()
    request.set_input_tensor(ov.Tensor(a, shared_memory=True))

    def product(keep: Any = a) -> Any:  # the request holds the address only
        return request.infer()

    return product


def _ort_product(size: int, precision: str, device: torch.device, threads: int) -> Product:
    """As `_openvino_product`."""
    import onnx

    ort: Any = import_runtime("onnxruntime", "onnxruntime-gpu")
    a, b = _matrices(size)
    value = onnx.helper.make_tensor_value_info
    kind, shape = onnx.TensorProto.FLOAT, [size, size]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [value("a", kind, shape)],
        [value("c", kind, shape)],
        [onnx.numpy_helper.from_array(b.numpy(), "b")],
    )
    opset = [onnx.helper.make_opsetid("", _OPSET)]
    file = io.BytesIO()
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION), file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    out = torch.empty_like(a)
    binding = session.io_binding()
    for bind, name, tensor in ((binding.bind_input, "a", a), (binding.bind_output, "c", out)):
        bind(name, "cpu", 0, np.float32, tuple(tensor.shape), tensor.data_ptr())

    def product(keep: tuple[torch.Tensor, torch.Tensor] = (a, out)) -> None:  # as above
        session.run_with_iobinding(binding)

    return product
