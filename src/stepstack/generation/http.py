"""HTTP to servers of models: JSON and streams of events, asked again while a server is away. No torch.

Requests are coroutines on one event loop, which runs in a thread of its own; ``start`` begins one from any thread.
Cancelling its future closes its connections, so the server hears at once that nobody waits any more.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT = 30.0  # seconds
LONGEST_WAIT = 5.0  # seconds between two attempts
LONGEST_MESSAGE = 1000  # characters of a server's own words

T = TypeVar("T")


class ServerAway(RuntimeError):
    """A server that gave no answer for all the patience there was, or none in time."""


class Refused(RuntimeError):
    """An answer with a status other than 200. ``message`` is the server's own."""

    def __init__(self, where: str, status: int, message: str):
        super().__init__(f"{where} answered {status}: {message}")
        self.status, self.message = status, message

    @property
    def busy(self) -> bool:
        """Whether the same request may be answered later."""
        return self.status in (408, 429) or self.status >= 500


class Client:
    """A client of one server; close it (``async with``) where ``keep_alive`` leaves connections open.

    ``patience``: seconds of failed attempts before ServerAway. ``timeout``: seconds of one answer. ``key``: the API
    key, sent as a bearer token. ``proxies``: whether to go through those that the environment names. ``retries`` counts
    the requests that were sent again. ValueError for a url without its scheme.
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
    async def events(self, path: str, body: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """POST of ``body``, answered by a stream of JSON objects, which ends at its end or at [DONE]."""
        from httpx2 import EventSource

        async def objects() -> AsyncIterator[dict[str, Any]]:
            async for event in EventSource(response):
                if event.data == "[DONE]":
                    return
                value: Any = event.json()
                if value.get("error"):
                    raise ConnectionError(f"an error in the stream: {value['error']}")
                yield value

        async with self._answer(path, body) as response:
            yield objects()

    async def patiently(
        self, path: str, ask: Callable[[int], Awaitable[T]], *, busy: bool = False, patience: float | None = None
    ) -> T:
        """The result of ``ask(attempt)``, from attempt 0, repeated while the server is away and, with ``busy``, while
        it is busy. Raises ServerAway, naming ``path``, and passes on what ``ask`` raises."""
        import httpx2

        patience = self.patience if patience is None else patience
        began, wait, attempt = 0.0, 0.1, 0
        while True:
            try:
                async with asyncio.timeout(self.timeout):
                    return await ask(attempt)
            except TimeoutError:
                raise ServerAway(f"{self.url}{path}: an answer took longer than timeout: {self.timeout:g} s") from None
            # A stream that ends too early is a ConnectionError.
            except (httpx2.TransportError, ConnectionError, json.JSONDecodeError, Refused) as error:
                if isinstance(error, Refused) and not (busy and error.busy):
                    raise
                now, attempt = time.monotonic(), attempt + 1
                began = now if attempt == 1 else began
                if now - began >= patience:
                    raise ServerAway(
                        f"{self.url} did not answer {path} for {patience:g} s ({attempt} attempts; {error!r})"
                    ) from error
            self.retries += 1
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    @asynccontextmanager
    async def _answer(self, path: str, body: Any) -> AsyncIterator[httpx2.Response]:
        method = "GET" if body is None else "POST"
        async with self._http.stream(method, self.url + path, json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                raise Refused(self.url + path, response.status_code, _message(text)[:LONGEST_MESSAGE])
            yield response


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
    """The words in an error's body: those of OpenAI's form, else all of it."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text
