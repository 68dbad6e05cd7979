"""Models and settings that the tests of the study share, and a project of a user in which commands
run.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from transformers import PreTrainedTokenizerFast

import planted_mamba as planted
import small_models as small
import small_project
from built_once import built_once
from mamba_neurons.cli import main
from mamba_neurons.data import Texts
from mamba_neurons.model import Model
from mamba_neurons.params import MambaNeurons

PROFILES = Path(__file__).parents[2] / "profiles"


def settings(**changes: Any) -> dict[str, Any]:
    """The section of the smoke profile, changed."""
    section = yaml.safe_load((PROFILES / "smoke.yaml").read_text())["mamba_neurons"]
    return section | {"model": "tiny-mamba", "transformer": "tiny-twin", "top_k": 3} | changes


@pytest.fixture
def params() -> MambaNeurons:
    """Settings for calls without a command."""
    return MambaNeurons(**settings())


@pytest.fixture(scope="session")
def model() -> Model:
    """A small Mamba with random weights."""
    return planted.model_of(planted.random_mamba(), "random")


@pytest.fixture(scope="session")
def twin() -> Model:
    """A small GPT-NeoX with random weights."""
    return planted.model_of(
        small.build("gpt_neox", vocab_size=planted.VOCAB, num_hidden_layers=2), "twin"
    )


@pytest.fixture(scope="session")
def carrier() -> Model:
    """The Mamba with one channel that carries the answer."""
    return planted.model_of(planted.carrier_mamba(), "carrier")


@pytest.fixture(scope="session")
def texts() -> Texts:
    """Random texts of several lengths."""
    return planted.random_texts()


@pytest.fixture(scope="session")
def project_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mamba and a twin with the tokenizer of a corpus, and a Mamba with another; nothing may
    change it.
    """
    folder = tmp_path_factory.mktemp("neurons")
    small_project.build_corpus(folder / "data" / "corpus")
    tokenizer = small_project.corpus_tokenizer(folder / "data" / "corpus")
    vocab = len(tokenizer)
    models = {
        "tiny-mamba": (planted.random_mamba(vocab=vocab), tokenizer),
        "deeper-mamba": (planted.random_mamba(seed=1, layers=3, vocab=vocab), tokenizer),
        "tiny-twin": (small.build("gpt_neox", vocab_size=vocab, num_hidden_layers=2), tokenizer),
        "other-tokens": (planted.random_mamba(vocab=vocab), _letters(vocab)),
    }
    for name, (module, own) in models.items():
        module.save_pretrained(folder / "models" / name)
        own.save_pretrained(folder / "models" / name)
    known = {name: {"source": "local", "path": f"models/{name}"} for name in models}
    (folder / "profiles").mkdir()
    content = {"models": known, "mamba_neurons": settings()}
    (folder / "profiles" / "tests.yaml").write_text(yaml.safe_dump(content))
    (folder / "params.yaml").write_text("profile: tests\n")
    return folder


@pytest.fixture(scope="session")
def whole(project_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What `run` with all of the seed's options, spelled with underscores, writes: results and
    plots.
    """

    def run(folder: Path) -> None:
        _whole_run(project_folder, folder / "out", folder / "plots")

    folder = built_once(tmp_path_factory, "mamba_neurons", run)
    return folder / "out", folder / "plots"


def _whole_run(project_folder: Path, out: Path, plots: Path) -> None:
    arguments: list[object] = [
        "--model",
        "tiny-mamba",
        "--layer",
        1,
        "--top_k",
        2,
        "--text_limit",
        5,
        "--enable_attention",
    ]
    arguments += [
        "--attention_methods",
        "attention_weighted",
        "rollout",
        "--save_results",
        "--plots_dir",
        plots,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project_folder)
        done = CliRunner().invoke(
            main, [str(word) for word in ("run", *arguments, "--out", out)], catch_exceptions=False
        )
    assert done.exit_code == 0


@pytest.fixture
def project(project_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, as the working directory."""
    monkeypatch.chdir(project_folder)
    return project_folder


def _letters(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer that reads one byte at a time."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {small_project.END: 0} | {letter: i + 1 for i, letter in enumerate(letters)}
    assert len(vocab) <= size
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = small_project.END
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end
    )
