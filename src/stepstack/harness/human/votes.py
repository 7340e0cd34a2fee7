"""A page for blind votes on pairs of clips, served on this machine, and what was voted. No torch.

study.json   what is voted on: clips by hash, dimensions, seed; votes on other clips are never added to it
votes.jsonl  a line a vote, on disk before the page hears that it was saved; an annotator's last vote on a pair counts
token        part of the page's address, which this user alone may read: others of the machine cannot vote as anyone

The page never learns which model is left: it asks for a side, and where a model stands is drawn anew for each annotator
and pair. A vote is written as it was seen, with what stood left, and is turned round when it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import threading
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import parse_qs, urlsplit

from stepstack.config import ConfigError
from stepstack.harness.human.pairwise import Choice, ClipPair, Verdict, left_is_a
from stepstack.report import jsonl
from stepstack.report.html import script_page

STUDY, VOTES, TOKEN = "study.json", "votes.jsonl", "token"
LONGEST_NAME, LARGEST = 40, 1 << 16  # characters of an annotator's name, bytes of a vote
HOSTS = ("127.0.0.1", "localhost")
TYPES = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".gif": "image/gif",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".wav": "audio/wav",
}

Seen = Literal["left", "tie", "right"]


class BadVote(ValueError):
    """A vote that is not taken: says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Which votes are asked for. ``questions``: dimension -> what voters are asked."""

    folder: Path
    pairs: Sequence[ClipPair]
    questions: Mapping[str, str]
    seed: int = 0

    def begin(self) -> None:
        """Write study.json, or go on with it."""
        if (self.folder / STUDY).is_file():
            self.check()
        else:
            jsonl.write_json_atomic(self.folder / STUDY, self.facts())

    def check(self) -> None:
        """ConfigError where the folder holds no study, or one of something else."""
        file, facts = self.folder / STUDY, self.facts()
        if not file.is_file():
            raise ConfigError(f"{file} does not exist: nobody has been asked to vote there yet")
        there = jsonl.read_json(file)
        if differ := [key for key in facts if facts[key] != there.get(key)]:
            raise ConfigError(
                f"{file} is a study with other {', '.join(differ)}: its votes are not for these clips. Give the "
                "folders and options that it was begun with, or another --out"
            )

    def facts(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "dimensions": list(self.questions),
            "pairs": [
                {"name": p.name, "group": p.group, "prompt": p.prompt, "a": _digest(p.a), "b": _digest(p.b)}
                for p in self.pairs
            ],
        }

    def side(self, pair: ClipPair, annotator: str, side: str) -> Path:
        """The clip that an annotator sees at the left or the right."""
        return pair.a if (side == "left") == left_is_a(self.seed, annotator, pair.name) else pair.b

    def order(self, annotator: str) -> list[int]:
        """Numbers of the pairs as an annotator goes through them: mixed, so that any first part is a fair sample."""
        drawn = [hashlib.sha256(repr((self.seed, annotator, "order", p.name)).encode()).digest() for p in self.pairs]
        return sorted(range(len(self.pairs)), key=lambda number: drawn[number])

    def checked(self, vote: Any) -> dict[str, Any]:
        """The row of votes.jsonl for what the page sent. BadVote that says what is wrong."""
        if not isinstance(vote, dict):
            raise BadVote(f"a vote is an object, not {type(vote).__name__}")
        annotator, pair, choices = annotator_of(vote.get("annotator")), self.pair(vote.get("pair")), vote.get("choices")
        if not isinstance(choices, dict) or choices.keys() != self.questions.keys():
            raise BadVote(f"choices must have a value for each of {', '.join(self.questions)}")
        if bad := [value for value in choices.values() if value not in get_args(Seen)]:
            raise BadVote(f"a choice is one of {', '.join(get_args(Seen))}, not {bad[0]!r}")
        left = "a" if left_is_a(self.seed, annotator, pair.name) else "b"
        time = datetime.now(UTC).isoformat(timespec="seconds")
        return {"time": time, "annotator": annotator, "pair": pair.name, "left": left, "choices": choices}

    def pair(self, number: Any) -> ClipPair:
        if type(number) is not int or not 0 <= number < len(self.pairs):
            raise BadVote(f"pair must be a number from 0 to {len(self.pairs) - 1}, not {number!r}")
        return self.pairs[number]


@dataclass(frozen=True, slots=True)
class Votes:
    """A judge: the votes of a study."""

    study: Study

    @property
    def dimensions(self) -> Sequence[str]:
        return list(self.study.questions)

    def rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(annotator, pair) -> the last vote."""
        file = self.study.folder / VOTES
        return {(row["annotator"], row["pair"]): row for row in jsonl.read(file)} if file.is_file() else {}

    def verdicts(self, pairs: Sequence[ClipPair]) -> list[Verdict]:
        names = {pair.name for pair in pairs}
        return [
            Verdict(name, dimension, annotator, unblinded(seen, row["left"]))
            for (annotator, name), row in self.rows().items()
            if name in names
            for dimension, seen in row["choices"].items()
        ]


def unblinded(seen: Seen, left: Literal["a", "b"]) -> Choice:
    """The model that was meant by what was seen."""
    if seen == "tie":
        return "tie"
    return "a" if (seen == "left") == (left == "a") else "b"


