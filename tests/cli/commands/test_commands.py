import pytest

from lit_ft.cli.commands import COMMANDS, CommandParser
from lit_ft.errors import UserError


@pytest.fixture
def parser():
    made = CommandParser(prog="lit-ft predict", description=COMMANDS["predict"])
    made.add_argument("--out")
    made.add_argument("--top_k", type=int)
    return made


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--output", "x.csv"], "--output: there is no such option; nearest: --out"),
        (["-o", "x.csv"], "-o: there is no such option; nearest: --out"),
        (["--top-k=3"], "--top-k=3: there is no such option; nearest: --top_k"),
        (["--tpo_k", "3"], "--tpo_k: there is no such option; nearest: --top_k"),
        (["--format", "x"], "--format: there is no such option; lit-ft predict has --out, --top_k"),
        (["--top_k", "x"], "--top_k: invalid int value: 'x' (see lit-ft predict --help)"),
    ],
)
def test_option_that_a_command_has_not_is_answered_with_one_that_it_has(parser, args, line):
    with pytest.raises(UserError) as refused:
        parser.parse_args(args)
    assert str(refused.value) == line.replace("--top-k=3", "--top-k")


@pytest.mark.parametrize("args", [["run", "--source", "P"], ["P", "--ckpt_path", "run"], ["run", "--images=x", "P"]])
def test_name_for_what_stands_alone_is_answered_with_its_place(parser, args):
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("photos", nargs="+", metavar="PHOTOS")
    with pytest.raises(UserError, match=r"what it names stands alone: lit-ft predict CHECKPOINT PHOTOS$"):
        parser.parse_args(args)
    with pytest.raises(UserError, match=r"; nearest: --out$"):
        parser.parse_args(["run", "new", "--save", "x.csv"])
