"""A stand-in for the hub on 127.0.0.1: it answers what a push asks, and records what arrives."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

HEAD = "a" * 40


@dataclass
class Hub:
    """What the stand-in holds and has seen. `files`: repository -> name -> bytes."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    seen: list[tuple[str, str, str]] = field(default_factory=list)  # (method, path, Authorization)
    messages: list[str] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by digest
    broken: str = ""  # answers 500 with this text

    @property
    def writes(self) -> list[str]:
        return [path for method, path, _ in self.seen if method != "GET" and "validate" not in path]


@contextmanager
def standing_in(**files: dict[str, bytes]) -> Iterator[Hub]:
    """A running stand-in; keyword `owner__name` holds that repository's files."""
    hub = Hub(files={k.replace("__", "/"): dict(v) for k, v in files.items()})

    class Answers(_Answers):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Answers(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _say(self, status: int, content: Any, **headers: str) -> None:
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def _note(self) -> bool:
        self.state.seen.append((self.command, self.path, self.headers.get("Authorization", "")))
        if self.state.broken:
            self._say(500, {"error": self.state.broken})
        return not self.state.broken

    def do_GET(self) -> None:
        if not self._note():
            return
        repo = self.path.split("?")[0].removeprefix("/api/models/")
        if repo not in self.state.files:
            self._say(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return
        siblings = [{"rfilename": name} for name in self.state.files[repo]]
        self._say(200, {"id": repo, "modelId": repo, "sha": HEAD, "siblings": siblings, "tags": [], "private": True})

    def do_PUT(self) -> None:
        body = self._body()
        if self._note():
            self.state.stored[self.path.rsplit("/", 1)[-1]] = body
            self._say(200, {})

    def do_POST(self) -> None:
        body = self._body()
        if not self._note():
            return
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/objects/batch"):
            self._batch(json.loads(body))
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [(f["path"], "lfs" if f["path"].endswith(".safetensors") else "regular") for f in files]
            self._say(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]})
        elif "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").split("/commit/")[0], body)
        else:
            self._say(200, {})

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        self.state.files[repo] = {}
        self.state.private[repo] = bool(asked.get("private")) or asked.get("visibility") == "private"
        self._say(200, {"url": f"{self.state.url}/{repo}", "id": repo})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.state.url}/store/{o['oid']}", "header": {}}}}
            for o in asked["objects"]
        ]
        self._say(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.state.messages.append(value["summary"])
                self.state.parents.append(value.get("parentCommit", ""))
            elif entry["key"] == "file":
                self.state.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.state.files[repo][value["path"]] = self.state.stored[value["oid"]]
        url = f"{self.state.url}/{repo}/commit/{'b' * 40}"
        self._say(200, {"commitUrl": url, "commitOid": "b" * 40, "success": True})
