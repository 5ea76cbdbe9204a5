"""What it costs the operator when an editor of a namespace writes as much as the API server takes into each resource.

    .venv/bin/python benchmarks/operator_memory.py [--count 1600] [--annotations 100 262144]

Suspended LoRAFineTunes, first small ones and then as many with so many bytes of annotations each, on an API server of
this file's own that keeps them in memory, and one operator process: memory after and at most during the start, a list
anew of everything as after etcd's compaction, and a resync; the time of the start, and what rest costs. Rows for
docs/benchmarks.md.
"""

import argparse
import asyncio
import itertools
import os
import re
import socket
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import yaml
from aiohttp import web

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("hack", "operator", "trainer_image", ".")]

from benchmarks.scale.machine import MIB, Usage, description, usage

Object = dict[str, Any]
NAMESPACE = "team"
RESYNC_S = 25
REST_S = 10
_PATH = re.compile(
    r"/apis?(?:/[^/]+)?/v[^/]+(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)(?:/(?P<name>.+))?"
)
_KINDS = {"lorafinetunes": "LoRAFineTune", "jobs": "Job", "pods": "Pod"}


@dataclass(slots=True)
class Server:
    """The API server: documents by plural and name, and the watches of each plural."""

    objects: dict[str, dict[str, Object]] = field(default_factory=dict)
    watches: dict[str, list[asyncio.Queue[bytes | None]]] = field(default_factory=dict)
    versions: Iterator[int] = field(default_factory=lambda: itertools.count(100))
    version: int = 1
    lists: dict[str, int] = field(default_factory=dict)
    requests: int = 0

    def store(self, plural: str, name: str, document: Object, kind: str) -> Object:
        """Keep a document as of a new version, and report it to the watches."""
        self.version = next(self.versions)
        document["metadata"]["resourceVersion"] = str(self.version)
        self.objects.setdefault(plural, {})[name] = document
        watches = self.watches.get(plural, ())
        line = orjson.dumps({"type": kind, "object": document}) + b"\n" if watches else b""
        for queue in watches:
            queue.put_nowait(line)
        return document

    def expire_watches(self) -> None:
        """As after a compaction: every watch ends, and nothing but a list helps."""
        gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
        for queue in itertools.chain.from_iterable(self.watches.values()):
            queue.put_nowait(orjson.dumps({"type": "ERROR", "object": gone}) + b"\n")
            queue.put_nowait(None)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request of the operator."""
        self.requests += 1
        body = orjson.loads(await request.read() or b"{}")
        found = _PATH.fullmatch(request.path)
        if found is None:
            return self._discover(request.path)
        plural, name = found["plural"], (found["name"] or "").removesuffix("/status")
        if "watch" in request.query:
            return await self._watch(request, plural)
        if request.method == "GET" and not name:
            return self._list(request, plural)
        return self._on_one(request.method, plural, name, body)

    def _on_one(self, method: str, plural: str, name: str, body: Object) -> web.Response:
        if plural == "selfsubjectaccessreviews":
            return _json({**body, "status": {"allowed": True}}, 201)
        if method == "POST":
            name = body["metadata"].get("name") or f"generated-{self.version}"
            body["metadata"] |= {"uid": f"uid-{plural}-{name}", "namespace": NAMESPACE}
            return _json(self.store(plural, name, body, "ADDED"), 201)
        stored = self.objects.get(plural, {}).get(name)
        if stored is None:
            return _json({"kind": "Status", "reason": "NotFound", "message": "not found"}, 404)
        if method == "PUT":
            changed: Object = {part: body[part] for part in ("spec", "status") if part in body}
            stored = self.store(plural, name, {**stored, **changed}, "MODIFIED")
        return _json(stored)

    def _discover(self, path: str) -> web.Response:
        if path in {"/apis", "/api"}:
            return _json({"groups": [_group(group) for group in _SERVED if group], "versions": ["v1"]})
        for group, kinds in _SERVED.items():
            if path == f"/apis/{group}/{_VERSIONS[group]}" or (path == "/api/v1" and not group):
                return _json({"kind": "APIResourceList", "resources": [_resource(kind) for kind in kinds]})
        return _json({"kind": "Status", "reason": "NotFound", "message": "not found"}, 404)

    def _list(self, request: web.Request, plural: str) -> web.Response:
        start = int(request.query.get("continue") or 0)
        end = start + int(request.query.get("limit") or 10**9)
        items = list(itertools.islice(self.objects.get(plural, {}).values(), start, end))
        metadata = {"resourceVersion": str(self.version)}
        if end < len(self.objects.get(plural, {})):
            metadata["continue"] = str(end)
        else:
            self.lists[plural] = self.lists.get(plural, 0) + 1
        kind = f"{_KINDS.get(plural, plural)}List"
        return _json({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items})

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        response = web.StreamResponse()
        queue = asyncio.Queue[bytes | None]()
        self.watches.setdefault(plural, []).append(queue)
        try:
            await response.prepare(request)
            async with asyncio.timeout(int(request.query.get("timeoutSeconds", "600"))):
                while (line := await queue.get()) is not None:
                    await response.write(line)
        except (ConnectionResetError, TimeoutError):
            pass  # the operator, or the watch, is at its end
        finally:
            self.watches[plural].remove(queue)
        return response


# What kopf looks for before it begins.
_SERVED = {
    "": ("Namespace", "Event"),
    "apiextensions.k8s.io": ("CustomResourceDefinition",),
    "lora-operator.io": ("LoRAFineTune",),
}
_VERSIONS = {"": "v1", "apiextensions.k8s.io": "v1", "lora-operator.io": "v1alpha1"}


def _group(name: str) -> Object:
    version = {"groupVersion": f"{name}/{_VERSIONS[name]}", "version": _VERSIONS[name]}
    return {"name": name, "versions": [version], "preferredVersion": version}


def _resource(kind: str) -> Object:
    verbs = ["get", "list", "watch", "create", "update", "patch", "delete"]
    names = {"name": f"{kind.lower()}s", "singularName": kind.lower(), "shortNames": [], "categories": []}
    return {"kind": kind, **names, "namespaced": kind in {"LoRAFineTune", "Event"}, "verbs": verbs}


def _json(document: Object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(document), status=status, content_type="application/json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What the operator's process took in a phase: memory after it and at most, seconds and CPU seconds."""

    name: str
    after: Usage
    seconds: float
    cpu_s: float

    def __str__(self) -> str:
        memory = f"{self.after.resident_bytes / MIB:.0f} MiB | {self.after.peak_bytes / MIB:.0f} MiB"
        return f"{self.name} | {memory} | {self.seconds:.1f} s | {self.cpu_s:.1f} s"


