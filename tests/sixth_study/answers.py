"""The numbers of the study and which are headlines, from its metrics files alone."""

from pathlib import Path

from interp_core.console.answers import Answer, headline
from interp_core.files.artifacts import load_json


def answers(metrics: Path) -> list[Answer]:
    """How much each model's best head looks one token back."""
    reports = [load_json(file) for file in sorted((metrics / "measure").glob("*.json"))]
    found = []

    for report in reports:
        attention = report["attention"]
        answer = Answer(
            f"previous_token_of_{report['name']}",
            attention["value"],
            attention["low"],
            attention["high"],
            n=attention["n"],
            unit=attention["unit"],
            says=f"attention one token back, {report['best']}; chance {report['chance']:.2f}",
        )
        found.append(headline(answer))

    return found
