import pytest

from lit_ft.cli.config.recipe_names import find_configs
from lit_ft.errors import UserError
from lit_ft.recipes import FOLDER

PATH = str(FOLDER / "quickstart.yaml")


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["--config", "quickstart"], ["--config", PATH]),
        (["--config=quickstart"], [f"--config={PATH}"]),
        (["-c", "quickstart"], ["-c", PATH]),
        (["-cquickstart"], [f"-c{PATH}"]),
        (["-c=quickstart"], [f"-c={PATH}"]),
        (["--config", "a.yaml", "--config", "quickstart"], ["--config", "a.yaml", "--config", PATH]),
        (["--name", "quickstart", "quickstart"], ["--name", "quickstart", "quickstart"]),
        (["--config={a: 1}", "--config"], ["--config={a: 1}", "--config"]),
        (["--config", "-c", "quickstart"], ["--config", "-c", "quickstart"]),
    ],
)
def test_names_of_configs_become_paths(args, found):
    assert find_configs(args) == found


def test_name_that_is_none_is_refused_under_the_option():
    with pytest.raises(UserError, match="unknown recipe 'quickstrat'; nearest: quickstart") as refused:
        find_configs(["-cquickstrat"])
    assert refused.value.args[0].startswith("`--config`: ")
