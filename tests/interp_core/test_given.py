"""What Python code gives the core is right, or refused in one line that says what would be right.

The checks of types that run with the tests are off here: an installed package has none.
"""

# pyright: reportArgumentType=false
# Wrong arguments are what this file is about.

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

import interp_core
import small_models as small
from interp_core import given
from interp_core.errors import InputError
from interp_core.loading import subject_of
from interp_core.mamba.hidden_attention import attention_entries, mixer_calls, stream_attention
from interp_core.mamba.selective_scan import fast_scan
from interp_core.measures.scores import score_heads
from interp_core.models.hooks import HookError, capture, intervene, replace_by, zero
from interp_core.models.sites import Site
from interp_core.stimuli.prompts import Pairs, repeated_tokens

Z = "blocks.1.attn.z"


@pytest.fixture(autouse=True)
def _as_installed() -> Iterator[None]:
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@cache
def subject(kind: str = "gpt2") -> Any:
    return subject_of(small.build(kind), bos=0, name=kind)


@cache
def prompts() -> Any:
    return small.prompts(n_prompts=3)


@cache
def call(kind: str = "mamba") -> Any:
    return mixer_calls(subject(kind), torch.as_tensor(prompts().tokens))[1]


def edited(edits: Any, kind: str = "gpt2") -> torch.Tensor:
    model: Any = subject(kind)
    with torch.no_grad(), intervene(model, edits):
        return model.logits(model.ids(prompts().tokens))


def captured(sites: Any, of: Any = None) -> Any:
    model: Any = subject() if of is None else of
    with capture(model, sites) as seen:
        subject().logits(subject().ids(prompts().tokens))
    return seen


def scored(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "subject": subject(),
        "tokens": prompts().tokens,
        "pairs": prompts().pairs,
        "keys": {"induction": prompts().pairs.induction_key},
    }
    return score_heads(**(arguments | changes))


def entries(kind: str, **changes: Any) -> Any:
    wanted: dict[str, Any] = {"batch": [0, 1], "query": [9, 9], "key": [3, 4]}
    return attention_entries(call(kind), **(wanted | changes))


def streamed(kind: str, **changes: Any) -> Any:
    wanted: dict[str, Any] = {"batch": [0, 1], "query": [9, 9], "key": [3, 4]}
    return stream_attention(call(kind), **({**wanted, "group": [0, 0], "groups": 1} | changes))


def moved(**by: int) -> Pairs:
    """The prompts' pairs with some of their places moved."""
    pairs: Any = prompts().pairs
    names = ("batch", "query", "earlier", "target")
    return Pairs(**{name: getattr(pairs, name) + by.get(name, 0) for name in names})


NO_HEADS = (3, -1, np.int64(3), None, "a", "12", ["a"], [None], [1.0], [np.float64(1)], [True])
NO_HEADS = (*NO_HEADS, [[1]], [-1], [4], {1: 2}, slice(0, 2), torch.tensor(1), np.array([[1]]))
NO_HEADS = (*NO_HEADS, torch.tensor([True, False, False, False]), np.array([0.5]))
NO_SITES = (3, None, b"blocks.1.attn.z", (1, "attn.z"), "attn.z", "blocks.a.attn.z", "blocks.1.z")
NO_SITES = (*NO_SITES, "blocks.-1.attn.z", "blocks.3.attn.z", "blocks.1.mixer.x")
NO_PLACES = ([0, 99], [0, -1], [0.0, 1.0], ["a", "b"], [0], 0, None, [[0, 1]], [True, False])
NO_LAYERS = ("a", "1", None, 1.0, True, [1], -1, 3, np.float64(1))

