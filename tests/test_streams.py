"""Named random streams: each draws what it always drew, none takes another's numbers unsaid, and no
generator is made anywhere else.
"""

import ast
import importlib
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from interp_core.streams import Stream, Streams, meet

ROOT = Path(__file__).resolve().parents[1]
MAKER = ROOT / "shared" / "interp_core" / "streams.py"
FILES = sorted(file for place in ("packages", "shared") for file in (ROOT / place).rglob("*.py"))
# Who has a table: a study, or a room of the core.
OWNERS = sorted(
    ".".join(file.relative_to(ROOT).parts[1:-1])
    for file in FILES
    if file.name == "streams.py" and file != MAKER
)
SEED = 13
Part = int | str
Parts = tuple[Part, ...]

# By purpose: what a draw is told, what follows the seed, and the first 64 bits. Computed from
# `default_rng([SEED, ...])` with the numbers as they stood in the code, before they had names.
DRAWN: dict[str, dict[str, tuple[Parts, list[int], int]]] = {
    "cursive_circuits": {
        "hand": ((6,), [1, 6], 0xD3B5CDC0773621D8),
        "letter": ((6, 97), [2, 6, 97], 0x81958E0CA8F08A4B),
        "writers": ((5,), [3, 5], 0xC18E43171296AA4F),
        "spellings": ((), [4], 0xD49A8986B4C46147),
        "held_out": ((), [5], 0xFFA9224CD56D7CF2),
        "batches": ((8,), [10, 8], 0x2C70399165AAC4BC),
        "tiled": ((8,), [11, 8], 0xCD9F0E0C0D50BAED),
        "tiled_order": ((), [12], 0x26796FD81C240FAD),
        "same_text": ((), [0], 0xDD635FE9E55D34BC),
        "mismatched_text": ((), [1], 0x48922564F9DDF085),
        "other_writer": ((), [2], 0xDDDBA77307828ACE),
        "synthetic": ((), [3], 0xB475AC8904B8CF8E),
        "natural": ((), [4], 0xD49A8986B4C46147),
        "gain_rows": ((), [20], 0xED87DF1DAC5D0DAE),
        "heads": ((2,), [21, 2], 0xDD67B3ABB096002F),
        "gain": ((), [22], 0xB84718D1AE951672),
        "alignment": ((), [30], 0x1EB37261AA1D0EE9),
        "attention": ((), [31], 0x02733CDFB3604FA9),
        "samples": ((), [50], 0x86321288BAFFCFDF),
        "drawings": ((), [70], 0xF74DF3E92C68A1AD),
        "interventions": ((), [40], 0x0F62331D392F118D),
        "paths": ((), [41], 0xE73725A60329C846),
        "continued": ((), [60], 0xA23D3E0688DEBCE8),
        "redrawn": ((), [61], 0x383953A63182325C),
    },
    "eigen_phase": {
        "batch": ((9,), [9], 0x4C43683766499AC4),
        "held_out": ((), [0, 1], 0xB29EE3C16713CD74),
        "probe": ((), [0, 2], 0x34763FE131B77323),
        "another_probe": ((5,), [0, 2, 5], 0xB3D24AC29C3AA435),
        "independent": ((), [0, 3], 0x768C52217A3E25D4),
        "ablations": ((), [31], 0x02733CDFB3604FA9),
        "ceiling": ((), [41], 0xE73725A60329C846),
    },
    "interp_core.page": {
        "absent_words": ((), [], 0xDD635FE9E55D34BC),
        "clicked_away": ((3,), [3], 0xB475AC8904B8CF8E),
        "best_heads": ((), [71], 0xB0087F8D13297AFD),
    },
    "interp_core.training": {
        "batch": ((9,), [9], 0x4C43683766499AC4),
        "watched": ((), [0, 1], 0xB29EE3C16713CD74),
    },
    "mamba_induction": {
        "repeated": ((), [*b"repeated"], 0x8976CE759007B5E3),
        "copies": ((), [*b"copies"], 0xAE2E893D3E80836B),
        "period": (("16",), [*b"period 16"], 0x061F01C479B34967),
        "spaced": ((), [*b"spaced"], 0xE37518F73DB0EB83),
        "shuffled": ((), [*b"shuffled"], 0xCC7A7E45684F8DAA),
        "queries": ((), [*b"queries"], 0xC3B54A0DC90A418A),
        "natural": ((), [*b"natural"], 0x2187F1A686687E5F),
        "repeated_text": ((), [*b"repeated text"], 0xA6268F3C8A94682B),
        "windows": ((), [*b"windows"], 0xEB2B99D67C1A3CF0),
        "examples": ((), [6], 0x94597F3CB987F2C0),
        "mixed_repeats": ((), [*b"mixed repeats"], 0x8D7288C4D1BBFFAD),
        "order": ((2,), [2], 0xDDDBA77307828ACE),
        "peak_offsets": ((), [3], 0xB475AC8904B8CF8E),
        "null": ((), [4], 0xD49A8986B4C46147),
        "change": ((), [5], 0xFFA9224CD56D7CF2),
        "independence": ((), [*b"independence"], 0x0AC6684A5D9F6EC8),
        "score": (("copying_excess",), [*b"copying_excess"], 0x2C951E2350111E91),
        "reads_of_queries": ((), [7], 0x779F9480A9BFFDE3),
        "effects": ((), [8], 0x10194D30F4E3C2FC),
        "verdict": ((), [8], 0x10194D30F4E3C2FC),
        "reads_of_answers": ((), [9], 0x4C43683766499AC4),
        "reads_kept": ((), [10], 0x721265EEC1C0DF57),
        "other_states": ((), [11], 0x34A23321B370C433),
    },
    "mamba_neurons": {
        "repeats": ((), [*b"repeats"], 0x2F0B6B3C7798C975),
        "delta": ((), [1], 0x48922564F9DDF085),
        "causal": ((), [2], 0xDDDBA77307828ACE),
        "inter_layer": ((), [3], 0xB475AC8904B8CF8E),
        "cross_layer": ((), [4], 0xD49A8986B4C46147),
        "attention_fisher": ((), [5], 0xFFA9224CD56D7CF2),
        "attention_faithfulness": ((), [6], 0x94597F3CB987F2C0),
        "attention_summary": ((), [7], 0x779F9480A9BFFDE3),
        "sparsity": ((), [8], 0x10194D30F4E3C2FC),
        "efficiency_estimates": ((), [9], 0x4C43683766499AC4),
        "efficiency_curve": ((), [10], 0x721265EEC1C0DF57),
        "compare": ((), [11], 0x34A23321B370C433),
        "efficiency_joint": ((), [12], 0x26796FD81C240FAD),
    },
    "pythia_topology": {
        "repeated_tokens": ((), [*b"repeated_tokens"], 0x0CD310CFEEFD4CEE),
        "spaced_pairs": ((), [*b"spaced_pairs"], 0x159384F8595C85CE),
        "names": ((), [*b"names"], 0x146BD416656EC519),
        "natural_repeats": ((), [*b"natural_repeats"], 0xB69E01064875DD8C),
        "text": ((), [*b"text"], 0xC750ABB4C79C7CFB),
        "shuffled_antecedents": ((), [1], 0x48922564F9DDF085),
        "score_intervals": ((), [2], 0xDDDBA77307828ACE),
        "onset": ((), [9], 0x4C43683766499AC4),
        "controls": ((), [3], 0xB475AC8904B8CF8E),
        "ablations": ((), [4], 0xD49A8986B4C46147),
        "dose": ((), [5], 0xFFA9224CD56D7CF2),
        "specificity": ((), [6], 0x94597F3CB987F2C0),
        "paths": ((), [7], 0x779F9480A9BFFDE3),
        "control_pairs": ((), [8], 0x10194D30F4E3C2FC),
        "nulls": ((), [10], 0x721265EEC1C0DF57),
        "crosssize": ((), [11], 0x34A23321B370C433),
        "lagbuckets": ((), [12], 0x26796FD81C240FAD),
        "profile": ((), [13], 0x9A020DA882956A0B),
    },
}


