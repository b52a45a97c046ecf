import re
from pathlib import Path

import pytest

from lit_ft.errors import UserError
from lit_ft.recipes import FOLDER, cluster_files, find_config, find_recipe, recipe_names, recipes

ROOT = Path(__file__).parents[1]


def test_names_are_those_of_the_files_with_those_of_clusters_last():
    paths = [*sorted((ROOT / "configs").glob("*.yaml")), *sorted((ROOT / "configs" / "cluster").glob("*.yaml"))]
    assert recipe_names() == [path.stem for path in paths]
    assert recipe_names()[-1] == "ddp"


def test_recipe_is_found_by_its_name():
    assert find_recipe("quickstart") == FOLDER / "quickstart.yaml"
    assert find_recipe("ddp") == FOLDER / "cluster" / "ddp.yaml"


def test_unknown_recipe_is_refused_with_those_like_it():
    with pytest.raises(
        UserError, match=r"^config: unknown recipe 'quickstrat'; nearest: quickstart, .*choose from emnist"
    ):
        find_recipe("quickstrat", "config")


def test_file_here_comes_before_the_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("quickstart") == str(FOLDER / "quickstart.yaml")
    (tmp_path / "quickstart").mkdir()  # a folder is no config
    assert find_config("quickstart") == str(FOLDER / "quickstart.yaml")
    (tmp_path / "quickstart.yaml").touch()
    assert find_config("quickstart") == "quickstart.yaml"
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").touch()
    assert find_config("quickstart") == "quickstart"
    (tmp_path / "q.yml").touch()
    assert find_config("q") == "q.yml"
    (tmp_path / "q.yaml").touch()
    assert find_config("q") == "q.yaml"


@pytest.mark.parametrize(
    "given", ["quickstart.yaml", "./quickstart", "configs/quickstart", "{model: null}", "a: b", ""]
)
def test_path_and_content_stay_as_they_are(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    assert find_config(given) == given


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_header_has_purpose_data_time_score_and_command_and_its_figures_come_from_what_was_measured(path):
    header = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))[0]
    block = r"# \S.+\n#\n# Data:  (.+)\n# Time:  (.+)\n# Score: (.+)\n#\n#   (.+)\n#\n"
    data, time, score, command = re.match(block, header).groups()
    assert next(found for found in recipes() if found.name == path.stem) == (path.stem, data, time, score)
    assert f"{command} ".startswith(f"lit-ft finetune --config {path.stem} ")
    details = " ".join(header[re.match(block, header).end() :].replace("#", " ").split())
    figures = re.findall(r"[0-9]+(?:\.[0-9]+)?%?", f"{time} {score.removesuffix('squeezenet1_1')}")
    assert figures or score == "not yet run"
    assert all(re.search(rf"(?<![0-9.]){figure}(?![0-9])", details) for figure in figures)


def test_what_is_for_clusters_is_told_in_a_sentence():
    found = cluster_files()
    assert set(found) == {"ddp", "slurm.sbatch", "torchrun.sh"}
    assert found["ddp"] == "A second config for several GPUs, beside any recipe"
    assert all(re.fullmatch(r"[A-Z][^.:]+", told) for told in found.values())
