"""The pooled output of every stage, once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_ft import DigitsDataModule, FineTuneModule
from lit_ft.model.preprocessing import Normalise
from lit_ft.probes import feature_pass
from lit_ft.probes.feature_pass import average_places, compute_stage_features


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FineTuneModule:
    monkeypatch.setenv("LIT_FT_CACHE", str(tmp_path))
    return FineTuneModule("mnist_cnn", weights=None, classes=10).eval()


def digits(model: FineTuneModule, **options: object) -> DigitsDataModule:
    data = DigitsDataModule(spec=model.input_spec, **options)
    data.setup()
    return data


def test_features_of_each_stage_are_those_of_a_pass_by_hand(model: FineTuneModule) -> None:
    data = digits(model)
    found = compute_stage_features(model.backbone, model.normalise, data.source("val", augment=False), batch_size=7)
    images = torch.cat([images for images, _ in data.val_dataloader()])
    with torch.no_grad():
        values = model.normalise(images)
        for name, stage in model.backbone.stages.items():
            values = stage(values)
            expected = model.backbone.pool(values) if name == list(found.stages)[-1] else average_places(values)
            torch.testing.assert_close(found.stages[name], expected, atol=1e-4, rtol=1e-4)
    assert list(found.stages) == list(model.backbone.stages)
    assert found.last.shape == (len(images), model.backbone.num_features)
    assert found.seconds > 0


def test_features_are_found_again_and_new_weights_are_passed_again(
    model: FineTuneModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    compute = feature_pass._compute
    monkeypatch.setattr(feature_pass, "_compute", lambda *args: passes.append(1) or compute(*args))
    source = digits(model).source("val", augment=False)
    first, again = (compute_stage_features(model.backbone, model.normalise, source) for _ in range(2))
    assert len(passes) == 1
    assert torch.equal(first.last, again.last)
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(1.5)
    changed = compute_stage_features(model.backbone, model.normalise, source)
    assert len(passes) == 2
    assert not torch.equal(first.last, changed.last)
    brighter = Normalise([0.3], [0.3], model.backbone.memory_format)
    assert not torch.equal(compute_stage_features(model.backbone, brighter, source).last, changed.last)
    assert len(passes) == 3


def test_last_stage_alone_is_found_among_all_of_them(model: FineTuneModule, monkeypatch: pytest.MonkeyPatch) -> None:
    source = digits(model).source("val", augment=False)
    alone = compute_stage_features(model.backbone, model.normalise, source, only_last=True)
    every = compute_stage_features(model.backbone, model.normalise, source)
    assert list(alone.stages) == list(every.stages)[-1:]
    assert torch.equal(alone.last, every.last)
    monkeypatch.setattr(feature_pass, "_compute", None)  # nothing is computed any more
    assert torch.equal(compute_stage_features(model.backbone, model.normalise, source, only_last=True).last, alone.last)


def test_views_are_random_and_repeat(model: FineTuneModule) -> None:
    source = digits(model, augment="basic").source("train", augment=True)
    one, two, again = (
        compute_stage_features(model.backbone, model.normalise, source, view=view).last for view in (0, 1, 0)
    )
    assert not torch.equal(one, two)
    assert torch.equal(one, again)


GROWTH = """
import torch
from pathlib import Path
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.modules.arrays import ArraySource, ArraySplit
from lit_ft.probes.feature_pass import compute_stage_features

class Wide(torch.nn.Linear):
    stages = {"only": []}

    def forward(self, images):
        return images.flatten(1).float().repeat(1, 4096)

def peak_mb():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

def grow(num):
    before = peak_mb()
    images = torch.arange(num).remainder(256).to(torch.uint8).view(num, 1, 1, 1)
    split = ArraySplit.whole(images, torch.zeros(num, dtype=torch.int64))
    source = ArraySource(split, InputSpec(1, 1, mean=(0,), std=(1,)))
    found = compute_stage_features(Wide(1, 1), torch.nn.Identity(), source).last
    assert found.shape == (num, 4096)
    return peak_mb() - before, float(found[num - 1, 4095])

grow(64)
print(*grow(4096))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of the memory is not told here")
def test_memory_does_not_grow_with_the_features(model: FineTuneModule) -> None:
    # 4096 x 4096 numbers take 64 MB; a batch of 32 takes half of one, and some copies of it.
    ran = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    growth, last = map(float, ran.stdout.split()[-2:])
    assert growth < 16
    assert last == 4095 % 256


@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (2, 3, 3, 5), (2, 9, 5), (2, 5)])
def test_places_are_averaged_and_channels_left(shape: tuple[int, ...]) -> None:
    found = average_places(torch.ones(shape))
    assert found.shape == (2, 5)
    torch.testing.assert_close(found, torch.ones(2, 5))
