"""Where the time goes inside the graphs: OpenVINO's profile by kind of operator, as exported and as dengine runs it.

    python benchmarks/operators.py --out benchmarks/results/operators.md

The bundled model at 256x192, one core and one stream with a stream's share of a batch of 16 slots: 16 rows of the
UNet, 4 images of the VAE. "as exported" has the graph at fixed shapes and, in int8, the same ranges; "as run" is what
`openvino_backend.rewrite` makes of it. Both take turns; a figure is the median of the calls. Inputs are noise, in rows
that are no pairs: only the time is looked at. Takes half a minute; what stays as it is (vae_encoder) tells how far
figures differ by chance.

Knows: OpenVINO's profile and its names of operators. Does not know what a rewriting does.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from engines.backends.openvino.backend import rewrite
from engines.backends.openvino.int8 import quantize, ranges_of
from engines.bundle.bundle import Bundle, default_bundle, open_bundle
from engines.common.devices import cpu_has_bf16, cpu_has_int8
from engines.common.files import write_atomic
from engines.errors import UsageError
from engines.measure.machine import machine, versions

CASES = (("unet", 16), ("vae_decoder", 4), ("vae_encoder", 4))  # graph, its batch
LATENTS = {"h": 24, "w": 32}
VARIES = {"unet": "encoder_hidden_states"}
WARM_UP, CALLS = 2, 9
KINDS = {
    "Convolution": "convolutions",
    "FullyConnected": "matrix products",
    "MatMul": "matrix products",
    "FullyConnectedQuantizedLegacy": "matrix products",
    "MVN": "statistics of norms",
    "Subgraph": "element by element",
    "Eltwise": "element by element",
    "Add": "element by element",
}
COPIES = ("Reorder", "Transpose", "Concat", "DepthToSpace", "Interpolate", "Split", "Gather", "Pad")
ATTENTION = "scaled_dot_product_attention"  # in the name of what OpenVINO fuses of one

Profile = dict[str, float]  # milliseconds a call by kind of operator


def main() -> None:
    """Print the table, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=None, help="a bundle; the bundled model without it")
    parser.add_argument("--calls", type=int, default=CALLS, help=f"calls that are counted (default: {CALLS})")
    parser.add_argument("--out", type=Path, help="markdown file for the table")
    given = parser.parse_args()
    bundle = open_bundle(given.bundle or default_bundle(), verify=False)
    known = machine()
    text = "\n".join(
        [
            "# Where the time goes inside the graphs",
            "",
            f"Machine: {known['processor']}, one of {known['cores']} cores. openvino {versions()['openvino']}. "
            f"Command: `python benchmarks/operators.py --out OUT`. {_explained()}",
            *report(bundle, given.calls),
            "",
        ]
    )
    print(text)
    if given.out is not None:
        write_atomic(given.out, text.encode())


def report(bundle: Bundle, calls: int) -> Iterator[str]:
    """The lines of a table for each graph and precision that this processor has."""
    precisions = [name for name, there in (("bf16", cpu_has_bf16()), ("int8", cpu_has_int8())) if there]
    if not precisions:
        raise UsageError("this processor has neither bf16 nor int8.")
    for graph, batch in CASES:
        for precision in precisions:
            before, after = compare(bundle, graph, batch, precision, calls)
            yield from ("", f"## {graph}, {precision}, batch {batch}", "", *table(before, after))


def table(before: Profile, after: Profile) -> Iterator[str]:
    """Kinds of operators with their milliseconds and shares, most of it first, and the sum."""
    yield "| operators | as exported, ms | as run, ms | share, or change |"
    yield "| --- | --- | --- | --- |"
    whole = sum(after.values())
    for kind in sorted(before.keys() | after.keys(), key=lambda kind: -after.get(kind, 0.0)):
        share = after.get(kind, 0.0) / whole
        yield f"| {kind} | {before.get(kind, 0.0):.1f} | {after.get(kind, 0.0):.1f} | {share:.1%} |"
    change = whole / sum(before.values()) - 1.0
    yield f"| together | {sum(before.values()):.1f} | {whole:.1f} | {change:+.1%} |"


def compare(bundle: Bundle, graph: str, batch: int, precision: str, calls: int) -> tuple[Profile, Profile]:
    """The profile of a graph as exported and as run, whose calls take turns."""
    spec = bundle.specs[graph]
    inputs = spec.example({"B": batch, **LATENTS}, 1)
    requests = [_request(bundle, graph, batch, precision, rewritten=rewritten) for rewritten in (False, True)]
    found: list[list[Profile]] = [[], []]
    for call in range(WARM_UP + calls):
        for request, profiles in zip(requests, found, strict=True):
            request.infer(inputs)
            if call >= WARM_UP:
                profiles.append(profile(request.profiling_info))
    return middle(found[0]), middle(found[1])


def _request(bundle: Bundle, graph: str, batch: int, precision: str, *, rewritten: bool) -> Any:
    import openvino as ov

    spec = bundle.specs[graph]
    core = ov.Core()
    model: Any = core.read_model(str(bundle.graph_path(graph)))
    model = ov.Model([model.output(spec.outputs[0].name).get_node()], model.get_parameters(), graph)
    model.reshape({name: list(shape) for name, shape in spec.input_shapes({"B": batch, **LATENTS}).items()})
    if rewritten:
        rewrite(ov, model, VARIES.get(graph))
    if precision == "int8":
        quantize(ov, model, ranges_of(graph, bundle.manifest.activations))
    hint = "bf16" if cpu_has_bf16() else "f32"  # of what int8 leaves
    config = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERF_COUNT": True}
    return core.compile_model(model, "CPU", config).create_infer_request()


def profile(nodes: Sequence[Any]) -> Profile:
    """Milliseconds by kind of operator of one call, from a request's `profiling_info`."""
    found: defaultdict[str, float] = defaultdict(float)
    for node in nodes:
        if str(node.status).endswith("EXECUTED"):
            found[kind_of(node.node_type, node.node_name)] += 1e3 * node.real_time.total_seconds()
    return dict(found)


def kind_of(operator: str, name: str) -> str:
    """What readers call a kind of operator."""
    if operator == "Subgraph" and ATTENTION in name:
        return "attention"
    return "copies and layouts" if operator in COPIES else KINDS.get(operator, "others")


def middle(profiles: Sequence[Mapping[str, float]]) -> Profile:
    """The median of every kind over some calls."""
    kinds = {kind for profile in profiles for kind in profile}
    return {kind: statistics.median(profile.get(kind, 0.0) for profile in profiles) for kind in kinds}


def _explained() -> str:
    return (
        "As exported: the graph at fixed shapes, in int8 with the same ranges. As run: products that are split are "
        "cut, what the two rows of a guided image share is computed once, and convolutions of doubled images are "
        "computed on the images themselves."
    )


if __name__ == "__main__":
    main()
