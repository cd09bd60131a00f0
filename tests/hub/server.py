"""A Hub on loopback: its API as far as the client needs it, with a store of its own, and every fault on demand."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

ROUTES = (
    ("resolve", re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")),
    ("store", re.compile(r"/store/(?P<oid>[0-9a-f]+)")),
    ("models", re.compile(r"/api/models")),
    ("info", re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")),
    ("tree", re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/.*)?")),
    ("create", re.compile(r"/api/repos/create")),
    ("yaml", re.compile(r"/api/validate-yaml")),
    ("preupload", re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)")),
    ("batch", re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")),
    ("commit", re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)")),
)
LFS = (".safetensors", ".png", ".bin")


class Request(NamedTuple):
    """What was asked: `sent` is the body's length of the answer, `authorization` the header as it came."""

    method: str
    route: str
    path: str
    range: str | None
    sent: int
    authorization: str | None


class Fault(NamedTuple):
    """An answer instead of the right one: a status with headers, fewer bytes than promised (`cut`), or a late one."""

    status: int = 200
    headers: tuple = ()
    cut: int | None = None
    wait: float = 0


FAULTS = {
    "private": Fault(401, (("X-Error-Code", "RepoNotFound"),)),
    "gated": Fault(403, (("X-Error-Code", "GatedRepo"),)),
    "no-repository": Fault(404, (("X-Error-Code", "RepoNotFound"),)),
    "no-revision": Fault(404, (("X-Error-Code", "RevisionNotFound"),)),
    "bad-token": Fault(401, (("X-Error-Message", "Invalid credentials in Authorization header"),)),
    "forbidden": Fault(403, (("X-Error-Message", "no write"),)),
    "limited": Fault(429, (("RateLimit", '"resolvers";r=0;t=55'),)),
    "retry-after": Fault(429, (("Retry-After", "7"),)),
    "broken": Fault(503),
    "disabled": Fault(403, (("X-Error-Message", "Access to this resource is disabled."),)),
    "short": Fault(cut=100),
}


