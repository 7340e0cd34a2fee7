"""The part of the Hugging Face hub's API that uploads and downloads: huggingface_hub's real client talks to it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants, hf_api

TOKEN = "hf_of_the_tests"
LFS = (".safetensors",)
COMMIT = "0" * 40  # of the one state that a branch has
REQUIRED = {"task", "dataset", "metrics"}  # of a result of a model-index


class Hub:
    """Repositories by id: ``private`` and files by branch. ``url``: its endpoint."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.branches: dict[tuple[str, str], dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.calls: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def serve_this_process(self, patch: pytest.MonkeyPatch) -> None:
        """Have huggingface_hub, which has read its environment, talk to this hub, as owner."""
        patch.setattr(constants, "ENDPOINT", self.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", self.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(hf_api.api, "endpoint", self.url)  # of functions such as model_info
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", TOKEN)


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that serves until the block ends."""
    served = Hub()
    thread = threading.Thread(target=served.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.server.shutdown()
        served.server.server_close()
        thread.join()


def refused(card: str) -> str:
    """Why the head of a card is refused, as the hub's checks of it say; "" where it is well."""
    if not card.startswith("---\n"):
        return "no YAML at the top"
    head = yaml.safe_load(card.split("---\n")[1])
    if not isinstance(head.get("license"), str):
        return "license must be a string"
    for model in head.get("model-index", []):
        for result in model["results"]:
            if missing := REQUIRED - result.keys():
                return f"model-index: a result has no {', '.join(sorted(missing))}"
            if any("value" not in metric or "type" not in metric for metric in result["metrics"]):
                return "model-index: a metric has no type or value"
    return ""


def git_sha(content: bytes) -> str:
    """Name of a file's content in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.calls.append(f"{self.command} {path}")
        if not path.startswith("/api/models/"):
            return self.file(*path[1:].split("/", 4))
        owner, name, *rest = path.removeprefix("/api/models/").split("/")
        repo = f"{owner}/{name}"
        if repo not in self.hub.private:
            return self.reply(404, {"error": "no such repository"})
        files = self.hub.branches[repo, "main"]
        if rest[:1] == ["tree"]:
            listed = [{"type": "file", "path": p, "size": len(c), "oid": git_sha(c)} for p, c in files.items()]
            return self.reply(200, listed)
        facts = {"id": repo, "private": self.hub.private[repo], "sha": COMMIT, "tags": []}
        return self.reply(200, facts | {"siblings": [{"rfilename": name} for name in files]})

    do_HEAD = do_GET

    def file(self, owner: str, name: str, verb: str, revision: str, path: str) -> None:
        assert verb == "resolve", self.path
        content = self.hub.branches[f"{owner}/{name}", "main"].get(path)
        if content is None:
            return self.reply(404, {"error": "Entry not found"}, **{"X-Error-Code": "EntryNotFound"})
        return self.reply(200, content, **{"ETag": f'"{git_sha(content)}"', "X-Repo-Commit": COMMIT})

    def do_PUT(self) -> None:
        content, name = self.content(), self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != name:
            return self.reply(422, {"error": "sha256 of another content"})
        self.hub.objects[name] = content
        return self.reply(200, {})

    def do_POST(self) -> None:
        content, path = self.content(), unquote(urlsplit(self.path).path)
        self.hub.calls.append(f"POST {path}")
        if path == "/api/validate-yaml":
            why = refused(json.loads(content)["content"])
            return self.reply(400 if why else 200, {"errors": [{"message": why}] if why else [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            return self.create(json.loads(content))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(content))
        owner, name, verb, *rest = path.removeprefix("/api/models/").split("/", 3)
        repo, branch = f"{owner}/{name}", rest[0]
        if verb == "branch":
            if (repo, branch) in self.hub.branches:
                return self.reply(409, {"error": "Reference already exists"})
            self.hub.branches[repo, branch] = dict(self.hub.branches[repo, "main"])
            return self.reply(201, {})
        if (repo, branch) not in self.hub.branches:
            return self.reply(404, {"error": "no such branch"})
        if verb == "preupload":
            named = [file["path"] for file in json.loads(content)["files"]]
            modes = [{"path": p, "uploadMode": "lfs" if p.endswith(LFS) else "regular"} for p in named]
            return self.reply(200, {"files": [mode | {"shouldIgnore": False} for mode in modes]})
        assert verb == "commit", path
        return self.commit(repo, branch, [json.loads(line) for line in content.splitlines()])

    def create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{repo}"}
        if repo in self.hub.private:
            return self.reply(409, url | {"error": "You already created this model repo"})
        self.hub.private[repo] = asked.get("visibility") == "private"
        self.hub.branches[repo, "main"] = {}
        return self.reply(200, url)

    def batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for item in asked["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}}}
            objects.append(item | ({} if item["oid"] in self.hub.objects else {"actions": actions}))
        self.reply(200, {"transfer": "basic", "objects": objects})

    def commit(self, repo: str, branch: str, lines: list[dict[str, Any]]) -> None:
        files = self.hub.branches[repo, branch]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]  # KeyError: it was never uploaded
        oid = hashlib.sha1(json.dumps(lines).encode()).hexdigest()
        self.reply(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid})

    def content(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, status: int, value: Any, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
