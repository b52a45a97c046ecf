"""Uploads: an image out of a request, in the process that speaks HTTP, which decodes nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

DEFAULT_TOP_K = 5
"""Number of classes in an answer, unless the request says another."""

_EXPECTED = "send one image as multipart/form-data, or its bytes as image/jpeg or application/octet-stream"


@dataclass(frozen=True)
class Upload:
    """An image as it was sent.

    Args:
        content: The bytes of its file.
        top_k: The number of classes or labels to answer with.
        explain: Whether to answer with a heat map.
    """

    content: bytes
    top_k: int = DEFAULT_TOP_K
    explain: bool = False


async def read_upload(request: Request, top_k: str = str(DEFAULT_TOP_K), explain: str = "false") -> Upload:
    """The image of a request, whose size is already limited.

    Args:
        request: The request.
        top_k: The number of classes or labels to answer with, of the query.
        explain: Whether to answer with a heat map, of the query.

    Raises:
        HTTPException: With the status and a line about what is wrong.
    """
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", top_k):
        raise HTTPException(422, f"top_k: must be a whole number of at least 1, got {top_k[:20]!r}")
    if explain not in ("true", "false"):
        raise HTTPException(422, f"explain: must be true or false, got {explain[:20]!r}")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            content = await _read_form(request)
        elif kind in ("", "application/octet-stream") or kind.startswith("image/"):
            content = await request.body()
        else:
            raise HTTPException(415, f"{kind[:100]} is not taken; {_EXPECTED}")
    except ClientDisconnect:  # nobody is left to read the answer
        raise HTTPException(400, "the upload has broken off") from None
    if not content:
        raise HTTPException(400, f"the request has no image; {_EXPECTED}")
    return Upload(content, int(top_k), explain == "true")


async def _read_form(request: Request) -> bytes:
    """The content of the one file in a form, whatever its field is named."""
    try:
        async with request.form(max_files=1, max_fields=20) as form:
            files = [value for value in form.values() if isinstance(value, UploadFile)]
            return await files[0].read() if files else b""
    except ValueError as error:  # of the parser
        raise HTTPException(400, f"the form cannot be read ({' '.join(str(error).split())})") from error
