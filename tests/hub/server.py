"""A server on the loopback interface that speaks as much of the Hub's HTTP API as uploading and downloading needs.

Files above `LFS_SIZE` bytes, and all safetensors, are stored as the Hub stores them: by their SHA-256, uploaded
through the LFS batch API and downloaded through a redirect. What clients asked for stays in `requests`.
"""

import base64
import json
import re
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Self
from urllib.parse import unquote, urlsplit

import yaml

LFS_SIZE = 100_000


@dataclass
class Repository:
    """Commits from first to last, each with all its files, and the commits that branches and tags point to."""

    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str = "files", branch: str = "main") -> str:
        contents = "".join(f"{path}{sha1(data).hexdigest()}" for path, data in sorted(files.items()))
        name = sha1(f"{len(self.commits)}{contents}".encode()).hexdigest()
        self.commits[name] = files
        self.refs[branch] = name
        self.messages.append(message)
        return name

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


class Hub:
    """The server; `with Hub() as hub:` runs it at `hub.url`. Tokens in `writers` may create and write everything."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.linked: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []
        self.writers = {"hf_writer"}

    def __enter__(self) -> Self:
        handler = type("HubHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.storage_url = f"http://localhost:{self.server.server_port}"  # another host, as the Hub's storage is
        self.thread = Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add(self, name: str, folder: Path, **settings) -> Repository:
        """A repository with the files of a folder, in one commit."""
        repository = self.repositories.setdefault(name, Repository(**settings))
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        repository.commit(files)
        return repository

    def downloaded(self) -> set[str]:
        """Paths of the files whose bytes were sent."""
        paths = [path for verb, path in self.requests if verb == "GET"]
        small = {path.split("/resolve/")[1].partition("/")[2] for path in paths if "/resolve/" in path}
        return small | {self.linked[path.removeprefix("/lfs/")] for path in paths if path.startswith("/lfs/")}


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        for pattern, handle in ROUTES:
            if match := re.fullmatch(pattern, path):
                return handle(self, *match.groups())
        self.reply(404, {"error": f"no such route: {path}"})

    def reply(self, status: int, content: dict | list | bytes = b"", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # --- Who may do what ---

    def open(self, name: str, kind: str = "", gate: bool = False) -> Repository | None:
        """The repository, or None where the refusal was sent: the Hub does not tell strangers what is private."""
        repository = self.hub.repositories.get(f"{kind}{name}")
        known = repository and (self.token in self.hub.writers or self.token in repository.readers)
        if repository is None or (repository.private and not known):
            self.reply(401 if self.token is None else 404, {"error": "Not found"}, X_Error_Code="RepoNotFound")
        elif gate and repository.gated and not known:
            status = 401 if self.token is None else 403
            message = f"Access to model {name} is restricted."
            self.reply(status, {"error": message}, X_Error_Code="GatedRepo", X_Error_Message=message)
        else:
            return repository
        return None

    def may_write(self) -> bool:
        if self.token not in self.hub.writers:
            self.reply(403 if self.token else 401, {"error": "no"}, X_Error_Message="you may not write here")
        return self.token in self.hub.writers

    def find(self, repository: Repository, revision: str) -> str | None:
        commit = repository.find(revision)
        if commit is None:
            self.reply(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        return commit

    # --- Reading ---

    def info(self, kind: str, name: str, revision: str | None) -> None:
        if (repository := self.open(name, prefix(kind))) and (commit := self.find(repository, revision or "main")):
            files = [{"rfilename": path} for path in repository.commits[commit]]
            about = {"private": repository.private, "gated": "manual" if repository.gated else False}
            self.reply(200, {"_id": "1", "id": name, "sha": commit, "siblings": files, "tags": [], **about})

    def tree(self, kind: str, name: str, revision: str) -> None:
        if (repository := self.open(name, prefix(kind))) and (commit := self.find(repository, revision)):
            self.reply(200, [entry(path, data) for path, data in repository.commits[commit].items()])

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repository = self.open(name, kind or "", gate=True)
        if repository is None or (commit := self.find(repository, revision)) is None:
            return
        data = repository.commits[commit].get(path)
        if data is None:
            return self.reply(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        if not is_large(path, data):
            return self.reply(200, data, ETag=f'"{entry(path, data)["oid"]}"', X_Repo_Commit=commit)
        oid = sha256(data).hexdigest()
        self.hub.blobs[oid], self.hub.linked[oid] = data, path
        linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(data)), "X_Repo_Commit": commit}
        self.reply(302, Location=f"{self.hub.storage_url}/lfs/{oid}", **linked)

    def read_blob(self, oid: str) -> None:
        if self.command == "PUT":
            matches = sha256(self.body).hexdigest() == oid
            self.hub.blobs |= {oid: self.body} if matches else {}
            return self.reply(200 if matches else 400)
        self.reply(200, self.hub.blobs[oid])

    # --- Writing ---

    def create(self) -> None:
        if not self.may_write():
            return
        wish = json.loads(self.body)
        name = f"{wish['organization']}/{wish['name']}"
        key = f"{prefix(wish.get('type', 'model') + 's')}{name}"
        exists = key in self.hub.repositories
        repository = self.hub.repositories.setdefault(key, Repository(private=wish.get("visibility") == "private"))
        if not exists:
            repository.commit({".gitattributes": b""}, "initial commit")
        self.reply(409 if exists else 200, {"url": f"{self.hub.url}/{key}", "error": "exists"})

    def validate(self) -> None:
        parts = json.loads(self.body)["content"].split("---\n")
        try:
            valid = len(parts) > 2 and isinstance(yaml.safe_load(parts[1]), dict)
        except yaml.YAMLError:
            valid = False
        errors = [] if valid else [{"message": "no valid YAML at the top"}]
        self.reply(200 if valid else 400, {"errors": errors, "warnings": []})

    def preupload(self, kind: str, name: str, _: str) -> None:
        if self.may_write() and self.open(name, prefix(kind)):
            large = {f["path"]: is_large(f["path"], b"", f["size"]) for f in json.loads(self.body)["files"]}
            modes = [
                {"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
                for path, is_lfs in large.items()
            ]
            self.reply(200, {"files": modes})

    def batch(self, kind: str, name: str) -> None:
        if self.may_write() and self.open(name, kind or ""):
            objects = [
                {**wish, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{wish['oid']}"}}}
                for wish in json.loads(self.body)["objects"]
            ]
            self.reply(200, {"transfer": "basic", "objects": objects})

    def commit(self, kind: str, name: str, branch: str) -> None:
        if not self.may_write() or (repository := self.open(name, prefix(kind))) is None:
            return
        files, message = dict(repository.commits[repository.refs[branch]]), ""
        for line in map(json.loads, self.body.splitlines()):
            match line["key"], line["value"]:
                case "header", header:
                    message = header["summary"]
                case "file", file:
                    files[file["path"]] = base64.b64decode(file["content"])
                case "lfsFile", file:
                    files[file["path"]] = self.hub.blobs[file["oid"]]
                case "deletedFile", file:
                    del files[file["path"]]
        oid = repository.commit(files, message, branch)
        url = f"{self.hub.url}/{prefix(kind)}{name}/commit/{oid}"
        self.reply(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (rf"/api/(models|spaces)/{NAME}(?:/revision/(.+))?", Handler.info),
    (rf"/api/(models|spaces)/{NAME}/tree/([^/]+)/?", Handler.tree),
    (rf"/api/(models|spaces)/{NAME}/preupload/(.+)", Handler.preupload),
    (rf"/api/(models|spaces)/{NAME}/commit/(.+)", Handler.commit),
    (rf"/(spaces/)?{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (rf"/(spaces/)?{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
    (r"/lfs/(\w+)", Handler.read_blob),
]


def prefix(kind: str) -> str:
    """What stands before a name of that kind of repository in addresses."""
    return "" if kind == "models" else f"{kind}/"


def is_large(path: str, data: bytes, size: int | None = None) -> bool:
    return path.endswith(".safetensors") or (len(data) if size is None else size) > LFS_SIZE


def entry(path: str, data: bytes) -> dict:
    """A file as the listing of a repository describes it; its oid is the one git gives it."""
    file = {"type": "file", "path": path, "size": len(data)}
    if not is_large(path, data):
        return file | {"oid": sha1(b"blob %d\0" % len(data) + data).hexdigest()}
    oid = sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()
    lfs = {"oid": oid, "size": len(data), "pointerSize": len(pointer)}
    return file | {"oid": sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest(), "lfs": lfs}
