"""One local server for all downloads: it serves plain addresses and speaks the hub's language."""

import hashlib
import http.server
import json
import os
import re
import threading
import time
from urllib.parse import parse_qs

import pytest

from peka_core.common.files import sha256
from peka_core.downloads.network import VARIABLES
from peka_core.downloads.record import git_blob_sha1

COMMIT = "c0ffee" + "0" * 34
SMALL = (".json", ".txt")  # the hub keeps these in git, and knows their blob instead of a sha256


class Handler(http.server.BaseHTTPRequestHandler):
    """Files of a folder, at `/<path>`, or as on the hub at `/<repo>/resolve/<commit>/<path>`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        """What the hub's list of files says of some."""
        words = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.asked.append(("POST", self.path))
        listed = []
        for path in words["paths"]:
            if (file := self.server.folder / path).is_file():
                size, digest = file.stat().st_size, "0" * 64 if self.server.lies else sha256(file)
                lfs = {"lfs": {"oid": digest, "size": size, "pointerSize": 130}}
                facts = {"type": "file", "path": path, "size": size, "oid": git_blob_sha1(file)}
                listed.append(facts | ({} if path.endswith(SMALL) else lfs))
        self.answer(200, json.dumps(listed).encode())

    def do_GET(self):
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append((self.command, path))
        if path.startswith("/api/"):
            return self.answer(200, json.dumps({"id": "a/b", "sha": hub.newest}).encode())
        _, _, commit, name = re.fullmatch(r"/((.+)/resolve/([^/]+)/)?(.*)", path).groups()
        if hub.status != 200 or not (hub.folder / name).is_file():
            return self.answer(404 if hub.status == 200 else hub.status, b"no")
        data = (hub.folder / name).read_bytes()
        facts = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit or ""}
        self.answer(200, data, facts, breaks=bool(hub.breaks) and path.endswith(hub.breaks))

    do_HEAD = do_GET

    def answer(self, code, data, headers=None, breaks=False):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if breaks else data)
            self.close_connection = breaks

    def log_message(self, *words):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The server, an empty cache, no mirror and no variable of the network.

    `.folder` its files, `.url`, `.asked` (method, path) of each request, `.got()` its paths,
    `.newest` commit, `.status` of answers, `.breaks` off a path, `.lies` about digests.
    """
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.folder, running.asked, running.newest = tmp_path / "hub", [], COMMIT
    running.status, running.breaks, running.lies = 200, "", False
    running.url = f"http://127.0.0.1:{running.server_port}/"
    running.got = lambda: [path for method, path in running.asked if method == "GET"]
    running.handle_error = lambda *_: None  # of clients that leave early
    running.folder.mkdir()
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    for name in (*VARIABLES, "PEKA_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", running.url.rstrip("/"))
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: os.environ.get("HF_TOKEN"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield running
    running.shutdown()
    running.server_close()


def kept(folder):
    """Relative paths of the files in a cache, without the record, locks and the hub's notes."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    files = [file for file in files if not {".locks", ".cache"} & set(file.parts)]
    return sorted(str(f.relative_to(folder)) for f in files if f.name != "record.json")
