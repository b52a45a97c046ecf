"""The README's own commands and code."""

import re
import shlex
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(word):
    return [line for line in README.splitlines() if line.startswith(word)]


def test_setup_is_two_commands_each_complete_in_itself():
    assert commands("python3 -m venv") == [
        "python3 -m venv .venv && .venv/bin/pip install -e . "
        "&& .venv/bin/lit-ft finetune --config configs/quickstart.yaml",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/pytest",
    ]


def test_continuous_integration_runs_these_commands():
    script = (ROOT / ".ci" / "run").read_text()
    for pattern in re.findall(r"readme_command '?([^')]+)'?\)", script):
        assert len([line for line in commands("python3 -m venv") if pattern in line]) == 1


def test_recipes_and_links_exist():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(targets) > 8
    assert [target for target in targets if not (ROOT / target).exists()] == []
    linked = {target for target in targets if target.startswith("configs/")}
    assert linked == {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}


def test_options_in_the_table_are_accepted(monkeypatch, tmp_path, capsys):
    from lit_ft.cli import main

    monkeypatch.chdir(tmp_path)
    options = [text for text in re.findall(r"^\| `(--[^`]+)`", README, flags=re.M) if "phases" not in text]
    assert len(options) > 7
    args = [arg for text in options for arg in shlex.split(text)]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *args, "--print_config"])
    assert stop.value.code == 0
    assert "lr_decay: 0.6" in capsys.readouterr().out


def test_python_example_trains_a_good_model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, flags=re.S)[1]
    names = {}
    torch.manual_seed(0)
    exec(code.replace("max_epochs=40", "max_epochs=12, enable_progress_bar=False, logger=False"), names)
    assert names["trainer"].callback_metrics["test/acc"] > 0.8
    assert names["model"].class_names == list("0123456789")
