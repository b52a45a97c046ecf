import pytest

from lit_ft.cli.command_line import refuse_arguments, unknown_command
from lit_ft.errors import UserError


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["\u2013epochs", "5"], "\u2013epochs: begins with a dash of text; type hyphens, --epochs"),
        (["\u201cMy Photos\u201d"], "\u201cMy Photos\u201d: has quotation marks of text; type ' or \""),
        (["P", "\\"], "\\: ends a line in another shell; type the command in one line"),
        (["--data.root", ""], "--data.root: its value is empty, as a variable that is not set; name what is meant, or"),
        ([""], "an argument is empty, as a variable that is not set"),
        (["P", "--"], "--: stands alone; type an option and its value as --epochs 5"),
        (["--epochs", "=", "5"], "=: stands alone; type an option and its value as --epochs 5 or --epochs=5"),
    ],
)
def test_what_another_program_makes_of_arguments_is_refused(args, line):
    with pytest.raises(UserError) as refused:
        refuse_arguments(["fit", *args])
    assert str(refused.value).startswith(line)


def test_arguments_with_such_signs_inside_are_taken():
    refuse_arguments(["fit", "Caf\u00e9 \u2013 2024", "a\\b", "x=\u201cy\u201d", "--a", "-1"])


@pytest.mark.parametrize(
    ("given", "options", "line"),
    [
        ("train", [], "unknown command 'train'; type lit-ft finetune PHOTOS"),
        ("Fine-Tune", [], "unknown command 'Fine-Tune'; type lit-ft finetune"),
        ("eval", [], "unknown command 'eval'; type lit-ft validate RUN, or on test images lit-ft test RUN"),
        ("infer", [], "unknown command 'infer'; type lit-ft predict RUN PHOTOS"),
        ("help", [], "unknown command 'help'; type lit-ft --help"),
        ("help", ["finetune"], "unknown command 'help'; type lit-ft finetune --help"),
        ("--epochs", ["5", "fit", "P"], "--epochs: the command comes first; type lit-ft fit --epochs 5 P"),
        ("--config", ["a b.yaml"], "--config: the command comes first; type lit-ft finetune --config 'a b.yaml'"),
        ("--help-me", [], "--help-me: the command comes first, one of finetune, plan, "),
        ("a.yaml", ["plan"], "a.yaml: the command comes first; type lit-ft plan --config a.yaml"),
        ("a.ckpt", ["P"], "a.ckpt: the command comes first; type lit-ft predict a.ckpt PHOTOS"),
        ("My Photos", [], "My Photos: the command comes first; type lit-ft finetune 'My Photos'"),
        ("lit-ft", ["fit", "P"], "lit-ft: is typed twice; type lit-ft fit P"),
        ("quickstart", [], "quickstart: the command comes first; type lit-ft finetune --config quickstart"),
        ("resnet18", [], "unknown command 'resnet18'; choose from finetune, plan, "),
        ("plam", [], "unknown command 'plam'; nearest: plan"),
    ],
)
def test_what_is_no_command_is_answered_with_one(tmp_path, monkeypatch, given, options, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "My Photos").mkdir()
    assert str(unknown_command(given, options)).startswith(line)


def test_version_is_that_of_the_package(run):
    assert run("--version") == run("version") == run("-V")
    assert run("--version").startswith("lit-ft 0.")
