"""What the README shows works as it stands there, and its counts are the table's."""

import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import decoders
import small_models as small

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_python_runs_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = {f"w{i}": i for i in range(small.VOCAB - 3)} | {"A": 93, "B": 94, "C": 95}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    small.build("gpt_neox").save_pretrained("data/models/neox-6l")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w0").save_pretrained(
        "data/models/neox-6l"
    )
    small.build("mamba", vocab_size=100).save_pretrained("data/mamba_models/mamba-2l")

    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(snippets) == 2

    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, names)

    assert names["ids"].tolist() == [[0, 93, 94, 95, 93, 94]]
    assert names["z"].shape == (1, 6, small.HEADS, small.WIDTH // small.HEADS)
    assert len(names["calls"]) == small.LAYERS
    assert float(names["loss"]) > 0


def test_the_readmes_counts_of_decoders_are_the_tables() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+)", README.read_text(), flags=re.MULTILINE)
    said = {what: int(count) for count, what in rows if what in ("run", "refused", "cannot")}

    table = decoders.TABLE.read_text()
    runs = re.findall(r"^\| [\w-]+ \| (.+?) \|", table, flags=re.MULTILINE)[1:]
    native, bridge = runs.count("native"), runs.count("bridge")
    assert f"| {native} | run as plain" in README.read_text()
    assert f"| {bridge} | run through TransformerLens" in README.read_text()
    assert said["refused"] == runs.count("refused")
    assert said["cannot"] == runs.count("not built")
    assert f"its {len(runs)} types" in README.read_text()
