# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""A stand-in for the Hugging Face Hub on the loopback interface, from the standard library only.

It speaks enough of the REST interface for `push_to_hub`, `upload_file`, `create_branch`, `model_info`, `from_pretrained`
and `snapshot_download`, keeps repositories on disk, and accepts any token.

    with HubServer() as hub:
        subprocess.run([sys.executable, "client.py"], env={**os.environ, **hub.env, "HF_HOME": empty_folder})

The client must be a process of its own: huggingface_hub reads its environment when it is imported.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".npz", ".parquet", ".png", ".jpg")
_OCTETS = "application/octet-stream"


class HubError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {**({"X-Error-Code": code} if code else {}), "X-Error-Message": message, **(headers or {})}


class Store:
    """Repositories on disk: `repos/<kind>/<id>/{refs.json, commits/<sha>.json}`, file contents in `blobs/<sha256>`."""

    def __init__(self, root: Path):
        self.root, self.lock = root, threading.RLock()
        (root / "blobs").mkdir(parents=True, exist_ok=True)

    def folder(self, kind: str, repo: str) -> Path:
        return self.root / "repos" / kind / repo

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256

    def add_blob(self, data: bytes) -> dict[str, Any]:
        """Stores a content; returns its entry in a tree."""
        sha256 = hashlib.sha256(data).hexdigest()
        partial = self.root / "blobs" / f"{sha256}.{threading.get_ident()}"
        partial.write_bytes(data)
        partial.replace(self.blob(sha256))
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return {"sha256": sha256, "size": len(data), "lfs": False, "oid": git}

    def create(self, kind: str, repo: str) -> None:
        (self.folder(kind, repo) / "commits").mkdir(parents=True)
        attributes = self.add_blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        self._write(kind, repo, "main", {".gitattributes": attributes}, parent=None)

    def refs(self, kind: str, repo: str) -> dict[str, str]:
        path = self.folder(kind, repo) / "refs.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def set_ref(self, kind: str, repo: str, branch: str, sha: str) -> None:
        refs = {**self.refs(kind, repo), branch: sha}
        (self.folder(kind, repo) / "refs.json").write_text(json.dumps(refs))

    def _write(self, kind: str, repo: str, branch: str, tree: dict, parent: str | None) -> str:
        body = json.dumps({"tree": tree, "parent": parent, "time": time.time()}, sort_keys=True)
        sha = hashlib.sha1(body.encode()).hexdigest()
        (self.folder(kind, repo) / "commits" / f"{sha}.json").write_text(body)
        self.set_ref(kind, repo, branch, sha)
        return sha

    def resolve(self, kind: str, repo: str, revision: str) -> str:
        """Branch or commit -> commit."""
        if not self.folder(kind, repo).is_dir():
            raise HubError(404, "RepoNotFound", "Repository not found")
        name = revision.removeprefix("refs/heads/")
        sha = self.refs(kind, repo).get(name, name)
        if not (self.folder(kind, repo) / "commits" / f"{sha}.json").exists():
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def read_commit(self, kind: str, repo: str, sha: str) -> dict[str, Any]:
        return json.loads((self.folder(kind, repo) / "commits" / f"{sha}.json").read_text())

    def commit(self, kind: str, repo: str, branch: str, operations: list[dict]) -> str:
        """Applies the lines of a commit request on top of `branch`."""
        with self.lock:
            parent = self.resolve(kind, repo, branch)
            tree = dict(self.read_commit(kind, repo, parent)["tree"])
            for operation in operations:
                key, value = operation["key"], operation["value"]
                if key == "header":
                    if value.get("parentCommit", parent) != parent:
                        raise HubError(412, None, "the parent commit does not match")
                elif key == "file":
                    tree[value["path"]] = self.add_blob(base64.b64decode(value["content"]))
                elif key == "lfsFile":
                    blob = self.blob(value["oid"])
                    if not blob.exists():
                        raise HubError(400, None, f"the LFS object {value['oid']} was never uploaded")
                    pointer = hashlib.sha1(value["oid"].encode()).hexdigest()
                    size = blob.stat().st_size
                    tree[value["path"]] = {"sha256": value["oid"], "size": size, "lfs": True, "oid": pointer}
                elif key == "deletedFile":
                    tree.pop(value["path"], None)
                elif key == "deletedFolder":
                    prefix = value["path"].rstrip("/") + "/"
                    tree = {path: entry for path, entry in tree.items() if not path.startswith(prefix)}
            return self._write(kind, repo, branch, tree, parent)


