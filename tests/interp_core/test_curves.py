"""Every number of a history has its place on the dashboard."""

import csv
from pathlib import Path

import pytest

from interp_core.training.curves import CURVES, SECTIONS, by_head, cell_of, curve_of

ROOT = Path(__file__).resolve().parents[2]
HISTORIES = sorted(
    file
    for file in (ROOT / "data").glob("*training/**/*.csv")
    if next(csv.reader(file.open()))[0] == "step"
)
HISTORIES += sorted((ROOT / "data").glob("*/training/*.csv"))


@pytest.mark.parametrize("history", HISTORIES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_column_of_a_committed_history_has_a_name(history: Path) -> None:
    columns = next(csv.reader(history.open()))[1:]
    curves = [curve_of(column) for column in columns]

    assert len({curve.name for curve in curves}) == len(columns)
    assert not [curve.name for curve in curves if curve.name.startswith("other/")]


def test_there_are_histories_to_look_at() -> None:
    assert len(HISTORIES) >= 6


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("loss", "train/loss"),
        ("validation_loss", "heldout/loss"),
        ("held_out_loss", "heldout/loss"),
        ("held_out_pen", "heldout/loss_pen"),
        ("accuracy_period_20", "copying/accuracy_period_20"),
        ("copy_accuracy/2", "copying/accuracy_copy_2"),
        ("prefix_matching", "heads/best_prefix_matching"),
        ("tokens_per_second", "speed/tokens_per_second"),
        ("top_eigenvalue", "curvature/top_eigenvalue"),
        ("something_new", "other/something_new"),
    ],
)
def test_columns_get_the_names_that_all_studies_share(column: str, name: str) -> None:
    assert curve_of(column).name == name


def test_what_all_curves_say_ends_in_a_unit_and_stands_in_a_section() -> None:
    for curve in CURVES.values():
        assert curve.name.partition("/")[0] in SECTIONS, curve.name
        assert curve.says, curve.name


@pytest.mark.parametrize(
    ("column", "place"),
    [
        ("prefix_matching/L1H10", ("heads/scores", "L1H10", "prefix_matching")),
        ("k_composition/L0H1>L1H0", ("heads/pairs", "L0H1>L1H0", "k_composition")),
        ("residuals/5", ("curvature/eigenpairs", "5", "residuals")),
        ("copy_accuracy/2", None),
        ("loss", None),
    ],
)
def test_one_of_many_numbers_is_a_row_of_a_table(
    column: str, place: tuple[str, str, str] | None
) -> None:
    cell = cell_of(column)
    assert (cell and (cell.table, cell.row, cell.column)) == place


def test_by_head_names_what_the_table_of_heads_takes() -> None:
    found = by_head("prefix_matching", [[0.0, 0.25], [0.5, 1.0]])
    assert found["prefix_matching/L1H0"] == 0.5
    assert {cell.table for name in found if (cell := cell_of(name))} == {"heads/scores"}
