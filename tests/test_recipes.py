from pathlib import Path

import pytest

from lit_ft.errors import UserError
from lit_ft.recipes import FOLDER, find_config, find_recipe, recipe_names

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


@pytest.mark.parametrize(
    "given", ["quickstart.yaml", "./quickstart", "configs/quickstart", "{model: null}", "a: b", ""]
)
def test_path_and_content_stay_as_they_are(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    assert find_config(given) == given
