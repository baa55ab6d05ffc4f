"""A stand-in for the Hugging Face Hub on the loopback address: routes, faults, and tiny repositories laid out
like the real ones. `hub_server.py` has the fixtures; by hand:

    python tests/hubsim.py make ROOT [models/google/byt5-small datasets/facebook/xnli ...]
    python tests/hubsim.py serve ROOT PORT    # then HF_ENDPOINT=http://127.0.0.1:PORT HF_HUB_DISABLE_XET=1

ROOT is {models,datasets,spaces}/OWNER/NAME/FILES. A repository may hold a file `.sim.json`:

    {"virtual": [["multilingual/c4-en.tfrecord-%05d-of-11264.json.gz", 11264, ["real-a.json.gz", ...]], ...],
     "refs": {"v1": "ANOTHER/REPO"}, "discussions": [...], "gated": true, "private": true}

`virtual` makes many file names that share a few real contents, so that a listing is as long as the real one.
`refs` are revisions besides main; each shows another repository, and has that one's commit.

What is pushed is written into ROOT, and the repository has a new commit then. README.md is refused where its
`license` is "refuse-me".

Faults are dictionaries {"match": REGEX on "METHOD PATH", "kind": KIND, "times": N, "skip": N, ...}. Kinds are
"status" (code, retry_after), "hang" (seconds), "delay" (seconds), "cut" (after: bytes), "corrupt" (at: byte)
and "reset". POST /_sim/faults sets a list of them, GET /_sim/log counts requests, POST /_sim/clear undoes
both.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 1000
"""Entries of a listing that come in one answer."""
TOKEN = "hf_good"
"""The one that belongs to a user."""
LFS = (".gz", ".parquet", ".safetensors", ".bin", ".h5")


def commit_of(name: str) -> str:
    """A commit hash that stays the same for a repository, "models/owner/name"."""
    return hashlib.sha1(name.encode()).hexdigest()


@cache
def facts(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    data = path.read_bytes()
    return len(data), hashlib.sha256(data).hexdigest()


class Repo:
    """Files of one repository, real and virtual."""

    def __init__(self, kind: str, name: str, folder: Path) -> None:
        sim = folder / ".sim.json"
        self.sim: dict[str, Any] = json.loads(sim.read_text()) if sim.exists() else {}
        pushes = f"/{self.sim['pushes']}" if "pushes" in self.sim else ""
        self.kind, self.name, self.sha = kind, name, commit_of(f"{kind}/{name}{pushes}")
        files = {
            str(path.relative_to(folder)): path
            for path in folder.rglob("*")
            if path.is_file() and path.name != ".sim.json" and "_contents" not in path.parts
        }
        for pattern, count, contents in self.sim.get("virtual", []):
            for number in range(count):
                files[pattern % number] = folder / "_contents" / contents[number % len(contents)]
        self.files = dict(sorted(files.items()))
        self.folders = {folder for name in self.files for folder in parents(name)}

    def entry(self, path: str) -> dict[str, Any]:
        """A file as the tree and paths-info routes describe it."""
        size, sha = facts(self.files[path])
        entry: dict[str, Any] = {"type": "file", "oid": sha[:40], "size": size, "path": path}
        if path.endswith(LFS):
            entry["lfs"] = {"oid": sha, "size": size, "pointerSize": 134}
        return entry


def parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


class Sim:
    """State shared by all requests.

    Attributes:
        faults: still to happen.
        log: time, "METHOD PATH" and status of every answer.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.lock = root, threading.Lock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[dict[str, Any]] = []
        self.log: list[tuple[float, str, int]] = []

    def repo(self, kind: str, name: str) -> Repo | None:
        with self.lock:
            if (kind, name) not in self.repos:
                folder = self.root / kind / name
                if not folder.is_dir() or name.count("/") != 1:
                    return None
                self.repos[kind, name] = Repo(kind, name, folder)
            return self.repos[kind, name]

    def at(self, repo: Repo, revision: str) -> Repo | None:
        """What a repository shows at a revision: main, its commit, or a ref or its commit."""
        if revision in ("main", repo.sha):
            return repo
        others = {ref: self.repo(repo.kind, name) for ref, name in repo.sim.get("refs", {}).items()}
        by_commit = {other.sha: other for other in others.values() if other is not None}
        return others.get(revision) or by_commit.get(revision)

    def fault(self, line: str) -> dict[str, Any] | None:
        """The first fault that is due for this request."""
        with self.lock:
            for fault in self.faults:
                if re.search(fault["match"], line):
                    if fault.get("skip", 0) > 0:
                        fault["skip"] -= 1
                    elif fault.get("times", 1) > 0:
                        fault["times"] = fault.get("times", 1) - 1
                        return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sim: Sim
    body: bytes

    def log_message(self, *args: object) -> None:
        pass

    # --- answers

    def answer(self, code: int, body: Any = b"", headers: dict[str, Any] | None = None) -> None:
        headers = dict(headers or {})
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers = {"Content-Type": "application/json", **headers}
        headers.setdefault("Content-Length", len(body))
        self.note(code)
        self.head(code, headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def head(self, code: int, headers: dict[str, Any]) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()

    def note(self, code: int, remark: str = "") -> None:
        self.sim.log.append((time.time(), f"{self.command} {self.path}{remark}", code))

    def refuse(self, code: str, message: str, status: int = 404) -> None:
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    # --- routes

    def do_HEAD(self) -> None:
        self.route()

    def do_GET(self) -> None:
        self.route()

    def do_POST(self) -> None:
        self.route()

    def route(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query, keep_blank_values=True)
        if path.startswith("/_sim/"):
            return self.control(path, query)
        fault = self.sim.fault(f"{self.command} {path}")
        if fault and self.failed(fault):
            return None
        if match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/(.*))?", path):
            return self.api(match[1], match[2], match[3] or "", query)
        if match := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/(.+)", path):
            return self.resolve(match[1] or "models", match[2], match[3], fault)
        if self.command == "POST" and path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if self.command == "POST" and path == "/api/validate-yaml":
            refused = "license: refuse-me" in json.loads(self.body)["content"]
            errors = [{"message": '"license" must be one of [apache-2.0, mit, ...]'}] * refused
            return self.answer(400 if refused else 200, {"errors": errors, "warnings": []})
        if re.fullmatch(r"/api/(models|datasets|spaces)/[^/]+", path):
            return self.refuse("RepoNotFound", "Repository not found", 401)  # as the Hub answers unknown ids
        if path == "/api/whoami-v2":
            if self.headers.get("Authorization") == f"Bearer {TOKEN}":
                return self.answer(200, {"type": "user", "name": "me", "orgs": []})
            return self.answer(401, {"error": "Invalid username or password."})
        return self.refuse("", f"no route {path}")

    def failed(self, fault: dict[str, Any]) -> bool:
        """Do what a fault says before any answer; True if that is the answer."""
        kind = fault["kind"]
        if kind == "status":
            headers = {"Retry-After": fault["retry_after"]} if "retry_after" in fault else {}
            self.answer(fault["code"], {"error": f"simulated {fault['code']}"}, headers)
        elif kind == "hang":
            time.sleep(fault.get("seconds", 30))
            self.close_connection = True
            self.note(-1)
        elif kind == "reset":
            self.close_connection = True
            self.connection.close()
            self.note(-2)
        elif kind == "delay":
            time.sleep(fault.get("seconds", 5))  # then answer as usual
        return kind in ("status", "hang", "reset")

    def found(self, kind: str, name: str) -> Repo | None:
        """A repository that may be seen; otherwise the refusal is sent."""
        repo = self.sim.repo(kind, name)
        if repo is None or repo.sim.get("private"):
            return self.refuse("RepoNotFound", "Repository not found", 401)
        return repo

    def api(self, kind: str, name: str, rest: str, query: dict[str, list[str]]) -> None:
        repo = self.found(kind, name)
        if repo is None:
            return None
        if rest == "" or rest.startswith("revision/"):
            revision = rest.removeprefix("revision/") or "main"
            shown = self.sim.at(repo, revision)
            if shown is None:
                return self.refuse("RevisionNotFound", f"Invalid rev id: {revision}")
            return self.answer(200, self.information(shown, name))
        if rest.startswith("tree/"):
            return self.tree(repo, rest.removeprefix("tree/"), query)
        if rest == "preupload/main":
            names = [file["path"] for file in json.loads(self.body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.answer(200, {"files": files})
        if rest == "commit/main":
            return self.commit(repo)
        if rest.startswith("paths-info/"):
            return self.paths_info(repo, rest.removeprefix("paths-info/"))
        if rest == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.sha}
            return self.answer(200, {"branches": [main], "tags": [], "converts": []})
        if rest.startswith("commits/"):
            revision = rest.removeprefix("commits/")
            shas = [repo.sha] if revision == "main" else [commit_of(revision), repo.sha]
            details = {"title": "x", "message": "", "date": "2024-01-01T00:00:00.000Z", "authors": []}
            return self.answer(200, [{"id": sha, **details} for sha in shas])
        if rest == "discussions":
            found = repo.sim.get("discussions", [])
            return self.answer(200, {"discussions": found, "count": len(found), "start": 0})
        return self.refuse("", f"no route {rest}")

    def create(self, wanted: dict[str, Any]) -> None:
        """An empty repository of the token's owner."""
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        url = f"http://{self.headers.get('Host')}/{name}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse("", "Invalid username or password.", 401)
        if (self.sim.root / "models" / name).is_dir():
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        (self.sim.root / "models" / name).mkdir(parents=True)
        return self.answer(200, {"url": url, "name": name})

    def commit(self, repo: Repo) -> None:
        """Files as lines of JSON: a header, what is deleted, and what is new, all in one piece."""
        folder = self.sim.root / repo.kind / repo.name
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "deletedFile":
                (folder / value["path"]).unlink()
            elif entry["key"] == "file":
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
        (folder / ".sim.json").write_text(json.dumps({**repo.sim, "pushes": repo.sim.get("pushes", 0) + 1}))
        facts.cache_clear()
        with self.sim.lock:
            del self.sim.repos[repo.kind, repo.name]
        pushed = self.sim.repo(repo.kind, repo.name)
        assert pushed is not None
        url = f"http://{self.headers.get('Host')}/{repo.name}/commit/{pushed.sha}"
        self.answer(200, {"commitUrl": url, "commitOid": pushed.sha})

    def information(self, repo: Repo, name: str) -> dict[str, Any]:
        # What is gated may be listed by everybody; only its files may not be had.
        names = [path for path in repo.files if ".tfrecord-" not in path]
        return {
            **{"_id": repo.sha[:24], "id": name, "author": name.split("/")[0], "sha": repo.sha},
            **{"private": False, "gated": "auto" if repo.sim.get("gated") else False, "disabled": False},
            **{"tags": [], "downloads": 1, "likes": 1, "lastModified": "2024-01-01T00:00:00.000Z"},
            **{"createdAt": "2022-01-01T00:00:00.000Z", "siblings": [{"rfilename": path} for path in names]},
        }

    def paths_info(self, repo: Repo, revision: str) -> None:
        shown = self.sim.at(repo, revision)
        if shown is None:
            return self.refuse("RevisionNotFound", f"Invalid rev id: {revision}")
        fields = parse_qs(self.body.decode())
        if self.headers.get("Content-Type", "").startswith("application/json"):
            fields = json.loads(self.body)
        paths = fields.get("paths", [])
        entries = []
        for path in paths if isinstance(paths, list) else [paths]:
            if path in shown.files:
                entries.append(shown.entry(path))
            elif path in shown.folders:
                entries.append(folder_entry(path))
        return self.answer(200, entries)

    def tree(self, repo: Repo, rest: str, query: dict[str, list[str]]) -> None:
        revision, _, path = rest.partition("/")
        shown = self.sim.at(repo, revision)
        if shown is None:
            return self.refuse("RevisionNotFound", f"Invalid rev id: {revision}")
        inside = f"{path}/" if path else ""
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        if path and path not in shown.folders:
            return self.refuse("EntryNotFound", f"{path} does not exist on {revision}")
        found: dict[str, dict[str, Any]] = {}
        for name in shown.files:
            if not name.startswith(inside):
                continue
            head, slash, _ = name[len(inside) :].partition("/")
            if slash:
                found.setdefault(inside + head, folder_entry(inside + head))
                if not recursive:
                    continue
            found[name] = {"file": name}
        entries = list(found.values())
        start = int(query.get("cursor", ["0"])[0])
        page = [shown.entry(e["file"]) if "file" in e else e for e in entries[start : start + PAGE]]
        headers = {}
        if start + PAGE < len(entries):
            url = urlsplit(self.path)
            others = "&".join(p for p in url.query.split("&") if p and not p.startswith("cursor="))
            following = f"http://{self.headers.get('Host')}{url.path}?{others}&cursor={start + PAGE}"
            headers["Link"] = f'<{following}>; rel="next"'
        return self.answer(200, page, headers)

    def resolve(self, kind: str, name: str, rest: str, fault: dict[str, Any] | None) -> None:
        repo = self.found(kind, name)
        if repo is None:
            return None
        if repo.sim.get("gated"):
            return self.refuse("GatedRepo", f"Access to {name} is restricted", 403)
        # A ref may have slashes in it, as refs/pr/3 has.
        revisions = ("main", repo.sha, *repo.sim.get("refs", {}))
        revision = next((one for one in revisions if rest.startswith(f"{one}/")), rest.split("/")[0])
        shown, path = self.sim.at(repo, revision), rest.removeprefix(f"{revision}/")
        if shown is None:
            return self.refuse("RevisionNotFound", f"Invalid rev id: {revision}")
        if path not in shown.files:
            return self.refuse("EntryNotFound", f"Entry not found: {path}")
        data = shown.files[path].read_bytes()
        size, sha = facts(shown.files[path])
        headers: dict[str, Any] = {
            **{"ETag": f'"{sha}"', "X-Repo-Commit": shown.sha, "Accept-Ranges": "bytes"},
            **{"X-Linked-Size": size, "X-Linked-Etag": f'"{sha}"'},
            "Content-Type": "application/octet-stream",
        }
        if fault and fault["kind"] == "corrupt":
            at = fault.get("at", size // 2)
            data = data[:at] + bytes(byte ^ 0xFF for byte in data[at : at + 64]) + data[at + 64 :]
        code = 200
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            start = int(match[1]) if match[1] else size - int(match[2])
            stop = min(int(match[2]) + 1 if match[1] and match[2] else size, size)
            if start >= size:
                return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            data, code = data[start:stop], 206
        headers["Content-Length"] = len(data)
        if fault and fault["kind"] == "cut" and self.command == "GET":
            # Announce all, send a part, and drop the connection.
            self.note(code, " (cut)")
            self.head(code, headers)
            self.wfile.write(data[: fault.get("after", len(data) // 2)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return None
        return self.answer(code, data, headers)

    def control(self, path: str, query: dict[str, list[str]]) -> None:
        sim, body = self.sim, b"ok\n"
        if path == "/_sim/faults":
            sim.faults = json.loads(self.body)
        elif path == "/_sim/clear":
            sim.faults, sim.log = [], []
        elif path == "/_sim/log" and "raw" in query:
            body = "".join(f"{at:.2f} {code} {line}\n" for at, line, code in list(sim.log)).encode()
        elif path == "/_sim/log":
            body = "".join(f"{n:6} {line}\n" for line, n in counted(sim.log).most_common()).encode()
        self.head(200, {"Content-Length": len(body)})
        self.wfile.write(body)


def folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": commit_of(path), "size": 0, "path": path}


def counted(log: list[tuple[float, str, int]]) -> Counter[str]:
    """Requests by kind of route, "200 GET /api/models/owner/name/tree/..."."""
    kinds: Counter[str] = Counter()
    for _, line, code in list(log):
        short = re.sub(r"(resolve|tree|paths-info|revision)/.*", r"\1/...", re.sub(r"\?.*", "", line))
        kinds[f"{code} {short}"] += 1
    return kinds


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up, as some tests have them do, are nothing to report."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def make_server(root: Path, port: int = 0) -> tuple[Server, Sim]:
    """A server that is bound and does not serve yet; port 0 takes any that is free."""
    sim = Sim(root)
    return Server(("127.0.0.1", port), type("BoundHandler", (Handler,), {"sim": sim})), sim


# --- tiny repositories --------------------------------------------------------------------------------------

LANGUAGES = ["en", "fr", "es", "de", "el", "bg", "ru", "tr", "ar", "vi", "th", "zh", "hi", "sw", "ur"]
# As far as public code and pages show them (en: 11264, ru: 4096 and 32, de: 2048); the rest are guesses.
SHARDS = {"en": (11264, 128), "ru": (4096, 32), "de": (2048, 16), "fr": (2048, 16), "es": (2048, 16)}
ALPHABETS = {
    "el": "αβγδεζηθικλμνξοπρστυφχψω",
    "bg": "абвгдежзийклмнопрстуфхцчшщъьюя",
    "ru": "абвгдеёжзийклмнопрстуфхцчшщыэюя",
    "ar": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "th": "กขคงจฉชซญดตถทธนบปผพฟมยรลวสหอ",
    "zh": "的一是不了人我在有他这中大来上国",
    "hi": "अआइईउऊएऐकखगघचजटडतदनपबमयरलवस",
    "ur": "ابپتٹثجچحخدڈذرڑزژسشصضطظعغفقکگلمنوہی",
}
MC4 = """
af am ar az be bg bg-Latn bn ca ceb co cs cy da de el el-Latn en eo es et eu fa fi fil fr fy ga gd
gl gu ha haw hi hi-Latn hmn ht hu hy id ig is it iw ja ja-Latn jv ka kk km kn ko ku ky la lb lo lt
lv mg mi mk ml mn mr ms mt my ne nl no ny pa pl ps pt ro ru ru-Latn sd si sk sl sm sn so sq sr st su
sv sw ta te tg th tr uk und ur uz vi xh yi yo zh zh-Latn zu
"""
"""Codes of mC4's languages."""


@cache
def lexicon(language: str) -> list[str]:
    letters = ALPHABETS.get(language, "etaoinshrdlucmfwypvbgkqjxz")
    return ["".join(random.Random(f"{language}{k}").choices(letters, k=2 + k % 7)) for k in range(300)]


def words(draw: random.Random, language: str, count: int) -> str:
    return " ".join(draw.choices(lexicon(language), k=count))


def write_gz(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), 6, mtime=0))


def make_c4(
    folder: Path,
    *,
    languages: Sequence[str] = LANGUAGES,
    others: Sequence[str] = tuple(MC4.split()),
    rows: int = 200,
    shards: dict[str, tuple[int, int]] = SHARDS,
    contents: int = 4,
) -> None:
    """allenai/c4: a configuration a language, files multilingual/c4-LANG.tfrecord-*, and the cleaned English.

    Args:
        folder: of the repository.
        languages: those with as many shards and rows as a training reads.
        others: those that are only listed, with one small file.
        rows: documents in a shard of `languages`.
        shards: of training and validation, by language; 1024 and 8 where it says nothing.
        contents: shards of a language that differ; the others repeat them.
    """

    def documents(code: str, draw: random.Random, count: int, where: str) -> list[dict[str, Any]]:
        return [
            {
                "text": words(draw, code, draw.randint(20, 300)),
                "timestamp": "2020-01-01T00:00:00Z",
                "url": f"https://{code}.example/{where}/{number}",
            }
            for number in range(count)
        ]

    configs = {"en": ("en/c4-train.*.json.gz", "en/c4-validation.*.json.gz")}
    virtual: list[list[Any]] = []
    # The cleaned English is `en`; mC4's English is the configuration `en-multi`.
    names = {"en": "en-multi", "no": "'no'"}
    for code in sorted({*languages, *others}):
        draw, full = random.Random(code), code in languages
        train, held_out = shards.get(code, (1024, 8)) if full else (4, 1)
        pattern = f"multilingual/c4-{code}"
        configs[names.get(code, code)] = (f"{pattern}.*.json.gz", f"{pattern}-validation.*.json.gz")
        files = [f"{code}-{number}.json.gz" for number in range(contents if full else 1)]
        for number, file in enumerate(files):
            count = rows if full else 20
            write_gz(folder / "_contents" / file, documents(code, draw, count, str(number)))
        validation = f"{code}-validation.json.gz"
        write_gz(folder / "_contents" / validation, documents(code, draw, 40, "validation"))
        virtual.append([f"{pattern}.tfrecord-%05d-of-{train:05d}.json.gz", train, files])
        virtual.append(
            [f"{pattern}-validation.tfrecord-%05d-of-{held_out:05d}.json.gz", held_out, [validation]]
        )
    draw = random.Random("cleaned")
    files = [f"c4-{number}.json.gz" for number in range(contents)]
    for number, file in enumerate(files):
        write_gz(folder / "_contents" / file, documents("en", draw, rows, f"cleaned-{number}"))
    write_gz(folder / "_contents" / "c4-validation.json.gz", documents("en", draw, 40, "cleaned-validation"))
    virtual.append(["en/c4-train.%05d-of-01024.json.gz", 1024, files])
    virtual.append(["en/c4-validation.%05d-of-00008.json.gz", 8, ["c4-validation.json.gz"]])
    write_card(
        folder, {name: dict(zip(("train", "validation"), p, strict=True)) for name, p in configs.items()}
    )
    (folder / ".sim.json").write_text(json.dumps({"virtual": virtual}))


def write_card(folder: Path, configs: dict[str, dict[str, str]], information: Sequence[str] = ()) -> None:
    """A data set's README.md: where the files of each configuration and split are."""
    lines = ["---", *information, "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, pattern in splits.items():
            lines += [f"  - split: {split}", f"    path: {pattern}"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: Any = None) -> None:
    import pyarrow as pa
    from pyarrow import parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def make_xnli(folder: Path, *, languages: Sequence[str] = LANGUAGES) -> None:
    """facebook/xnli: LANG/SPLIT-00000-of-00001.parquet, label int64 with class names in README.md."""
    import pyarrow as pa

    schema = pa.schema([("premise", pa.string()), ("hypothesis", pa.string()), ("label", pa.int64())])
    information, configs = ["dataset_info:"], {}
    for code in languages:
        draw = random.Random(code)
        counts = {"train": 2000 if code == "en" else 60, "validation": 100, "test": 120}
        for split, count in counts.items():
            rows = [
                {
                    "premise": words(draw, code, 12),
                    "hypothesis": words(draw, code, 5),
                    "label": draw.randrange(3),
                }
                for _ in range(count)
            ]
            write_parquet(folder / code / f"{split}-00000-of-00001.parquet", rows, schema)
        information += [f"- config_name: {code}", "  features:"]
        information += [
            line for name in schema.names[:2] for line in (f"  - name: {name}", "    dtype: string")
        ]
        information += ["  - name: label", "    dtype:", "      class_label:", "        names:"]
        labels = ("entailment", "neutral", "contradiction")
        information += [f"          '{number}': {name}" for number, name in enumerate(labels)]
        information += ["  splits:"]
        for split in ("train", "test", "validation"):
            facts = (f"  - name: {split}", f"    num_examples: {counts[split]}", "    num_bytes: 1")
            information += facts
        information += ["  download_size: 1", "  dataset_size: 1"]
        configs[code] = {split: f"{code}/{split}-*" for split in ("train", "test", "validation")}
    write_card(folder, configs, information)


def question(draw: random.Random, code: str, key: str) -> dict[str, Any]:
    """A row of SQuAD, XQuAD or TyDi QA."""
    context = words(draw, code, 30)
    answer = context.split(" ")[draw.randrange(20)]
    answers = {"text": [answer], "answer_start": [context.index(answer)]}
    asked = words(draw, code, 6) + "?"
    return {"id": key, "title": "T", "context": context, "question": asked, "answers": answers}


def question_schema() -> Any:
    import pyarrow as pa

    answers = pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int32()))])
    texts = [(name, pa.string()) for name in ("id", "title", "context", "question")]
    return pa.schema([*texts, ("answers", answers)])


