"""What a training leaves behind beside its weights: numbers at every checkpoint step."""

import csv
import io

Row = dict[str, int | float]
History = list[Row]


def history_csv(history: History) -> str:
    """The history as CSV, nine digits a number; no times: equal trainings give equal text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.9g}" for name, value in row.items()} for row in history)
    return text.getvalue()
