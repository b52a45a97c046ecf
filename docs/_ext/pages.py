"""What the pages need to be a site: links that leave docs/, generated parts, and ``llms.txt``."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import reference
from docutils import nodes

import lit_ft

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_ROOT = Path(__file__).parents[2]
_SHORT = 24  # characters of code within text that stay on one line, also on a phone

_HOMES = {
    "README.md": "docs/index.md",
    "CONTRIBUTING.md": "docs/project/contributing.md",
    "CHANGELOG.md": "docs/project/changelog.md",
    "benchmarks/README.md": "docs/project/measurements.md",
}
"""Pages outside docs/, and the page of the site that includes each."""

_GENERATED = {
    "commands": reference.write_commands,
    "keys": reference.write_keys,
    "recipes": reference.write_recipes,
}


def rewrite_links(text: str, folder: str, page: str) -> str:
    """Markdown whose relative links lead from a page of the site to where the site has their targets.

    What looks like a link in a fenced block stays.

    Args:
        text: The Markdown.
        folder: The folder of its file, from the root of the repository.
        page: The page of the site that shows it, likewise.
    """

    def moved(link: re.Match[str]) -> str:
        if not link[1]:
            return link[0]
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        home, anchor = _HOMES.get(target, target), link[3] or ""
        if target.startswith("configs/"):
            name = Path(target).name.removesuffix(".yaml")
            home, anchor = "docs/recipes.md", f"#{name.replace('.', '')}"
        return f"{link[1]}({posixpath.relpath(home, posixpath.dirname(page))}{anchor})"

    fence, relative = r"^```.*?^```$", r"(!?\[[^\]]*\])\((?![a-z]+:|#)([^)#]+)(#[^)]*)?\)"
    return re.sub(f"{fence}|{relative}", moved, text, flags=re.M | re.S)


def expand(text: str) -> str:
    """Markdown with the generated parts in place of their names."""
    return re.sub(r"^```\{generated\} (\w+)\n```$", lambda found: _GENERATED[found[1]](), text, flags=re.M)


def write_index(pages: Iterable[tuple[str, str, str]]) -> str:
    """The text of ``llms.txt``: pages by address and title, each with what it is about."""
    lines = [f"- [{title}]({address})" + f": {about}" * bool(about) for address, title, about in pages]
    return "\n".join([f"# {lit_ft.__name__}", "", f"> {lit_ft.__doc__}", "", "## Pages", "", *lines, ""])


def _first_sentence(page: nodes.document) -> str:
    """That of the paragraph below the title, if there is one."""
    top = next(iter(page.findall(nodes.section)))
    text = next((node.astext() for node in top.children if isinstance(node, nodes.paragraph)), "")
    return re.split(r"(?<=\.)\s", " ".join(text.split()))[0].rstrip(".")


def _on_read(app: Sphinx, docname: str, content: list[str]) -> None:
    page = f"docs/{docname}.md"
    content[0] = expand(rewrite_links(content[0], posixpath.dirname(page), page))


def _on_include(app: Sphinx, path: Path, _: str, content: list[str]) -> None:
    included = (Path(app.srcdir) / path).resolve().relative_to(_ROOT).as_posix()
    content[0] = rewrite_links(content[0], posixpath.dirname(included), f"docs/{app.env.docname}.md")


def _on_doctree(_: Sphinx, page: nodes.document) -> None:
    for code in page.findall(nodes.literal):
        code["classes"] += ["short"] * (len(code.astext()) <= _SHORT)


def _on_missing(app: Sphinx, env: Any, node: Any, contnode: Any) -> Any:
    """Finds a public name by the file that defines it, which is where annotations have it."""
    name = node["reftarget"].rpartition(".")[2]
    if node["reftarget"].startswith("lit_ft.") and name in lit_ft.__all__:
        public = f"lit_ft.{name}"
        return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, contnode)
    return None


def _on_end(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.name == "html":
        env = app.env
        pages = [name for name in _in_order(env.toctree_includes, "index") if name != "index"]
        abouts = [_first_sentence(env.get_doctree(name)) for name in pages]
        told = [(f"{name}.html", env.titles[name].astext(), about) for name, about in zip(pages, abouts, strict=True)]
        (Path(app.outdir) / "llms.txt").write_text(write_index(told), encoding="utf-8")


def _in_order(includes: dict[str, list[str]], page: str) -> list[str]:
    return [page, *(one for child in includes.get(page, []) for one in _in_order(includes, child))]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects all of this."""
    app.connect("source-read", _on_read)
    app.connect("include-read", _on_include)
    app.connect("doctree-read", _on_doctree)
    app.connect("missing-reference", _on_missing)
    app.connect("build-finished", _on_end)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
