import errno
import itertools
import os
import re
import threading
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import lightning as L
import numpy as np
import processes
import pytest
import torch
from image_files import scene
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from rounding import same_but_for_rounding
from small_runs import NUM_VAL, FewDigits, differences, final_state, small_module, small_resnet, small_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lit_ft.assets import lock_beside
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import ImageFolderDataModule
from lit_ft.errors import UserError
from lit_ft.evaluation.run_report import RunReport
from lit_ft.features.cache import FeatureCache
from lit_ft.features.layout import Layout
from lit_ft.features.source import FrozenStages
from lit_ft.model.module import FineTuneModule
from lit_ft.unfreezing.callback import GradualUnfreezing
from lit_ft.unfreezing.plan import PhaseConfig
from lit_ft.unfreezing.preconditions import is_replicated

NUM_TRAIN = 20
PROBE = {"strategy": "linear_probe"}
# Three epochs from pooled features, two from a map, one from nothing.
PHASES = {"strategy": "phases", "phases": [{"train": ["head"], "epochs": 3}, {"train": ["dense", "head"], "epochs": 2},
                                           {"train": ["*"], "epochs": 1}]}  # fmt: skip


class Passes(Callback):
    """Counts the images that go through the first stage, by epoch, and notes what batches are."""

    def __init__(self):
        self.images = {}
        self.kinds = []

    def setup(self, trainer, pl_module, stage):
        first = next(iter(pl_module.backbone.stages.values()))
        first.register_forward_pre_hook(lambda _, inputs: self._count(trainer.current_epoch, len(inputs[0])))

    def _count(self, epoch, number):
        self.images[epoch] = self.images.get(epoch, 0) + number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.kinds.append(type(batch[0]).__name__)


def fit(folder, *callbacks, cache=True, module=None, unfreezing=PROBE, epochs=3, ckpt_path=None, data=None, **options):
    """A small run, of what ``module`` makes after the seed is set; its cached features lie in ``folder``."""
    L.seed_everything(3)
    module = module() if module else small_module(optimizer="SGD", lr_scheduler=None)
    unfreezing = GradualUnfreezing(**{**unfreezing, **({"phases": [PhaseConfig(**p) for p in unfreezing["phases"]]}
                                                       if "phases" in unfreezing else {})})  # fmt: skip
    caches = [] if cache is False else [FeatureCache() if cache is True else cache]
    trainer = small_trainer(epochs, *callbacks, *caches, unfreezing, default_root_dir=folder, **options)
    trainer.fit(module, datamodule=data or FewDigits(), ckpt_path=ckpt_path)
    return trainer, module


def cached_files(folder):
    return sorted(path.name for path in (Path(folder) / "features").glob("*"))


def furthest(left, right):
    """The largest difference between the weights of two modules, as a share of the largest weight."""
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in pairs if a.is_floating_point())


class Foreign(FewDigits):
    """Has a loader of torch's."""

    def train_dataloader(self):
        return DataLoader(list(super().train_dataloader()), batch_size=None)


class Brightened(FewDigits):
    """Changes its batches on the device of the model."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, targets = batch
        return images // 2 + 128, targets


class Moved(FineTuneModule):
    """Changes its batches before they are on its device."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch


class Looks(FineTuneModule):
    """Has a training step of its own."""

    def training_step(self, batch, batch_idx):
        assert batch[0].shape[1:] == (1, 28, 28)
        return super().training_step(batch, batch_idx)


class Prepares(FineTuneModule):
    """Prepares its images itself."""

    def forward(self, images):
        assert images.shape[1:] == (1, 28, 28)
        return super().forward(images)


class Keep(Callback):
    """Copies the files of the run as they are after some epoch."""

    def __init__(self, epoch):
        self.epoch, self.files = epoch, {}

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            folder = Path(trainer.default_root_dir) / "features"
            self.files = {path.name: path.read_bytes() for path in folder.glob("*")}


@pytest.mark.parametrize(("unfreezing", "epochs"), [(PROBE, 3), (PHASES, 6)], ids=["probe", "phases"])
def test_run_from_cached_features_ends_as_one_from_images(unfreezing, epochs, tmp_path):
    whole, module = fit(tmp_path, cache=False, unfreezing=unfreezing, epochs=epochs)
    passes = Passes()
    trainer, cached = fit(tmp_path, passes, unfreezing=unfreezing, epochs=epochs)
    assert "StageOutput" in passes.kinds
    assert furthest(cached, module) < 1e-5
    assert trainer.callback_metrics.keys() == whole.callback_metrics.keys()
    for name, value in whole.callback_metrics.items():
        assert float(trainer.callback_metrics[name]) == pytest.approx(float(value), rel=1e-4)


