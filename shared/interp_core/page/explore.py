"""A model live: type a text, see what every head does on it, take heads away, see what is predicted
then.

Served on 127.0.0.1 alone, below an address that nobody can guess. One text is answered at a time.
"""

import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import click
import numpy as np
from jaxtyping import Int
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from interp_core.errors import InputError
from interp_core.models.subject import Subject
from interp_core.page.document import render
from interp_core.page.packed import lower, numbers
from interp_core.page.streams import STREAMS
from interp_core.page.texts import DEFAULT, LONGEST, copy_operations, first_of_text, words
from interp_core.page.views import live
from interp_core.page.watch import Watched, all_heads, heads_each, predicted, watched
from interp_core.statistics.heads import Head
from interp_core.statistics.random_sets import matched_sets
from interp_core.stimuli.opening import begun
from interp_core.stimuli.prompts import Pairs

DRAWS = 2  # random sets of each answer: more would keep the reader waiting
LARGEST_REQUEST = 100_000  # bytes
SCRIPTS = ("arrays", "elements", "grid", "attention", "without", "explore")


@dataclass(frozen=True)
class Read:
    """One text as the model has read it, whole."""

    ids: Int[np.ndarray, " position"]
    pairs: Pairs
    found: Watched


@dataclass
class Reader:
    """A model and the text that was read last, so that a head's click costs its own pass alone."""

    subject: Subject
    seed: int
    _lock: Lock = field(default_factory=Lock)
    _last: tuple[str, Read] | None = None

    def read(self, text: str) -> dict[str, Any]:
        """Tokens, where every head looks, its induction score here, and what is predicted."""
        with self._lock:
            one = self._read(text)

        return {
            "tokens": words(self.subject, one.ids),
            "pairs": np.stack([one.pairs.query, one.pairs.induction_key], axis=1).tolist(),
            "attention": lower(one.found.patterns),
            "score": self._score(one),
            "whole": live(one.found.predicted, self.subject)[0],
        }

    def without(self, text: str, heads: Sequence[Head]) -> dict[str, Any]:
        """Predictions without some heads, and without as many random others of the same layers.

        Of layers that count as one head other layers are drawn, the nearest. A model that has too
        few others has no control.
        """
        rng = STREAMS.rng("clicked_away", self.seed, len(heads))
        near = {layer for layer, _ in heads}
        one_each = heads_each(self.subject) == 1
        pool = [head for head in all_heads(self.subject) if one_each or head.layer in near]
        off = [Head(*head) for head in heads]
        random = matched_sets(off, pool, rng, draws=DRAWS, without=off).sets

        with self._lock:
            one = self._read(text)
            found = live(
                predicted(self.subject, one.ids, [heads, *random], one.found.means), self.subject
            )

        return {
            "without": found[0],
            "random": found[1:],
            "names": [[str(head) for head in sorted(one)] for one in random],
        }

    def _read(self, text: str) -> Read:
        if self._last is not None and self._last[0] == text:
            return self._last[1]

        ids = self._ids(text)
        pairs = copy_operations(ids, first=first_of_text(self.subject))
        one = Read(ids, pairs, watched(self.subject, ids))

        self._last = (text, one)
        return one

    def _ids(self, text: str) -> Int[np.ndarray, " position"]:
        tokenizer: Any = self.subject.tokenizer
        ids = np.array(tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
        longest = min(LONGEST, self.subject.n_ctx)

        (row,) = begun(ids[None], self.subject.bos)

        # Something is predicted from the second place on.
        if len(row) < 2:
            fewest = "one token" if first_of_text(self.subject) else "two tokens"
            raise InputError(f"type a text of at least {fewest}")
        if len(row) > longest:
            raise InputError(f"the text has {len(row)} tokens with BOS, at most {longest} are read")

        return row

    def _score(self, one: Read) -> list[list[float]] | None:
        """Attention to the token after the earlier occurrence, mean over the places that copy."""
        if not len(one.pairs):
            return None

        return numbers(
            one.found.patterns[:, :, one.pairs.query, one.pairs.induction_key].mean(axis=-1)
        )


def application(subject: Subject, token: str, *, seed: int) -> Starlette:
    """The pages and the answers, all below the token. InputError for a model without tokenizer."""
    if subject.tokenizer is None:
        raise InputError(
            f"{subject.name} has no tokenizer: text cannot be given to it; save one beside its "
            "weights"
        )

    reader = Reader(subject, seed)
    each = heads_each(subject)
    view = {
        "id": "view-0",
        "kind": "explore",
        "title": f"Explore {subject.name}",
        "model": subject.name,
        "layers": subject.n_layers,
        "heads": each,
        "unit": "mixer" if each == 1 else "head",
        "text": DEFAULT,
        "longest": min(LONGEST, subject.n_ctx),
    }
    content = render("explore.html.jinja", scripts=SCRIPTS, title=view["title"], views=[view])

    async def page(_: Request) -> Response:
        return HTMLResponse(
            content, headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        )

    async def read(request: Request) -> Response:
        asked = await _asked(request)
        return JSONResponse(await run_in_threadpool(reader.read, _text(asked)))

    async def without(request: Request) -> Response:
        asked = await _asked(request)
        heads = _heads(asked, subject.n_layers, each)
        return JSONResponse(await run_in_threadpool(reader.without, _text(asked), heads))

    return Starlette(
        routes=[
            Route(f"/{token}/", page),
            Route(f"/{token}/read", _answering(read), methods=["POST"]),
            Route(f"/{token}/without", _answering(without), methods=["POST"]),
        ],
        # Another site's page may know the port, and name this machine as its own: not with these
        # hosts.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )


def serve(subject: Subject, *, port: int, seed: int) -> None:
    """Serve until interrupted. InputError when the port is taken."""
    import uvicorn

    token = secrets.token_urlsafe(16)
    app = application(subject, token, seed=seed)
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    try:
        listening.bind(("127.0.0.1", port))
    except OSError as problem:
        raise InputError(
            f"port {port}: {problem.strerror}; leave --port out for a free one"
        ) from None

    click.echo(
        f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/ shows {subject.name}; Ctrl-C ends "
        "it"
    )
    # No log of requests: it would hold the token.
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
    )
    server.run(sockets=[listening])


def _answering(
    answer: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """What a reader can mend comes back as one line."""

    async def answered(request: Request) -> Response:
        try:
            return await answer(request)
        except InputError as problem:
            return JSONResponse({"error": str(problem)}, status_code=422)

    return answered


async def _asked(request: Request) -> dict[str, Any]:
    body = b""

    async for part in request.stream():
        body += part
        if len(body) > LARGEST_REQUEST:
            raise InputError(f"a request of more than {LARGEST_REQUEST:,} bytes: shorten the text")

    return _object(body)


def _object(body: bytes) -> dict[str, Any]:
    import json

    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError("a request must be JSON") from None

    if not isinstance(asked, dict):
        raise InputError("a request must be an object with a text")

    return asked


def _text(asked: dict[str, Any]) -> str:
    if not isinstance(text := asked.get("text"), str):
        raise InputError("a request needs a text")

    return text


def _heads(asked: dict[str, Any], layers: int, each: int) -> list[Head]:
    """The heads that are off, each one of the model's."""
    heads = asked.get("heads")

    if not isinstance(heads, list) or not heads:
        raise InputError("a request needs the heads that are off")

    found: set[Head] = set()
    for one in heads:
        match one:
            case [int(layer), int(head)] if 0 <= layer < layers and 0 <= head < each:
                found.add(Head(layer, head))
            case _:
                raise InputError(f"{one!r} is no head of this model")

    return sorted(found)
