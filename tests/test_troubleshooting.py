"""Messages that the page on troubleshooting quotes."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ENTRIES = re.split(r"^### `(.+)`$", re.sub(r"^## .*$", "", PAGE, flags=re.M), flags=re.M)[1:]
QUOTED = dict(zip(ENTRIES[::2], ENTRIES[1::2], strict=True))


def pattern_of(quoted):
    """A pattern of a message, in which … stands for what differs."""
    return re.compile(".+".join(re.escape(part) for part in re.split(r" *… *", quoted)), flags=re.S)


@pytest.fixture(scope="module")
def messages():
    """The longer strings of the source, without backquotes, and with … where values are put in."""
    found = []
    for file in (ROOT / "lit_ft").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(parts).replace("`", ""))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 8:
                found.append(node.value.replace("`", ""))
    return found


@pytest.mark.parametrize("quoted", QUOTED)
def test_quoted_message_is_in_the_source(messages, quoted):
    assert any(pattern_of(quoted).search(message) for message in messages)


def test_messages_are_many_and_examples_are_of_their_entry():
    assert len(QUOTED) > 30
    examples = {quoted: re.findall(r"```text\n(.*?)```", text, flags=re.S) for quoted, text in QUOTED.items()}
    shown = {quoted: found for quoted, found in examples.items() if found}
    assert len(shown) > 8
    assert all(pattern_of(quoted).search(example) for quoted, found in shown.items() for example in found)
