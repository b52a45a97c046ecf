"""Published weights and real photos, from LIT_FT_DATA."""

import os
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lit_ft.backbones.build import build_backbone, input_spec
from lit_ft.backbones.weights.load import read
from lit_ft.data.loading.photo_source import decode

ROOT = Path(os.environ.get("LIT_FT_DATA", ""))
SQUEEZENET = ROOT / "weights" / "torchvision_squeezenet1_1.pth"
EFFICIENTNET = ROOT / "weights" / "timm_tf_efficientnet_lite0.safetensors"
DAISY = 985  # of ImageNet's classes

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not SQUEEZENET.is_file(), reason="LIT_FT_DATA has no weights"),
]


def photos(split, name, transform, most):
    files = sorted((ROOT / "flowers5" / split / name).iterdir())[:most]
    return torch.stack([transform(decode(file)) for file in files])


def test_squeezenet_knows_a_daisy():
    transform = input_spec("squeezenet1_1").eval_transform()
    backbone = build_backbone("squeezenet1_1", str(SQUEEZENET)).eval()
    state = read(SQUEEZENET)
    weight, bias = (state[f"classifier.1.{kind}"].float() for kind in ("weight", "bias"))

    def shares_of_daisies(name):
        with torch.inference_mode():
            places = torch.nn.Sequential(*backbone.stages.values())(photos("val", name, transform, 24))
            logits = torch.nn.functional.conv2d(places, weight, bias).relu().mean(dim=(2, 3))
        return (logits.argmax(dim=1) == DAISY).float().mean().item()

    assert shares_of_daisies("daisy") > 0.7
    assert shares_of_daisies("roses") < 0.1


@pytest.mark.parametrize(
    ("name", "file", "least"),
    [
        ("squeezenet1_1", SQUEEZENET, 0.6),
        pytest.param("timm/tf_efficientnet_lite0", EFFICIENTNET, 0.8, marks=pytest.mark.slow),
    ],
    ids=["squeezenet", "efficientnet"],
)
def test_features_tell_flowers_apart(name, file, least):
    # Measured with 20 photos a class: 0.71 and above 0.8; guessing gives 0.2.
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    transform = input_spec(name).eval_transform()
    backbone = build_backbone(name, str(file)).eval()
    features, targets = {"train": [], "val": []}, {"train": [], "val": []}
    for split, most in (("train", 20), ("val", 15)):
        for i, folder in enumerate(sorted((ROOT / "flowers5" / split).iterdir())):
            with torch.inference_mode():
                features[split].append(backbone(photos(split, folder.name, transform, most)))
            targets[split] += [i] * most
    probe = LogisticRegression(max_iter=1000).fit(torch.cat(features["train"]).numpy(), targets["train"])
    assert probe.score(torch.cat(features["val"]).numpy(), targets["val"]) > least
