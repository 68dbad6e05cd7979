"""Pretrained models, measured as the family is: scores, nulls, lags, ablations, composition.

They are no members of the family. They differ from it in more than depth, and lie in a folder of
their own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from interp_core.console import call
from interp_core.errors import InputError
from interp_core.files.artifacts import load_json, save_json
from interp_core.files.params import check, profile_path, project_root, read_section
from interp_core.models.pretrained import Pretrained
from interp_core.models.spec import ModelSpec
from pythia_topology.params import PythiaTopology
from pythia_topology.params_pretrained import OwnSizes, PythiaPretrained
from pythia_topology.streams import STREAMS
from pythia_topology.study import Induct

if TYPE_CHECKING:
    from interp_core.models.subject import Transformer
    from interp_core.stimuli.prompts import Prompts
    from pythia_topology.intervene_controls import Roles

    Loaded = Callable[[], tuple[Transformer, Prompts]]

AGAIN = "`dvc repro --force pretrained` fetches it again"


@dataclass(frozen=True)
class Own:
    """The call of one pretrained model."""

    run: Induct
    name: str
    weights: Path
    single_sequences: int  # prompts on which every head is ablated alone


def pretrained() -> None:
    """Measure every pretrained model of the profile, in data/pythia_topology/pretrained."""
    found = list(each())
    # Written where there are none too: git and DVC keep no empty folder.
    for kind in ("scores", "metrics"):
        save_json(home() / kind / "models.json", {"models": [own.name for own in found]})

    for own in found:
        _measure(own)
    if not found:
        click.echo(f"no pretrained models: left out in {profile_path()}")


def home() -> Path:
    """The folder of their files."""
    return project_root() / "data" / "pythia_topology" / "pretrained"


def each() -> Iterator[Own]:
    """The pretrained models that the profile measures; none where it leaves them out.

    InputError for one that it does not say how to fetch.
    """
    params = read_section("pretrained", Pretrained)
    if not params.included:
        return

    # The family's models are none of theirs: one that is added there measures none of these anew.
    family = read_section("pythia_topology", PythiaTopology)
    ours = family.model_dump(exclude={"models"})

    for name, sizes in _sizes().items():
        if name not in params.models:
            there = ", ".join(params.models) or "none"
            raise InputError(f"pythia_pretrained: `pretrained` has no model {name}, only {there}")

        settings = ours | sizes.settings | {"models": (name,)}
        where = f"{profile_path()}: pythia_pretrained.models.{name}.settings"
        own = check(PythiaTopology, settings, where=where)

        weights = project_root() / "data" / "pretrained" / name
        known = {name: ModelSpec(source="local", path=weights)}
        run = call.start("pythia_topology", own, known=known, streams=STREAMS)
        yield Own(replace(run, folder=home(), home=home()), name, weights, sizes.single_sequences)


def _sizes() -> dict[str, OwnSizes]:
    params = read_section("pythia_pretrained", PythiaPretrained)
    return params.models


def _measure(own: Own) -> None:
    from interp_core.files.sums import RECORD, check_all
    from pythia_topology.workflow import lagbuckets, measured_once, nulls, profile, roles_of

    run, name = own.run, own.name
    check_all(own.weights / RECORD, again=AGAIN)

    for command in (profile, nulls, lagbuckets):
        command(run)
    roles = roles_of(run, name)
    read = [run.file("metrics", "profile", f"profile_{name}")]
    read += [run.file("scores", "profile", f"scores_{name}")]

    # Loaded where one of the two measures it, and once for both.
    loaded = cache(partial(_loaded, own))
    for command, measure in (("causal", _causal), ("composition", _composition)):
        at = partial(measure, own, loaded, roles)
        measured_once(run, command, name, at, read=read, asked=own.single_sequences)

        found = load_json(run.file("metrics", command, f"{command}_{name}"))
        click.echo(f"{name}: {found['verdict']}")


def _loaded(own: Own) -> "tuple[Transformer, Prompts]":
    from pythia_topology.data import stimuli
    from pythia_topology.model import load

    subject = load(own.name, own.run.known, own.run.params)
    only = own.run.params.model_copy(update={"task_types": ()})
    return subject, stimuli(subject, only)["repeated_tokens"]


def _causal(own: Own, loaded: "Loaded", roles: "Roles") -> None:
    """As `induct causal` has it, but every head alone on fewer prompts: there are so many."""
    from interp_core.console.unfinished import dealt_out
    from interp_core.loading import begun_with
    from pythia_topology.data import first_prompts
    from pythia_topology.intervene import against_controls
    from pythia_topology.intervene_controls import say_expected
    from pythia_topology.intervene_heads import every_head

    subject, prompts = loaded()
    params, few = own.run.params, first_prompts(prompts, own.single_sequences)
    say_expected(subject, prompts, params, single=own.single_sequences)

    with dealt_out(own.run, "pythia_pretrained", own.name, subject, unread={"models"}):
        report = against_controls(subject, prompts, roles, params)
        effects, arrays = every_head(subject, few, params)
        report |= effects | {"single_n": own.single_sequences} | begun_with(subject)

        own.run.save("causal", f"causal_{own.name}", report, arrays, made={})


def _composition(own: Own, loaded: "Loaded", roles: "Roles") -> None:
    """Pairs by z among heads, which is calibrated where random orientations are none.

    How far those are from a null is in the report: the share of pairs that they put above 2.
    """
    import torch

    from interp_core.loading import begun_with
    from interp_core.measures.circuits import k_composition, k_composition_among_heads
    from pythia_topology.intervene_paths import confirmed, share_above

    subject, prompts = loaded()
    params = own.run.params
    distances = params.composition_distances
    among = k_composition_among_heads(subject, distances=distances)
    report, arrays = confirmed(subject, prompts, roles, params, among)

    generator = torch.Generator().manual_seed(params.seed)
    oriented = k_composition(
        subject, distances=distances, draws=params.composition_draws, generator=generator
    )
    report |= {
        "z_against": "other heads' directions",
        "share_above_2_of_orientations": share_above(oriented, 2.0),
        **begun_with(subject),
    }
    own.run.save("composition", f"composition_{own.name}", report, arrays, made={})
