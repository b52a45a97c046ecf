"""The page of the server, where a person drops photos."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256

from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from lit_ft.data.pages import render_page


def page_route() -> Route:
    """The route of the page, with a policy under which it loads nothing but its own scripts, styles and photos."""
    page = render_page("lit_ft.serving", "serve.html", title="Photos")
    sources = {kind: " ".join(_hashes(page, kind)) for kind in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    async def respond(request: Request) -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    return Route("/", respond)


def _hashes(page: str, kind: str) -> list[str]:
    """The hashes of the scripts or styles in a page, as a policy lists them."""
    found = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
    return [f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in found]