@pytest.mark.long
def test_maps_of_a_network_with_batch_norm_are_cached_as_they_lie_in_memory(tmp_path):
    unfreezing = {"strategy": "phases", "phases": [{"train": ["layer4", "head"]}]}
    runs = [fit(tmp_path, cache=cache, module=filled_resnet, unfreezing=unfreezing)[1] for cache in (True, False)]
    assert furthest(*runs) < 1e-4
    keep = Keep(1)
    fit(tmp_path, keep, module=filled_resnet, unfreezing=unfreezing)
    # 256 channels of 2 by 2 places, in float32, and the checksum of a block.
    assert sorted(map(len, keep.files.values())) == [NUM_TRAIN * 256 * 4 * 4 + 4, NUM_VAL * 256 * 4 * 4 + 4]


def filled_resnet():
    module = small_resnet(optimizer="SGD", lr_scheduler=None, lr=1e-3)
    for norm in module.backbone.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_var.fill_(3.0)
    return module


def test_each_image_goes_through_the_frozen_stages_once_a_phase(tmp_path):
    passes = Passes()
    fit(tmp_path, passes, unfreezing=PHASES, epochs=6)
    every = NUM_TRAIN + NUM_VAL
    # Two images tell the shape; one of each split is computed twice, to compare.
    assert passes.images[0] == passes.images[3] == 2 + every + 1 + 1
    assert passes.images[5] == every
    assert set(passes.images) == {0, 3, 5}


class SanityKinds(Callback):
    """Notes what the batches of Lightning's sanity check are, and what is frozen in it."""

    def __init__(self):
        self.kinds, self.frozen = [], set()

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.sanity_checking:
            self.kinds.append(type(batch[0]).__name__)
            self.frozen.add(pl_module.fixed_prefix())


@pytest.mark.parametrize("strategy", ["linear_probe", "auto"])
def test_sanity_check_reads_the_features_that_epochs_read_later(strategy, tmp_path):
    unfreezing = {"strategy": strategy, "head_epochs": 2}
    passes, sanity = Passes(), SanityKinds()
    checked = fit(tmp_path, passes, sanity, num_sanity_val_steps=2, unfreezing=unfreezing)
    assert sanity.kinds == ["StageOutput"] * 2
    assert sanity.frozen == {("conv", "dense")}
    assert passes.images[0] == 2 + NUM_TRAIN + NUM_VAL + 1 + 1
    assert differences(final_state(*checked), final_state(*fit(tmp_path, unfreezing=unfreezing))) == []


def test_sanity_check_reads_images_where_what_is_frozen_is_not_known_yet(tmp_path):
    passes, sanity = Passes(), SanityKinds()
    unfreezing = {"strategy": "auto", "head_fit": "solved"}
    fit(tmp_path, passes, sanity, num_sanity_val_steps=1, unfreezing=unfreezing)
    assert sanity.kinds == ["Tensor"]
    assert sanity.frozen == {()}


def test_images_of_another_size_are_refused_although_no_epoch_reads_them(tmp_path):
    spec = replace(small_module().input_spec, size=30, resize=30)
    with pytest.raises(
        UserError, match="the images are 30 x 30, and the network, made for 28 x 28, does not take them"
    ):
        fit(tmp_path, data=FewDigits(spec=spec), num_sanity_val_steps=2)


def test_files_are_gone_when_a_phase_and_when_the_run_is_over(tmp_path):
    keeps = [Keep(0), Keep(3), Keep(5)]
    trainer, _ = fit(tmp_path, *keeps, unfreezing=PHASES, epochs=6)
    found = [sorted(name.rpartition("-")[0] for name in keep.files) for keep in keeps]
    assert found == [["phase0-train", "phase0-val"], ["phase1-train", "phase1-val"], []]
    assert not (tmp_path / "features").exists()
    assert isinstance(next(iter(trainer.train_dataloader))[0], torch.Tensor)


def test_files_of_others_stay(tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / "phase-2-trial.csv").write_text("theirs")
    for old in ("phase7-val-0123.bin", "phase0-train-0123.bin", "phase0-train-0123.bin17"):
        (folder / old).write_text("of a run that is over")
    keep = Keep(0)
    fit(tmp_path, keep)
    assert sorted(name.rpartition("-")[0] for name in keep.files) == ["phase-2", "phase0-train", "phase0-val"]
    assert cached_files(tmp_path) == ["phase-2-trial.csv"]


def test_unfinished_files_of_two_processes_of_one_number_have_two_names(tmp_path, monkeypatch):
    reserved = []
    reserve = Layout.reserve_file
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in two containers that share a file system
    monkeypatch.setattr(Layout, "reserve_file", lambda self, path: (reserved.append(path.name), reserve(self, path)))
    for _ in range(2):
        fit(tmp_path, epochs=2)
    assert len(set(reserved)) == len(reserved) == 2 * len({name.partition(".bin")[0] for name in reserved}) == 4