# By the name that a user imports: a call that must be refused, with what is said. Every name that
# interp_core exports has its row, or stands in NOT_CALLED with its reason.
Refused = tuple[Callable[[], Any], str]
REFUSED: dict[str, list[Refused]] = {
    "zero": [
        *[(lambda heads=heads: edited({Z: zero(heads)}), "head") for heads in NO_HEADS],
        (lambda: edited({"blocks.1.resid_pre": zero([1])}), "no axis of heads"),
    ],
    "replace_by": [
        *[
            (lambda heads=heads: edited({Z: replace_by(heads, torch.zeros(4, 8))}), "head")
            for heads in NO_HEADS
        ],
        *[
            (lambda source=source: edited({Z: replace_by([1], source)}), "source")
            for source in (None, 0, [1], np.zeros((4, 8)), torch.zeros(8), torch.zeros(4, 7))
        ],
        # One head's vectors where four are wanted, of which no number says which it was.
        (lambda: edited({Z: replace_by([1], torch.zeros(3, 8))}), "broadcast"),
    ],
    "Site": [
        *[
            (lambda layer=layer: edited({Site(layer, "attn.z"): zero([1])}), "layer")
            for layer in NO_LAYERS
        ],
        *[
            (lambda name=name: Site(1, name), "no site is called")
            for name in ("z", None, 1, ["attn.z"])
        ],
    ],
    "intervene": [
        *[(lambda site=site: edited({site: zero([1])}), "site|layers|heads") for site in NO_SITES],
        (lambda: edited([Z]), "edits map sites"),
        *[
            (lambda edit=edit: edited({Z: edit}), "an edit is a function")
            for edit in (None, torch.zeros(3), 0)
        ],
        (lambda: intervene(subject().model, {Z: zero([1])}).__enter__(), "subject_of"),
        (lambda: edited({"blocks.1.mixer.x": zero([1])}, "bloom"), "head|site"),
        (lambda: edited({"blocks.1.mixer.x": torch.zeros_like}, "bloom"), "no site"),
        (lambda: edited({"blocks.1.attn.z": torch.zeros_like}, "mamba"), "no blocks.1.attn.z"),
        (lambda: edited({"blocks.1.mixer.x": torch.zeros_like}, "mamba2"), "no blocks.1.mixer.x"),
    ],
    "capture": [
        *[(lambda site=site: captured([site]), "site|layers|heads") for site in NO_SITES],
        *[
            (lambda sites=sites: captured(sites), "a list")
            for sites in (None, 3, Z, Site(1, "attn.z"))
        ],
        (lambda: captured([Z], of=subject().model), "subject_of"),
        (lambda: captured([Z], of="gpt2"), "subject_of"),
        (lambda: captured([Z])["blocks.0.attn.z"], "not captured, only blocks.1.attn.z"),
        (lambda: captured([Z])[3], "a site is"),
    ],
    "score_heads": [
        *[
            (lambda of=of: scored(subject=of), "subject_of")
            for of in (None, "gpt2", nn.Linear(2, 2))
        ],
        (lambda: scored(subject=subject("mamba")), "no attention heads"),
        *[
            (lambda tokens=tokens: scored(tokens=tokens), "tokens|pairs")
            for tokens in (
                "hello",
                3,
                None,
                prompts(),
                prompts().tokens[0],
                prompts().tokens[:1],
                prompts().tokens[:, :3],
            )
        ],
        *[
            (lambda pairs=pairs: scored(pairs=pairs, behaviour=True), "pairs")
            for pairs in (
                None,
                prompts(),
                moved(query=100),
                moved(query=-100),
                moved(batch=7),
                moved(earlier=-100),
            )
        ],
        (lambda: scored(pairs=moved(target=999), behaviour=True), "pairs.target"),
        *[
            (lambda keys=keys: scored(keys=keys), "keys map names")
            for keys in ({}, None, ["induction"], prompts().pairs.query)
        ],
        *[
            (lambda by=by: scored(keys={"k": prompts().pairs.induction_key + by}), "'k'")
            for by in (500, -500, 0.5)
        ],
        (lambda: scored(keys={"k": prompts().pairs.query + 1}), "what comes after it"),
        (lambda: scored(keys={"k": prompts().pairs.query[:3]}), "3 numbers"),
        *[
            (lambda size=size: scored(batch_size=size), "batch_size")
            for size in (0, -1, "a", 2.5, None, True)
        ],
    ],
    "mixer_calls": [
        *[
            (lambda of=of: mixer_calls(of, torch.tensor([[1, 2]])), "subject_of")
            for of in (None, 3, "m")
        ],
        (lambda: mixer_calls(subject(), torch.tensor([[1, 2]])), "not a Mamba"),
        *[
            (lambda ids=ids: mixer_calls(subject("mamba"), ids), "ids|tokenizer|vocabulary")
            for ids in ("hello", None, torch.zeros(1, 3), torch.tensor([[1, 999]]), [[[1]]])
        ],
    ],
    "attention_entries": [
        *[
            (lambda kind=kind, name=name, wrong=wrong: entries(kind, **{name: wrong}), name)
            for kind in ("mamba", "mamba2")
            for name in ("batch", "query", "key")
            for wrong in NO_PLACES
            if not (name == "batch" and wrong == [0])
        ],
        *[
            (lambda of=of: attention_entries(of, [0], [3], [1]), "mixer_calls")
            for of in (None, "m", [])
        ],
    ],
    "stream_attention": [
        *[
            (lambda kind=kind, name=name, wrong=wrong: streamed(kind, **{name: wrong}), name)
            for kind in ("mamba", "mamba2")
            for name in ("batch", "query", "key", "group")
            for wrong in NO_PLACES
            if not (name == "batch" and wrong == [0])
        ],
        *[
            (lambda groups=groups: streamed("mamba", groups=groups), "group")
            for groups in (0, -1, "a", 2.5, None, True)
        ],
        (
            lambda: stream_attention(None, batch=[0], query=[3], key=[1], group=[0], groups=1),
            "mixer_calls",
        ),
    ],
    "fast_scan": [
        *[
            (lambda of=of: fast_scan(of).__enter__(), "no model of transformers")
            for of in (None, 3, "m", subject("mamba"))
        ],
        (lambda: fast_scan(subject().model).__enter__(), "no Mamba mixer"),
    ],
    "repeated_tokens": [
        *[
            (lambda name=name, wrong=wrong: repeated(**{name: wrong}), name)
            for name in ("period", "n_prompts", "copies")
            for wrong in ("a", 3.5, 2.0, True, None, -1, 0, [3])
        ],
        *[(lambda wrong=wrong: repeated(rng=wrong), "default_rng") for wrong in (0, None)],
        *[
            (lambda wrong=wrong: repeated(vocabulary=wrong), "Vocabulary")
            for wrong in (96, None, subject())
        ],
    ],
    "subject_of": [
        *[
            (lambda of=of: subject_of(of, bos=0), "load_model")
            for of in (None, 3, "gpt2", subject(), nn.Linear(2, 2))
        ],
        *[
            (lambda bos=bos: subject_of(small.build("gpt2"), bos=bos), "bos")
            for bos in (None, 1.5, True, "zz", -2, 96, [1])
        ],
    ],
    "load_model": [
        *[
            (lambda of=of: interp_core.load_model(of, bos=0), "model")
            for of in (None, 3, [], {}, b"x", "")
        ],
        *[
            (lambda name=name, wrong=wrong: loaded(**{name: wrong}), name)
            for name, wrong in (
                ("device", 3),
                ("device", None),
                ("device", "xpu9"),
                ("device", torch.device("cpu")),
                ("dtype", "float16"),
                ("dtype", None),
                ("dtype", torch.float32),
                ("device_map", 3),
                ("bos", 96),
                ("bos", None),
            )
        ],
    ],
    "ModelSpec": [
        (lambda: interp_core.ModelSpec(source="x"), "source"),
        (lambda: interp_core.ModelSpec(source="local"), "path"),
    ],
}
NOT_CALLED = {"HookError": "it is what they raise"}