def make_squad(folder: Path) -> None:
    """rajpurkar/squad: one configuration, plain_text."""
    draw, splits = random.Random("squad"), {"train": 800, "validation": 100}
    for split, count in splits.items():
        rows = [question(draw, "en", f"{split}{number}") for number in range(count)]
        write_parquet(folder / f"plain_text/{split}-00000-of-00001.parquet", rows, question_schema())
    write_card(folder, {"plain_text": {split: f"plain_text/{split}-*" for split in splits}})


def make_xquad(folder: Path) -> None:
    """google/xquad: a configuration a language, validation only."""
    codes = ["ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh"]
    for code in codes:
        draw = random.Random("xquad" + code)
        rows = [question(draw, code, f"q{number}") for number in range(40)]
        write_parquet(folder / f"xquad.{code}/validation-00000-of-00001.parquet", rows, question_schema())
    write_card(folder, {f"xquad.{code}": {"validation": f"xquad.{code}/validation-*"} for code in codes})


def make_tydiqa(folder: Path) -> None:
    """google-research-datasets/tydiqa: the secondary task, languages in the ids; and a primary task."""
    names = {
        **{"arabic": "ar", "bengali": "bn", "english": "en", "finnish": "fi", "indonesian": "id"},
        **{"korean": "ko", "russian": "ru", "swahili": "sw", "telugu": "te"},
    }
    draw = random.Random("tydi")
    for split, count in (("train", 60), ("validation", 20)):
        rows = [
            question(draw, code, f"{name}-{draw.randrange(-(10**18), 10**18)}-{number}")
            for name, code in names.items()
            for number in range(count)
        ]
        draw.shuffle(rows)
        write_parquet(folder / f"secondary_task/{split}-00000-of-00001.parquet", rows, question_schema())
        write_parquet(folder / f"primary_task/{split}-00000-of-00001.parquet", [{"language": "thai"}])
    tasks = ("primary_task", "secondary_task")
    write_card(folder, {t: {"train": f"{t}/train-*", "validation": f"{t}/validation-*"} for t in tasks})


