"""The config that a probe suggests."""

from __future__ import annotations

import yaml

from lit_ft.probes.suggestion import format_suggestion, suggest_config
from lit_ft.probes.survey import BackboneChoice

CONFIG = {
    "trainer": {"max_epochs": 3},
    "model": {
        "class_path": "lit_ft.FineTuneModule",
        "init_args": {"backbone": "old", "weights": None, "input": {"size": 64}, "pool": "avg", "lr": 0.1},
    },
    "early_stopping": None,
}


def test_another_backbone_is_without_the_options_of_the_old_one() -> None:
    config = suggest_config(CONFIG, BackboneChoice("new", "w.pth"))
    text = format_suggestion(config, {"    backbone": ["accuracy 94.1%", "odd\nname"]}, ["A title.", ""])
    assert text.startswith("# A title.\n#\nmodel:\n")
    assert "    # accuracy 94.1%\n    # odd\\nname\n    backbone: new\n    weights: w.pth\n" in text
    assert yaml.safe_load(text) == {
        "model": {
            "class_path": "lit_ft.FineTuneModule",
            "init_args": {"backbone": "new", "weights": "w.pth", "lr": 0.1},
        },
        "trainer": {"max_epochs": 3},
        "early_stopping": None,
    }
    assert CONFIG["model"]["init_args"]["backbone"] == "old"


def test_own_backbone_keeps_the_options_of_the_config() -> None:
    options = {"input": {"size": 64, "mean": None}, "pool": "avg", "stem": "own"}
    found = suggest_config(CONFIG, BackboneChoice("old", None, options))
    assert found["model"]["init_args"] == {
        "backbone": "old", "weights": None, "input": {"size": 64}, "pool": "avg", "lr": 0.1,
    }  # fmt: skip


def test_config_without_a_model_gets_one() -> None:
    found = suggest_config({}, BackboneChoice({"class_path": "a.B"}, "w.pth"))
    assert found["model"]["init_args"]["backbone"] == {"class_path": "a.B"}


def test_linear_probe_replaces_the_unfreezing_and_keeps_its_place() -> None:
    config = {"unfreeze": {"class_path": "a.B", "init_args": {"strategy": "full"}}, "trainer": {"max_epochs": 3}}
    found = suggest_config(config, BackboneChoice("new", None), is_probe=True)
    assert found["unfreeze"] == {"strategy": "linear_probe", "head_fit": "solved"}
    text = format_suggestion(found, {"unfreeze": ["enough", "86.1%"], "    backbone": ["x"]}, [])
    assert "\n# enough\n# 86.1%\nunfreeze:\n  strategy: linear_probe\n  head_fit: solved\ntrainer:" in text
    assert "    # x\n    backbone: new\n" in text
