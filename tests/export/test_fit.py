"""Which adapters fit a base: alone, with LoRAs, and when a bundle stands as the base."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from refusals import refused

from engines.adapter.info import AdapterInfo
from engines.adapter.model import load_adapter
from engines.bundle import bundle as bundles
from engines.common.files import sha256_file, write_json
from engines.common.schema import to_object
from engines.diffusion import base_model
from engines.diffusion.base_model import BASE_NOTES, BaseModel, base_hash, load_base
from engines.diffusion.origin import ORIGIN, Origin, fused_hash, fused_in, read_origin
from engines.errors import ModelError
from engines.training.decoder import copy_base
from export.fit import check_fit

STYLE, HALF_STYLE, OTHER = (
    f"{name} sha256:{content}" for name, content in (("a:1", "11"), ("a:0.5", "11"), ("b:1", "22"))
)


@pytest.fixture
def sd1(toy_bases: dict[str, Path]) -> BaseModel:
    return load_base(toy_bases["sd1"])


@pytest.fixture
def of_the_base(toy_adapters: dict[str, Path]) -> AdapterInfo:
    return load_adapter(toy_adapters["sd1"])[1]


def test_an_adapter_trained_with_a_lora_fits_with_that_lora_alone(sd1: BaseModel, of_the_base: AdapterInfo) -> None:
    origin = read_origin(sd1.folder)
    trained = replace(of_the_base, base_hash=fused_hash(origin.hash, (STYLE,)), figures={"loras": [STYLE]})
    check_fit(sd1, origin, trained, (STYLE,))
    check_fit(sd1, origin, of_the_base, (STYLE,))
    for given in ((), (HALF_STYLE,)):
        with refused(ModelError, "loras", STYLE):
            check_fit(sd1, origin, trained, given)


def test_a_bundle_with_a_lora_takes_adapters_of_its_folder_its_base_and_its_base_with_the_lora(
    sd1: BaseModel, of_the_base: AdapterInfo
) -> None:
    base = of_the_base.base_hash
    origin = Origin("f" * 64, source=base, loras=(STYLE,))
    for known in (origin.hash, base, fused_hash(base, (STYLE,))):
        check_fit(sd1, origin, replace(of_the_base, base_hash=known))
        check_fit(sd1, origin, replace(of_the_base, base_hash=known), (OTHER,))
    together = replace(of_the_base, base_hash=fused_hash(base, (OTHER, STYLE)), figures={"loras": [OTHER, STYLE]})
    check_fit(sd1, origin, together, (OTHER,))
    on_the_bundle = replace(of_the_base, base_hash=fused_hash(origin.hash, (OTHER,)), figures={"loras": [OTHER]})
    check_fit(sd1, origin, on_the_bundle, (OTHER,))
    for unlike, given in ((together, ()), (together, (STYLE,)), (on_the_bundle, ())):
        with refused(ModelError, "loras", OTHER):
            check_fit(sd1, origin, unlike, given)


def test_a_bundle_is_known_by_two_hashes_and_no_file_of_it_is_read_twice(
    toy_bundle: Path, toy_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Origin(base_hash(toy_bundle), source=base_hash(toy_bases["sd1"]))
    read: Counter[Path] = Counter()

    def count(path: Path) -> str:
        read[path] += 1
        return sha256_file(path)

    monkeypatch.setattr(bundles, "sha256_file", count)
    monkeypatch.setattr(base_model, "sha256_file", count)
    assert read_origin(toy_bundle) == expected
    assert set(read.values()) == {1}
    assert read_origin(toy_bases["sd1"]) == Origin(expected.source or "")


def test_a_bundle_that_was_changed_is_a_base_like_any_other(toy_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text("utf-8") + " ", "utf-8")
    assert read_origin(folder) == Origin(base_hash(folder)) != Origin(base_hash(toy_bundle))


def test_a_base_that_was_copied_from_a_bundle_is_known_by_the_bundles_names(toy_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "base"
    write_json(out / BASE_NOTES, copy_base(toy_bundle, out))
    assert read_origin(out) == read_origin(toy_bundle) != Origin(base_hash(out))


def test_names_that_are_noted_hold_while_the_base_is_as_it_was(toy_bases: dict[str, Path], tmp_path: Path) -> None:
    nested = Path(shutil.copytree(toy_bases["sd1"], tmp_path / "before"))
    (nested / "tokenizer" / "more").mkdir()
    (nested / "tokenizer" / "more" / "words.txt").write_text("a", "utf-8")
    folder = tmp_path / "base"
    notes = copy_base(nested, folder)
    noted = Origin(base_hash(nested), "f" * 64, (STYLE,))
    write_json(folder / BASE_NOTES, notes | {ORIGIN: to_object(noted)})
    assert read_origin(folder) == noted
    assert fused_in(folder) == (STYLE,), "not to be added once more"
    (folder / "tokenizer" / "more" / "words.txt").write_text("b", "utf-8")
    assert read_origin(folder) == Origin(base_hash(folder))
    write_json(folder / BASE_NOTES, {ORIGIN: {"hash": 3}})
    with refused(ModelError, None, folder / BASE_NOTES):
        read_origin(folder)
