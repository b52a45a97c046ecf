"""The commands ``lit-ft models`` and ``lit-ft describe``; their counts are held against torchvision's own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from torchvision.models import get_model_weights

from lit_ft.backbones.backbone import StageCost
from lit_ft.cli.commands import models as catalog
from lit_ft.cli.commands.models import measure, weights_tags

# One of each family, and the parameters of what is cut off; without those whose classifier has much of the compute.
FAMILIES = {
    "convnext_tiny": 769_000,
    "densenet121": 1_025_000,
    "efficientnet_b0": 1_281_000,
    "efficientnet_v2_s": 1_281_000,
    "googlenet": 1_025_000,
    "inception_v3": 2_049_000 + 3_326_696,  # and the auxiliary classifier
    "maxvit_t": 774_656,
    "mnasnet1_0": 1_281_000,
    "mobilenet_v2": 1_281_000,
    "mobilenet_v3_large": 2_511_080,  # two layers
    "regnet_x_400mf": 401_000,
    "regnet_y_400mf": 441_000,
    "resnet50": 2_049_000,
    "resnext50_32x4d": 2_049_000,
    "shufflenet_v2_x1_0": 1_025_000,
    "swin_t": 769_000,
    "swin_v2_t": 769_000,
    "vgg16": 123_642_856,
    "vit_b_16": 769_000,
    "wide_resnet50_2": 2_049_000,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_counts_are_those_of_torchvision_less_the_classifier(name):
    _, stages = measure(name)
    meta = get_model_weights(name).DEFAULT.meta
    assert sum(stage.parameters for stage in stages) == meta["num_params"] - FAMILIES[name]
    assert sum(stage.macs for stage in stages) / 1e9 == pytest.approx(meta["_ops"], rel=0.02)


def test_attention_is_counted():
    # The first blocks of ViT-B/16, by hand: 197 tokens of 768; queries, keys, values, output and an MLP of 4 x 768.
    _, stages = measure("vit_b_16")
    tokens, width = 197, 768
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    assert stages[1] == StageCost("blocks1", 3 * 7_087_872, 3 * block, (197, 768))


def test_a_network_that_needs_data_to_be_made_is_measured_too():
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_r_s16_p8_224", num_classes=0)
    _, stages = measure("timm/vit_tiny_r_s16_p8_224")
    assert sum(stage.parameters for stage in stages) == sum(p.numel() for p in network.parameters())


@pytest.mark.long
def test_models_lists_what_fits_the_pattern(run, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))  # where no weights are
    head, *rows = run("models", "resnet*").splitlines()
    assert head.split("  ")[0] == "name"
    assert [row.split()[0] for row in rows] == ["resnet101", "resnet152", "resnet18", "resnet34", "resnet50"]
    assert rows[2].split() == ["resnet18", "11.18", "1.814", "224", "5", "-"]


@pytest.mark.long
def test_models_without_a_wildcard_finds_parts_of_names(run):
    names = [row.split()[0] for row in run("models", "cnn").splitlines()[1:]]
    assert names == ["mnist_cnn"]
    names = [row.split()[0] for row in run("models", "resnet50").splitlines()[1:]]
    assert names == ["resnet50", "wide_resnet50_2"]


def test_models_without_a_pattern_lists_all_but_those_of_timm(monkeypatch, run):
    stage = StageCost("stem", 1, 1, (1,))
    backbone, _ = measure("mnist_cnn")
    monkeypatch.setattr(catalog, "measure", lambda name: (backbone, [stage]))
    names = [row.split()[0] for row in run("models").splitlines()[1:]]
    assert names[0] == "mnist_cnn"
    assert len(names) == len(set(names)) > 80
    assert not any("/" in name for name in names)


def test_models_of_timm(run):
    pytest.importorskip("timm")
    (row,) = run("models", "timm/resnet1?").splitlines()[1:]
    assert row.split()[:5] == ["timm/resnet18", "11.18", "1.814", "224", "5"]


def test_a_network_that_cannot_be_cut_does_not_stop_the_list(run):
    pytest.importorskip("timm")
    rows = run("models", "timm/pit_[tx]*").splitlines()[1:]
    assert [row.split()[0] for row in rows] == [
        "timm/pit_ti_224", "timm/pit_ti_distilled_224", "timm/pit_xs_224", "timm/pit_xs_distilled_224",
    ]  # fmt: skip
    assert all("cannot be used: --model.backbone: timm has no groups of layers" in row for row in rows)


@pytest.mark.long
def test_weights_at_hand_are_told_by_their_tag(run, monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_FT_DATA", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    assert weights_tags("resnet50") == {"IMAGENET1K_V1": [], "IMAGENET1K_V2": ["default"]}
    assert run("models", "mnist_cnn").splitlines()[1].split()[-1] == "MNIST"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "resnet50-11ad3fa6.pth").touch()
    assert weights_tags("resnet50") == {"IMAGENET1K_V1": [], "IMAGENET1K_V2": ["default", "here"]}
    assert run("models", "resnet5?").splitlines()[1].split()[-1] == "IMAGENET1K_V2"
    lines = run("describe", "resnet50").splitlines()
    assert lines[-1] == "weights  IMAGENET1K_V1, IMAGENET1K_V2 (default, here)"
    assert "shorter side to 232" in lines[-4]  # as the default ones want it; the first ones want 256


def test_describe_shows_stages_images_and_weights(run):
    lines = run("describe", "resnet18").splitlines()
    rows = [re.split(r"\s{2,}", line) for line in lines[:7]]
    assert rows[1] == ["stem", "9,536", "0.1%", "0.118", "6.5%", "64 x 56 x 56"]
    assert rows[5] == ["layer4", "8,393,728", "75.1%", "0.411", "22.7%", "512 x 7 x 7"]
    assert rows[6] == ["all", "11,176,512", "100.0%", "1.814", "100.0%", "pool -> 512 features"]
    for column in (2, 4):
        assert sum(float(row[column].rstrip("%")) for row in rows[1:6]) == pytest.approx(100, abs=0.25)
    assert lines[8:11] == [
        "input    3 x 224 x 224; shorter side to 256, bilinear, then the centre 224 x 224",
        "mean     0.485, 0.456, 0.406",
        "std      0.229, 0.224, 0.225",
    ]


def test_describe_counts_the_last_norm_to_the_last_stage(run):
    # ConvNeXt's norm after the pooling is the backbone's, and so is in the table.
    last = run("describe", "convnext_tiny").splitlines()[5].split()
    assert last[:2] == ["stage4", "15,472,128"]


def test_describe_takes_a_config_with_a_network_of_ones_own(run, refused):
    Path("mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self): super().__init__(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 3), nn.Flatten())\n"
    )
    Path("mine.yaml").write_text(
        "model:\n  backbone: {class_path: mine.Net, stages: {stem: '0', deep: '1'}, channels: 1}\n  input: {size: 8}\n"
    )
    lines = run("describe", "mine.yaml").splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["stem", "20"], ["deep", "76"], ["all", "96"]]
    assert lines[2].endswith("4 x 4 x 4")
    assert lines[5] == "input    1 x 8 x 8; shorter side to 9, bilinear, then the centre 8 x 8"
    assert run("describe", "mine.yaml", "--size", "16").splitlines()[2].endswith("4 x 12 x 12")
    Path("small.yaml").write_text("model: {backbone: resnet18, stem: small, pool: flatten, input: {size: 32}}")
    lines = run("describe", "small.yaml").splitlines()
    assert lines[1].endswith("64 x 32 x 32")
    assert lines[6].endswith("pool -> 8192 features")
    Path("tag.yaml").write_text("model: {backbone: vit_b_16, weights: IMAGENET1K_SWAG_E2E_V1}")
    assert run("describe", "tag.yaml").splitlines()[8].startswith("input    3 x 384 x 384")
    assert refused("describe", "none.yaml") == "lit-ft: describe: none.yaml: No such file or directory"
    Path("bad.yaml").write_text("model: {input: {siz: 8}, backbone: resnet18}")
    assert "bad.yaml: not a config with model.backbone, and model.input as it must be (" in refused(
        "describe", "bad.yaml"
    )


def test_stages_of_a_config_do_not_reach_the_terminal_raw(run):
    Path("own.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self): super().__init__(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 3), nn.Flatten())\n"
    )
    stages = r'{"a\x1b[2J": "0", b: "1"}'
    Path("own.yaml").write_text(f"model:\n  backbone: {{class_path: own.Net, stages: {stages}, channels: 1}}\n")
    lines = run("describe", "own.yaml", "--size", "8").splitlines()
    assert [line.split()[0] for line in lines[1:4]] == [r"a\x1b[2J", "b", "all"]


def test_describe_for_images_of_another_size(run):
    lines = run("describe", "resnet18", "--size", "448").splitlines()
    assert re.split(r"\s{2,}", lines[5])[3:] == ["1.644", "22.7%", "512 x 14 x 14"]
    assert lines[8] == "input    3 x 448 x 448; shorter side to 512, bilinear, then the centre 448 x 448"


def test_mistakes_are_told_in_one_line(refused):
    assert refused("models", "resnt50*") == (
        "lit-ft: models: no backbone fits 'resnt50*'; nearest: resnet50, resnet152, resnet101"
    )
    assert refused("describe", "resnt50") == (
        "lit-ft: describe: unknown backbone 'resnt50'; nearest: resnet50, resnet152, resnet101; see lit-ft models"
    )
    assert refused("describe", "resnet18", "--size", "x") == (
        "lit-ft: --size: invalid int value: 'x' (see lit-ft describe --help)"
    )
    assert refused("describe", "vgg11", "--size", "4").startswith(
        "lit-ft: describe: --size: the backbone cannot take 3 x 4"
    )
    assert refused("describe", "resnet18", "--size", "0").startswith("lit-ft: describe: --size: must be ")
    assert refused("models", "zzz") == "lit-ft: models: no backbone fits 'zzz'; lit-ft models lists them all"
    for name in ("vit_b_32", "maxvit_t"):
        assert refused("describe", name, "--size", "100").startswith(
            "lit-ft: describe: --size: the backbone cannot take"
        )
    assert "required: NAME" in refused("describe")
    assert refused("models", "--all") == "lit-ft: --all: there is no such option; lit-ft models has no options"


@pytest.mark.parametrize(("command", "told"), [("models", "shell pattern"), ("describe", "--size S")])
def test_help(command, told, run):
    assert told in run(command, "--help")


def test_timm_missing_is_told(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "lit_ft.backbones.sources.timm", raising=False)
    monkeypatch.delattr("lit_ft.backbones.sources.timm", raising=False)
    assert refused("models", "timm/res*").endswith("run: pip install 'lit_ft[timm]'")


@pytest.mark.long
def test_the_commands_load_no_lightning():
    code = (
        "import sys; from lit_ft.cli import main; main(['describe', 'mnist_cnn']); "
        "print({'lightning', 'jsonargparse', 'torchmetrics'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "set()"
