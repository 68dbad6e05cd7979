"""A stand-in for a W&B server on the loopback interface: it keeps what a client sends.

It answers the requests of wandb's service, of `wandb sync` and of wandb_workspaces, and no others.
"""

import gzip
import json
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "a" * 40  # the only one that it takes
ENTITY = "team"


@dataclass
class KeptRun:
    """A run as the server has it."""

    name: str  # its id
    about: dict[str, Any] = field(default_factory=dict)  # group, job type, tags, display name ...
    history: list[str] = field(default_factory=list)  # a JSON object a line
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    complete: bool = False
    exit_code: int | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was logged, in the order of the server's lines."""
        return [json.loads(line) for line in self.history]

    @property
    def config(self) -> dict[str, Any]:
        """The config without wandb's own part."""
        entries = json.loads(self.about["config"]).items()
        return {key: entry["value"] for key, entry in entries if key != "_wandb"}


@dataclass
class Server:
    """What was sent, and switches for what a server may do to its clients."""

    port: int
    runs: dict[str, KeptRun] = field(default_factory=dict)
    views: list[dict[str, Any]] = field(default_factory=list)  # workspaces and reports
    requests: int = 0
    hangs: bool = False  # takes connections and never answers
    released: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def address(self) -> str:
        """What WANDB_BASE_URL takes."""
        return f"http://127.0.0.1:{self.port}"

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        if "__type(" in query or "__schema" in query:
            return {"QueryType": {"fields": []}, "MutationType": {"fields": []}, "TypeInfo": None}
        if "upsertBucket" in query:
            return {"upsertBucket": {"bucket": self._upserted(variables), "inserted": True}}
        if "upsertView" in query:
            self.views.append(variables)
            where = {"id": "p", "name": variables["projectName"], "entityName": ENTITY}
            view = {key: variables.get(key) for key in ("name", "type", "displayName", "spec")}
            view |= {"id": "VmlldzoxMjM=", "project": where}
            return {"upsertView": {"view": view, "inserted": True}}
        if "createRunFiles" in query:
            return {"createRunFiles": self._places(variables)}
        if "RunResumeStatus" in query:
            return {"model": self._resumed(variables["name"])}
        if "ProjectInternalId" in query:
            known = variables["projectName"] in self.projects
            return {"project": {"internalId": "UHJvamVjdDox"} if known else None}
        if "GetProjects" in query:
            return {"models": self._listed()}
        if "query ArtifactType(" in query:
            return {"project": {"artifact": None}}
        if "createArtifact(" in query:
            # A table is an artifact too. Known already: nothing more of it is sent.
            known = {"id": "1", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": known}}
        if "viewer" in query:
            me = {"id": "1", "username": "me", "entity": ENTITY, "flags": "{}", "teams": None}
            return {"viewer": me}
        return {}

    @property
    def projects(self) -> set[str]:
        """Names of the projects that runs were sent to."""
        return {run.about["project"] for run in self.runs.values()}

    def _listed(self) -> dict[str, Any]:
        about = {"id": "1", "entityName": ENTITY, "createdAt": "2026-01-01T00:00:00Z"}
        about |= {"isBenchmark": False, "user": None}
        nodes = [{"node": {**about, "name": name}} for name in sorted(self.projects)]
        return {"edges": nodes, "pageInfo": {"endCursor": None, "hasNextPage": False}}

    def _upserted(self, sent: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(sent["name"], KeptRun(sent["name"]))
        run.about |= {key: value for key, value in sent.items() if value is not None}
        return self._bucket(run)

    def _bucket(self, run: KeptRun) -> dict[str, Any]:
        project = run.about["project"]
        return {
            "id": run.name,
            "name": run.name,
            "displayName": run.about.get("displayName"),
            "config": run.about.get("config", "{}"),
            "tags": run.about.get("tags", []),
            "historyLineCount": len(run.history),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyTail": json.dumps(run.history[-1:]),
            "eventsTail": "[]",
            "wandbConfig": json.dumps({"t": 1}),
            "summaryMetrics": json.dumps(run.summary),
            "project": {"id": "p", "name": project, "entity": {"id": "e", "name": ENTITY}},
        }

    def _resumed(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        bucket = None if run is None else self._bucket(run)
        return {"id": "m", "name": "m", "entity": {"id": "e", "name": ENTITY}, "bucket": bucket}

    def _places(self, sent: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": f"{self.address}/upload/{sent['run']}/{name}"}
            for name in sent["files"]
        ]
        return {"runID": sent["run"], "uploadHeaders": [], "files": files}

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        """Take a chunk of a run: lines go to the places that the client says, as at W&B."""
        run = self.runs[name]
        for file, chunk in sent.get("files", {}).items():
            if file == "wandb-history.jsonl":
                first = chunk["offset"]
                run.history[first : first + len(chunk["content"])] = chunk["content"]
            elif file == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        run.complete = sent.get("complete", run.complete)
        run.exit_code = sent.get("exitcode", run.exit_code)


@contextmanager
def wandb_server(port: int = 0) -> Iterator[Server]:
    """A server for the length of the block, on a free port unless one is named."""
    listener = _Listener(("127.0.0.1", port), _Handler)
    kept = Server(listener.server_port)
    listener.kept = kept  # pyright: ignore[reportAttributeAccessIssue]
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield kept
    finally:
        kept.released.set()
        listener.shutdown()
        listener.server_close()
        thread.join()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing where a client is gone: some of them are killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Requests, one by one."""

    protocol_version = "HTTP/1.1"

    @property
    def kept(self) -> Server:
        return self.server.kept  # pyright: ignore[reportAttributeAccessIssue]

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test's own output stays readable."""

    def do_PUT(self) -> None:
        """A file of a run."""
        _, _, run, name = self.path.split("/", 3)
        self.kept.runs[run].files[name] = self._body()
        self._reply({})

    def do_POST(self) -> None:
        """GraphQL, or a chunk of a run's stream."""
        body = self._body()
        self.kept.requests += 1
        if self.kept.hangs:
            self.kept.released.wait()
            self.close_connection = True
            return
        if self.path.endswith("/file_stream"):
            self.kept.stream(self.path.split("/")[-2], json.loads(body))
            self._reply({})
            return
        if self.path != "/graphql":
            self._reply({})
            return
        asked = json.loads(body)
        expected = b64encode(f"api:{KEY}".encode()).decode()
        if self.headers.get("authorization") != f"Basic {expected}":
            self._reply({"errors": [{"message": "not logged in"}]}, 401)
            return
        self._reply({"data": self.kept.answer(asked["query"], asked.get("variables") or {})})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def _reply(self, content: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
