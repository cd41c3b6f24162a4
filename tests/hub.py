"""A hub on this machine: the routes that the hub's own libraries ask of it, over files in memory."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

# {"datasets/owner/name": {commit: {path: content}}}; models have no prefix of their own, as on the hub
Repositories = dict[str, dict[str, dict[str, bytes]]]


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: Repositories
    asked: list[str]

    def log_message(self, *arguments):
        return None

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def do_POST(self):
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        status, headers, body = self.found(path, sent)
        if status == 200 and (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")):
            first, last = int(wanted[1]), int(wanted[2] or len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(body) - 1)}/{len(body)}"
            status, body = 206, body[first : last + 1]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def found(self, path: str, sent: str) -> tuple[int, dict[str, str], bytes]:
        if match := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path):  # fmt: skip
            kind, name, route, commit, below = match.groups()
            return self.files(f"datasets/{name}" if kind == "datasets" else name, commit, lambda c, files: self.listing(name, route, c, files, below, sent))  # fmt: skip
        if match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.files(match[1], match[2], lambda commit, files: self.content(commit, files, match[3]))
        return 404, {}, b"{}"

    def files(self, repository: str, commit: str | None, then):
        commits = self.repositories.get(repository)
        if commits is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'
        commit = list(commits)[-1] if commit in (None, "main") else commit
        if commit not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b'{"error": "Invalid rev id"}'
        return then(commit, commits[commit])

    def listing(self, name, route, commit, files, below, sent):
        if route in (None, "revision"):
            siblings = [{"rfilename": path} for path in files]
            answer = {"id": name, "sha": commit, "siblings": siblings, "private": False, "gated": False, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip
        else:
            wanted = None
            if route == "paths-info":
                wanted = json.loads(sent)["paths"] if sent.startswith("{") else parse_qs(sent)["paths"]
            folders = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
            entries = [{"type": "file", "path": path, "size": len(content), "oid": _oid(content)} for path, content in files.items()]  # fmt: skip
            entries += [{"type": "directory", "path": folder, "size": 0, "oid": _oid(folder.encode())} for folder in sorted(folders)]  # fmt: skip
            answer = [entry for entry in entries if (wanted is None or entry["path"] in wanted) and (not below or entry["path"].startswith(f"{below}/"))]  # fmt: skip
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    def content(self, commit, files, path):
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if path not in files:
            return 404, {**headers, "X-Error-Code": "EntryNotFound"}, b'{"error": "Entry not found"}'
        return 200, {**headers, "ETag": f'"{_oid(files[path])}"'}, files[path]


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serving(repositories: Repositories):
    """A hub with these repositories; gives its address and the list of what it is asked, as it grows."""
    asked: list[str] = []
    handler = type("Hub", (_Hub,), {"repositories": repositories, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
