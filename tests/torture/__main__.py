"""`make torture`: damaged files and edited profiles, from one seed; exit code 1 for a bad one."""

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import ModuleType
from typing import TYPE_CHECKING

import click

from interp_core import processor

if TYPE_CHECKING:
    from torture.places import Place

processor.settle()
os.environ |= {"WANDB_MODE": "disabled", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}

ROOT = Path(__file__).resolve().parents[2]


@click.command()
@click.option("--files", default=10_000, show_default=True, help="Damaged files.")
@click.option("--profiles", default=5_000, show_default=True, help="Edited profiles.")
@click.option("--seed", default=0, show_default=True)
@click.option("--processes", default=os.cpu_count() or 1, show_default=True)
@click.option("--only", default="", help="Kinds of files whose name holds this.")
def main(files: int, profiles: int, seed: int, processes: int, only: str) -> None:
    """Damage files, edit profiles, and read them."""
    import torch

    from torture import cases, damage, places
    from torture import profiles as edits

    torch.set_num_threads(1)
    home = Path(tempfile.mkdtemp(prefix="torture-"))
    shutil.copy(ROOT / "params.yaml", home)
    shutil.copytree(ROOT / "profiles", home / "profiles")
    os.chdir(home)
    bad = 0

    try:
        if files:
            every = [place for place in places.build_all(home) if only in place.name]
            clean = {place.name: place.read(place.folder) for place in every}
            spread = [place for place in every for _ in range(place.share)]
            rng = Random(seed)
            chosen = [(rng.choice(spread), rng.getrandbits(64)) for _ in range(files)]
            work = home / "work"
            damaged = [
                _damaged_file(place, number, clean[place.name], work, damage)
                for place, number in chosen
            ]
            bad += _report("damaged files", damaged, [p.name for p, _ in chosen], cases, processes)

        texts = [file.read_text() for file in sorted((home / "profiles").glob("*.yaml"))]
        rng = Random(seed + 1)
        drawn = [(rng.choice(texts), rng.getrandbits(64)) for _ in range(profiles)]
        edited = [_edited_profile(text, number, home / "work", edits) for text, number in drawn]
        bad += _report("edited profiles", edited, ["profile"] * profiles, cases, processes)
    finally:
        os.chdir("/")
        shutil.rmtree(home, ignore_errors=True)
    sys.exit(bool(bad))


def _damaged_file(
    place: "Place", number: int, clean: str, work: Path, damage: ModuleType
) -> Callable[[], str]:
    def case() -> str:
        rng = Random(number)
        folder = work / f"{os.getpid()}" / place.folder.name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(place.folder, folder)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        file = rng.choice(files)
        rng.choice(damage.damages_of(file))(file, rng)
        found = place.read(folder)
        if found == clean:
            return "same"
        return "accepted" if place.ours else "other"

    return case


def _edited_profile(text: str, number: int, work: Path, edits: ModuleType) -> Callable[[], str]:
    def case() -> str:
        path = work / f"{os.getpid()}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(edits.edited(text, Random(number)))
        return edits.read(path)

    return case


def _report(
    what: str,
    todo: Sequence[Callable[[], str]],
    names: Sequence[str],
    cases: ModuleType,
    processes: int,
) -> int:
    """Print how they ended, the bad ones by kind; how many were bad."""
    if not todo:
        return 0
    since = time.monotonic()
    outcomes = cases.run(todo, processes=processes)
    seconds = time.monotonic() - since
    ended = Counter(outcome.kind for outcome in outcomes)
    told = ", ".join(f"{count} {kind}" for kind, count in ended.most_common())
    click.echo(f"{len(outcomes)} {what} in {seconds:.0f} s: {told}")
    bad = [
        (name, at, outcome)
        for at, (name, outcome) in enumerate(zip(names, outcomes, strict=True))
        if outcome.kind in cases.BAD
    ]
    kinds = Counter((name, outcome.kind, outcome.told) for name, _, outcome in bad)
    first = {(name, outcome.kind, outcome.told): at for name, at, outcome in reversed(bad)}
    for (name, kind, line), count in kinds.most_common():
        click.echo(f"  {count:>5} {name}: {kind} {line} (case {first[name, kind, line]})")
    return len(bad)


if __name__ == "__main__":
    main()
