import pytest

from lit_ft.cli.config.config_files import describe_config_fault

MAPPING = "model: {lr: 0.1}\n"


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.yaml", b"model:\n\tlr: 1\n", "is not valid YAML: line 2 is indented with a tab; use spaces"),
        (
            "a.yaml",
            b'data: {root: "C:\\Users"}',
            "is not valid YAML: line 1: in double quotes a backslash begins an escape",
        ),
        (
            "a.yaml",
            b"model:\n  lr: 1: 2\n",
            "is not valid YAML: line 2 (mapping values are not allowed here): lr: 1: 2",
        ),
        ("a.yaml", b"- 1\n", "has no options in it, such as model: {backbone: resnet50}"),
        ("a.yaml", MAPPING.encode("utf-16"), "is text in UTF-16; save it in UTF-8"),
        ("a.jpg", b"\xff\xd8\xff\xe0", "is no text; a config is YAML"),
        ("a.py", b"import torch\nx = {1: 2\n", "is a Python script; run it with python, or give a config in YAML"),
        ("a.toml", b"[model]\nlr = 1\n", "is TOML; a config is YAML"),
    ],
)
def test_fault_of_a_config_is_told_with_its_file_and_line(tmp_path, monkeypatch, name, content, fault):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whole.yaml").write_text(MAPPING)
    (tmp_path / name).write_bytes(content)
    line = describe_config_fault(["--config", "whole.yaml", f"--config={name}"])
    assert line.startswith(f"`config`: {name} {fault}")


@pytest.mark.parametrize("key", ["config", "tune"])
def test_fault_of_what_is_typed_in_place_of_a_file_is_told_likewise(key):
    line = describe_config_fault([f"--{key}", "{model.lr: [1e-4, 1e-3}"])
    assert line == (
        f"`{key}`: is not valid YAML: line 1 (expected ',' or ']', but got '}}'): {{model.lr: [1e-4, 1e-3}}"
    )
    for valid in ("{model.lr: [1e-4, 1e-3]}", "model.lr: [1e-4, 1e-3]", f"{{model.lr: [{'1, ' * 200}]}}", " "):
        assert describe_config_fault([f"--{key}", valid]) is None


def test_folder_is_told_with_its_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of").mkdir()
    (tmp_path / "of" / "b.yaml").write_text(MAPPING)
    assert describe_config_fault(["-cof"]) == "`config`: of is a folder; name one of its files: b.yaml"


def test_configs_that_can_be_read_or_are_not_there_have_no_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(MAPPING)
    assert describe_config_fault(["--config", "a.yaml", "--config", "b.yaml", "--config", "{a: 1}"]) is None


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "is not there"),
        ("space: {\n", "is not valid YAML: line 2"),
        ("tune: {trials: 3}\n", "is a config, with a section tune; give `--config` s.yaml"),
    ],
)
def test_fault_of_the_file_of_a_search_is_told_likewise(tmp_path, monkeypatch, content, fault):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "s.yaml").write_text(content)
    assert describe_config_fault(["--tune", "s.yaml"]).startswith(f"`tune`: s.yaml {fault}")
    (tmp_path / "s.yaml").write_text("trials: 3\n")
    assert describe_config_fault(["--tune", "s.yaml"]) is None
    assert describe_config_fault(["--tune", "{trials: 3}"]) is None
