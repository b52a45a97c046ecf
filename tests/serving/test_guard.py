import asyncio
import json
from types import SimpleNamespace

import pytest
from starlette.exceptions import HTTPException

from lit_ft.serving import guard as guard_file
from lit_ft.serving.guard import RequestGuard


async def read_all(receive):
    size = 0
    while True:
        message = await receive()
        size += len(message["body"])
        if not message["more_body"]:
            return size


class Echo:
    """Answers with the size of the body, after a time; counts how many it does at once."""

    def __init__(self, seconds=0.0):
        self.seconds, self.now, self.most = seconds, 0, 0

    async def __call__(self, scope, receive, send):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            size = await read_all(receive)
            await asyncio.sleep(self.seconds)
        except HTTPException as error:
            size = error.detail
        finally:
            self.now -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(size).encode()})


async def post(app, parts, length=None, wait=0.0, method="POST"):
    """The status, headers and content that a request gets which sends its parts, with a wait before the last."""
    left, sent = list(parts), []

    async def receive():
        if len(left) == 1:
            await asyncio.sleep(wait)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    await app({"type": "http", "method": method, "headers": headers}, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])


def test_body_of_the_largest_size_is_passed_on_and_a_byte_more_is_refused():
    async def sizes():
        guard = RequestGuard(Echo(), max_bytes=10, slots=1)
        return [(await post(guard, [b"a" * 4, b"a" * count]))[2] for count in (6, 7)]

    assert asyncio.run(sizes()) == [10, "the upload is larger than 1e-05 MB"]


@pytest.mark.parametrize(("length", "content"), [(10, 2), (11, "the upload is larger than 1e-05 MB"), ("x", 2)])
def test_announced_size_is_refused_before_anything_is_read(length, content):
    guard = RequestGuard(Echo(), max_bytes=10, slots=1)
    assert asyncio.run(post(guard, [b"aa"], length))[2] == content


def test_slow_upload_and_slow_prediction_are_told_apart():
    async def both():
        upload = await post(RequestGuard(Echo(), 10, 1, seconds=0.02), [b"a", b"a"], wait=60)
        answer = await post(RequestGuard(Echo(60), 10, 1, seconds=0.02), [b"a"])
        return upload, answer

    (upload, _, why_upload), (answer, headers, why_answer) = asyncio.run(both())
    assert (upload, why_upload) == (408, {"detail": "the upload has taken more than 0.02 s"})
    assert (answer, why_answer) == (504, {"detail": "the prediction has taken more than 0.02 s"})
    assert headers[b"x-content-type-options"] == b"nosniff"


def test_prediction_that_a_process_has_taken_with_it_is_given_up_and_an_upload_is_not(monkeypatch):
    monkeypatch.setattr(guard_file, "_POLL_SECONDS", 0.01)

    async def lose():
        restarts = SimpleNamespace(value=0)
        asyncio.get_running_loop().call_later(0.05, setattr, restarts, "value", 1)
        lost, late = Echo(60), Echo(0.05)
        return await asyncio.gather(
            post(RequestGuard(lost, 10, 1, restarts=restarts), [b"a"]),
            post(RequestGuard(late, 10, 1, restarts=restarts), [b"a", b"a"], wait=0.1),
        ), lost.now

    (lost, uploaded), running = asyncio.run(lose())
    reason = "the process that predicts was started again; send the image once more"
    assert (lost[0], lost[2]) == (503, {"detail": reason})
    assert (uploaded[0], uploaded[2], running) == (200, 2, 0)


def test_error_of_what_is_guarded_is_passed_on():
    async def fail(scope, receive, send):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        asyncio.run(post(RequestGuard(fail, 10, 1), [b"a"]))


@pytest.mark.parametrize(("method", "most"), [("POST", 3), ("GET", 8)])
def test_only_so_many_uploads_are_in_memory_at_once(method, most):
    async def many():
        guard = RequestGuard(echo, max_bytes=10, slots=3)
        return await asyncio.gather(*(post(guard, [b"a" * size], method=method) for size in range(1, 9)))

    echo = Echo(0.001)
    assert [content for _, _, content in asyncio.run(many())] == list(range(1, 9))
    assert echo.most == most


def test_headers_of_safety_are_added_but_replace_none():
    async def app(scope, receive, send):
        headers = [(b"content-security-policy", b"own")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"1"})

    _, headers, _ = asyncio.run(post(RequestGuard(app, 10, 1), [b""], method="GET"))
    assert headers[b"content-security-policy"] == b"own"
    assert (headers[b"cache-control"], headers[b"referrer-policy"]) == (b"no-store", b"no-referrer")
