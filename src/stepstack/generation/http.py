"""HTTP to servers of models: JSON and streams of events, asked again while a server is away. No torch.

Requests are coroutines on one event loop, which runs in a thread of its own; ``start`` begins one from any thread.
Cancelling its future closes its connections, so the server hears at once that nobody waits any more.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT = 30.0  # seconds
LONGEST_WAIT = 5.0  # seconds between two attempts
LONGEST_MESSAGE = 1000  # characters of a server's own words
TOO_MANY = 429  # status of a request that came too early

T = TypeVar("T")


class ServerAway(RuntimeError):
    """A server that gave no answer for all the patience there was, or none in time."""


class Refused(RuntimeError):
    """An answer with a status other than 200, or a page in place of data. ``message`` is the server's own;
    ``retry_after``: seconds that it asks to wait, 0 where it asks for none."""

    def __init__(self, where: str, status: int, message: str, retry_after: float = 0.0):
        super().__init__(f"{where} answered {status}: {message}")
        self.status, self.message, self.retry_after = status, message, retry_after

    @property
    def busy(self) -> bool:
        """Whether the same request may be answered later."""
        return self.status in (408, 429) or self.status >= 500


class Slots:
    """Places for requests in flight, ``most`` at first.

    A refusal for too many requests halves them, once for all that were sent before the last halving, and every round of
    answers gives one back: additive increase, multiplicative decrease, as in TCP. Nobody gets a place before the time
    at which the server wants to be asked again.
    """

    def __init__(self, most: int):
        self.most, self.places, self.in_flight = most, float(most), 0
        self._opens = self._halved = -math.inf  # of the monotonic clock
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A place, as soon as one is free."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self.in_flight < int(self.places))
                pause = self._opens - time.monotonic()
                if pause <= 0:
                    self.in_flight += 1
                    break
            await asyncio.sleep(pause)
        try:
            yield
        finally:
            self.in_flight -= 1
            async with self._changed:
                self._changed.notify_all()

    def refused(self, sent: float, pause: float) -> None:
        """Take note of a request, sent at a time of the monotonic clock, that was one too many; ``pause`` seconds are
        to pass before the next."""
        now = time.monotonic()
        self._opens = max(self._opens, now + pause)
        if sent > self._halved:
            self.places, self._halved = max(1.0, self.places / 2), now

    def answered(self) -> None:
        """Take note of an answer."""
        self.places = min(float(self.most), self.places + 1 / self.places)


class Client:
    """A client of one server; close it (``async with``) where ``keep_alive`` leaves connections open.

    ``patience``: seconds of failed attempts, since the last answer to any request, before ServerAway. ``timeout``:
    seconds of one answer. ``key``: the API key, sent as a bearer token and shown in no message. ``proxies``: whether to
    go through those that the environment names. ``retries`` counts the requests that were sent again. ValueError for a
    url without its scheme.
    """

    def __init__(
        self,
        url: str,
        *,
        patience: float,
        timeout: float,
        key: str | None = None,
        keep_alive: bool = False,
        proxies: bool = False,
    ):
        import httpx2  # 0.1 s: not where only a config is read

        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the server's url {url!r} must begin with http:// or https://")
        self.url, self.patience, self.timeout = url, patience, timeout
        self.retries = 0
        self._key, self._answered = key, -math.inf  # the last answer, on the monotonic clock
        self._http = httpx2.AsyncClient(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT),  # an answer's own is kept by ``patiently``
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None if keep_alive else 0),
            follow_redirects=True,
            verify=_certificates(),
            trust_env=proxies,
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def json(self, path: str, body: Any = None) -> Any:
        """GET, or POST of ``body``; {} for an empty answer. Refused for a status other than 200."""
        async with self._answer(path, body) as response:
            data = await response.aread()
        return json.loads(data) if data else {}

    @asynccontextmanager
    async def events(self, path: str, body: Any) -> AsyncIterator[AsyncIterator[dict[str, Any] | None]]:
        """POST of ``body``, answered by a stream of JSON objects, which ends at its end or with None at [DONE]; an
        answer in one piece is a stream of one. Refused for a page of HTML."""
        from httpx2 import EventSource

        async def stream() -> AsyncIterator[dict[str, Any] | None]:
            async for event in EventSource(response):
                if event.data == "[DONE]":
                    yield None
                    return
                yield self._whole(event.json())

        async def piece() -> AsyncIterator[dict[str, Any] | None]:
            yield self._whole(json.loads(await response.aread()))
            yield None

        async with self._answer(path, body) as response:
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == "text/html":
                raise Refused(self.url + path, 200, "a page of HTML in place of JSON")
            yield piece() if kind == "application/json" else stream()

    def _whole(self, value: Any) -> dict[str, Any]:
        """A JSON object of a stream. ConnectionError for an error in its place."""
        if not isinstance(value, dict) or value.get("error"):
            raise ConnectionError(f"an error in the stream: {self._hidden(str(value))[:LONGEST_MESSAGE]}")
        return value

    async def patiently(
        self,
        path: str,
        ask: Callable[[int], Awaitable[T]],
        *,
        busy: bool = False,
        patience: float | None = None,
        slots: Slots | None = None,
    ) -> T:
        """The result of ``ask(attempt)``, from attempt 0, repeated while the server is away and, with ``busy``, while
        it is busy; each attempt takes one of ``slots``. Raises ServerAway, naming ``path``, and passes on what ``ask``
        raises."""
        import httpx2

        patience = self.patience if patience is None else patience
        began, wait, attempt = 0.0, 0.1, 0
        while True:
            sent = time.monotonic()
            try:
                async with nullcontext() if slots is None else slots.one():
                    sent = time.monotonic()
                    async with asyncio.timeout(self.timeout):
                        result = await ask(attempt)
            except TimeoutError:
                raise ServerAway(f"{self.url}{path}: an answer took longer than timeout: {self.timeout:g} s") from None
            # A stream that ends too early is a ConnectionError.
            except (httpx2.TransportError, ConnectionError, json.JSONDecodeError, Refused) as error:
                if isinstance(error, Refused) and not (busy and error.busy):
                    raise
                now, attempt = time.monotonic(), attempt + 1
                began = now if attempt == 1 else began
                asked_to_wait = error.retry_after if isinstance(error, Refused) else 0.0
                if now - max(began, self._answered) >= patience:
                    raise ServerAway(
                        f"{self.url} did not answer {path} for {patience:g} s ({attempt} attempts; {error!r})"
                    ) from error
                if asked_to_wait > patience:
                    raise ServerAway(
                        f"{self.url} wants to be asked again in {asked_to_wait:g} s, and patience is {patience:g} s "
                        f"({error!r})"
                    ) from error
                if slots is not None and isinstance(error, Refused) and error.status == TOO_MANY:
                    slots.refused(sent, asked_to_wait)
            else:
                self._answered = time.monotonic()
                if slots is not None:
                    slots.answered()
                return result
            self.retries += 1
            await asyncio.sleep(max(wait, asked_to_wait))
            wait = min(2 * wait, LONGEST_WAIT)

    @asynccontextmanager
    async def _answer(self, path: str, body: Any) -> AsyncIterator[httpx2.Response]:
        method = "GET" if body is None else "POST"
        async with self._http.stream(method, self.url + path, json=body) as response:
            if response.status_code != 200:
                text = self._hidden((await response.aread()).decode(errors="replace"))
                wait = seconds_of(response.headers.get("retry-after", ""))
                raise Refused(self.url + path, response.status_code, _message(text)[:LONGEST_MESSAGE], wait)
            yield response

    def _hidden(self, text: str) -> str:
        """A server's words without the key, which some repeat."""
        return text.replace(self._key, "***") if self._key else text


def seconds_of(retry_after: str) -> float:
    """Seconds from now that a Retry-After header names, as a number or as a date; 0 for any other text and for a time
    that is past."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            date = parsedate_to_datetime(retry_after)
        except (ValueError, OverflowError):
            return 0.0
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return seconds if 0 < seconds < math.inf else 0.0


def start(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Begin a coroutine on the loop, from any other thread."""
    return asyncio.run_coroutine_threadsafe(coroutine, loop())


@cache
def loop() -> asyncio.AbstractEventLoop:
    """The event loop of all clients."""
    running = asyncio.new_event_loop()
    threading.Thread(target=running.run_forever, name="http", daemon=True).start()
    return running


@cache
def _certificates() -> Any:
    """The TLS context of all clients: reading the certificates takes 30 ms."""
    import httpx2

    return httpx2.create_ssl_context()


def _message(text: str) -> str:
    """The words in an error's body: those of OpenAI's form, with the parameter that they speak of, else all of it."""
    try:
        error = json.loads(text)["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        return text
    return f"{message} ({param})" if isinstance(param, str) and param not in message else message
