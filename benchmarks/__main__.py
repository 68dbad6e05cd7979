"""`python -m benchmarks`: every claim in a fresh process, with one thread and with two."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import click

NAMES = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "__main__", "by_size", "measure", "subjects")
)


@click.command()
@click.option("--only", type=click.Choice(NAMES), multiple=True, help="These alone.")
@click.option(
    "--threads", type=int, multiple=True, default=(1, 2), show_default=True, help="CPU threads."
)
@click.option(
    "--repetitions", type=int, default=3, show_default=True, help="Of each side, interleaved."
)
@click.option("--here", is_flag=True, hidden=True)
def main(only: tuple[str, ...], threads: tuple[int, ...], repetitions: int, *, here: bool) -> None:
    """Print each claim's table: ours, the other side, their ratio, and the target."""
    for name in only or NAMES:
        for count in threads:
            if here:
                _run(name, count, repetitions)
            else:
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks",
                    "--here",
                    "--only",
                    name,
                    "--threads",
                    str(count),
                ]
                environment = os.environ | {
                    "OMP_NUM_THREADS": str(count),
                    "MKL_NUM_THREADS": str(count),
                }
                subprocess.run(
                    [*command, "--repetitions", str(repetitions)], env=environment, check=True
                )


def _run(name: str, threads: int, repetitions: int) -> None:
    import torch
    import transformers

    from benchmarks.measure import table

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    module = importlib.import_module(f"benchmarks.{name}")
    plural = "thread" if threads == 1 else "threads"
    print(table(f"{module.TITLE}, {threads} {plural}", module.rows(repetitions)), flush=True)


if __name__ == "__main__":
    main()