BYT5_CONFIG = {
    **{"_name_or_path": "/home/patrick/t5/byt5-small", "architectures": ["T5ForConditionalGeneration"]},
    **{"d_ff": 128, "d_kv": 16, "d_model": 64, "decoder_start_token_id": 0, "dropout_rate": 0.1},
    **{"eos_token_id": 1, "feed_forward_proj": "gated-gelu", "gradient_checkpointing": False},
    **{"initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06},
    **{"model_type": "t5", "num_decoder_layers": 2, "num_heads": 4, "num_layers": 6, "pad_token_id": 0},
    **{"relative_attention_num_buckets": 32, "tie_word_embeddings": False},
    **{"tokenizer_class": "ByT5Tokenizer", "transformers_version": "4.7.0.dev0", "use_cache": True},
    "vocab_size": 384,
}


def byt5_weights(seed: int = 0) -> dict[str, Any]:
    """The state dict of a tiny ByT5, whose head is its own."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    fields = {name: value for name, value in BYT5_CONFIG.items() if name != "architectures"}
    model = T5ForConditionalGeneration(T5Config(**fields))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["lm_head.weight"] = torch.randn_like(state["lm_head.weight"])
    return state


def make_byt5(folder: Path, *, safe: bool = False, seed: int = 0) -> None:
    """google/byt5-small as on the Hub, but tiny: a configuration of 2021, and weights for three libraries, of
    which PyTorch's is a pickle of the time before zip files; with `safe` in model.safetensors instead."""
    import torch
    from safetensors.torch import save_file

    generation = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    generation |= {"_from_model_config": True, "transformers_version": "4.27.0.dev0"}
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "config.json": BYT5_CONFIG,
        "generation_config.json": generation,
        "tokenizer_config.json": {"extra_ids": 125, "tokenizer_class": "ByT5Tokenizer"},
        "special_tokens_map.json": special,
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2))
    (folder / "README.md").write_text("# ByT5\n")
    state = byt5_weights(seed)
    if safe:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "tf_model.h5").write_bytes(b"h5")
    (folder / "flax_model.msgpack").write_bytes(b"msgpack")


MAKERS: dict[str, Callable[[Path], None]] = {
    "models/google/byt5-small": make_byt5,
    "models/google/byt5-small-safe": lambda folder: make_byt5(folder, safe=True),
    "datasets/allenai/c4": make_c4,
    "datasets/facebook/xnli": make_xnli,
    "datasets/rajpurkar/squad": make_squad,
    "datasets/google/xquad": make_xquad,
    "datasets/google-research-datasets/tydiqa": make_tydiqa,
}
"""Repositories that can be had by name."""


if __name__ == "__main__":
    command, where, *more = sys.argv[1:]
    if command == "serve":
        make_server(Path(where), int(more[0]))[0].serve_forever()
    else:
        for repository in more or MAKERS:
            MAKERS[repository](Path(where) / repository)