async def measure(count: int, annotation_bytes: int) -> AsyncIterator[Phase]:
    """The phases of an operator with so many resources, one after the other."""
    server = Server()
    annotations = {"note": "x" * annotation_bytes}
    for number in range(count):
        name = f"run-{number:05d}"
        server.store("lorafinetunes", name, _finetune(name, annotations), "ADDED")
    async with _serving(server) as url, _operator(url) as process:
        finetunes = server.objects["lorafinetunes"]
        yield await _phase("start", process, lambda: all("status" in each for each in finetunes.values()))
        await asyncio.sleep(2)
        before = dict(server.lists)
        server.expire_watches()
        yield await _phase("list anew", process, lambda: _all_listed(server, before))
        before = dict(server.lists)
        yield await _phase("resync", process, lambda: _all_listed(server, before))
        requests, until = server.requests, time.monotonic() + REST_S
        yield await _phase("rest", process, lambda: time.monotonic() > until)
        print(f"{server.requests - requests} requests in {REST_S} s of rest", file=sys.stderr)


def _all_listed(server: Server, before: dict[str, int]) -> bool:
    return all(server.lists.get(plural, 0) > before.get(plural, 0) for plural in _KINDS)


def _finetune(name: str, annotations: Object) -> Object:
    return {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-{name}",
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": annotations,
        },
        "spec": {
            "model": {"uri": "hf://acme/model"},
            "dataset": {"uri": "hf://acme/data"},
            "output": {"uri": f"pvc://adapters/{name}"},
            "preflight": "Skip",
            "suspend": True,
        },
    }


async def _phase(name: str, process: Process, is_over: Callable[[], bool]) -> Phase:
    _forget_peak(process.pid)
    before, began_s = usage(process.pid), time.monotonic()
    while not is_over():
        if process.returncode is not None:
            raise RuntimeError(f"the operator ended with {process.returncode}")
        await asyncio.sleep(0.05)
    seconds = time.monotonic() - began_s
    await asyncio.sleep(2)
    after = usage(process.pid)
    return Phase(name=name, after=after, seconds=seconds, cpu_s=after.cpu_s - before.cpu_s)


def _forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@asynccontextmanager
async def _serving(server: Server) -> AsyncIterator[str]:
    application = web.Application(client_max_size=2**22)
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        server.expire_watches()
        await runner.cleanup()


@asynccontextmanager
async def _operator(url: str) -> AsyncIterator[Process]:
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(*_command(Path(folder), url), env=_environment(Path(folder)))
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def _environment(folder: Path) -> dict[str, str]:
    paths = os.pathsep.join(str(REPOSITORY / package) for package in ("operator", "trainer_image"))
    return {**os.environ, "KUBECONFIG": str(folder / "kubeconfig"), "PYTHONPATH": paths}


def _command(folder: Path, url: str) -> list[str]:
    login = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "here", "user": {"token": "none"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
        "current-context": "here",
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(login))
    settings = {"resyncIntervalSeconds": RESYNC_S, "httpPort": _free_port(), "logLevel": "WARNING"}
    lease = {"leaseNamespace": NAMESPACE}
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainerImage": "trainer", **settings, **lease}))
    return [sys.executable, "-m", "lora_operator", "--config", str(folder / "config.yaml")]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def main() -> None:
    """Measure both, and print rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1600)
    parser.add_argument("--annotations", type=int, nargs="+", default=(100, 2**18), metavar="BYTES")
    options = parser.parse_args()
    print(description(), flush=True)
    print("| annotations | phase | memory after | at most | time | CPU |\n|---|---|---|---|---|---|")
    for size in options.annotations:
        async for phase in measure(options.count, size):
            print(f"| {size / 1024:.1f} KiB | {phase} |", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
