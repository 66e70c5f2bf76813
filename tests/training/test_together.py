"""Trainings on several devices: two processes of the CPU against one, and what becomes of the others."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from kill_scenes import write_pictures
from many_devices import BATCH, ToySettings, toy_train
from refusals import refused
from safetensors.torch import load_file
from tiny_base import tiny_train
from tiny_preset import tiny_preset

from engines.adapter.info import INFO_FILE, WEIGHTS_FILE
from engines.common.events import Event, silent
from engines.common.training_log import LOG, read_log
from engines.datasets.dataset import open_dataset
from engines.datasets.learned import LEARNED
from engines.diffusion.base_model import load_base
from engines.errors import BackendError, Interrupted, TrainingError, UsageError
from engines.training import presets, together
from engines.training import train_base as base_verb
from engines.training.assess import Networks
from engines.training.decoder import decoder_loss, new_decoder
from engines.training.presets import Phase
from engines.training.stopping import told_what_is_kept
from engines.training.together import beside, count, gathered, is_first, share
from engines.training.train_adapter import TrainAdapterSettings, train_adapter
from engines.training.train_base import TrainBaseSettings, train_base
from engines.training.trainer import FitOptions
from engines.training.unet import unet_loss
from engines.training.vae import vae_loss, vae_views
from engines.training.views import ImageStore

NETWORK = {"width": 16, "heads": 2, "ffn_width": 16, "decoder_layers": 1, "queries": 8, "denoising": 8}
CLOSE = 1e-3  # how far apart weights may be, as a share of their length; a wrong share moves them by some hundredths


def _toy(settings: ToySettings) -> torch.nn.Module:
    with told_what_is_kept(settings.out, "none"), beside(toy_train, settings, (BATCH,)) as own:
        return toy_train(own, silent, time.monotonic())


def _differences(some: Path, other: Path) -> list[str]:
    """Of two folders, the weights that differ by more than rounding: matrices and kernels.

    A bias before a group norm has a gradient of rounding alone, which Adam brings to full size.
    """
    names = sorted(path.relative_to(some) for path in some.rglob("*.safetensors") if path.name != LEARNED)
    assert names == sorted(path.relative_to(other) for path in other.rglob("*.safetensors") if path.name != LEARNED)
    found = []
    for name in names:
        ours, theirs = load_file(some / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            apart = float((ours[key].double() - theirs[key].double()).norm() / ours[key].double().norm())
            if ours[key].ndim > 1 and apart > CLOSE:
                found.append(f"{name} {key}: {apart:.1e}")
    return found


def _same_log(some: Path, other: Path) -> None:
    logs = read_log(some), read_log(other)
    assert logs[0].keys() == logs[1].keys()
    for stage in logs[0]:
        for ours, theirs in zip(logs[0][stage], logs[1][stage], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_an_adapter_of_two_processes_that_go_on_from_one_is_that_of_one(
    toy_bases: dict[str, Path], tmp_path: Path
) -> None:
    write_pictures(tmp_path / "data", 6, labels=True)

    def asked(name: str, devices: int = 1, *, resume: bool = False) -> TrainAdapterSettings:
        return TrainAdapterSettings(
            data=tmp_path / "data", base=toy_bases["sd1"], out=tmp_path / name, network=NETWORK, short_side=32,
            steps=6, batch=2, lr=2e-3, warmup=2, eval_every=2, dev_fraction=0.2, precision="f32", device="cpu",
            checkpoint_minutes=0.0, devices=devices, resume=resume,
        )  # fmt: skip

    def stop(event: Event) -> None:
        if event.stage == "adapter" and event.done == 4:
            raise KeyboardInterrupt  # of a report: the step is half taken

    train_adapter(asked("one"))
    with pytest.raises(Interrupted):
        train_adapter(asked("two"), report=stop)
    seen: list[Event] = []
    train_adapter(asked("two", 2, resume=True), report=seen.append)
    assert [event.done for event in seen if event.stage == "adapter"] == [3, 4, 6]
    assert _differences(tmp_path / "one", tmp_path / "two") == []
    _same_log(tmp_path / "one", tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [INFO_FILE, WEIGHTS_FILE, LEARNED, LOG]


@pytest.mark.slow
def test_a_base_of_two_processes_is_that_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "PRESETS", {"tiny": tiny_preset()})
    monkeypatch.setattr("engines.training.assess.STEPS", 2)
    write_pictures(tmp_path / "data", 6, labels=True)
    for name, devices in (("one", 1), ("two", 2)):
        settings = TrainBaseSettings(
            data=tmp_path / "data", out=tmp_path / name, preset="tiny", labels="all", precision="f32", device="cpu",
            steps_scale=0.2, devices=devices,
        )  # fmt: skip
        train_base(settings)
        monkeypatch.setattr(base_verb, "_train", tiny_train)  # the other process has that preset, too
    assert _differences(tmp_path / "one", tmp_path / "two") == []
    _same_log(tmp_path / "one", tmp_path / "two")
    assert not (tmp_path / "two" / "training").exists()


@pytest.mark.slow
def test_two_processes_that_are_stopped_leave_a_checkpoint_that_one_goes_on_from(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    one = _toy(ToySettings(tmp_path / "one"))
    with pytest.raises(Interrupted) as stop:
        _toy(ToySettings(tmp_path / "two", devices=2, stop=True))
    assert (stop.value.kept, count(), torch.get_num_threads()) == (True, 1, threads)
    two = _toy(ToySettings(tmp_path / "two", resume=True))
    torch.testing.assert_close(two.state_dict(), one.state_dict(), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_what_ends_another_process_ends_the_training_and_is_said(tmp_path: Path) -> None:
    with refused(TrainingError, None, "cpu", "data/3.png is cut off."):
        _toy(ToySettings(tmp_path / "toy", devices=2, fail=True))
    assert count() == 1


def test_devices_without_equal_shares_or_that_are_not_there_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"data": tmp_path, "base": tmp_path, "out": tmp_path / "out"}
    for devices in (0, 65):
        with refused(UsageError, "devices"):
            TrainAdapterSettings(devices=devices, **given)
        with refused(UsageError, "devices"):
            TrainBaseSettings(data=tmp_path, out=tmp_path / "out", devices=devices)
    with refused(UsageError, "devices", 3, 4):
        train_adapter(TrainAdapterSettings(devices=3, batch=4, device="cpu", **given))
    with refused(UsageError, "devices", 3, 8):
        train_base(TrainBaseSettings(data=tmp_path, out=tmp_path / "out", devices=3, device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for device in ("cuda:1", "cuda:3"):
        with refused(BackendError, "devices", device, 4):
            train_adapter(TrainAdapterSettings(devices=4, device=device, **given))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["vae", "decoder", "unet"])
def test_the_mean_of_the_losses_of_equal_shares_of_a_step_is_its_loss(
    stage: str, toy_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "data", 4, labels=True)
    preset, dataset = tiny_preset(), open_dataset(tmp_path / "data")
    torch.manual_seed(0)
    vae: Any = AutoencoderKL(**preset.vae)
    store, views = ImageStore(dataset.records), vae_views(preset, rotate=True)
    if stage == "vae":
        loss_at = vae_loss(vae, store, views, BATCH, 0, "cpu")
    elif stage == "decoder":
        loss_at = decoder_loss(new_decoder(vae, preset, 0), vae, store, views, BATCH, 0, "cpu")
    else:
        base = load_base(toy_bases["sd1"])
        networks = Networks(base.vae, base.unet, base.text_encoder, base.tokenizer, base.scheduler_config)
        encoded = {0: (torch.randn(6, base.latent_channels, 4, 4), [{"rbc": 1}] * 6)}
        loss_at = unet_loss(
            networks, ("rbc",), [Phase(32, 32, BATCH, 1, 6)], "photo", FitOptions(steps=1, lr=1.0), encoded
        )
    with torch.no_grad():
        whole, shares = loss_at(0), list[tuple[torch.Tensor, Any]]()
        for rank in range(4):
            monkeypatch.setattr(together, "_team", together._Team(rank, ["cpu"] * 4, tmp_path))
            shares.append(loss_at(0))
    assert len({float(loss) for loss, _ in shares}) == 4
    assert sum(float(loss) for loss, _ in shares) / 4 == pytest.approx(float(whole[0]), rel=1e-5)
    for name, value in whole[1].items():
        assert sum(float(parts[name]) for _, parts in shares) / 4 == pytest.approx(float(value), rel=1e-5)


def test_alone_everything_is_its_own_share() -> None:
    assert (is_first(), count(), share(7), gathered([1, 2])) == (True, 1, slice(0, 7), [1, 2])
