"""Commands, code and configs of the README and of the pages below docs/: parsed, and in the long run executed."""

import ast
import json
import shutil
import subprocess
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import snippets
from snippets import NOT_RUN, PAGES, ROOT, SMALL, entry_not_run, make_small, read_blocks, read_commands, split_variables

import lit_ft as package
from lit_ft.cli import main
from lit_ft.cli.commands import CommandParser
from lit_ft.cli.commands import test as exported_test
from lit_ft.cli.config.parser import ConfigCLI

pytestmark = pytest.mark.filterwarnings("ignore")

WITH_COMMANDS, WITH_CODE, WITH_CONFIGS = (
    [page for page in PAGES if read_blocks(page, language)] for language in ("bash", "python", "yaml")
)


class ParsedError(Exception):
    """Ends a command after its arguments have been parsed."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with what the pages name: photos, tables, and a run of a recipe that is made small."""
    folder = tmp_path_factory.mktemp("snippets")
    snippets.prepare(folder)
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        here.setattr("lit_ft.recipes.FOLDER", folder / "configs")
        here.setenv("LIT_FT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        small = ("--model.backbone", "mnist_cnn", "--model.weights", "MNIST", "--trainer.max_epochs", "1")
        code = main(["finetune", "--config", "configs/image_folder.yaml", "--data.root", "PHOTOS", *small])
        assert code == 0
        Path("RUN").symlink_to("logs/image_folder/version_0")
        for name in ("OTHER_RUN", "MORE_RUNS"):
            shutil.copytree("RUN", name)
    return folder


@pytest.fixture
def parse(monkeypatch, prepared, capsys):
    """Parses the arguments of a command as it does, and gives what it refuses."""
    parse_config = ConfigCLI.parse_arguments

    def parse_own(parser, args=None):
        ArgumentParser.parse_args(parser, args)
        raise ParsedError

    def parse_by_config(cli, parser, args):
        parse_config(cli, parser, args)
        raise ParsedError

    monkeypatch.chdir(prepared)
    monkeypatch.setattr(CommandParser, "parse_args", parse_own)
    monkeypatch.setattr(ConfigCLI, "parse_arguments", parse_by_config)
    exported = SimpleNamespace(task=SimpleNamespace(name="multiclass"), class_names=["a"])
    monkeypatch.setattr(exported_test, "ExportedModel", lambda file: exported)

    def parse(arguments):
        try:
            code = main(arguments)
        except ParsedError:
            return ""
        return "" if code == 0 else capsys.readouterr().err

    return parse


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_are_parsed(parse, page):
    refused = {}
    for block in read_blocks(page, "bash"):
        for words in read_commands(block):
            _, words = split_variables(words)
            name = f"{page}:{block.line}: {' '.join(words)}"
            if words[0].removeprefix(".venv/bin/") == "lit-ft":
                if error := parse(words[1:]):
                    refused[name] = error
            elif not entry_not_run(" ".join(words)):
                refused[name] = "neither a command of lit-ft, nor in NOT_RUN"
    assert not refused


@pytest.mark.parametrize("page", WITH_CONFIGS)
def test_configs_are_parsed(parse, page):
    for block in read_blocks(page, "yaml"):
        Path("block.yaml").write_text(block.text, encoding="utf-8")
        takes = ["tune", "--config", "quickstart", "--tune"] if "\nspace:" in block.text else ["fit", "--config"]
        assert parse([*takes, "block.yaml"]) == "", f"{page}:{block.line}"


@pytest.mark.parametrize("page", PAGES)
def test_code_and_data_are_well_formed(page):
    for block in read_blocks(page, "python"):
        ast.parse(block.text, f"{page}:{block.line}")
    for block in read_blocks(page, "json"):
        json.loads(block.text)


def test_what_is_left_out_or_made_small_is_still_there():
    texts = [block.text for page in PAGES for block in read_blocks(page, "python")]
    for page in WITH_COMMANDS:
        commands = [words for block in read_blocks(page, "bash") for words in read_commands(block)]
        texts += [" ".join(split_variables(words)[1]) for words in commands]
    assert {entry_not_run(text) for text in texts} - {None} == set(NOT_RUN)
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "configs").glob("*.yaml")]
    assert [whole for whole in SMALL if not any(whole in text for text in texts)] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", dict.fromkeys([*WITH_COMMANDS, *WITH_CODE]))
def test_snippets_are_run(prepared, cifar_root, tmp_path, monkeypatch, page):
    """Blocks of a page run one after the other in one folder, as if a reader did what they say; each command once."""
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder, symlinks=True)
    shutil.copytree(cifar_root / "cifar-10-batches-py", folder / "F" / "cifar-10-batches-py")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("lit_ft.recipes.FOLDER", folder / "configs")  # where they are small
    names, done = {"lit_ft": package}, []
    for block in read_blocks(page, "bash", "python"):
        if block.language == "python":
            if not entry_not_run(block.text):
                exec(compile(make_small(block.text), f"{page}:{block.line}", "exec"), names)
            continue
        for words in read_commands(block):
            variables, words = split_variables(words)
            if words not in done and not entry_not_run(" ".join(words)):
                done.append(words)
                with pytest.MonkeyPatch.context() as environment:
                    for name, value in variables.items():
                        environment.setenv(name, value)
                    assert main([make_small(word) for word in words[1:]]) == 0, f"{page}:{block.line}: {words}"


@pytest.mark.slow
def test_requests_of_the_page_on_serving_are_answered(prepared, tmp_path, monkeypatch):
    """They differ from those of a reader by the port alone."""
    monkeypatch.chdir(prepared)
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "serving"))
    from served import Served

    asked = []
    with Served("RUN", tmp_path) as server:
        for block in read_blocks("docs/serve.md", "bash", "python"):
            block = block._replace(text=block.text.replace(":8000", f":{server.port}"))
            if block.language == "python":
                exec(block.text, names := {})
                asked.append(names["answer"])
                continue
            for words in read_commands(block):
                if words[0] == "curl":
                    done = subprocess.run(words, capture_output=True, check=True)
                    asked.append(json.loads(done.stdout))
    assert [answer["label"] for answer in asked] == ["roses"] * 3
