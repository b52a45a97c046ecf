import asyncio

import pytest
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.requests import ClientDisconnect, Request

from lit_ft.serving.uploads import read_upload


def read(kind="image/jpeg", parts=(b"ab", b"c"), broken=False, of="content", **query):
    """What is made of a request, or the status and reason that refuse it."""
    left = [*parts]

    async def receive():
        if not left:
            return {"type": "http.disconnect"} if broken else {"type": "http.request"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or broken}

    request = Request({"type": "http", "headers": [(b"content-type", kind.encode())]}, receive)
    try:
        return getattr(asyncio.run(read_upload(request, **query)), of)
    except HTTPException as error:
        return error.status_code, error.detail


@pytest.mark.parametrize(("given", "wanted"), [("true", True), ("false", False)])
def test_heat_map_is_made_on_request(given, wanted):
    assert read(explain=given, of="explain") is wanted


@pytest.mark.parametrize("given", ["", "yes", "True", "1", "<b>" * 20])
def test_other_word_about_the_heat_map_is_refused(given):
    assert read(explain=given) == (422, f"explain: must be true or false, got {given[:20]!r}")


def test_parts_of_an_upload_are_put_together():
    assert read() == b"abc"


def test_upload_that_breaks_off_is_no_fault_of_the_server():
    assert read(broken=True) == (400, "the upload has broken off")


@pytest.mark.parametrize(("error", "status"), [(ValueError("Did not\nfind CR"), 400), (ClientDisconnect(), 400)])
def test_whatever_the_parser_of_forms_raises_is_a_malformed_request(monkeypatch, error, status):
    async def parse(_):
        raise error

    monkeypatch.setattr(MultiPartParser, "parse", parse)
    found = read("multipart/form-data; boundary=x")
    reason = "the form cannot be read (Did not find CR)" if str(error) else "the upload has broken off"
    assert found == (status, reason)
