"""A command replaces its own folders and nobody else's, and whoever kills it loses neither the old
nor the new one."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256
from interp_core.files.folders import RECORD, adding_to, check_replaceable, replacing_folder

KIND, NAME = "models", "tiny-1.4b"


def write(place: Path, word: str, *, kind: str = KIND, name: str = NAME) -> None:
    """A folder with two files, one of them deeper; which ones depends on the word."""
    with replacing_folder(place, kind=kind, name=name) as part:
        (part / "config.json").write_text(word)
        (part / "checkpoints").mkdir()
        (part / "checkpoints" / f"{word}.txt").write_text(word)


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_text() for file in files}


def refusal(place: Path, *, kind: str = KIND, name: str = NAME) -> str:
    """What is said of a place, the same before a training and at its end; nothing is touched."""
    before = content(place.parent)
    with pytest.raises(InputError) as early:
        check_replaceable(place, kind=kind, name=name)
    with pytest.raises(InputError) as late:
        write(place, "new", kind=kind, name=name)

    assert str(early.value) == str(late.value)
    assert "\n" not in str(early.value)
    assert content(place.parent) == before
    return str(early.value)


def test_a_folder_records_what_it_is_and_its_files(tmp_path: Path) -> None:
    place = tmp_path / "models" / NAME
    write(place, "old")
    record = json.loads((place / RECORD).read_text())
    assert {key: record[key] for key in ("program", "kind", "name")} == {
        "program": "induction-lab",
        "kind": KIND,
        "name": NAME,
    }
    assert record["files"] == {
        file: file_sha256(place / file) for file in ("checkpoints/old.txt", "config.json")
    }
    assert [entry.name for entry in place.parent.iterdir()] == [NAME]


def test_its_own_folder_is_replaced_with_the_old_files_gone(tmp_path: Path) -> None:
    place = tmp_path / NAME
    write(place, "old")
    (place / "config.json").write_text("damaged since: it is listed, and trained again")
    write(place, "new")
    assert set(content(tmp_path)) == {
        f"{NAME}/{file}" for file in ("config.json", "checkpoints/new.txt", RECORD)
    }


def test_an_empty_folder_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / NAME / "checkpoints").mkdir(parents=True)
    write(tmp_path / NAME, "new")
    assert (tmp_path / NAME / "config.json").read_text() == "new"


def with_notes(place: Path) -> None:
    place.mkdir()
    (place / "thesis.tex").write_text("years")


def with_a_config(place: Path) -> None:
    place.mkdir()
    (place / "config.json").write_text('{"version": 1}')


def with_anothers_record(place: Path) -> None:
    place.mkdir()
    (place / RECORD).write_text('{"files": ["thesis.tex"]}')


def of_another_name(place: Path) -> None:
    write(place, "old", name="tiny-1.7b")


def of_another_kind(place: Path) -> None:
    write(place, "old", kind="runs")


def with_one_file_more(place: Path) -> None:
    write(place, "old")
    (place / "checkpoints" / "thesis.tex").write_text("years")


def with_a_link_to_a_folder(place: Path) -> None:
    write(place, "old")
    with_notes(place.parent / "elsewhere")
    (place / "papers").symlink_to(place.parent / "elsewhere")


def linked(place: Path) -> None:
    write(place.parent / "elsewhere", "old")
    place.symlink_to(place.parent / "elsewhere")


def linked_to_nothing(place: Path) -> None:
    place.symlink_to(place.parent / "elsewhere")


def a_file(place: Path) -> None:
    place.write_text("years")


def beside_a_folder_of_the_same_hidden_name(place: Path) -> None:
    with_notes(place.with_name(f".{place.name}.part"))


def beside_a_link_of_the_same_hidden_name(place: Path) -> None:
    write(place.parent / "elsewhere", "old")
    place.with_name(f".{place.name}.part").symlink_to(place.parent / "elsewhere")


def beside_a_link_to_an_unfinished_folder(place: Path) -> None:
    with_notes(place.parent / "elsewhere")
    (place.parent / "elsewhere" / ".unfinished").touch()
    place.with_name(f".{place.name}.part").symlink_to(place.parent / "elsewhere")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (with_notes, "holds thesis.tex and no files.json"),
        (with_a_config, "holds config.json and no files.json"),
        (with_anothers_record, "has a files.json that is none of this program's"),
        (of_another_name, "holds tiny-1.7b of models, not tiny-1.4b of models"),
        (of_another_kind, "holds tiny-1.4b of runs, not tiny-1.4b of models"),
        (with_one_file_more, "holds checkpoints/thesis.tex, which its files.json does not list"),
        (with_a_link_to_a_folder, "holds papers, which its files.json does not list"),
        (linked, "is a link or a file"),
        (linked_to_nothing, "is a link or a file"),
        (a_file, "is a link or a file"),
        (beside_a_folder_of_the_same_hidden_name, "holds thesis.tex and no files.json"),
        (beside_a_link_of_the_same_hidden_name, "is a link or a file"),
        (beside_a_link_to_an_unfinished_folder, "is a link or a file"),
    ],
)
def test_what_a_user_has_there_stays(
    made: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    made(tmp_path / NAME)
    told = refusal(tmp_path / NAME)
    assert said in told
    assert told.startswith(str(tmp_path))
    assert "move it away, or name another folder" in told


def test_neither_the_working_directory_nor_one_above_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "project" / "data"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    for place in (Path(), Path(".."), inner, Path("/")):
        with pytest.raises(InputError, match="name a folder inside it"):
            check_replaceable(place, kind=KIND, name=NAME)


def test_what_comes_there_during_a_training_stays_and_the_old_folder_too(tmp_path: Path) -> None:
    place = tmp_path / NAME
    write(place, "old")
    (tmp_path / "thesis.tex").write_text("years")

    def train() -> None:
        with replacing_folder(place, kind=KIND, name=NAME) as part:
            (part / "config.json").write_text("new")
            (tmp_path / "thesis.tex").rename(place / "thesis.tex")

    with pytest.raises(InputError, match=r"holds thesis.tex, which"):
        train()
    assert set(content(tmp_path)) == {
        f"{NAME}/{file}" for file in ("config.json", "checkpoints/old.txt", RECORD, "thesis.tex")
    }


@pytest.mark.parametrize("problem", [OSError, KeyboardInterrupt])
def test_an_error_keeps_the_old_folder_and_leaves_nothing(
    problem: type[BaseException], tmp_path: Path
) -> None:
    write(tmp_path / NAME, "old")
    before = content(tmp_path)

    def train() -> None:
        with replacing_folder(tmp_path / NAME, kind=KIND, name=NAME) as part:
            (part / "config.json").write_text("half")
            raise problem

    with pytest.raises(problem):
        train()
    assert content(tmp_path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == [NAME]


def test_a_folder_that_was_set_aside_when_its_process_was_killed_comes_back(tmp_path: Path) -> None:
    place = tmp_path / NAME
    write(place, "old")
    before = content(tmp_path)
    beside = tmp_path / f".{NAME}.part"
    beside.mkdir()
    (beside / ".unfinished").touch()
    place.rename(beside / "old")

    def train() -> None:
        with replacing_folder(place, kind=KIND, name=NAME):
            assert (
                content(tmp_path)[f"{NAME}/config.json"] == "old"
            )  # at once, not only when the next one is done
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert content(tmp_path) == before


def killed_after(steps: int, act: Callable[[], None], folder: Path) -> bool:
    """Run in a process that is killed, as by `kill -9`, when it is about to change the file system
    below the folder for the time after `steps` times. False when it ended before."""
    child = os.fork()
    if child == 0:
        done = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal done
            writes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
            opens = (
                event == "open"
                and arguments[1] not in ("r", "rb")
                and not isinstance(arguments[0], int)
            )
            if (writes or opens) and str(arguments[0]).startswith(str(folder)):
                if done == steps:
                    os.kill(os.getpid(), signal.SIGKILL)
                done += 1

        sys.addaudithook(count)
        try:
            act()
        finally:
            os._exit(0)

    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("there", [True, False], ids=["replacing", "first"])
def test_killed_at_any_moment_the_next_one_goes_on_and_no_folder_is_lost(
    there: bool, tmp_path: Path
) -> None:
    whole = {}
    for word in ("old", "new"):
        write(tmp_path / word / NAME, word)
        whole[word] = content(tmp_path / word / NAME)

    steps = 0
    while True:
        home = tmp_path / f"killed_{steps}"
        place = home / NAME
        (home / "neighbour").mkdir(parents=True)
        (home / "neighbour" / "thesis.tex").write_text("years")
        if there:
            write(place, "old")
        killed = killed_after(steps, lambda place=place: write(place, "new"), home)

        # One of the two is whole: in its place, or set aside between the two renames.
        found = [content(folder) for folder in (place, *home.glob(".*.part/*")) if folder.is_dir()]
        assert not there or whole["old"] in found or whole["new"] in found
        assert not place.exists() or content(place) in (whole["old"], whole["new"])

        check_replaceable(place, kind=KIND, name=NAME)
        write(place, "new")
        assert content(place) == whole["new"]
        assert {entry.name for entry in home.iterdir()} == {NAME, "neighbour"}
        assert (home / "neighbour" / "thesis.tex").read_text() == "years"

        steps += 1
        if not killed:
            break
    assert steps > 10


def test_a_tidying_that_is_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    steps = 0
    while True:
        home = tmp_path / f"killed_{steps}"
        place = home / NAME
        write(place, "old")
        beside = home / f".{NAME}.part"
        write(beside / "old", "older")
        (beside / ".unfinished").touch()
        (beside / "new").mkdir()
        (beside / "new" / "half").touch()

        killed = killed_after(steps, lambda place=place: write(place, "new"), home)
        write(place, "new")
        assert [entry.name for entry in home.iterdir()] == [NAME]

        steps += 1
        if not killed:
            break
    assert steps > 20


def test_files_of_a_later_command_are_listed_too(tmp_path: Path) -> None:
    place = tmp_path / NAME
    write(place, "old")
    files = [place / "figures" / name for name in ("phase.png", "heads.png")]
    with adding_to(place, files):
        files[0].parent.mkdir()
        files[0].write_text("drawn")
        check_replaceable(
            place, kind=KIND, name=NAME
        )  # a command that was killed here can be called again
    listed = json.loads((place / RECORD).read_text())["files"]
    assert listed["figures/phase.png"] == file_sha256(files[0])
    assert "figures/heads.png" not in listed

    write(place, "new")
    assert not files[0].exists()


def test_what_is_a_users_in_a_folder_with_a_record_is_not_written_over(tmp_path: Path) -> None:
    place = tmp_path / NAME
    write(place, "old")
    (place / "page.html").write_text("years of work")
    with (
        pytest.raises(InputError, match=r"holds page\.html, which its files\.json does not list"),
        adding_to(place, [place / "page.html"]),
    ):
        raise AssertionError("not reached")
    assert "page.html" not in json.loads((place / RECORD).read_text())["files"]


def test_a_folder_without_a_record_stays_without(tmp_path: Path) -> None:
    with adding_to(tmp_path, [tmp_path / "phase.png"]):
        (tmp_path / "phase.png").touch()
    assert [file.name for file in tmp_path.iterdir()] == ["phase.png"]
