"""What copying loses under each intervention, beside random controls of the same size in the same
layer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from interp_core.plotting import DIVERGING, centred, drawing, note

Report = Mapping[str, Any]
TITLES = {
    "layers": "a layer's output",
    "reads": "what queries read at s + d",
    "taps": "convolution taps",
    "states": "state at the boundary",
}
_LEAST = 0.25  # change of accuracy below which a map stays pale


def causal(causes: Mapping[str, Report], path: Path) -> None:
    """A row of maps for each model: layers, reads, taps, states; cells are changes of accuracy."""
    rows = max(len(report["reads"]) for report in causes.values())
    scale = centred(np.array([-1.0, 1.0]), least=_LEAST)
    with drawing(
        path, width=16.0, height=1.6 + len(causes) * (1.5 + 0.42 * min(rows, 10))
    ) as figure:
        parts = figure.subfigures(len(causes), 1, squeeze=False)[:, 0]
        for part, (name, report) in zip(parts, causes.items(), strict=True):
            tables = {kind: table_of(report, kind) for kind in TITLES if kind in report}
            widths = [len(columns) + 1 for _, columns, _ in tables.values()]
            panels = np.atleast_1d(part.subplots(1, len(tables), width_ratios=widths))
            for axes, (kind, (lines, columns, values)) in zip(panels, tables.items(), strict=True):
                _map(axes, lines, columns, values, scale)
                axes.set_title(TITLES[kind], fontsize=12)
            part.suptitle(
                f"{name}: accuracy {report['clean_accuracy']:.2f} on the second copy, changed by",
                x=0.01,
                ha="left",
            )
        first = next(iter(causes.values()))
        note(
            figure,
            f"n = {first['n']} prompts · rand: mean of {first['draws']} random controls of the "
            "same size and layer\n"
            "states: out, the clean prompt continues from a state without the first copy; back, "
            "the reverse · "
            "text: mean ablation, on new tokens",
        )


def table_of(report: Report, kind: str) -> tuple[list[str], list[str], np.ndarray]:
    """Rows (layers), columns (what is changed, then its control) and changes of accuracy."""
    found = report[kind]
    if kind == "layers":
        lines, columns = list(found["zero"]), list(found)
        values = [[found[how][line]["accuracy"]["value"] for how in found] for line in lines]
        if "new_tokens" in found["mean"][lines[0]]:
            columns.append("text")
            for line, row in zip(lines, values, strict=True):
                row.append(found["mean"][line]["new_tokens"]["accuracy"]["value"])
        return lines, columns, np.array(values)
    lines = [line for line in found if isinstance(found[line], Mapping)]
    names = list(found[lines[0]])
    groups = {"reads": ("+1", "prefix"), "taps": ("lag 1", "all before"), "states": tuple(names)}[
        kind
    ]
    columns, values = [], []
    for name in names:
        columns.append({"prefix": "+1..+3", "all before": "all"}.get(name, name))
        values.append([found[line][name]["accuracy"]["value"] for line in lines])
        if kind == "states":
            columns.append("rand")
            values.append([found[line][name]["random"]["accuracy"]["value"] for line in lines])
    if kind != "states":
        for name, label in zip(groups, ("rand", "rand x3"), strict=True):
            columns.append(label)
            values.append([found[line][name]["random"]["accuracy"]["value"] for line in lines])
    return lines, columns, np.array(values).T


def _map(axes: Axes, lines: list[str], columns: list[str], values: np.ndarray, scale: Any) -> None:
    axes.imshow(values, origin="lower", aspect="auto", cmap=DIVERGING, norm=scale)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    shown = range(0, len(lines), max(1, len(lines) // 10))
    axes.set_yticks(list(shown), [lines[row] for row in shown])
    if len(lines) <= 10:
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(
                column, row, f"{value:+.2f}", ha="center", va="center", color=colour, fontsize=11
            )