class Handler(BaseHTTPRequestHandler):
    """One request: finds the route and answers; raise `HubError` for anything but success."""

    protocol_version = "HTTP/1.1"
    store: Store
    user: str
    requests: list[str]

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: `HubServer.requests` holds the log."""

    def _send(self, body: Any = b"", status: int = 200, mime: str = "application/json", **headers: str) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": mime, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.requests.append(f"{self.command} {self.path} -> {status}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    @property
    def base(self) -> str:
        return f"http://{self.headers.get('Host')}"

    def _dispatch(self) -> None:
        url = urlsplit(self.path)
        self.query, self.body = parse_qs(url.query), self._body() if self.command in ("POST", "PUT") else b""
        try:
            for method, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and (self.command == method or (self.command == "HEAD" and method == "GET")):
                    return answer(self, *(group and unquote(group) for group in match.groups()))
            raise HubError(404, None, f"no route for {self.command} {url.path}")
        except HubError as error:
            self._send({"error": str(error)}, error.status, **error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = _dispatch

    def _require_token(self) -> None:
        if not self.headers.get("Authorization"):
            raise HubError(401, None, "Invalid username or password.")

    # ---- repositories ---------------------------------------------------------------------------------------------
    def whoami(self) -> None:
        self._require_token()
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        self._send(
            {"type": "user", "id": self.user, "name": self.user, "fullname": self.user, "orgs": [], "auth": token}
        )

    def create(self) -> None:
        self._require_token()
        request = json.loads(self.body)
        kind = (request.get("type") or "model") + "s"
        repo = f"{request.get('organization') or self.user}/{request['name']}"
        url = f"{self.base}/{'' if kind == 'models' else kind + '/'}{repo}"
        with self.store.lock:
            if self.store.folder(kind, repo).is_dir():
                return self._send({"error": "You already created this repo", "url": url}, 409)
            self.store.create(kind, repo)
        self._send({"url": url, "name": repo, "id": repo})

    def branch(self, kind: str, repo: str, name: str) -> None:
        self._require_token()
        with self.store.lock:
            if name in self.store.refs(kind, repo):
                raise HubError(409, None, f"Reference already exists: {name}")
            start = json.loads(self.body or b"{}").get("startingPoint") or "main"
            self.store.set_ref(kind, repo, name, self.store.resolve(kind, repo, start))
        self._send({})

    def info(self, kind: str, repo: str, revision: str | None = None) -> None:
        sha = self.store.resolve(kind, repo, revision or "main")
        commit = self.store.read_commit(kind, repo, sha)
        when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(commit["time"]))
        facts: dict[str, Any] = {"id": repo, "modelId": repo, "sha": sha, "lastModified": when, "createdAt": when}
        facts |= {"author": repo.partition("/")[0], "private": False, "gated": False, "disabled": False, "tags": []}
        facts["siblings"] = [{"rfilename": path} for path in commit["tree"]]
        self._send({**facts, **self._card_facts(commit["tree"])})

    def _card_facts(self, tree: dict) -> dict[str, str]:
        """The two fields of the model card that the Hub repeats in a model's info."""
        if "README.md" not in tree:
            return {}
        text = self.store.blob(tree["README.md"]["sha256"]).read_text(encoding="utf-8")
        header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        lines = header.group(1).splitlines() if header else []
        pairs = ((key, value.strip()) for key, _, value in (line.partition(":") for line in lines))
        return {key: value for key, value in pairs if key in ("pipeline_tag", "library_name") and value}

    # ---- upload ---------------------------------------------------------------------------------------------------
    def preupload(self, kind: str, repo: str, revision: str) -> None:
        self._require_token()
        sha = self.store.resolve(kind, repo, revision)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._send({"files": files, "commitOid": sha})

    def lfs_batch(self, repo: str) -> None:
        objects = []
        for item in json.loads(self.body)["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if not self.store.blob(item["oid"]).exists():
                entry["actions"] = {"upload": {"href": f"{self.base}/_lfs/{item['oid']}", "header": {}}}
            objects.append(entry)
        self._send({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, None, "sha256 mismatch")
        self.store.add_blob(self.body)
        self._send(mime="text/plain")

    def commit(self, kind: str, repo: str, revision: str) -> None:
        self._require_token()
        operations = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        sha = self.store.commit(kind, repo, revision, operations)
        self._send({"commitUrl": f"{self.base}/{repo}/commit/{sha}", "commitOid": sha, "success": True})

    def validate_yaml(self) -> None:
        self._send({"errors": [], "warnings": []})

    # ---- download -------------------------------------------------------------------------------------------------
    def _tree(self, kind: str, repo: str, revision: str) -> tuple[str, dict[str, dict]]:
        sha = self.store.resolve(kind, repo, revision)
        return sha, self.store.read_commit(kind, repo, sha)["tree"]

    @staticmethod
    def _entry(path: str, file: dict) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "oid": file["oid"], "size": file["size"]}
        if file["lfs"]:
            entry["lfs"] = {"oid": file["sha256"], "size": file["size"], "pointerSize": 130}
        return entry

    def _listing(self, tree: dict, folder: str, recursive: bool) -> Iterator[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        seen = set()
        for path, file in sorted(tree.items()):
            if not path.startswith(prefix):
                continue
            *parents, _ = path.removeprefix(prefix).split("/")
            for depth in range(1, (len(parents) if recursive else min(len(parents), 1)) + 1):
                name = prefix + "/".join(parents[:depth])
                if name not in seen:
                    seen.add(name)
                    oid = hashlib.sha1(name.encode()).hexdigest()
                    yield {"type": "directory", "path": name, "oid": oid, "size": 0}
            if recursive or not parents:
                yield self._entry(path, file)

    def tree(self, kind: str, repo: str, revision: str, folder: str | None) -> None:
        _, tree = self._tree(kind, repo, revision)
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = list(self._listing(tree, folder or "", recursive))
        if folder and not entries:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist")
        self._send(entries)

    def paths_info(self, kind: str, repo: str, revision: str) -> None:
        _, tree = self._tree(kind, repo, revision)
        try:
            paths = json.loads(self.body)["paths"]
        except json.JSONDecodeError:
            paths = parse_qs(self.body.decode()).get("paths", [])
        self._send([self._entry(path, tree[path]) for path in paths if path in tree])

    def resolve(self, kind: str | None, repo: str, revision: str, path: str) -> None:
        sha, tree = self._tree((kind or "models/").rstrip("/"), repo, revision)
        if path not in tree:
            raise HubError(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        file = tree[path]
        etag = file["sha256"] if file["lfs"] else file["oid"]
        self._send(
            self.store.blob(file["sha256"]).read_bytes(), mime=_OCTETS, ETag=f'"{etag}"', **{"X-Repo-Commit": sha}
        )


_REPO = r"(models|datasets|spaces)/([^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", rf"/api/{_REPO}/branch/(.+)", Handler.branch),
    ("POST", rf"/api/{_REPO}/preupload/(.+)", Handler.preupload),
    ("POST", rf"/api/{_REPO}/commit/(.+)", Handler.commit),
    ("POST", rf"/api/{_REPO}/paths-info/(.+)", Handler.paths_info),
    ("GET", rf"/api/{_REPO}/tree/([^/]+)(?:/(.+))?", Handler.tree),
    ("GET", rf"/api/{_REPO}/revision/(.+)", Handler.info),
    ("GET", rf"/api/{_REPO}", Handler.info),
    ("POST", r"/(?:datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/_lfs/([0-9a-f]{64})", Handler.lfs_put),
    ("GET", r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.resolve),
]


class HubServer:
    """The server as a context manager. `requests` holds "METHOD path -> status" of every answer.

    Args:
        root: folder of the repositories; a temporary one, removed at the end, by default.
        port: 0 takes a free one.
        user: the name under which any token is known, and the namespace of repositories without one.
    """

    def __init__(self, root: str | None = None, port: int = 0, user: str = "tester"):
        self._temporary = root is None
        self.root = Path(root or tempfile.mkdtemp(prefix="hub_server_"))
        self.requests: list[str] = []
        self.store = Store(self.root)
        attributes = {"store": self.store, "user": user, "requests": self.requests}
        self._server = ThreadingHTTPServer(("127.0.0.1", port), type("BoundHandler", (Handler,), attributes))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def env(self) -> dict[str, str]:
        """The environment of a client process; give it an `HF_HOME` of its own, too."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",  # uploads would ask for a Xet server
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        if self._temporary:
            shutil.rmtree(self.root, ignore_errors=True)

    def wait(self) -> None:
        """Serves until interrupted."""
        self._thread.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--root", default=None, help="folder of the repositories (default: a temporary one)")
    arguments = parser.parse_args()
    with HubServer(arguments.root, arguments.port) as server:
        print("\n".join(f"export {name}={value}" for name, value in server.env.items()), flush=True)
        server.wait()
