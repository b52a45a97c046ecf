"""What a wheel is made of, and what is told of it."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project():
    return pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_wheel_has_each_file_of_the_package_and_of_the_recipes(project):
    patterns = project["tool"]["setuptools"]["package-data"]
    for package, folder in (("lit_ft", "lit_ft"), ("lit_ft.configs", "configs")):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
        names = [path.relative_to(ROOT / folder).as_posix() for path in files]
        assert names
        assert [name for name in names if not any(fnmatchcase(name, one) for one in patterns[package])] == []


def test_development_installs_each_extra(project):
    extras = project["project"]["optional-dependencies"]
    named = re.search(r"lit_ft\[(.+)\]", extras["dev"][0])[1].split(",")
    assert set(named) == set(extras) - {"dev"}


def test_citation_has_the_release_and_the_licence(project):
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for key in ("version", "license"):
        assert f"\n{key}: {project['project'][key]}\n" in text
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").lstrip().startswith("Apache License\n")
