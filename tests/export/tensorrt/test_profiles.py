"""Which shapes plans are built for, of a bundle with small graphs."""

from typing import cast

import pytest
from fakes import FakeBundle

from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from export.tensorrt.profiles import Profiles, wanted_profiles


@pytest.fixture
def bundle(tmp_path: object) -> Bundle:
    """Its frame is 48x32: 12 x 8 latents."""
    return cast(Bundle, FakeBundle(tmp_path))  # type: ignore[arg-type]


def shapes(bundle: Bundle, profiles: Profiles, graph: str, tensor: str) -> list[tuple[tuple[int, ...], ...]]:
    """Smallest, usual and largest shape of an input, in each profile."""
    ends = [
        [{size: bounds[end] for size, bounds in profile.items()} for end in range(3)] for profile in profiles[graph]
    ]
    return [tuple(bundle.specs[graph].input_shapes(sizes)[tensor] for sizes in profile) for profile in ends]


def test_profiles_are_static_and_the_unet_has_one_for_each_of_its_batches(bundle: Bundle) -> None:
    profiles = wanted_profiles(bundle)
    assert shapes(bundle, profiles, "text_encoder", "input_ids") == [((1, 8),) * 3]
    assert shapes(bundle, profiles, "vae_decoder", "latents") == [((8, 4, 8, 12),) * 3]
    assert shapes(bundle, profiles, "vae_encoder", "pixels") == [((8, 3, 32, 48),) * 3]
    # Guidance takes two rows of the network for each image; then comes the label pass.
    assert shapes(bundle, profiles, "unet", "sample") == [((16, 4, 8, 12),) * 3, ((8, 4, 8, 12),) * 3]
    assert shapes(bundle, profiles, "unet", "timesteps")[0] == ((16,),) * 3
    assert shapes(bundle, profiles, "unet", "encoder_hidden_states")[0] == ((16, 8, 6),) * 3


def test_ranges_become_one_profile_that_covers_them(bundle: Bundle) -> None:
    profiles = wanted_profiles(bundle, (1, 4, 12), ((32, 32), (48, 32), (64, 64)))
    assert shapes(bundle, profiles, "unet", "sample") == [((1, 4, 8, 8), (8, 4, 8, 12), (24, 4, 16, 16))]
    assert shapes(bundle, profiles, "vae_decoder", "latents") == [((1, 4, 8, 8), (4, 4, 8, 12), (8, 4, 16, 16))]
    assert shapes(bundle, profiles, "adapter", "div2") == [((1, 8, 4, 4), (4, 8, 4, 6), (8, 8, 8, 8))]


def test_ranges_that_do_not_ascend_are_refused_by_field(bundle: Bundle) -> None:
    with pytest.raises(UsageError) as error:
        wanted_profiles(bundle, (9, 3, 1))
    assert error.value.field == "batches"
    with pytest.raises(UsageError) as error:
        wanted_profiles(bundle, None, ((64, 32), (48, 32), (48, 32)))
    assert error.value.field == "sizes"
