"""Files vouch for themselves: who reads one knows whether it is what was written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from interp_core.console import call
from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays, load_json, load_weights, save_arrays, save_json
from interp_core.files.folders import replacing_folder
from interp_core.files.params import Params
from interp_core.files.sums import SUMS, check_all, file_sha256, listed_in
from interp_core.files.vouching import guarding, replacing_ours, vouching
from interp_core.training.checkpoints import Scratch


class Settings(Params):
    """Of a study of one number."""

    seed: int = 0


@pytest.fixture
def measured(tmp_path: Path) -> "call.Call[Settings]":
    """An experiment's folder with scores and a report of one model."""
    run = call.start("pythia_topology", Settings(), out=tmp_path / "out")
    scores = {"excess": np.arange(8.0).reshape(2, 4)}
    run.save("profile", "a", {"best": 0.5}, scores, made=run.made_from({}))
    return run


def test_mirrored_heads_and_an_edited_number_are_not_read(
    measured: "call.Call[Settings]",
) -> None:
    assert measured.load("profile", "a")[1]["best"] == 0.5
    scores, report = measured.folder / "a.npz", measured.folder / "a.json"

    save_arrays(scores, {"excess": load_arrays(scores)["excess"][:, ::-1]})
    with pytest.raises(InputError, match=r"a\.npz is damaged: its SHA-256 is not the one in"):
        measured.load("profile", "a")

    report.write_text(report.read_text().replace("0.5", "0.6"))
    with pytest.raises(InputError, match=r"a\.json is damaged"):
        load_json(report)


def test_another_models_scores_in_its_place_are_not_read(
    measured: "call.Call[Settings]",
) -> None:
    measured.save("profile", "b", {}, {"excess": np.ones((2, 4))}, made={})
    (measured.folder / "a.npz").write_bytes((measured.folder / "b.npz").read_bytes())
    with pytest.raises(InputError, match="damaged"):
        measured.load("profile", "a")


def test_what_is_written_again_is_vouched_for_again(measured: "call.Call[Settings]") -> None:
    (measured.folder / "a.json").write_text("{}")
    measured.save("profile", "a", {"best": 0.7}, {"excess": np.ones(1)}, made={})
    assert measured.load("profile", "a")[1]["best"] == 0.7


def test_the_record_is_what_sha256sum_reads(measured: "call.Call[Settings]") -> None:
    text = (measured.folder / SUMS).read_text()
    digest = file_sha256(measured.folder / "a.json")
    assert text.splitlines()[0] == f"{digest}  a.json"
    check_all(measured.folder / SUMS, again="")


def test_of_several_missing_files_the_first_by_name_is_named(tmp_path: Path) -> None:
    lines = [f"{'0' * 64}  {name}\n" for name in ("c.json", "a.json", "b.json")]
    (tmp_path / SUMS).write_text("".join(lines))
    with pytest.raises(InputError, match=r"a\.json is missing, one of induction-lab\.sha256"):
        check_all(tmp_path / SUMS, again="")


@pytest.mark.parametrize("text", ["x", "\xff" * 3, "0" * 64 + " a.json\n"])
def test_a_damaged_record_is_named(measured: "call.Call[Settings]", text: str) -> None:
    (measured.folder / SUMS).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"induction-lab\.sha256 is damaged"):
        measured.load("profile", "a")


def test_a_file_that_no_record_knows_is_a_users_and_read(tmp_path: Path) -> None:
    with vouching(tmp_path / "ours.json"):
        save_json(tmp_path / "ours.json", {})
    (tmp_path / "mine.json").write_text('{"a": 1}')
    (tmp_path / "files.json").write_text('{"files": {"mine.json": "a user\'s own list"}}')
    assert load_json(tmp_path / "mine.json") == {"a": 1}


def test_who_is_killed_while_writing_leaves_nothing_that_is_called_damaged(tmp_path: Path) -> None:
    with vouching(tmp_path / "a.json"):
        save_json(tmp_path / "a.json", {"n": 1})

    def killed() -> None:
        with vouching(tmp_path / "a.json"):
            save_json(tmp_path / "a.json", {"n": 2})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert load_json(tmp_path / "a.json") == {"n": 2}
    assert listed_in(tmp_path / SUMS) == {}


def put(path: Path, text: str) -> None:
    with replacing_ours(path) as part:
        part.write_text(text)


def test_a_file_that_no_record_lists_stays(tmp_path: Path) -> None:
    mine = tmp_path / "page.html"
    mine.write_text("years of work")
    with pytest.raises(
        InputError, match=r"page\.html is there, and no record .*: move it away, or"
    ):
        put(mine, "ours")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "page.html": "years of work"
    }


def test_a_file_of_ours_is_replaced_and_listed(tmp_path: Path) -> None:
    for text in ("first", "second"):
        put(tmp_path / "page.html", text)
        assert (tmp_path / "page.html").read_text() == text
        check_all(tmp_path / SUMS, again="")


