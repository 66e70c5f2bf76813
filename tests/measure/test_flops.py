"""Operations of products, against counts made by hand, and of a bundle's graphs."""

from pathlib import Path

import torch

from engines.adapter.model import load_adapter
from engines.backends.modules import graph_modules
from engines.bundle.bundle import open_bundle
from engines.diffusion.base_model import load_base
from engines.measure.flops import count_flops, graph_flops

FRAME = (64, 48)


def test_a_matrix_product_is_two_operations_a_multiply_add() -> None:
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_a_convolution_is_its_kernel_at_every_output_pixel() -> None:
    convolution = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, device="meta")
    image = torch.zeros(2, 4, 10, 8, device="meta")
    assert count_flops(lambda: convolution(image)) == 2 * (3 * 3 * 4) * 6 * (5 * 4) * 2


def test_attention_is_counted_on_every_device() -> None:
    heads, queries, keys, width = 2, 16, 9, 8
    expected = 2 * (2 * heads * queries * keys * width)  # scores, then values
    for device in ("cpu", "meta"):
        q = torch.zeros(1, heads, queries, width, device=device)
        k = torch.zeros(1, heads, keys, width, device=device)
        found = count_flops(lambda q=q, k=k: torch.nn.functional.scaled_dot_product_attention(q, k, k))  # type: ignore[misc]
        assert found == expected


def test_graphs_without_weights_count_as_the_networks_themselves(toy_bundle: Path) -> None:
    bundle = open_bundle(toy_bundle, verify=False)
    found = graph_flops(bundle, FRAME)
    modules = graph_modules(load_base(toy_bundle), load_adapter(toy_bundle / "adapter")[0])
    sizes = {"B": 2, "h": FRAME[1] // bundle.vae_stride, "w": FRAME[0] // bundle.vae_stride}
    for graph, spec in bundle.specs.items():
        inputs = [torch.from_numpy(value) for value in spec.example(sizes, 1).values()]
        module = modules[graph]
        assert found[graph] > 0
        assert count_flops(lambda module=module, inputs=inputs: module(*inputs)) == 2 * found[graph]  # type: ignore[misc]
