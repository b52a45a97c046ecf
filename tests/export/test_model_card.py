"""Model cards."""

import json
from pathlib import Path

import pytest

from lit_ft.export.description import Description
from lit_ft.export.model_card import MOST_ROWS, CardFacts, describe_weights, escape, format_rows, render_card
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import Run


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b*c*", "a\\_b\\*c\\*"),
        ("<img src=x onerror=y>", "&lt;img src=x onerror=y&gt;"),
        ("[a](http://b)", "\\[a\\](http:&#47;&#47;b)"),
        ("one\n# two | three", "one\\n\\# two \\| three".replace("\\n", "\\\\n")),
        ("\x1b[2J", "\\\\x1b\\[2J"),
        ("`x`", "\\`x\\`"),
        ("Grüße", "Grüße"),
    ],
)
def test_names_are_text_and_no_markup(text, shown):
    assert escape(text) == shown


def test_long_tables_are_cut_and_say_so():
    rows = [["class", "images"], *([str(i), "1"] for i in range(MOST_ROWS + 3))]
    table = format_rows(rows)
    assert table.splitlines()[1] == "| --- | --- |"
    assert table.count("\n| ") == 1 + MOST_ROWS  # the line below the head, too
    assert table.endswith("and 3 more")


@pytest.mark.parametrize(
    ("name", "weights", "text"),
    [
        (
            "resnet18",
            "IMAGENET1K_V1",
            r"resnet18 from the weights IMAGENET1K\_V1. Published by torchvision (BSD-3-Clause)",
        ),
        ("regnet_y_16gf", "IMAGENET1K_SWAG_E2E_V1", "Licence of the weights: https:&#47;&#47;github.com"),
        ("resnet18", "/home/me/my.pth", "from the weights in a file, my.pth, whose source and licence"),
        ("mnist_cnn", "MNIST", "under its licence (Apache-2.0)"),
        ("mnist_cnn", None, "from random weights"),
        ({"class_path": "my.Net"}, None, "A network of the user's own"),
    ],
)
def test_source_of_the_weights_is_told_as_far_as_it_is_known(name, weights, text):
    told = describe_weights(name, weights)
    assert text in told
    assert "/home" not in told


def test_licence_of_timm_is_what_timm_notes():
    pytest.importorskip("timm")
    assert "licence of the weights: apache-2.0." in describe_weights("timm/vit_tiny_patch16_224", "DEFAULT")


def test_card_of_a_checkpoint_without_a_run_has_what_the_file_has():
    module = FineTuneModule("mnist_cnn", weights=None, classes=["a", "b"])
    description = Description("multiclass", ["a", "b"], 3, "mnist_cnn", [1e-3] * 2)
    card = render_card(CardFacts("m.onnx", module, None, Path("best.ckpt"), notes=["Cut after conv: x"]), description)
    headings = [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")]
    assert headings == ["Use", "Classes", "Measured at the export", "Limits", "Backbone and licence", "Versions"]
    assert "| parameters | 693,962 |" not in card  # which has ten classes
    assert "| parameters | 692,930 |" in card


def test_card_has_the_metrics_of_its_own_checkpoint(tmp_path):
    run, module = Run(tmp_path), FineTuneModule("mnist_cnn", weights=None, classes=["a", "b"])
    run.config.write_text("{}")
    entries = {
        "test": ("best", 0.5, None),
        "test_last": ("last", 0.25, None),
        "test_best": ("best", 0.125, "/elsewhere/best"),  # of a folder of this name
        "val": ("last", 0.0625, None),  # as an earlier version wrote it
        "val_last": ("best", 0.03125, "/elsewhere/last"),
    }
    run.metrics.write_text(json.dumps({
        name: {"checkpoint": f"checkpoints/{checkpoint}.ckpt", f"{name[:4].rstrip('_')}/acc": value, "data": data}
        for name, (checkpoint, value, data) in entries.items()
    }))  # fmt: skip
    run.result_table("per_class", "test_last").write_text("class,images\na,7\n")
    for checkpoint, row in (("best", "| acc | 0.5000 |"), ("last", "| acc | 0.0625 | 0.2500 |")):
        facts = CardFacts("m.onnx", module, run, run.checkpoint(checkpoint))
        card = render_card(facts, Description("multiclass", ["a", "b"], 3, "mnist_cnn", [1e-3] * 2))
        assert row in card.splitlines()
        assert ("| a | 7 |" in card) == (checkpoint == "last")