def streams_of(owner: str) -> Streams:
    return importlib.import_module(f"{owner}.streams").STREAMS


def first(rng: np.random.Generator) -> int:
    return rng.bit_generator.random_raw()


CASES = [(owner, purpose) for owner, drawn in DRAWN.items() for purpose in drawn]


@pytest.mark.parametrize(("owner", "purpose"), CASES)
def test_a_named_stream_draws_what_its_numbers_drew(owner: str, purpose: str) -> None:
    parts, numbers, bits = DRAWN[owner][purpose]
    named = streams_of(owner).rng(purpose, SEED, *parts)
    assert first(np.random.default_rng([SEED, *numbers])) == bits
    assert first(named) == bits
    assert streams_of(owner).by_purpose[purpose].after(*parts) == numbers


@pytest.mark.parametrize("owner", OWNERS)
def test_every_stream_has_its_numbers_on_record(owner: str) -> None:
    assert streams_of(owner).by_purpose.keys() == DRAWN[owner].keys()


@pytest.mark.parametrize("owner", OWNERS)
def test_a_table_of_streams_is_light(owner: str) -> None:
    file = importlib.import_module(f"{owner}.streams").__file__
    assert file is not None
    tree = ast.parse(Path(file).read_text())
    taken = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in taken] == [
        "from interp_core.streams import Stream, Streams"
    ]