def test_who_is_killed_before_a_file_is_in_its_place_can_be_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "page.html", "first")
    replace = Path.replace

    def killed(part: Path, target: Path) -> Path:
        # The record is put in its place by the same call, before.
        if target.name == SUMS:
            return replace(part, target)
        raise KeyboardInterrupt

    for name in ("page.html", "sample.png"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                put(tmp_path / name, "second")
        put(tmp_path / name, "third")
        assert (tmp_path / name).read_text() == "third"
    check_all(tmp_path / SUMS, again="")


def test_what_comes_there_while_a_file_is_made_stays(tmp_path: Path) -> None:
    def make() -> None:
        with replacing_ours(tmp_path / "page.html") as part:
            part.write_text("ours")
            (tmp_path / "page.html").write_text("years of work")

    with pytest.raises(InputError, match="so it stays"):
        make()
    assert (tmp_path / "page.html").read_text() == "years of work"


def test_files_of_a_folder_with_a_record_are_checked_as_deep_as_checkpoints(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "run", kind="k", name="run") as part:
        save_json(part / "config.json", {"heads": 4})
        (part / "checkpoints").mkdir()
        torch_file = part / "checkpoints" / "step-000000.safetensors"
        Scratch(part / "x").save_weights(part / "x" / "w.safetensors", {"w": torch.ones(2)})
        torch_file.write_bytes((part / "x" / "w.safetensors").read_bytes())

    config = tmp_path / "run" / "config.json"
    config.write_text(json.dumps({"heads": 2}))
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        load_json(config)

    weights = tmp_path / "run" / "checkpoints" / "step-000000.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(InputError, match="damaged"):
        load_weights(weights)


@pytest.fixture
def held(tmp_path: Path) -> Scratch:
    """An unfinished training with two kept weights and a state."""
    scratch, model = Scratch(tmp_path / "mark"), torch.nn.Linear(3, 3)
    for step in (0, 1):
        scratch.keep(step, model)
    scratch.save(1, dict(model.state_dict()), {"history": [{"loss": 0.5}]})
    return scratch


@pytest.mark.parametrize("at", [30, -1, -20, 200])
def test_an_unfinished_training_with_any_other_byte_is_never_resumed(
    held: Scratch, at: int
) -> None:
    assert held.load() is not None
    state = held.folder / "state.safetensors"
    changed = bytearray(state.read_bytes())
    changed[at] ^= 1
    state.write_bytes(changed)
    with pytest.raises(InputError, match="damaged"):
        held.load()


def test_kept_weights_that_changed_never_become_a_model(held: Scratch) -> None:
    held.check()
    other = held.checkpoints / "step-000002.safetensors"
    first = held.checkpoints / "step-000000.safetensors"
    other.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match=r"step-000002\.safetensors was not written here"):
        held.check()

    other.unlink()
    changed = bytearray(first.read_bytes())
    changed[-1] ^= 1
    first.write_bytes(changed)
    for use in (held.load, held.check):
        with pytest.raises(InputError, match="the same command trains afresh"):
            use()


def test_in_a_guarded_folder_every_writer_leaves_a_users_file(tmp_path: Path) -> None:
    mine = tmp_path / "figures" / "mine.json"
    mine.parent.mkdir()
    mine.write_text("years of work")

    with guarding(tmp_path):
        for _ in range(2):  # its own it writes again
            save_json(tmp_path / "ours.json", {"n": 1})
            with vouching(tmp_path / "both.json"):
                save_json(tmp_path / "both.json", {"n": 2})

        with pytest.raises(InputError, match="no record of this program lists it, so it stays"):
            save_json(mine, {"n": 3})

        def vouched() -> None:
            with vouching(mine):
                mine.unlink()

        with pytest.raises(InputError, match="so it stays"):
            vouched()

    assert mine.read_text() == "years of work"
    assert listed_in(tmp_path / SUMS).keys() == {"ours.json", "both.json"}
    save_json(tmp_path / "new.json", {})  # after the block all is as it was
    assert "new.json" not in listed_in(tmp_path / SUMS)


def test_a_folder_that_is_replaced_whole_lists_its_own_files(tmp_path: Path) -> None:
    with guarding(tmp_path):
        for _ in range(2):
            with replacing_folder(tmp_path / "run", kind="test", name="run") as folder:
                save_json(folder / "config.json", {})
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "config.json",
        "files.json",
    ]


def test_in_a_model_of_ours_a_guarded_folder_lists_what_the_model_does_not(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "model", kind="test", name="model") as folder:
        save_json(folder / "config.json", {})

    mine = tmp_path / "model" / "scores" / "a.json"
    for number in range(2):  # its own it writes again
        with guarding(tmp_path / "model"):
            save_json(mine, {"n": number})
    assert listed_in(mine.parent / SUMS).keys() == {"a.json"}


def test_who_is_killed_in_a_guarded_folder_writes_its_own_file_again(tmp_path: Path) -> None:
    def killed() -> None:
        with vouching(tmp_path / "a.json"):
            save_json(tmp_path / "a.json", {"n": 1})
            raise KeyboardInterrupt

    with guarding(tmp_path):
        with pytest.raises(KeyboardInterrupt):
            killed()
        assert load_json(tmp_path / "a.json") == {"n": 1}
        save_json(tmp_path / "a.json", {"n": 2})
    assert load_json(tmp_path / "a.json") == {"n": 2}
