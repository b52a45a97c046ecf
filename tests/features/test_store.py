import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lit_ft.features.layout import Layout
from lit_ft.features.store import FeatureFile, choose_recomputed


@pytest.mark.parametrize("views", [1, 2, 5])
@pytest.mark.parametrize("images", [range(20), range(7, 47), range(10_000)])
def test_at_most_one_feature_of_twenty_is_computed_again(images, views):
    chosen = choose_recomputed(images, views).tolist()
    assert len(set(chosen)) == len(chosen)
    assert views <= views * len(chosen) <= min(16, views * len(images) / 20)
    assert all(row in images for row in chosen)


def test_images_that_are_computed_again_lie_evenly_between_the_first_and_the_last():
    assert choose_recomputed(range(20), 1).tolist() == [10]
    assert choose_recomputed(range(60, 100), 1).tolist() == [70, 90]
    assert choose_recomputed(range(60, 100), 8).tolist() == [70, 90]
    assert choose_recomputed(range(60, 100), 9).tolist() == [80]
    assert choose_recomputed(range(3), 20).tolist() == [1]
    assert choose_recomputed(range(0), 1).tolist() == []  # of a process without images


@pytest.mark.parametrize("views", [1, 2])
def test_files_of_several_views_that_were_decoded_one_by_one_are_not_found(tmp_path, views):
    layout = Layout(3, views, (4,), False, torch.float32, torch.float32)
    trainer = SimpleNamespace(local_rank=0, num_devices=1)
    source, sampler = SimpleNamespace(identity=lambda: "images"), SimpleNamespace(seed=7)
    loader, stages = SimpleNamespace(source=source, sampler=sampler), SimpleNamespace(identity=lambda: "weights")
    file = FeatureFile(trainer, stages, layout, loader, Path(tmp_path), None, "train")
    # As it was named when each view was decoded at a scale of its own.
    former = hashlib.sha256(f"weights images {layout} 7".encode()).hexdigest()[:16]
    assert (file._path.name == f"train-{former}.bin") == (views == 1)
