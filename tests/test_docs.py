"""The site: its order, the links that leave docs/, and the reference that is generated."""

import re
from pathlib import Path

import pytest

import lit_ft
from lit_ft.cli.commands import COMMANDS
from lit_ft.recipes import recipes

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(autouse=True)
def _their_folder(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))


def section(text, title):
    """The text below a heading of the second level, up to the next."""
    return re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, flags=re.M | re.S)[1]


def test_each_page_has_one_place_in_the_order():
    trees = re.findall(
        r"^```\{toctree\}\n(?::[^\n]*\n)*\n(.*?)^```$", (DOCS / "index.md").read_text(), flags=re.M | re.S
    )
    listed = [page for tree in trees for page in tree.split()]
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    assert sorted(listed) == sorted(pages)
    tasks = ["train", "probe", "tune", "predict", "outputs", "data", "model", "settings", "export", "cluster"]
    assert listed[1:11] == tasks


def test_python_page_documents_all_public_names_and_no_other():
    documented = re.findall(r"^\.\. auto\w+:: (\w+)$", (DOCS / "reference" / "api.md").read_text(), flags=re.M)
    assert sorted(documented) == lit_ft.__all__


@pytest.mark.parametrize(
    ("link", "folder", "page", "moved"),
    [
        ("[a](train.md#resume)", "docs", "docs/probe.md", "[a](train.md#resume)"),
        ("[a](#resume)", "docs", "docs/train.md", "[a](#resume)"),
        ("[a](https://x.org/a.md)", "docs", "docs/train.md", "[a](https://x.org/a.md)"),
        ("[a](../benchmarks/README.md#data)", "docs", "docs/speed.md", "[a](project/measurements.md#data)"),
        ("[a](../configs/cluster/ddp.yaml)", "docs", "docs/scaling.md", "[a](recipes.md#ddp)"),
        ("[a](../docs/scaling.md)", "benchmarks", "docs/project/measurements.md", "[a](../scaling.md)"),
        ("[a](configs/quickstart.yaml)", ".", "docs/index.md", "[a](recipes.md#quickstart)"),
        ("![a](docs/images/report.png)", ".", "docs/index.md", "![a](images/report.png)"),
        ("```python\nmade[0](name)\n```", "docs", "docs/project/a.md", "```python\nmade[0](name)\n```"),
        ("[two\nlines](docs/data.md)", ".", "docs/project/changelog.md", "[two\nlines](../data.md)"),
    ],
)
def test_links_lead_to_where_the_site_has_their_targets(link, folder, page, moved):
    from pages import rewrite_links

    assert rewrite_links(link, folder, page) == moved


def test_commands_have_their_own_options_and_not_those_of_a_config():
    from reference import write_commands

    text = write_commands()
    assert re.findall(r"^## lit-ft (\S+)$", text, flags=re.M) == list(COMMANDS)
    plan, predict = section(text, "lit-ft plan"), section(text, "lit-ft predict")
    assert "```{option} --bandwidth BANDWIDTH\nGB/s at which" in plan
    assert "Type `float`, default `10.0`." in plan
    assert "--model" not in plan
    assert "lit-ft models [PATTERN] [OPTIONS]" in section(text, "lit-ft models")
    assert "lit-ft predict CHECKPOINT PHOTOS ... [OPTIONS]" in predict
    assert "```{option} --top_k K\nnumber of classes to list with their probabilities\n\nDefault `1`.\n```" in predict
    assert "{option} --ckpt_path CKPT_PATH" in predict


def test_keys_have_the_types_and_defaults_of_a_config():
    from reference import write_keys

    text = write_keys()
    assert "```{confval} model.lr\n\nLearning rate of the head.\n\nType `float`, default `0.001`.\n```" in text
    assert "{confval} model.head.hidden" in text
    assert "{confval} model.optimizer" not in text  # a section of its own
    assert re.search(r"\{confval\} checkpoint.filename\n.*?default `best`", text, flags=re.S)
    # The default of the command line, which is not that of the class.
    assert re.search(r"\{confval\} unfreeze.head_fit\n[^}]*default `null`", text)
    assert re.search(r"\{confval\} trainer.max_epochs\n[^}]*default `10`", text)
    assert text.count("{confval} data.split_seed") == 1
    digits = re.search(r"^### DigitsDataModule$.*?(?=^###)", text, flags=re.M | re.S)[0]
    assert "Type `int | null`, default `10`." in digits  # of data.shots, which others have without a default
    assert "data.batch_size" not in digits  # which all have


def test_help_becomes_markdown():
    from reference import _to_markdown

    text = "With ``a``, :class:`~x.Y`,\n   `notes <https://x.org>`_ and <b>."
    assert _to_markdown(text) == "With `a`, `x.Y`, [notes](https://x.org) and \\<b>."


@pytest.mark.long
def test_gallery_has_each_recipe_with_its_score_and_what_trains_when():
    from reference import _read_plan, write_recipes

    text = write_recipes()
    for recipe in recipes():
        assert f"<b>{recipe.name}</b><span>{recipe.score}</span>" in text
        assert f"| {recipe.data} | {recipe.time} | {recipe.score} |" in section(text, recipe.name)
    stages, epochs = _read_plan("quickstart")
    assert stages == ["conv", "dense", "head"]
    assert [epochs.index(found) for found in dict.fromkeys(epochs)] == [0, 5, 10]
    assert _read_plan("image_folder")[1] == [("layer4", "head")] * 6


def test_index_for_language_models_has_a_line_a_page():
    from pages import write_index

    text = write_index([("serve.html", "Serve", "Answers over HTTP")])
    assert text.startswith(f"# lit_ft\n\n> {lit_ft.__doc__}\n")
    assert text.endswith("- [Serve](serve.html): Answers over HTTP\n")
