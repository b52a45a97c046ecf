"""Accuracy of linear heads by how a photo becomes a square (``data.fit``), and by what the heads are solved on.

    LIT_FT_DATA=FOLDER python benchmarks/fits.py [--networks squeezenet1_1 tf_efficientnet_lite0] [--ratios 0 2 3]

The photos are the 500 to train on of flowers5, as they are (ratio 0), and at one end, drawn at random, of a canvas of
grey noise that is 2 or 3 times as long as wide, half of them upright. Heads are cross-validated: on the photos as they
are evaluated, on two random parts of the photo itself, or on two of the square that is evaluated; always scored on the
photos as they are evaluated. The 200 photos to validate on are not read. FOLDER has ``flowers5`` and ``weights``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transfer import NETWORKS

from lit_ft.backbones.input_spec import Fit
from lit_ft.data import ImageFolderDataModule
from lit_ft.data.folds import held_out, make_folds
from lit_ft.data.images.transforms import train_transform
from lit_ft.data.loading.photo_source import PhotoSource
from lit_ft.model.preprocessing import Normalise
from lit_ft.probes.feature_pass import compute_stage_features
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import cross_validate
from lit_ft.probes.heads.solver import Problems, Targets, solve
from lit_ft.probes.survey import BackboneChoice

PARTS = 2


def main() -> None:
    """Prints a table of percentages: the mean of four repetitions of five folds, and the range of the repetitions."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=[*NETWORKS])
    options.add_argument("--ratios", nargs="+", type=int, default=[0, 2, 3])
    args = options.parse_args()
    data = Path(os.environ["LIT_FT_DATA"])
    print("| network | canvas | fit | photos | parts of the photo | parts of the square |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for ratio in args.ratios:
            root = data / "flowers5" / "train"
            if ratio:
                root = draw_canvases(root, Path(folder) / str(ratio), ratio)
            for network in args.networks:
                name, weights = NETWORKS[network]
                choice = BackboneChoice(name, str(data / "weights" / weights))
                for fit in get_args(Fit):
                    cells = map(format_accuracies, measure(choice, root, fit))
                    canvas = f"{ratio}:1" if ratio else "none"
                    print(f"| {network} | {canvas} | {fit} | {' | '.join(cells)} |", flush=True)


def measure(choice: BackboneChoice, root: Path, fit: Fit) -> list[Tensor]:
    """The accuracies ``(R,)`` of heads on the photos, on parts of them, and on parts of the squares."""
    backbone, data = choice.build(), ImageFolderDataModule(str(root), fit=fit, num_workers=0)
    data.setup()
    data.take_spec(backbone.spec)
    spec, files = data.input_spec, data.splits["train"].join(data.splits["val"])
    normalise = Normalise(spec.mean, spec.std, backbone.memory_format)

    def features_of(source: PhotoSource, view: int = 0) -> Tensor:
        return compute_stage_features(backbone, normalise, source, view=view, only_last=True).last

    whole = features_of(PhotoSource(files, spec.geometry()))
    folds = make_folds(files.targets)
    found = cross_validate(Basis(whole), Targets("softmax", files.targets, data.num_classes), folds)
    results = [found.correct.mean(dim=1)]
    for part_of in (replace(spec, fit="crop"), spec):
        source = PhotoSource(files, train_transform(part_of, "basic"))
        parts = [features_of(source, view) for view in range(PARTS)]
        results.append(score(whole, parts, files.targets, folds, float(found.strengths[found.best])))
    return results


def score(whole: Tensor, parts: list[Tensor], targets: Tensor, folds: Tensor, l2: float) -> Tensor:
    """The accuracies ``(R,)`` on photos out of fold ``(N, D)`` of heads that are solved on parts of the others."""
    basis, held = Basis(torch.cat([*parts, whole])), held_out(folds)
    classes = int(targets.max()) + 1
    counts = torch.cat([~held] * len(parts) + [torch.zeros_like(held)], dim=1).double() / len(parts)
    every = Targets("softmax", targets.repeat(len(parts) + 1), classes)
    problems = Problems(basis, every, counts, torch.arange(len(held)), torch.full((len(held),), l2).double())
    heads = torch.cat([part for _, part in solve(problems, tolerance=1e-2)])
    logits = basis[torch.arange(len(parts) * len(whole), len(basis))] @ heads.transpose(1, 2)
    correct = (logits.argmax(dim=2) == targets) & held
    return correct.view(len(folds), -1, len(whole)).any(dim=1).double().mean(dim=1)


def draw_canvases(source: Path, folder: Path, ratio: int) -> Path:
    """Puts each photo at an end of a canvas of noise, and gives the folder of these."""
    for i, path in enumerate(sorted(source.glob("*/*.jpg"))):
        random = np.random.default_rng(i)
        photo = Image.open(path).convert("RGB")
        is_upright = random.random() < 0.5
        photo = photo.transpose(Image.Transpose.TRANSPOSE) if is_upright else photo
        width = max(photo.width, ratio * photo.height)
        grain = random.integers(60, 190, (photo.height // 36, width // 36), dtype=np.uint8)
        canvas = Image.fromarray(grain).resize((width, photo.height), Image.Resampling.BICUBIC).convert("RGB")
        canvas.paste(photo, (int(random.integers(2)) * (width - photo.width), 0))
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        canvas = canvas.transpose(Image.Transpose.TRANSPOSE) if is_upright else canvas
        canvas.save(folder / path.parent.name / path.name, quality=95)
    return folder


def format_accuracies(found: Tensor) -> str:
    """Mean and range, in per cent."""
    return f"{100 * found.mean():.1f} ({100 * found.min():.1f} to {100 * found.max():.1f})"


if __name__ == "__main__":
    main()