def test_each_epoch_draws_one_of_the_views_of_each_image(tmp_path):
    drawn = []

    class Note(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rows = trainer.train_dataloader.sampler.batches()[batch_idx].rows
            drawn.extend(zip(rows.tolist(), batch[0].values, strict=True))

        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                source, seed = trainer.train_dataloader.source, trainer.train_dataloader.sampler.seed
                part = FrozenStages(trainer, pl_module, 2)
                features = part.compute_views(source, torch.arange(NUM_TRAIN), seed, views=3)
                self.views = features.view(NUM_TRAIN, 3, -1).unbind(1)

    note = Note()
    fit(tmp_path, note, cache=FeatureCache(views=3), epochs=12, data=FewDigits(augment="basic"))
    pairs = [(row, view, values) for row, values in drawn for view in range(3)]
    seen = {(row, view) for row, view, values in pairs if same_but_for_rounding(values, note.views[view][row])}
    assert len(drawn) == 12 * NUM_TRAIN
    assert all(any(same_but_for_rounding(values, view[row]) for view in note.views) for row, values in drawn)
    assert len(seen) > 0.95 * 3 * NUM_TRAIN
    assert not same_but_for_rounding(note.views[0], note.views[1])


def test_views_of_large_jpegs_are_cached_from_one_decode_each(tmp_path, monkeypatch, capsys):
    for i in range(12):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(300, 400, seed=i)).save(path)
    paths, opened = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: paths.append(str(file)) or opened(file, **options))
    drafts, draft = set(), JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda *args: drafts.add(args[2]) or draft(*args))
    spec = InputSpec(32, 36)
    data = ImageFolderDataModule(str(tmp_path / "photos"), val_fraction=0.25, num_workers=0, batch_size=4, spec=spec)
    data.verifies = False
    fit(tmp_path, cache=FeatureCache(views=3), module=filled_resnet, epochs=6, data=data)
    told = capsys.readouterr().out
    assert "cached for train (9 images in 3 augmented views) and val (3 images)" in told
    assert "differ" not in told
    train = [str(path) for path in data.splits["train"].paths]
    # Two tell the shape; one of each split is computed again, to compare.
    assert sum(path in train for path in paths) == 2 + 9 + 1
    assert len(paths) == 2 + 9 + 1 + 3 + 1
    assert drafts == {(50, 37), (100, 75)}


def test_several_epochs_draw_other_views_than_one_another(tmp_path):
    epochs = {}

    class Note(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rows = trainer.train_dataloader.sampler.batches()[batch_idx].rows.tolist()
            epochs.setdefault(trainer.current_epoch, {}).update(zip(rows, batch[0].values.sum(1).tolist(), strict=True))

    fit(tmp_path, Note(), cache=FeatureCache(views=2), epochs=4, data=FewDigits(augment="basic"))
    same = [sum(epochs[i][row] == epochs[j][row] for row in epochs[i]) for i in range(4) for j in range(i)]
    assert all(0 < number < NUM_TRAIN for number in same)


@pytest.mark.long
@pytest.mark.parametrize("step", [1, 5, 6, 9])
def test_resumed_run_ends_as_one_that_was_not_interrupted(step, tmp_path, capsys):
    def run(**options):
        folder = tmp_path / "run"
        steps = ModelCheckpoint(folder / "steps", "{step}", every_n_train_steps=1, save_top_k=-1)

        def module():
            return small_module(head={"hidden": [16], "dropout": 0.5})

        data = FewDigits(batch_size=7, augment="basic")
        return fit(folder, steps, module=module, data=data, unfreezing=PHASES, epochs=6, **options)

    whole = final_state(*run())
    (tmp_path / "run/steps").rename(tmp_path / "whole")
    assert differences(whole, final_state(*run(ckpt_path=tmp_path / f"whole/step={step}.ckpt"))) == []


def test_resumed_run_finds_its_cached_features(tmp_path):
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise RuntimeError("stopped")

    last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path, last, Stop())
    files = cached_files(tmp_path)
    assert [name.split("-")[:2] for name in files] == [["phase0", "train"], ["phase0", "val"]]
    passes = Passes()
    fit(tmp_path, passes, ckpt_path=tmp_path / "last.ckpt")
    assert sum(passes.images.values()) < NUM_TRAIN + NUM_VAL  # a few, to compare
    assert cached_files(tmp_path) == []


class Service(Logger):
    """A logger whose runs share a folder."""

    name, version, save_dir = "service", None, None

    def __init__(self, folder, version):
        super().__init__()
        self.save_dir, self.version = folder, version

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *args, **kwargs):
        pass


