"""Cross-validated linear heads: all folds and strengths at once by lit_ft, one after the other by scikit-learn.

    LIT_FT_DATA=FOLDER OMP_NUM_THREADS=1 python benchmarks/solver.py [--rounds 5]

20 folds and 9 strengths on the features of SqueezeNet 1.1 for flowers5 (FOLDER has ``flowers5`` and ``weights``): 500
photos of 5 classes, and 244 of two. scikit-learn's ``LogisticRegressionCV`` has the same folds, strengths and features,
and solves all of them, where lit_ft ends two strengths after the best. CPU seconds; minimum / median / maximum.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lit_ft import ImageFolderDataModule
from lit_ft.backbones.build import build_backbone
from lit_ft.data.folds import make_folds
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import STRENGTHS, cross_validate
from lit_ft.probes.heads.solver import Targets


def read_features(data: Path) -> tuple[Tensor, Tensor, float]:
    """Features and classes of the photos to train on and to validate, and the CPU seconds of an image."""
    backbone = build_backbone("squeezenet1_1", str(data / "weights/torchvision_squeezenet1_1.pth"), pool="avg").eval()
    photos = ImageFolderDataModule(str(data / "flowers5"), augment="none", batch_size=32, num_workers=0)
    photos.prepare_data()
    photos.setup("fit")
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (backbone.spec.mean, backbone.spec.std))
    features, classes, began = [], [], time.process_time()
    with torch.inference_mode():
        for loader in (photos.train_dataloader(), photos.val_dataloader()):
            for images, targets in loader:
                features.append(backbone((images.float() - mean) / std))
                classes.append(targets)
    number = sum(map(len, classes))
    return torch.cat(features).clone(), torch.cat(classes).clone(), (time.process_time() - began) / number


def by_lit_ft(features: Tensor, classes: Tensor, folds: Tensor) -> list[float]:
    """Mean log-loss of each strength."""
    num_classes = int(classes.max()) + 1
    is_binary = num_classes == 2  # one output, as scikit-learn has it
    targets = Targets("sigmoid", classes[:, None], 1) if is_binary else Targets("softmax", classes, num_classes)
    losses: list[float] = cross_validate(Basis(features), targets, folds).losses.mean(dim=(0, 1)).tolist()
    return losses


def by_scikit_learn(features: Tensor, classes: Tensor, folds: Tensor) -> list[float]:
    """Likewise."""
    splits = [
        ((repeat != fold).nonzero()[:, 0].numpy(), (repeat == fold).nonzero()[:, 0].numpy())
        for repeat in folds
        for fold in range(int(folds.max()) + 1)
    ]
    size = len(splits[0][0])
    head = LogisticRegressionCV(
        Cs=[1 / (l2 * size) for l2 in STRENGTHS], cv=splits, scoring="neg_log_loss", max_iter=1000
    )
    scores = head.fit(StandardScaler().fit_transform(features.double().numpy()), classes.numpy()).scores_
    each = np.stack(list(scores.values())) if isinstance(scores, dict) else np.asarray(scores)
    return (-each.reshape(-1, len(splits), len(STRENGTHS))[0].mean(axis=0)).tolist()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    features, classes, seconds = read_features(Path(os.environ["LIT_FT_DATA"]))
    two = torch.cat([(classes == k).nonzero()[:122, 0] for k in range(2)])
    few = torch.cat([(classes == k).nonzero()[:100, 0] for k in range(5)])
    print(
        "| features | by lit_ft, s | by scikit-learn, s | ratio | of the feature pass | largest difference of a loss |"
    )
    print("|---|---|---|---|---|---|")
    for rows in (two, few):
        x, y = features[rows], classes[rows]
        folds = make_folds(y)
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(rounds):
            losses = []
            for name, solve in (("ours", by_lit_ft), ("theirs", by_scikit_learn)):
                began = time.process_time()
                losses.append(solve(x, y, folds))
                times[name].append(time.process_time() - began)
        ratios = [theirs / ours for ours, theirs in zip(*times.values(), strict=True)]
        shares = [spent / (seconds * len(x)) for spent in times["ours"]]
        apart = max(abs(a - b) for a, b in zip(*losses, strict=True) if math.isfinite(a))
        cells = [_spread(values) for values in (*times.values(), ratios, shares)]
        print(f"| {len(x)} x {x.shape[1]}, {len(y.unique())} classes | {' | '.join(cells)} | {apart:.4f} |")


def _spread(values: list[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in (min(values), statistics.median(values), max(values)))


if __name__ == "__main__":
    main()