def generators_made(tree: ast.AST) -> Iterator[str]:
    """Names in a piece of code that make a generator, or the numbers of one."""
    makers = {"default_rng", "RandomState", "SeedSequence", "PCG64", "MT19937", "Philox", "SFC64"}

    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
        if name in makers:
            yield name
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.name in makers)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_generator_is_made_in_one_place(file: Path) -> None:
    found = [*generators_made(ast.parse(file.read_text()))]
    assert file == MAKER or not found, "draw by name: STREAMS.rng(purpose, seed), and streams.py"


@pytest.mark.parametrize(
    "code",
    [
        "np.random.default_rng([seed, 7])",
        "np.random.default_rng(seed)",
        "from numpy.random import default_rng as made",
        "np.random.Generator(np.random.PCG64([seed, *b'name']))",
        "rng = np.random.RandomState",
    ],
)
def test_every_way_to_make_a_generator_is_seen(code: str) -> None:
    assert [*generators_made(ast.parse(code))]


def purposes_drawn(tree: ast.AST) -> Iterator[str]:
    """Purposes that a piece of code names where it asks for a generator."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "rng":
            of_call = ast.unparse(node.func).split(".")[0] in ("STREAMS", "run", "study")
            if of_call and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def words_in(tree: ast.AST) -> set[str]:
    """All strings of a piece of code."""
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


@pytest.mark.parametrize("owner", OWNERS)
def test_what_is_drawn_is_declared_and_what_is_declared_is_drawn(owner: str) -> None:
    place = importlib.import_module(f"{owner}.streams").__file__
    assert place is not None
    others = [file for file in Path(place).parent.glob("*.py") if file != Path(place)]
    trees = [ast.parse(file.read_text()) for file in others]

    declared = set(streams_of(owner).by_purpose)
    assert {purpose for tree in trees for purpose in purposes_drawn(tree)} <= declared
    # A family of prompts is drawn by its name, which stands elsewhere.
    assert declared <= {word for tree in trees for word in words_in(tree)}


def some_keys(stream: Stream) -> Iterator[tuple[int, ...]]:
    """What follows the seed in many draws of a stream, as NumPy reads it."""
    counted = [
        range(least, least + (45 if len(stream.then) == 1 else 4)) for least in stream.then.values()
    ]
    words = ["a", "8", "names", "period 8", "repeated"] if stream.word else [""]

    for *numbers, word in product(*counted, words):
        after = stream.after(*numbers, *([word] if word else []))
        state = np.random.SeedSequence([SEED, *after]).generate_state(4)
        yield tuple(state.tolist())


@pytest.mark.parametrize("owner", OWNERS)
def test_two_purposes_never_have_a_key_in_common_unless_they_say_so(owner: str) -> None:
    by_purpose = streams_of(owner).by_purpose
    keys = {purpose: set(some_keys(stream)) for purpose, stream in by_purpose.items()}

    for (name, one), (other_name, other) in combinations(by_purpose.items(), 2):
        said = other_name in one.shares or name in other.shares
        assert said or not keys[name] & keys[other_name], f"{name} and {other_name}"


STREAM_PAIRS = [
    (Stream(7), Stream(7), True),
    (Stream(7), Stream(8), False),
    (Stream(7), Stream((0, 7)), False),
    (Stream(7), Stream((7, 0)), True),  # NumPy fills up with zeros
    (Stream(), Stream((0, 0, 0)), True),
    (Stream(), Stream((0, 0, 0, 0)), False),  # but not the fifth number
    (Stream(7), Stream(then={"step": 0}), True),
    (Stream(7), Stream(then={"step": 8}), False),
    (Stream((0, 2)), Stream((0, 2), then={"draw": 0}), True),
    (Stream((0, 2)), Stream((0, 2), then={"draw": 1}), False),
    (Stream(b"names"), Stream(b"names"), True),
    (Stream(b"names"), Stream(b"nameless"), False),
    (Stream(b"names"), Stream(word="score"), True),
    (Stream(b"names"), Stream(b"na", word="rest"), True),
    (Stream(b"names"), Stream(b"ne", word="rest"), False),
    (Stream(7), Stream(word="score"), False),  # no letter is a seven
    (Stream(then={"step": 0}), Stream(word="score"), True),
    (Stream(1, then={"hand": 0}), Stream(word="score"), False),
]


@pytest.mark.parametrize(("one", "other", "expected"), STREAM_PAIRS)
def test_streams_meet_where_numpy_makes_one_generator_of_both(
    one: Stream, other: Stream, *, expected: bool
) -> None:
    assert meet(one, other) == meet(other, one) == expected
    if not expected:
        assert not set(some_keys(one)) & set(some_keys(other))


def test_numbers_that_are_used_twice_are_refused_unless_it_is_said() -> None:
    with pytest.raises(ValueError, match="one and two can have the same numbers"):
        Streams({"one": Stream(7), "two": Stream(7)})
    with pytest.raises(ValueError, match="words and heads can have the same numbers"):
        Streams({"words": Stream(b"heads"), "heads": Stream(b"heads")})

    shared = Streams({"one": Stream(7), "two": Stream(7, shares=("one",))})
    assert first(shared.rng("one", 3)) == first(shared.rng("two", 3))


def test_sharing_is_said_only_where_it_is() -> None:
    with pytest.raises(ValueError, match="one and two never have the same numbers"):
        Streams({"one": Stream(7), "two": Stream(8, shares=("one",))})
    with pytest.raises(ValueError, match="no stream has the name three"):
        Streams({"one": Stream(7, shares=("three",))})


@pytest.mark.parametrize(
    ("stream", "parts"),
    [
        (Stream(7), (1,)),
        (Stream(7, then={"step": 0}), ()),
        (Stream(7, then={"step": 1}), (0,)),
        (Stream(7, then={"step": 0}), ("one",)),
        (Stream(word="score"), (1,)),
        (Stream(word="score"), ("",)),
        (Stream(word="score"), ("a\n",)),
        (Stream(then={"step": 0}, word="score"), ("loss", 1)),
    ],
)
def test_a_draw_is_told_what_was_declared_and_nothing_else(stream: Stream, parts: Parts) -> None:
    with pytest.raises(ValueError, match="a draw of this stream is told"):
        stream.after(*parts)


def test_a_stream_that_nobody_declared_is_none() -> None:
    with pytest.raises(KeyError, match="nothing"):
        Streams({}).rng("nothing", 0)
