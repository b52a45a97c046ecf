"""Limits of each request and headers of each response, as a middleware around the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from ctypes import c_int
from multiprocessing.sharedctypes import RawValue

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = 60
"""After which a request is given up, from its first byte to the answer."""

_POLL_SECONDS = 1

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class RequestGuard:
    """Refuses uploads that are too large or too slow, lets few be in memory at once, and adds headers for safety.

    Args:
        app: What it guards.
        max_bytes: The largest body of a request.
        slots: The number of uploads that are read or predicted at once; others wait, unread. So their memory is
            bounded, however many come.
        seconds: The time that each of these may take.
        restarts: How often the process that predicts was started again, in memory that processes share. What it had
            then is given up.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, slots: int, seconds: float = SECONDS, restarts: c_int | None = None
    ) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds
        self._restarts: c_int = RawValue(c_int) if restarts is None else restarts
        self._slots = asyncio.Semaphore(slots)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["method"] != "POST":
            await self.app(scope, receive, send_safely)
            return
        async with self._slots:
            await self._answer_in_time(scope, receive, send_safely)

    async def _answer_in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _LimitedBody(receive, Headers(scope=scope), self.max_bytes)
        started, refusal = False, None

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        answer = self._wait_for(self.app(scope, body.receive, send_noted), body)
        try:
            if not await asyncio.wait_for(answer, self.seconds):
                refusal = 503, "the process that predicts was started again; send the image once more"
        except asyncio.TimeoutError:
            status, what = (504, "the prediction") if body.is_complete else (408, "the upload")
            refusal = status, f"{what} has taken more than {self.seconds:g} s"
        if refusal and not started:
            await JSONResponse({"detail": refusal[1]}, refusal[0], {"Connection": "close"})(scope, receive, send)

    async def _wait_for(self, answer: Awaitable[None], body: _LimitedBody) -> bool:
        """Waits for the answer to a request; false if the process that had its image was started again."""
        known, task = self._restarts.value, asyncio.ensure_future(answer)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_POLL_SECONDS)
                if not body.is_complete:
                    known = self._restarts.value
                elif self._restarts.value != known and not task.done():
                    return False
        finally:
            if task.cancel():
                await asyncio.wait({task})
        await task
        return True


class _LimitedBody:
    """The body of a request, refused as soon as it is too large."""

    def __init__(self, receive: Receive, headers: Headers, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        length = headers.get("content-length", "")
        self._announced = int(length) if length.isdecimal() and len(length) < 19 else 0
        self._count = 0
        self.is_complete = False

    async def receive(self) -> Message:
        """The next part."""
        self._refuse(self._announced)
        message = await self._receive()
        self._count += len(message.get("body", b""))
        self._refuse(self._count)
        self.is_complete = self.is_complete or not message.get("more_body", False)
        return message

    def _refuse(self, size: int) -> None:
        if size > self._max_bytes:
            raise HTTPException(413, f"the upload is larger than {self._max_bytes / 1e6:g} MB")
