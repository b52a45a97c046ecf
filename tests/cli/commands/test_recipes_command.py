"""``lit-ft recipes``."""

from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[3] / "configs"


def test_list_has_each_recipe_with_what_its_header_tells(run):
    lines = run("recipes").splitlines()
    assert lines[0].split() == ["recipe", "data", "time", "score"]
    names = [path.stem for path in sorted(CONFIGS.glob("*.yaml"))]
    assert [line.split()[0] for line in lines[1 : len(names) + 1]] == names
    quickstart = next(line for line in lines if line.startswith("quickstart"))
    cells = [cell.strip() for cell in quickstart.split("  ") if cell]
    assert cells[1:] == ["UCI digits, 10 per class", "15 to 32 s", "test accuracy 94.0% (93.3 to 94.5)"]
    assert max(map(len, lines)) <= 120
    below = "\n".join(lines[len(names) + 1 :])
    assert all(
        f"\n{path.stem if path.suffix == '.yaml' else path.name} " in below for path in CONFIGS.glob("cluster/*")
    )


@pytest.mark.parametrize(
    ("name", "file"),
    [("image_folder", "image_folder.yaml"), ("ddp", "cluster/ddp.yaml"), ("slurm.sbatch", "cluster/slurm.sbatch")],
)
def test_copy_is_the_file_as_it_is(run, name, file):
    assert run("recipes", name) == (CONFIGS / file).read_text(encoding="utf-8")


def test_unknown_name_is_refused_with_those_like_it(refused):
    line = refused("recipes", "image_foldr")
    assert line.startswith("lit-ft: unknown recipe 'image_foldr'; nearest: image_folder, image_folder_gradual")
    assert line.endswith("; lit-ft recipes lists them all")
