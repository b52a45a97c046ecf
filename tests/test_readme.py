"""Commands, links and code of the README and of the pages below docs/."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from image_files import save_photo

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    # Those two are for the site, and Sphinx checks their links.
    *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md") if p.stem not in ("index", "recipes")),
]


def commands(word):
    return [line for line in README.splitlines() if line.startswith(word)]


def anchors(text):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_setup_is_two_commands_each_complete_in_itself():
    assert commands("python3 -m venv") == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/lit-ft finetune --config quickstart",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/pytest",
    ]


def test_continuous_integration_runs_these_commands():
    script = (ROOT / ".ci" / "run").read_text()
    for pattern in re.findall(r"readme_command '?([^')]+)'?\)", script):
        assert len([line for line in commands("python3 -m venv") if pattern in line]) == 1


def linked_pages(page):
    """The pages that a page links to."""
    links = re.findall(r"\]\((?!https?:)([^)#]+\.md)", (ROOT / page).read_text(encoding="utf-8"))
    return {((ROOT / page).parent / link).resolve().relative_to(ROOT).as_posix() for link in links}


def test_pages_are_reached_from_the_readme():
    reached, new = set(), {"README.md"}
    while new:
        reached |= new
        new = set().union(*map(linked_pages, new)) - reached
    assert {page for page in PAGES if page.startswith("docs/")} <= reached


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_a_file_and_a_heading(page):
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / page).read_text(encoding="utf-8").replace("\n", " "))
    for link in links:
        target, _, anchor = link.partition("#")
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), link


@pytest.mark.parametrize(
    ("page", "value"),
    [("docs/settings.md", "lr_decay: 0.6"), ("docs/model.md", "kind: cosine")],
)
def test_options_in_the_tables_are_accepted(monkeypatch, tmp_path, capsys, page, value):
    from lit_ft.cli import main

    monkeypatch.chdir(tmp_path)
    options = re.findall(r"^\| `(--[^`]+ [^`]+)`", (ROOT / page).read_text(encoding="utf-8"), flags=re.M)
    assert len(options) > 7
    args = [arg for text in options for arg in shlex.split(text)]
    assert main(["fit", *args, "--print_config"]) == 0
    assert value in capsys.readouterr().out


@pytest.mark.long
def test_python_example_trains_a_good_model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, grey in (("dark", 40), ("bright", 210)):
        for i in range(12):
            split = ["val", "test"][i % 2] if i < 4 else "train"
            save_photo(tmp_path / "photos" / split / name / f"{i}.png", (grey + i, grey - i, grey))
    code = re.search(r"```python\n(.*?)```", README, flags=re.S)[1]
    code = code.replace('"PHOTOS"', repr("photos"))
    options = "epochs=8, model={'backbone': 'mnist_cnn', 'weights': 'MNIST'}"
    assert "epochs=20" in code
    code = code.replace("epochs=20", options).replace('"NEW_PHOTOS"', repr("photos/test"))
    exec(code, names := {})
    assert names["result"].metrics["test/acc"] > 0.8
    found = names["model"].predict("photos/test")
    right = [Path(one.path).parent.name == one.label for one in found]
    assert sum(right) / len(right) == pytest.approx(names["result"].metrics["test/acc"])


@pytest.mark.long
def test_lightning_example_trains_a_good_model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(import lightning.*?)```", page, flags=re.S)[1]
    names = {}
    torch.manual_seed(0)
    exec(code.replace("max_epochs=40", "max_epochs=12, enable_progress_bar=False, logger=False"), names)
    assert names["trainer"].callback_metrics["test/acc"] > 0.8
    assert names["model"].class_names == list("0123456789")


def test_files_and_folders_of_the_architecture_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {name.removeprefix("lit_ft/") for name in re.findall(r"`([\w/]+(?:\.py|/))`", text)}
    missing = {name for name in named if not (ROOT / "lit_ft" / name).exists() and not (ROOT / name).exists()}
    assert len(named) > 15
    assert not missing
    folder, drawn = "", set()
    for indented, name in re.findall(r"^(│   )?[├└]── (\w+/?(?:\.py)?)", text, flags=re.M):
        folder = folder if indented else name
        drawn.add(f"{folder}{name}" if indented else name)
    assert {name for name in drawn if not (ROOT / "lit_ft" / name).exists()} == set()
    package = ROOT / "lit_ft"
    folders = {f"{path.parent.relative_to(package).as_posix()}/" for path in package.glob("*/**/__init__.py")}
    assert folders <= drawn
