import sys
from importlib import metadata

import pytest

from lit_ft.errors import UserError, check_torchvision, nearest, printable, unknown


def pretend(monkeypatch, torch, torchvision, requires):
    versions = {"torch": torch, "torchvision": torchvision}
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    monkeypatch.setattr(metadata, "requires", lambda _: requires)


def test_nearest_is_ordered_and_limited():
    assert nearest("resnet5", ["vgg16", "resnet152", "resnet50", "resnet101"], most=2) == ["resnet50", "resnet152"]
    assert nearest("zzz", ["vgg16"]) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("stage", "layer5", ["layer4"]), "unknown stage 'layer5'; nearest: layer4 (choose from layer4)"),
        (("stage", "zzz", ["a", "b"], "--key"), "--key: unknown stage 'zzz' (choose from a, b)"),
        (("tag", "zzz", [f"x{i}" for i in range(13)]), "unknown tag 'zzz'"),
        (("tag", "zzz", list("abcdefghijkl")), "unknown tag 'zzz' (choose from a, b, c, d, e, f, g, h, i, j, k, l)"),
        (("tag", "x", []), "unknown tag 'x'"),
    ],
)
def test_unknown_names_what_was_given_and_lists_short_choices(arguments, text):
    assert str(unknown(*arguments)) == text
    assert isinstance(unknown(*arguments), UserError)


def test_torchvision_that_belongs_to_torch_passes():
    check_torchvision()


@pytest.mark.parametrize("pin", ["torch==2.8.0", "torch (==2.8.0)", "torch == 2.8.0 ; python_version > '3'"])
def test_torchvision_for_another_torch_names_both_and_the_pair_to_install(monkeypatch, pin):
    pretend(monkeypatch, "2.9.1+cpu", "0.23.0+cu126", ["numpy", "torchmetrics==1.0", pin])
    with pytest.raises(UserError) as caught:
        check_torchvision()
    assert str(caught.value) == (
        "torch 2.9.1+cpu and torchvision 0.23.0+cu126 do not belong together: torchvision 0.23.0+cu126 is built for "
        "torch 2.8.0; run: pip install --force-reinstall torch==2.8.0 torchvision==0.23.0"
    )


def test_local_part_of_the_version_does_not_matter(monkeypatch):
    pretend(monkeypatch, "2.8.0+cu126", "0.23.0", ["torch==2.8.0"])
    check_torchvision()


class Breaks:
    """An import hook that fails as torchvision does where its operators are missing."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            raise self.error


@pytest.mark.parametrize("requires", [["torch==2.8.0"], None])
def test_torchvision_that_cannot_be_imported_though_versions_match(monkeypatch, requires):
    pretend(monkeypatch, "2.8.0+cpu", "0.23.0", requires)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Breaks(RuntimeError("operator torchvision::nms does not exist"))])
    with pytest.raises(
        UserError, match=r"^torch 2\.8\.0\+cpu .* install --force-reinstall torch==2\.8\.0 torchvision==0\.23\.0$"
    ):
        check_torchvision()


def test_import_that_fails_for_another_reason_is_not_blamed_on_the_pair(monkeypatch):
    pretend(monkeypatch, "2.8.0", "0.23.0", ["torch==2.8.0"])
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Breaks(ImportError("No module named 'PIL'"))])
    with pytest.raises(ImportError, match="PIL"):
        check_torchvision()


def test_missing_package_is_named(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(UserError, match=r"^torch is not installed; run: pip install torch torchvision$"):
        check_torchvision()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ant bee", "ant bee"),
        ("caf\u00e9 \u87fb \U0001f41c\u00a0", "caf\u00e9 \u87fb \U0001f41c\u00a0"),
        ("\U0001f469\u200d\U0001f52c", "\U0001f469\u200d\U0001f52c"),  # one sign of two
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J\x7f\x00", r"\x9b2J\x7f\x00"),
        ("a\r\tb\n", r"a\r\tb\n"),
        ("\u202ecod.exe\u2066\u200f\ufeff\u2028", r"\u202ecod.exe\u2066\u200f\ufeff\u2028"),
        ("\U000e0041", r"\U000e0041"),  # a tag, which shows nothing
        ("\udcff.png", r"\udcff.png"),
    ],
)
def test_printable_spells_out_what_acts_on_a_terminal_or_hides(text, shown):
    assert printable(text) == shown
    shown.encode()  # for a terminal, also what is no text


def test_printable_keeps_our_own_line_breaks_and_no_others():
    assert printable("one\ntwo\r\x1b[1A", lines=True) == "one\ntwo\\r\\x1b[1A"