def test_runs_of_a_service_keep_apart(tmp_path):
    folders = []

    class Note(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            folders.extend(path.relative_to(tmp_path) for path in tmp_path.rglob("features"))

    for version in ("a", "b"):
        fit(tmp_path, Note(), logger=Service(str(tmp_path), version), epochs=2)
    assert {str(folder.parent) for folder in folders} == {"service-a", "service-b"}


def test_run_that_is_interrupted_while_it_computes_leaves_no_file(tmp_path):
    class Stop(Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.backbone.stages["dense"].register_forward_pre_hook(self.count)
            self.batches = 0

        def count(self, *_):
            self.batches += 1
            if self.batches == 3:
                assert [path.stat().st_size for path in (tmp_path / "features").iterdir()] == [NUM_TRAIN * 128 * 4 + 4]
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, Stop())
    assert cached_files(tmp_path) == []


class Damage(Callback):
    """Makes zeros of the first bytes of each file, or the last where the share is negative, and stops the run."""

    def __init__(self, folder, share):
        self.folder, self.share = folder, share

    def on_train_epoch_end(self, trainer, pl_module):
        for path in self.folder.iterdir():
            content = path.read_bytes()
            damaged = int(len(content) * abs(self.share))
            zeros = bytes(damaged)
            path.write_bytes(zeros + content[damaged:] if self.share > 0 else content[:-damaged] + zeros)
        raise RuntimeError("stopped")


@pytest.mark.parametrize("share", [1, -1 / 20], ids=["all", "the last of the images"])
def test_damaged_file_is_written_again(share, tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path, Damage(tmp_path / "features", share))
    passes = Passes()
    _, again = fit(tmp_path, passes)
    assert sum(passes.images.values()) > NUM_TRAIN + NUM_VAL
    assert furthest(again, fit(tmp_path, cache=False)[1]) < 1e-5


class DamageOneRow(Callback):
    """Changes the last digit of a number of one image in each file, and stops the run."""

    def __init__(self, folder, row):
        self.folder, self.row = folder, row

    def on_train_epoch_end(self, trainer, pl_module):
        for path in self.folder.iterdir():
            content = bytearray(path.read_bytes())
            content[self.row * 128 * 4] ^= 1
            path.write_bytes(content)
        raise RuntimeError("stopped")


@pytest.mark.parametrize("row", range(0, NUM_TRAIN, 3))
def test_file_in_which_one_row_is_damaged_is_written_again(row, tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path, DamageOneRow(tmp_path / "features", row))
    passes = Passes()
    trainer, again = fit(tmp_path, passes)
    assert sum(passes.images.values()) > NUM_TRAIN + NUM_VAL
    assert differences(final_state(trainer, again), final_state(*fit(tmp_path / "other"))) == []


def test_file_that_is_cut_or_longer_is_written_again(tmp_path):
    class Cut(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            train, val = sorted((tmp_path / "features").iterdir())
            train.write_bytes(train.read_bytes()[:-1])
            val.write_bytes(val.read_bytes() + b"0")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path, Cut())
    passes = Passes()
    fit(tmp_path, passes)
    assert sum(passes.images.values()) > NUM_TRAIN + NUM_VAL


def test_files_of_a_run_on_another_number_of_nodes_are_removed(tmp_path):
    for name in ("features-node0", "features-node11", "features-mine", "features-node"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "phase0-train-0123.bin").touch()
    fit(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features-mine", "features-node"]


def test_damage_in_any_view_is_seen(tmp_path):
    views = {"cache": FeatureCache(views=3), "epochs": 5, "unfreezing": PROBE}
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path, Damage(tmp_path / "features", 1 / 3), data=FewDigits(augment="basic"), **views)
    passes = Passes()
    fit(tmp_path, passes, data=FewDigits(augment="basic"), **views)
    assert sum(passes.images.values()) > 3 * NUM_TRAIN + NUM_VAL


@pytest.mark.long
def test_other_weights_images_or_settings_are_not_taken_for_the_same(tmp_path, capsys):
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raise RuntimeError("stopped")

    def names(cache=True, **options):
        for path in (tmp_path / "features").glob("*"):
            path.unlink()
        with pytest.raises(RuntimeError, match="stopped"):
            fit(tmp_path, Stop(), cache=cache, **options)
        return cached_files(tmp_path)

    first = names()
    assert names() == first

    def moved():
        module = small_module(optimizer="SGD", lr_scheduler=None)
        with torch.no_grad():
            next(module.backbone.parameters())[0, 0, 0, 0] += 1e-6
        return module

    def normalised():
        return small_module(optimizer="SGD", lr_scheduler=None, input={"mean": [0.2], "std": [0.5]})

    def seeded():
        L.seed_everything(4)
        return small_module(optimizer="SGD", lr_scheduler=None)

    views = {"data": FewDigits(augment="basic"), "cache": FeatureCache(views=2)}
    assert names(**views)[0] != names(**{**views, "data": FewDigits(augment="basic")}, module=seeded)[0]
    for options in (
        {"module": moved},
        {"data": FewDigits(split_seed=1)},
        {"data": FewDigits(augment="basic"), "cache": FeatureCache(views=2)},
        {"precision": "bf16-mixed"},
        {"cache": FeatureCache(dtype="float16")},
        {"module": normalised},
    ):
        assert names(**options)[0] != first[0]


class Validations(Callback):
    """Notes the losses of validations."""

    def __init__(self):
        self.losses = []

    def on_validation_end(self, trainer, pl_module):
        self.losses.append(float(trainer.callback_metrics["val/loss"]))


def kept_files(folder):
    return {path.name.partition("-")[0]: path for path in Path(folder).glob("*.bin")}


def test_kept_files_are_computed_once_for_all_runs_with_the_same_frozen_stages(tmp_path):
    kept, passes = tmp_path / "kept", [Passes() for _ in range(3)]
    _, first = fit(tmp_path / "one", passes[0], cache=FeatureCache(folder=str(kept)))
    # Another head in another folder: the same features, of which few are computed again.
    other = lambda: small_module(optimizer="SGD", lr_scheduler=None, lr=0.01, head={"dropout": 0.5})  # noqa: E731
    fit(tmp_path / "two", passes[1], cache=FeatureCache(folder=str(kept)), module=other)
    files = kept_files(kept)
    assert set(files) == {"train", "val"}
    assert sum(passes[0].images.values()) >= NUM_TRAIN + NUM_VAL
    assert sum(passes[1].images.values()) <= 6  # of which two are for the layout
    assert not cached_files(tmp_path / "one")
    _, again = fit(tmp_path / "three", cache=FeatureCache(folder=str(kept)))
    assert furthest(again, first) == 0
    # Other weights: files of their own, beside those.
    fit(tmp_path / "four", passes[2], cache=FeatureCache(folder=str(kept)), module=lambda: small_module(weights=None))
    assert sum(passes[2].images.values()) >= NUM_TRAIN + NUM_VAL
    assert len(list(kept.glob("*.bin"))) == 4
    assert all(path.is_file() for path in files.values())


def test_kept_files_of_all_phases_stay_and_those_beyond_the_limit_lie_with_the_run(tmp_path, capsys):
    kept = tmp_path / "kept"
    fit(tmp_path, cache=FeatureCache(folder=str(kept)), unfreezing=PHASES, epochs=6)
    sizes = sorted(path.stat().st_size for path in kept.glob("*.bin"))
    assert len(sizes) == 4
    passes = Passes()
    fit(tmp_path, passes, cache=FeatureCache(folder=str(kept)), unfreezing=PHASES, epochs=6)
    assert passes.images[0] <= 6
    keep = Keep(1)
    capsys.readouterr()
    small = FeatureCache(folder=str(kept), limit=(sum(sizes) + 1000) / 1e9)
    fit(tmp_path / "other", keep, cache=small, module=lambda: small_module(weights=None))
    assert len(list(kept.glob("*.bin"))) == 4
    assert {name.split("-")[1] for name in keep.files} == {"train", "val"}
    assert "would exceed feature_cache.limit" in capsys.readouterr().out
    assert not cached_files(tmp_path / "other")


def test_kept_file_that_is_damaged_or_was_left_by_a_kill_is_written_again(tmp_path):
    kept = tmp_path / "kept"
    fit(tmp_path, cache=FeatureCache(folder=str(kept)))
    files = kept_files(kept)
    content = files["train"].read_bytes()
    files["train"].write_bytes(content[:-100])
    left = files["train"].with_suffix(".bin0123456789abcdef")
    left.write_bytes(b"half")
    fit(tmp_path, cache=FeatureCache(folder=str(kept)))
    assert files["train"].read_bytes() == content
    assert not left.exists()


@pytest.mark.long
def test_run_waits_for_another_one_that_computes_the_features_that_it_needs(tmp_path, capsys):
    kept = tmp_path / "kept"
    fit(tmp_path, cache=FeatureCache(folder=str(kept)))
    path, is_held = kept_files(kept)["train"], threading.Event()

    def compute():
        with lock_beside(path):
            hidden = path.rename(tmp_path / "hidden")
            is_held.set()
            time.sleep(1.5)
            hidden.rename(path)

    other = threading.Thread(target=compute)
    other.start()
    is_held.wait()
    passes = Passes()
    fit(tmp_path, passes, cache=FeatureCache(folder=str(kept)))
    other.join()
    assert "being computed by another run" in capsys.readouterr().out
    assert sum(passes.images.values()) <= 6


def test_weights_that_change_within_a_phase_end_it(tmp_path, capsys):
    class Change(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:  # past what autograd counts
                next(pl_module.backbone.parameters()).data.mul_(1.5)

    passes = Passes()
    runs = [fit(tmp_path, Change(), passes, cache=cache, epochs=4)[1] for cache in (True, False)]
    assert passes.kinds[:8] == ["StageOutput"] * 4 + ["Tensor"] * 4
    out = capsys.readouterr().out
    for split in ("train", "val"):
        assert out.count(f"Features  {split} read from images: the weights of frozen stages have changed") == 1
    assert furthest(*runs) < 1e-5


def test_averaged_weights_are_validated_although_frozen_ones_lag_behind(tmp_path):
    phases = [{"train": ["*"], "epochs": 1}, {"train": ["head"], "epochs": 3}]
    runs, passes = [Validations(), Validations()], Passes()
    for cache, run in zip((True, False), runs, strict=True):
        average = EMAWeightAveraging(decay=0.9)
        fit(
            tmp_path,
            run,
            average,
            *([passes] if cache else []),
            cache=cache,
            unfreezing={"strategy": "phases", "phases": phases},
            epochs=4,
        )
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-5)
    assert passes.kinds == ["Tensor"] * 2 + ["StageOutput"] * 6


def test_callback_of_the_user_unfreezes_stages_that_are_cached(tmp_path):
    class Unfreeze(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.set_trainable(["head"] if trainer.current_epoch < 2 else ["dense", "head"])

    passes = Passes()
    module = small_module(optimizer="SGD", lr_scheduler=None)
    before = [value.clone() for value in module.backbone.stages["dense"].state_dict().values()]
    trainer = small_trainer(4, FeatureCache(), Unfreeze(), passes, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=FewDigits())
    assert set(passes.images) == {0, 2}
    after = module.backbone.stages["dense"].state_dict().values()
    assert all(not one.equal(other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (1.0, "29.2 kB as float32 in"),
        (20e-6, "14.6 kB as float16 in"),
        (10e-6, "train and val not cached: 14.6 kB would exceed feature_cache.limit 1e-05 GB"),
    ],
)
def test_features_that_exceed_the_limit_are_cached_as_halves_or_not_at_all(limit, told, tmp_path, capsys):
    passes = Passes()
    _, cached = fit(tmp_path, passes, cache=FeatureCache(limit=limit))
    assert told in capsys.readouterr().out
    assert set(passes.kinds) == {"Tensor" if "exceed" in told else "StageOutput"}
    assert furthest(cached, fit(tmp_path, cache=False)[1]) < 2e-3


def test_as_many_views_are_cached_as_fit(tmp_path, capsys):
    # A view of 20 images takes 5.1 kB as halves, and the 37 to validate on 9.5 kB.
    fit(tmp_path, cache=FeatureCache(views=4, limit=25e-6), data=FewDigits(augment="basic"), epochs=5)
    assert (
        "train (20 images in 3 augmented views) and val (37 images), 24.8 kB as float16 in" in capsys.readouterr().out
    )


class LeavesNothing(Callback):
    """Sees that no file takes room."""

    def on_train_epoch_end(self, trainer, pl_module):
        assert cached_files(trainer.default_root_dir) == []


def test_features_too_large_for_halves_are_computed_in_each_epoch(tmp_path, capsys):
    def large():
        module = small_module(optimizer="SGD", lr_scheduler=None, lr=1e-9)
        with torch.no_grad():
            next(iter(module.backbone.stages["dense"].parameters())).mul_(1e6)
        return module

    passes = Passes()
    _, cached = fit(tmp_path, LeavesNothing(), passes, module=large, cache=FeatureCache(dtype="float16"))
    assert "do not fit float16; choose another feature_cache.dtype" in capsys.readouterr().out
    assert set(passes.kinds) == {"Tensor"}
    assert furthest(cached, fit(tmp_path, module=large, cache=False)[1]) == 0


def test_folder_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    (tmp_path / "features").write_text("a file")
    fit(tmp_path)
    assert "cannot be written (File exists)" in capsys.readouterr().out


@pytest.mark.parametrize(("precision", "is_cached"), [("32-true", False), ("bf16-mixed", True)])
def test_stages_that_give_something_else_than_by_rounding_are_not_cached(precision, is_cached, tmp_path, capsys):
    def unsteady():
        module, calls = small_module(optimizer="SGD", lr_scheduler=None), itertools.count()
        module.backbone.stages["conv"].register_forward_hook(lambda *given: given[2] * (1 + 0.01 * (next(calls) % 2)))
        return module

    passes = Passes()
    watch = [] if is_cached else [LeavesNothing()]
    fit(tmp_path, *watch, passes, module=unsteady, precision=precision, cache=FeatureCache(dtype="float32"))
    failure = "train not cached: features computed twice differ"
    assert (failure in capsys.readouterr().out) != is_cached
    assert set(passes.kinds) == {"StageOutput" if is_cached else "Tensor"}


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be reserved here")
def test_full_disk_stops_nothing(tmp_path, capsys, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fill)
    fit(tmp_path, LeavesNothing())
    assert "train not cached: " in (out := capsys.readouterr().out)
    assert f"{tmp_path / 'features'} cannot be written (No space left on device)" in out


# One case has such a hook.
@pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer`")
@pytest.mark.parametrize(
    ("options", "data", "kinds", "told"),
    [
        ({"limit_train_batches": 1}, {}, "Tensor", "; train not cached: no epoch reads all of its images"),
        ({"epochs": 1}, {}, "Tensor", "epoch 0: train and val not cached: the phase has one epoch"),
        (
            {"epochs": 2},
            {"augment": "basic"},
            "Tensor",
            "; train not cached: 2 augmented views would save little in 2 epochs",
        ),
        ({"cache": FeatureCache(views=0)}, {}, "Tensor", ""),
        ({"fast_dev_run": 2}, {}, "Tensor", ""),
        ({"module": "mix"}, {}, "Tensor", "; train not cached: model.mix changes its images"),
        ({"reload_dataloaders_every_n_epochs": 1}, {}, "Tensor", "epochs may change its images"),
        ({"data": Foreign()}, {}, "Tensor", "Features  train not cached: not loaded by a data module of"),
        ({"data": Brightened()}, {}, "Tensor", "on_after_batch_transfer may change its batches"),
        ({"module": "moved"}, {}, "Tensor", "on_before_batch_transfer may change its batches"),
        (
            {"module": "looks"},
            {},
            "Tensor",
            "; train not cached: Looks.training_step may use its images",
        ),
        ({"module": "prepares"}, {}, "Tensor", "not cached: Prepares.forward may use its images"),
        ({"epochs": -1, "max_steps": 4}, {}, "StageOutput", "cached for train (20 images) and val (37 images)"),
        (
            {"epochs": -1, "max_steps": 4},
            {"augment": "basic"},
            "Tensor",
            "train not cached: 2 augmented views would save little in 2 epochs",
        ),
        # Both splits are known from the beginning, where not each epoch validates, too.
        (
            {"check_val_every_n_epoch": 2, "epochs": 5},
            {},
            "StageOutput",
            "cached for train (20 images) and val (37 images)",
        ),
        ({"check_val_every_n_epoch": 2}, {}, "StageOutput", "; val not cached: the phase has one validation"),
        ({"check_val_every_n_epoch": 5}, {}, "StageOutput", "; val not cached: the phase has no validation"),
        (
            {"module": "norms", "unfreezing": {**PROBE, "frozen_norm": "stats"}},
            {},
            "Tensor",
            "epochs 0-2: train and val not cached: unfreeze.frozen_norm lets norm layers of frozen stages change",
        ),
        ({}, {"augment": "basic"}, "StageOutput", "train (20 images in 2 augmented views) and val (37 images)"),
        ({}, {}, "StageOutput", "epochs 0-2: conv to dense cached for train (20 images) and val (37 images)"),
    ],
    ids=[
        "limited",
        "one epoch",
        "two augmented",
        "off",
        "fast",
        "mixed",
        "reloaded",
        "foreign loader",
        "hooks of data",
        "hooks of module",
        "own step",
        "own forward",
        "few steps",
        "few augmented steps",
        "seldom",
        "once",
        "never",
        "moving norms",
        "augmented",
        "plain",
    ],
)
def test_decision_is_printed_with_the_reason(options, data, kinds, told, tmp_path, capsys):
    made = {
        "mix": lambda: small_module(mix={"mixup": 0.2}),
        "moved": lambda: Moved("mnist_cnn", weights="MNIST"),
        "looks": lambda: Looks("mnist_cnn", weights="MNIST"),
        "prepares": lambda: Prepares("mnist_cnn", weights="MNIST"),
        "norms": lambda: small_resnet(classes=10),
    }
    options = {**options, "module": made.get(options.get("module"))}
    passes = Passes()
    fit(tmp_path, passes, **{"data": FewDigits(**data), **options})
    assert set(passes.kinds) == {kinds}
    out = capsys.readouterr().out
    assert told in out if told else "Features" not in out


def test_last_phase_after_a_plateau_is_printed_with_its_own_epochs(tmp_path, capsys):
    # Whatever the losses are: the first counts as an improvement, and three more must go by. Its least is one epoch.
    phases = [{"train": ["head"], "epochs": 4, "plateau": {"patience": 3}}, {"train": ["dense", "head"]}]
    fit(tmp_path, unfreezing={"strategy": "phases", "phases": phases}, epochs=7)
    told = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("Features")]
    assert told == ["Features  epochs 0-…, to a plateau", "Features  epochs 4-6"]


def test_module_without_stages_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"^FeatureCache: LightningModule is no FineTuneModule; leave the callback out$"
    ):
        FeatureCache().setup(small_trainer(1, default_root_dir=tmp_path), L.LightningModule(), "fit")


def test_norms_that_follow_the_batches_are_no_fixed_prefix():
    module = small_resnet(classes=10)
    stages = list(module.backbone.stages)
    for frozen_norm, expected in (("eval", stages[:-1]), ("stats", []), ("train", [])):
        module.set_trainable(["layer4", "head"], frozen_norm)
        assert list(module.fixed_prefix()) == expected
    module = small_module(classes=10)
    module.set_trainable(["head"], "stats")  # it has no norms
    assert list(module.fixed_prefix()) == ["conv", "dense"]
    next(module.backbone.stages["dense"].parameters()).requires_grad_(True)
    assert list(module.fixed_prefix()) == ["conv"]
    module.set_trainable(["conv", "head"])
    assert module.fixed_prefix() == ()


def test_stages_are_chosen_by_gradient_as_from_images(tmp_path):
    chosen = []
    for cache in (True, False):
        trainer, _ = fit(tmp_path, cache=cache, unfreezing={"strategy": "auto", "head_epochs": 2})
        chosen.append(next(c for c in trainer.callbacks if isinstance(c, GradualUnfreezing)).state.gradients)
    assert chosen[0] == pytest.approx(chosen[1], rel=1e-3)
    assert set(chosen[0]) == {"conv", "dense"}


def test_images_are_pictured_although_none_are_trained_on(tmp_path):
    passes = Passes()
    fit(tmp_path, RunReport(num_images=8), passes, logger=TensorBoardLogger(tmp_path, "board"))
    assert passes.kinds[0] == "StageOutput"
    events = EventAccumulator(str(tmp_path / "board" / "version_0"), {"images": 0}).Reload()
    (logged,) = events.Images("train/images")
    assert np.array(Image.open(BytesIO(logged.encoded_image_string))).std() > 30


@pytest.mark.parametrize(("precision", "told"), [("bf16-mixed", "as bfloat16 in"), ("64-true", "as float64 in")])
def test_other_precisions_give_what_they_give_without(precision, told, tmp_path, capsys):
    passes = Passes()
    runs = [fit(tmp_path, passes, cache=cache, precision=precision)[1] for cache in (True, False)]
    assert told in capsys.readouterr().out
    assert passes.kinds[0] == "StageOutput"
    assert furthest(*runs) < 1e-5


def test_strategies_that_shard_are_not_taken_for_replicas(tmp_path, monkeypatch, capsys):
    assert [is_replicated(object.__new__(kind)) for kind in (SingleDeviceStrategy, DDPStrategy)] == [True, True]
    assert [is_replicated(object.__new__(kind)) for kind in (DeepSpeedStrategy, FSDPStrategy)] == [False, False]
    monkeypatch.setattr("lit_ft.features.cache.is_replicated", lambda strategy: False)
    fit(tmp_path, epochs=2)
    assert "trainer.strategy SingleDeviceStrategy may hold only a part of the weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"views": -1}, "feature_cache.views: must be at least 0, got -1"),
        ({"limit": 0}, "feature_cache.limit: must be above 0 GB, got 0"),
        ({"dtype": "int8"}, "feature_cache.dtype: int8 is none of auto, float32, float16, bfloat16"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(UserError, match=re.escape(match)):
        FeatureCache(**options)


@pytest.mark.long
def test_nodes_on_one_file_system_do_not_remove_one_anothers_folder(tmp_path):
    found = [rank["race_for_features"] for rank in processes.launch(tmp_path, "race_for_features", num_nodes=2)]
    files = [f"features-node{node}/phase0-{split}" for node in (0, 1) for split in ("train", "val")]
    for node in found:
        assert node["kinds"] == {"StageOutput"}
        assert node["files"] == files
        assert node["left"] == []
    assert differences(*(node["weights"] for node in found)) == []


@pytest.mark.long
def test_all_processes_write_again_what_one_of_them_finds_damaged(tmp_path):
    scenario = "resume_from_damaged_features"
    found = [rank[scenario] for rank in processes.launch(tmp_path, scenario)]
    every = (NUM_TRAIN + NUM_VAL) / 2
    for process in found:
        first, unharmed, damaged = process["images"]
        assert first > every
        assert unharmed < every  # a few, to compare
        assert damaged >= first
    assert differences(*(process["weights"] for process in found)) == []
