"""The packages of lit_ft, of which the folder of recipes lies beside the others; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["lit_ft*"]), "lit_ft.configs"], package_dir={"lit_ft.configs": "configs"})