class Hub:
    """Repositories as {name: {commit: {file: bytes}}}; the newest commit is main. `faults` are by route."""

    def __init__(self):
        self.repositories, self.blobs, self.requests, self.faults = {}, {}, [], {}
        self.ranges, self.lengths = True, True
        self.patience = threading.Event()
        self.after = {}
        self.pull_requests = []
        self.private = set()

    def put(self, name, files, commit=None):
        """A new commit of a repository with these files (others of it stay)."""
        commits = self.repositories.setdefault(name, {})
        held = dict(list(commits.values())[-1]) if commits else {}
        held |= files
        commit = commit or hashlib.sha1(f"{name}{len(commits)}".encode()).hexdigest()
        commits[commit] = held
        self.blobs |= {hashlib.sha256(data).hexdigest(): data for data in held.values()}
        return commit

    def files(self, name):
        """The files of the newest commit."""
        return list(self.repositories[name].values())[-1]

    def bytes_sent(self):
        """The bytes of all bodies."""
        return sum(request.sent for request in self.requests)

    def at(self, name, revision):
        """The commit and the files that a revision means, or None."""
        commits = self.repositories[name]
        revision = unquote(revision or "main")
        commit = list(commits)[-1] if revision == "main" else revision
        return (commit, commits[commit]) if commit in commits else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    @property
    def hub(self):
        return self.server.hub

    def _any(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        route, match = next(
            ((name, found) for name, pattern in ROUTES if (found := pattern.fullmatch(path))), ("none", None)
        )
        self.route = route
        fault = self.hub.faults.get(route)
        if fault is not None and fault.wait:
            self.hub.patience.wait(fault.wait)
        if fault is not None and fault.cut is None:
            self.answer(fault.status, b'{"error":"no"}', dict(fault.headers))
        elif match is None:
            self.answer(404, b"")
        else:
            getattr(self, f"do_{route}")(**match.groupdict())
        change = self.hub.after.pop(route, None)
        if change is not None:
            change()

    do_GET = do_HEAD = do_POST = do_PUT = _any  # noqa: N815 (http.server's names)

    def answer(self, status, data, headers=()):
        fault = self.hub.faults.get(self.route)
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        if self.hub.lengths or status != 200:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        cut = fault is not None and fault.cut is not None
        sent = b"" if self.command == "HEAD" else data[: fault.cut] if cut else data
        if cut:
            self.send_header("Connection", "close")
            self.close_connection = True
        asked = self.headers
        self.hub.requests.append(
            Request(self.command, self.route, self.path, asked.get("Range"), len(sent), asked.get("Authorization"))
        )
        self.end_headers()  # only now: who has the headers may look at what was asked
        try:
            self.wfile.write(sent)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # a client that has what it wanted

    def json(self, document, status=200, headers=()):
        self.answer(status, json.dumps(document).encode(), {"Content-Type": "application/json", **dict(headers)})

    def refuse(self, word):
        status = 404
        self.answer(status, b"", {"X-Error-Code": word})

    def found(self, repo, revision):
        if repo not in self.hub.repositories:
            self.refuse("RepoNotFound")
            return None
        at = self.hub.at(repo, revision)
        if at is None:
            self.refuse("RevisionNotFound")
        return at

    def data(self, data, headers):
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span and self.hub.ranges:
            start = int(span[1])
            stop = min(int(span[2]) + 1 if span[2] else len(data), len(data))
            if start >= len(data):
                self.answer(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
                return
            self.answer(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})
        else:
            self.answer(200, data, headers)

    def do_resolve(self, repo, revision, file):
        at = self.found(repo, revision)
        if at is None:
            return
        commit, files = at
        data = files.get(unquote(file))
        if data is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        oid = hashlib.sha256(data).hexdigest()
        if file.endswith(LFS):
            self.answer(302, b"", {
                "Location": f"{self.server.store}/store/{oid}?signed=yes", "X-Repo-Commit": commit,
                "X-Linked-Size": len(data), "X-Linked-Etag": f'"{oid}"',
            })  # fmt: skip
        else:
            self.data(data, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def do_store(self, oid):
        if self.command == "PUT":
            self.hub.blobs[oid] = self.body
            self.answer(200, b"")
        else:
            self.data(self.hub.blobs[oid], {"ETag": f'"{oid}"'})

    def do_info(self, repo, revision):
        at = self.found(repo, revision)
        if at is not None:
            siblings = [{"rfilename": name} for name in at[1]]
            self.json({"id": repo, "modelId": repo, "sha": at[0], "siblings": siblings, "tags": [], "downloads": 0})

    def do_models(self):
        """One repository a page, so that whoever reads them all follows the links."""
        asked = parse_qs(urlsplit(self.path).query)
        names = [name for name in self.hub.repositories if name.startswith(f"{asked['author'][0]}/")]
        at = int(asked.get("page", ["0"])[0])
        link = f'<{self.server.address}/api/models?author={asked["author"][0]}&page={at + 1}>; rel="next"'
        found = [
            {"id": name, "modelId": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            for name in names[at : at + 1]
            for commit, files in [self.hub.at(name, None)]
        ]
        self.json(found, headers={"Link": link} if at + 1 < len(names) else {})

    def do_tree(self, repo, revision):
        at = self.found(repo, revision)
        if at is not None:
            self.json(
                [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in at[1].items()]
            )

    def do_create(self):
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            self.json({"url": f"{self.server.address}/{name}", "error": "exists"}, 409)
            return
        self.hub.put(name, {})
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(name)
        self.json({"url": f"{self.server.address}/{name}"})

    def do_yaml(self):
        self.json({"errors": [], "warnings": []})

    def do_preupload(self, repo, **_):
        if repo not in self.hub.repositories:
            self.refuse("RepoNotFound")
            return
        asked = json.loads(self.body)["files"]
        modes = [(item["path"], "lfs" if item["path"].endswith(LFS) else "regular") for item in asked]
        self.json({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]})

    def do_batch(self, **_):
        store = self.server.store
        self.json({"transfer": "basic", "objects": [
            {**item, "actions": {"upload": {"href": f"{store}/store/{item['oid']}", "header": {}}}}
            for item in json.loads(self.body)["objects"]
        ]})  # fmt: skip

    def do_commit(self, repo, **_):
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        if "create_pr" in self.path:
            self.hub.pull_requests.append((repo, files))
            commit = "f" * 40
            extra = {"pullRequestUrl": f"{self.server.address}/{repo}/discussions/1"}
        else:
            commit = self.hub.put(repo, files)
            extra = {}
        self.json({"commitUrl": f"{self.server.address}/{repo}/commit/{commit}", "commitOid": commit, **extra})


@contextmanager
def serving(hub):
    """Two servers of one Hub, its own and its store's: gives the address of the first."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server in servers:
        server.daemon_threads = True
        server.hub = hub
        server.address = f"http://127.0.0.1:{servers[0].server_port}"
        server.store = f"http://127.0.0.1:{servers[1].server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield servers[0].address
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
