"""A project whose reference models are trained in seconds and save after every step."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from interp_core.files.params import project_root


def lay_out(folder: Path, *, models: Sequence[str], steps: int) -> None:
    """A text of 80 words, and a profile whose models of one layer read it. Makes no corpus."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=4)) for _ in range(80)]
    text = "\n\n".join(" ".join(rng.choice(words, size=60)) for _ in range(60))
    (folder / "text.txt").write_text(text)

    smoke = yaml.safe_load((project_root() / "profiles" / "smoke.yaml").read_text())
    section = smoke["reference_models"]
    section["models"] = {name: {"layers": 1, "heads": 2, "width": 16} for name in models}
    section["recipe"] |= {
        "steps": steps,
        "warmup": 5,
        "checkpoint_every": 50,
        "save_seconds": 0,
    }
    corpus = {"path": {"path": "text.txt"}, "vocabulary": 300, "validation_every": 4}

    profile = yaml.safe_dump({"corpus": corpus, "reference_models": section})
    (folder / "profiles").mkdir()
    (folder / "profiles" / "test.yaml").write_text(profile)
    (folder / "params.yaml").write_text("profile: test\n")
