"""A server on this machine that answers the Hugging Face hub's client as the hub does, for dataset repositories.

Knows: the requests that listing, reading, making a repository and committing come to. Knows nothing about who asks.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from huggingface_hub import HfApi

TOKEN, READ_ONLY = "hf_owner", "hf_reader"
LARGE = (".jpg", ".png", ".parquet", ".tar")  # kept by SHA-256, all else by git's hash


@dataclass
class HubServer:
    """What the hub holds, and what it was asked."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[dict[str, list[str]]] = field(default_factory=list)  # names added and deleted, in order

    def refused_without_right(self, token: str) -> tuple[int, dict[str, str], object] | None:
        if token == TOKEN:
            return None
        return (403 if token == READ_ONLY else 401), {}, {"error": "You don't have the rights"}

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, dict[str, str], object]:
        """Status, headers, and a body: bytes, or what becomes JSON."""
        path = path.partition("?")[0]
        if path == "/api/repos/create":
            return self._create(json.loads(body), token)
        if path == "/api/validate-yaml":
            head = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            good = isinstance(head, dict) and head["license"] in ("unknown", "cc-by-4.0")
            return (200 if good else 400), {}, {"errors": [] if good else [{"message": "license"}], "warnings": []}
        found = re.fullmatch(r"(?:/api)?/datasets/([^/]+/[^/]+)(?:/(tree|preupload|commit|resolve)/main/?(.*))?", path)
        assert found is not None, path
        name, what, file = found.groups()
        files = self.repositories.get(name)
        if files is None or (self.private[name] and not token):
            return 404, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"}
        if what == "tree":
            return 200, {}, [_row(path, data) for path, data in files.items()]
        if what == "resolve":
            if file not in files:
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self._head()}, b""
            return 200, {"X-Repo-Commit": self._head(), "ETag": f'"{_git(files[file])}"'}, files[file]
        if what == "preupload":
            asked = [one["path"] for one in json.loads(body)["files"]]
            rows = [
                {"path": one, "uploadMode": "regular", "shouldIgnore": False}
                | ({"oid": _git(files[one])} if one in files else {})
                for one in asked
            ]
            return self.refused_without_right(token) or (200, {}, {"files": rows})
        return self.refused_without_right(token) or self._commit(name, files, body)

    def _create(self, asked: dict[str, Any], token: str) -> tuple[int, dict[str, str], object]:
        name = f"{asked['organization']}/{asked['name']}"
        assert asked["type"] == "dataset"
        if refused := self.refused_without_right(token):
            return refused
        if name in self.repositories:
            return 409, {}, {"error": "You already created this dataset repo", "url": f"/datasets/{name}"}
        self.repositories[name] = {".gitattributes": b"*.jpg filter=lfs\n"}
        self.private[name] = asked.get("visibility") == "private"
        return 200, {}, {"url": f"{self.url}/datasets/{name}"}

    def _commit(self, name: str, files: dict[str, bytes], body: bytes) -> tuple[int, dict[str, str], object]:
        lines = [json.loads(line) for line in body.splitlines()]
        added = {
            one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"
        }
        deleted = [one["value"]["path"] for one in lines if one["key"] == "deletedFile"]
        for gone in deleted:
            del files[gone]
        files |= added
        self.commits.append({"added": list(added), "deleted": deleted})
        return 200, {}, {"commitUrl": f"{self.url}/datasets/{name}/commit/{self._head()}", "commitOid": self._head()}

    def _head(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()

    url: str = ""


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _row(path: str, data: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _git(data)}
    if path.endswith(LARGE):
        row["lfs"] = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
    return row


@contextmanager
def hub(cache: Path, token: str = TOKEN) -> Iterator[HubServer]:
    """The hub of this process, while this lasts, with a token in the environment."""
    server = HubServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            status, headers, value = server.answer(self.command, self.path, given, body)
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_HEAD = _do  # noqa: N815  names of the standard library

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        with (
            mock.patch("huggingface_hub.HfApi", partial(HfApi, endpoint=server.url)),
            mock.patch("huggingface_hub.constants.HF_HUB_CACHE", str(cache)),
            mock.patch.dict("os.environ", {"HF_TOKEN": token}),
        ):
            yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