def repeated(**changes: Any) -> Any:
    right = {"vocabulary": small.VOCABULARY, "period": 5, "n_prompts": 2}
    return repeated_tokens(**({**right, "rng": np.random.default_rng(0)} | changes))


def loaded(**changes: Any) -> Any:
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 96}
    spec = interp_core.ModelSpec(source="random", config=config)
    return interp_core.load_model(spec, **({"bos": 0} | changes))


def test_every_name_that_a_user_may_import_is_tried() -> None:
    assert {*REFUSED, *NOT_CALLED} == set(interp_core.__all__)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_in_one_line_that_says_what_is_right(name: str) -> None:
    for number, (attempt, said) in enumerate(REFUSED[name]):
        with pytest.raises(ValueError, match=said) as refusal:
            attempt()
        # ModelSpec's own error has a line for each field.
        if name != "ModelSpec":
            assert "\n" not in str(refusal.value), number
        assert len(str(refusal.value)) < 500, number


def test_an_edit_that_gives_no_tensor_is_refused() -> None:
    for result in (None, 3, np.zeros(3)):
        with pytest.raises(HookError, match="a tensor is wanted"):
            edited({Z: lambda _, result=result: result})


RIGHT = ([1, 3], (1, 3), {1, 3}, range(1, 4, 2), iter([1, 3]), np.array([1, 3]))
RIGHT = (*RIGHT, torch.tensor([1, 3]), [np.int64(1), torch.tensor(3)])


@pytest.mark.parametrize("heads", RIGHT, ids=lambda heads: type(heads).__name__)
def test_heads_may_come_in_any_row_of_whole_numbers(heads: Any) -> None:
    edit = zero(heads)
    for _ in range(2):
        assert torch.equal(edited({Z: edit}), edited({Z: zero([3, 1])}))


def test_a_layer_may_be_a_number_of_numpy_or_torch() -> None:
    for layer in (np.int64(1), torch.tensor(1)):
        assert Site(layer, "attn.z") == Site(1, "attn.z")
        assert hash(Site(layer, "attn.z")) == hash(Site(1, "attn.z"))


@pytest.mark.parametrize("layer", NO_LAYERS)
def test_methods_that_take_a_layer_know_which_there_are(layer: Any) -> None:
    takes_one: list[Callable[[Any], Any]] = [
        *(getattr(subject(), name) for name in ("out_weights", "head_weights", "carried")),
        *(getattr(subject("bloom"), name) for name in ("out_weights", "head_weights")),
        lambda number: subject().observing(print, [number]).__enter__(),
        lambda number: subject("bloom").observing(print, [number]).__enter__(),
        *(subject(kind).mixer for kind in ("mamba", "mamba2")),
    ]

    for method in takes_one:
        with pytest.raises(InputError, match="layer"):
            method(layer)


def test_what_is_shown_of_a_wrong_value_is_short() -> None:
    for value in (np.zeros((900, 900)), "x" * 900, list(range(900)), torch.zeros(3, 3), {}):
        assert len(given.shown(value)) < 80
        assert "\n" not in given.shown(value)