def annotator_of(name: Any) -> str:
    """A name without white space around it. BadVote for none and for a long one."""
    if not isinstance(name, str) or not 0 < len(name.strip()) <= LONGEST_NAME:
        raise BadVote(f"annotator must be a name of 1 to {LONGEST_NAME} characters")
    return name.strip()


class VoteServer(ThreadingHTTPServer):
    """Server of the pages of a study that was begun. ``port`` 0 takes a free one. ConfigError where the port is
    taken."""

    daemon_threads = True

    def __init__(self, study: Study, port: int):
        try:
            super().__init__((HOSTS[0], port), _Handler)
        except OSError as error:
            raise ConfigError(f"port {port} of this machine: {error.strerror}: give another --port, or 0") from None
        self.study, self.lock = study, threading.Lock()
        self.id = _digest(study.folder / STUDY)[:16]  # by which a browser keeps what it has not sent
        self.token = _token(study.folder / TOKEN)
        self.url = f"http://{HOSTS[0]}:{self.server_address[1]}/{self.token}/"

    def keep(self, vote: Any) -> None:
        """Returns when the vote is on disk."""
        row = self.study.checked(vote)
        with self.lock:
            jsonl.append(self.study.folder / VOTES, row, sync=True)


class _Handler(BaseHTTPRequestHandler):
    """Below the token: GET the page, pairs, given, clip; POST votes. Whatever is asked wrongly is answered by 400 and
    why."""

    server: VoteServer

    def do_GET(self) -> None:
        self._answer({"": self._page, "pairs": self._pairs, "given": self._given, "clip": self._clip})

    def do_POST(self) -> None:
        self._answer({"votes": self._vote})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: one line a request would bury the address."""

    def _answer(self, routes: Mapping[str, Any]) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        host = self.headers.get("Host", "").partition(":")[0]
        token, _, route = url.path.removeprefix("/").partition("/")
        # Another site's name may lead here, and a page of that site would read and vote.
        if host not in HOSTS or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"open the page by the address that was printed")
        elif route not in routes:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not here")
        else:
            try:
                kind, content = routes[route](query)
            except BadVote as error:
                self._send(HTTPStatus.BAD_REQUEST, "application/json", _json({"error": str(error)}))
            else:
                self._send(HTTPStatus.OK, kind, content)

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def _page(self, query: Mapping[str, str]) -> tuple[str, bytes]:
        return "text/html; charset=utf-8", page().encode()

    def _pairs(self, query: Mapping[str, str]) -> tuple[str, bytes]:
        """Pairs as the page needs them, in this annotator's order, with the votes that were cast."""
        study, annotator = self.server.study, annotator_of(query.get("annotator"))
        cast = {name: row["choices"] for (voter, name), row in Votes(study).rows().items() if voter == annotator}
        ordered = [(number, study.pairs[number]) for number in study.order(annotator)]
        content = {
            "study": self.server.id,
            "questions": study.questions,
            "pairs": [
                {
                    "number": n,
                    "prompt": pair.prompt,
                    "given": pair.given is not None,
                    "choices": cast.get(pair.name),
                }
                for n, pair in ordered
            ],
        }
        return "application/json", _json(content)

    def _given(self, query: Mapping[str, str]) -> tuple[str, bytes]:
        given = self.server.study.pair(_number(query)).given
        if given is None:
            raise BadVote("this pair has nothing but its prompt")
        return _content(given)

    def _clip(self, query: Mapping[str, str]) -> tuple[str, bytes]:
        study, annotator, side = self.server.study, annotator_of(query.get("annotator")), query.get("side", "")
        if side not in ("left", "right"):
            raise BadVote(f"side must be left or right, not {side!r}")
        return _content(study.side(study.pair(_number(query)), annotator, side))

    def _vote(self, query: Mapping[str, str]) -> tuple[str, bytes]:
        """A JSON body only: a form of another site cannot send one."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LARGEST:
            raise BadVote(f"a vote has at most {LARGEST} bytes and says how many")
        body = self.rfile.read(int(length))
        if self.headers.get_content_type() != "application/json":
            raise BadVote("a vote is sent as application/json")
        try:
            vote = json.loads(body)
        except ValueError as error:
            raise BadVote(f"a vote is JSON: {error}") from None
        self.server.keep(vote)
        return "application/json", _json({"saved": True})


def serve(study: Study, port: int, show: bool) -> None:
    """Until Ctrl-C. ``show`` opens a browser."""
    study.begin()
    with VoteServer(study, port) as server:
        print(f"{server.url} (this machine only; Ctrl-C ends and prints the table)", flush=True)
        if show:
            webbrowser.open(server.url)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def page() -> str:
    """The page, with its script and style in it; only they may run."""
    policy = "connect-src 'self'; img-src blob:; media-src blob:; "
    return script_page("Which clip?", Path(__file__).with_name("votes.js"), '<main id="main"></main>', policy)


def _content(file: Path) -> tuple[str, bytes]:
    return TYPES[file.suffix.lower()], file.read_bytes()


def _number(query: Mapping[str, str]) -> int | None:
    text = query.get("pair", "")
    return int(text) if text.isdecimal() else None


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _token(file: Path) -> str:
    """The token of a study, made at its first use and kept, so that the address stays when the server starts again."""
    if not file.is_file():
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
            handle.write(secrets.token_urlsafe(16))
    return file.read_text()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
