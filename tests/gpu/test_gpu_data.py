"""Batches on their way to a GPU: from arrays and cached features that lie there, and from pinned memory."""

import lightning as L
import pytest
import torch
from gpu_runs import SGD, Steps, fit, gpu_trainer
from lightning.pytorch.callbacks import Callback
from small_runs import FewDigits, images_of, small_module

from lit_ft.backbones.backbone import StageOutput
from lit_ft.data import ImageFolderDataModule
from lit_ft.data.modules import arrays
from lit_ft.features import store
from lit_ft.features.cache import FeatureCache
from lit_ft.features.source import FeatureSource
from lit_ft.model.preprocessing import BatchMix, MixConfig, Normalise
from lit_ft.unfreezing.callback import GradualUnfreezing

pytestmark = pytest.mark.gpu


class Slow(Callback):
    """Lets the GPU fall far behind the CPU, so that memory which is used again too early has other content by then."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch[0].device.type == "cuda":
            square = torch.ones(4096, 4096, device=batch[0].device)
            for _ in range(20):
                square = square @ square / 4096


def batches_of(device, data, *callbacks, size=28):
    """The batches of two epochs as steps see them, which are copied to the CPU in the end."""
    L.seed_everything(1, verbose=False)
    trainer = gpu_trainer(device, 2, *callbacks, steps := Steps(keeps_batches=True), limit_val_batches=0)
    weights = {} if size == 28 else {"weights": None, "input": {"size": size, "resize": size}}
    trainer.fit(small_module(**weights), datamodule=data)
    assert {images.device.type for images, _ in steps.batches} == {device}
    assert {targets.device.type for _, targets in steps.batches} == {device}
    assert {images.dtype for images, _ in steps.batches} == {torch.uint8}
    return [(images.cpu(), targets.cpu()) for images, targets in steps.batches], trainer


def assert_equal(there, here, levels=0):
    assert len(there) == len(here) > 1
    for (images, targets), (expected, classes) in zip(there, here, strict=True):
        assert (images.int() - expected.int()).abs().max() <= levels
        assert targets.equal(classes)


@pytest.mark.parametrize("size", [28, 32], ids=["as they are", "resized"])
def test_arrays_lie_on_the_device_and_give_the_batches_of_the_cpu(size, device):
    def batches(place):
        found, trainer = batches_of(place, FewDigits(augment="basic"), Slow(), size=size)
        assert trainer.train_dataloader.source.split.images.device.type == place
        assert {images.shape[-1] for images, _ in found} == {size}
        return found

    # torch resizes uint8 by whole numbers on a CPU alone, which is one level away at most.
    assert_equal(batches(device), batches("cpu"), levels=0 if size == 28 else 1)


def test_arrays_for_which_there_is_no_room_stay_in_memory(device, monkeypatch):
    here, _ = batches_of("cpu", FewDigits(augment="basic"))
    monkeypatch.setattr(arrays, "free_memory", lambda place: 0)
    there, trainer = batches_of(device, FewDigits(augment="basic"), Slow())
    assert trainer.train_dataloader.source.split.images.device.type == "cpu"
    assert_equal(there, here)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_photos_come_pinned_and_as_they_were_read(num_workers, device, photo_root):
    options, pinned = {"root": str(photo_root), "batch_size": 4, "val_fraction": 0.2}, []

    class Looks(ImageFolderDataModule):
        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            pinned.append([part.is_pinned() for part in batch])
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

    there, _ = batches_of(device, Looks(**options, num_workers=num_workers), Slow())
    here, _ = batches_of("cpu", ImageFolderDataModule(**options, num_workers=0))
    assert pinned == [[device == "cuda"] * 2] * len(there)
    assert_equal(there, here)
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in there)


@pytest.mark.parametrize("has_room", [True, False], ids=["on the device", "mapped"])
def test_cached_features_lie_on_the_device_where_there_is_room_and_train_alike(has_room, device, tmp_path, monkeypatch):
    if not has_room:
        monkeypatch.setattr(store, "free_memory", lambda place: 0)
    seen = []

    def read(source, batches, generator, own=FeatureSource.read):
        for output, targets in own(source, batches, generator):
            seen.append(output.device.type)
            yield output, targets

    monkeypatch.setattr(FeatureSource, "read", read)

    def run(*callbacks):
        unfreezing = GradualUnfreezing("linear_probe")
        options = {"epochs": 3, "data": FewDigits(), "default_root_dir": tmp_path, "limit_val_batches": 0}
        module = small_module(optimizer=SGD, lr_scheduler=None)
        return fit(device, module, unfreezing, *callbacks, **options)[1].values()

    cached = run(FeatureCache())
    assert set(seen) == {device if has_room else "cpu"}
    assert len(seen) == len(cached) == 6
    assert cached == pytest.approx(run(), rel=1e-4)  # without the cache; as kernels for other batches round


def test_features_move_to_the_device_as_lightning_moves_batches(device):
    output = StageOutput(torch.arange(6.0).view(2, 3), 1)
    moved = output.to(torch.device(device))
    assert (moved.device.type, moved.depth, moved.values.tolist()) == (device, 1, output.values.tolist())


@pytest.mark.parametrize("config", [{"erase": 1.0}, {"mixup": 0.4}, {"cutmix": 1.0}], ids=["erase", "mixup", "cutmix"])
def test_images_are_normalised_and_mixed_as_on_a_cpu(config, device):
    images, targets = images_of(3, 32), torch.arange(6) % 4
    normalise = Normalise([0.5, 0.4, 0.3], [0.2, 0.3, 0.1], torch.channels_last)
    mix = BatchMix(MixConfig(**config), "multiclass", 4)
    found = []
    for place in ("cpu", device):
        torch.manual_seed(5)
        found.append([part.cpu() for part in mix(normalise.to(place)(images.to(place)), targets.to(place))])
    (here, classes), (there, classes_there) = found
    torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(classes_there, classes, rtol=1e-6, atol=1e-6)
    assert not here.equal(normalise.cpu()(images))
