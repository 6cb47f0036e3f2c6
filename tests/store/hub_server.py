"""A hub in this process: the part of the Hugging Face hub's HTTP that sends and fetches small repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FakeHub(ThreadingHTTPServer):
    """repositories: files by path of each repository by name. branches: that all of them have."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.branches = {"main"}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *given: object) -> None:
        pass

    def answer(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"POST {path}")
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            self.server.repositories.setdefault(name, {})
            self.answer(200, {"url": f"{self.server.url}/{name}"})
        elif "/branch/" in path:
            self.server.branches.add(path.rpartition("/")[2])
            self.answer(200)
        elif path.rpartition("/")[2] not in self.server.branches and ("/preupload/" in path or "/commit/" in path):
            self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer(200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in path:
            self.commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        else:
            self.answer(200, {"errors": [], "warnings": []})

    def commit(self, name: str, body: bytes) -> None:
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                self.server.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{sha(name)}", "commitOid": sha(name)})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if path.startswith("/api/models/"):
            self.describe(path.removeprefix("/api/models/"))
            return
        name, _, rest = path.strip("/").partition("/resolve/")
        data = self.server.repositories.get(name, {}).get(rest.partition("/")[2])
        if data is None:
            self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
        else:
            etag = hashlib.sha1(data).hexdigest()
            self.answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": sha(name)})

    do_HEAD = do_GET  # noqa: N815

    def describe(self, rest: str) -> None:
        name = "/".join(rest.split("/")[:2])
        files = self.server.repositories.get(name)
        if files is None:
            self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in rest:
            tree = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in files.items()
            ]
            self.answer(200, tree)
        else:
            siblings = [{"rfilename": n} for n in files]
            self.answer(200, {"id": name, "modelId": name, "sha": sha(name), "siblings": siblings, "private": False})


def sha(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


@contextmanager
def running_hub():
    """A hub that answers while the block runs."""
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
