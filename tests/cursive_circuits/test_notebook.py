"""The notebook's functions, each against the same number computed directly."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from torch.utils.data import DataLoader

from cursive_circuits import notebook
from cursive_circuits.data_bank import Item, save_bank
from cursive_circuits.data_public_tokens import PublicTokens
from cursive_circuits.measure_composition import compositions
from cursive_circuits.model import CursiveTransformer
from cursive_circuits.params import CursiveCircuits
from cursive_circuits.run_directory import Trained, save_run
from interp_core.errors import InputError
from interp_core.files.params import project_root
from interp_core.training.batches import IGNORED
from small_strokes import ALPHABET, public_checkpoint, random_model


@pytest.fixture(scope="module")
def run(trained: Trained) -> Trained:
    """Learned positions: no rotation stands between queries and keys."""
    model = random_model(trained.tokens, positions="learned", context=260)
    return Trained("handwriting", model, trained.tokens, ALPHABET)


@pytest.fixture(scope="module")
def subject(run: Trained, section: CursiveCircuits) -> notebook.CursiveTransformer:
    return notebook.CursiveTransformer(run, section)


@pytest.fixture(scope="module")
def dataset(
    subject: notebook.CursiveTransformer,
    items: list[Item],
    tmp_path_factory: pytest.TempPathFactory,
) -> notebook.CursiveDataset:
    place = tmp_path_factory.mktemp("bank") / "bank.zip"
    save_bank(place, items)
    return notebook.CursiveDataset("test", model=subject, bank=place, copies=2)


def residual(
    model: CursiveTransformer, ids: torch.Tensor, text: torch.Tensor, layer: int
) -> torch.Tensor:
    """The residual stream before a layer, written out."""
    assert model.place is not None
    x = model.embed(ids) + model.place.weight[: ids.shape[1]]
    memory, mask = model.read_text(text, len(ids))
    for block in model.layers[:layer]:
        x = block(x, None, block.cross_attention.keys_values(memory), mask, None, 0)
    return x


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_patterns_scores_and_outputs_are_those_of_the_model(
    layer: int, head: int, subject: notebook.CursiveTransformer, dataset: notebook.CursiveDataset
) -> None:
    model = subject
    loader = DataLoader(dataset, batch_size=4, shuffle=False)
    patterns = notebook.get_attention_patterns(model, loader, layer, head, num_batches=2)
    assert len(patterns) == 8

    (ids, text, _), _ = next(iter(DataLoader(dataset, batch_size=8)))
    with torch.no_grad():
        x = notebook.normalised(residual(model, ids, text, layer))[..., :-1]
        W_Q, W_K = notebook.get_QK_matrices(model, layer, head)
        assert W_Q.shape == W_K.shape == (model.d_model, model.d_head)
        b_Q, b_K = notebook.get_QK_biases(model, layer, head)
        scores = (x @ W_Q + b_Q) @ (x @ W_K + b_K).mT / math.sqrt(model.d_head)
        circuit = x @ notebook.compute_QK_circuit(W_Q, W_K) @ x.mT
        around = (x @ W_Q) @ b_K[:, None] + (b_Q @ (x @ W_K).mT)[:, None] + b_Q @ b_K
        torch.testing.assert_close(
            (circuit + around) / math.sqrt(model.d_head), scores, atol=1e-4, rtol=1e-4
        )

        future = torch.ones(scores.shape[-2:]).triu(1).bool()
        by_hand = scores.masked_fill(future, -torch.inf).softmax(-1)
        real = ids != subject.tokens.pad
        torch.testing.assert_close(patterns[real], by_hand[real], atol=1e-5, rtol=1e-4)
        assert patterns[~real].isnan().all()

        # What moving one head's value moves in the residual stream: its rows of v, its columns of
        # the output.
        attention = model.attention(layer, "self")
        normed = model.layers[layer].self_norm(residual(model, ids, text, layer))
        value = attention.keys_values(normed)[1][:, head]
        bias = attention.kv.bias[model.d_model :].reshape(model.n_heads, -1)[head]
        gain = model.layers[layer].self_norm.bias @ attention.kv.weight[model.d_model :].T
        out = attention.out.weight[:, head * model.d_head : (head + 1) * model.d_head]
        rest = gain.reshape(model.n_heads, -1)[head] + bias
        OV = notebook.compute_OV_circuit(*notebook.get_VO_matrices(model, layer, head))
        torch.testing.assert_close(x @ OV, (value - rest) @ out.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reads", ["k", "q", "v"])
def test_all_pairs_score_what_the_study_scores(
    reads: notebook.Reads, subject: notebook.CursiveTransformer
) -> None:
    scores = notebook.get_all_composition_scores(subject, reads=reads)
    arrays, _ = compositions(subject, distances=(4,), draws=10, seed=0)
    np.testing.assert_allclose(scores, arrays[f"self_{reads}_score"][0, :, 1], rtol=1e-4)


def test_the_notebooks_section_seven_runs_as_it_stands(
    subject: notebook.CursiveTransformer,
) -> None:
    W_V0, W_O0 = notebook.get_VO_matrices(subject, layer_idx=0, head_idx=0)
    W_OV0 = W_V0 @ W_O0
    W_Q1, W_K1 = notebook.get_QK_matrices(subject, layer_idx=1, head_idx=1)
    W_QK1 = W_Q1 @ W_K1.T
    score = notebook.get_composition_score(W_OV0, W_QK1)
    by_hand = (W_OV0 @ W_QK1).norm() / (W_OV0.norm() * W_QK1.norm())
    assert score == pytest.approx(float(by_hand))
    assert score == pytest.approx(notebook.get_all_composition_scores(subject, reads="q")[0, 1])


def test_a_row_of_the_data_set_is_its_word_its_text_and_what_comes_next(
    dataset: notebook.CursiveDataset,
) -> None:
    assert 0 < len(dataset) < 40
    for index in range(len(dataset)):
        (ids, text, _), targets = dataset[index]
        item = dataset.items[index]
        assert "".join(ALPHABET[i - 1] for i in text if i) == f"{item.text} {item.text}"
        told = targets != IGNORED
        np.testing.assert_array_equal(targets[told], ids[1:][told[:-1]])
        first, second = dataset.tokens.decode(ids.numpy())
        np.testing.assert_array_equal(first, second)


def test_pictures_are_drawn_from_what_the_functions_return(
    subject: notebook.CursiveTransformer, dataset: notebook.CursiveDataset, tmp_path: Path
) -> None:
    patterns = notebook.get_attention_patterns(subject, DataLoader(dataset, batch_size=4), 1, 0)
    circuits = [
        notebook.get_QK_matrices(subject, 1, 0),
        notebook.get_VO_matrices(subject, 1, 0),
    ]
    basis = notebook.token_basis(subject, torch.arange(subject.tokens.directions))
    QK, OV = notebook.compute_QK_circuit(*circuits[0]), notebook.compute_OV_circuit(*circuits[1])
    figures = [
        notebook.plot_attention_pattern(patterns, 1, 0),
        notebook.plot_QK_circuit(QK),
        notebook.plot_QK_circuit(QK, basis=basis),
        notebook.plot_OV_circuit(OV, basis=basis, written=subject.unembed.weight),
        notebook.plot_composition_scores(notebook.get_all_composition_scores(subject), 0, 1),
    ]
    drawn = [np.asarray(figure.axes[0].images[0].get_array()) for figure in figures]
    np.testing.assert_allclose(drawn[0], patterns.nanmean(dim=0))
    np.testing.assert_allclose(drawn[1], QK)
    np.testing.assert_allclose(drawn[2], basis @ QK @ basis.T, rtol=1e-5, atol=1e-5)
    assert drawn[3].shape == (subject.tokens.directions, subject.tokens.size)
    for number, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{number}.png")
        plt.close(figure)


@pytest.fixture
def project(
    run: Trained, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A project whose pipeline has written the bank and trained the model that writes."""
    root = project_root()
    (tmp_path / "params.yaml").write_text("profile: smoke\n")
    shutil.copytree(root / "profiles", tmp_path / "profiles")

    home = tmp_path / "data" / "cursive_circuits"
    save_bank(home / "bank" / "bank.zip", items)
    save_run(home / "runs" / "handwriting", run, [], {})
    monkeypatch.chdir(tmp_path)
    return home


def test_the_notebooks_cells_run_as_they_stand(project: Path, run: Trained) -> None:
    device = torch.device("cpu")
    model = notebook.CursiveTransformer.load_from_checkpoint(str(project / "runs" / "handwriting"))
    assert model.to(device) is model
    assert model.eval() is model

    train_dataset = notebook.CursiveDataset(split="train")
    test_dataset = notebook.CursiveDataset(split="test")
    assert not {item.text for item in train_dataset.items} & {i.text for i in test_dataset.items}

    test_loader = DataLoader(test_dataset, batch_size=64, shuffle=False)
    for batch in test_loader:
        inputs, _ = batch
        inputs = inputs.to(device)
        with torch.no_grad():
            outputs = model(inputs)
            read = run.model(inputs.ids, inputs.text)
        torch.testing.assert_close(outputs.logits, read.logits)

    inputs, targets = test_dataset[0]
    inputs = inputs.unsqueeze(0).to(device)
    with torch.no_grad():
        outputs = model(inputs)
    assert outputs.logits.shape == (1, len(targets), model.tokens.size)

    layer_idx = 0
    assert len(model.transformer.layers) == model.n_layers
    for head_idx in range(model.transformer.layers[layer_idx].self_attn.num_heads):
        patterns = notebook.get_attention_patterns(
            model, test_loader, layer_idx, head_idx, num_batches=1
        )
        assert len(patterns) == min(64, len(test_dataset))
        W_Q, _ = notebook.get_QK_matrices(model, layer_idx=0, head_idx=head_idx)
        assert W_Q.shape[1] == model.transformer.layers[layer_idx].self_attn.head_dim


def test_a_model_is_not_fed_another_ones_tokens(project: Path, section: CursiveCircuits) -> None:
    tokens = PublicTokens()
    public = notebook.CursiveTransformer(
        Trained("public", random_model(tokens, context=400), tokens, ALPHABET), section
    )
    pipelines = notebook.CursiveDataset("test")
    with pytest.raises(InputError, match="another model's tokens: CursiveDataset"):
        public(pipelines[0][0].unsqueeze(0))

    own = notebook.CursiveDataset("test", model=public)
    assert public(own[0][0].unsqueeze(0)).logits.shape[-1] == tokens.size


def test_a_side_of_the_split_that_is_none_is_said_in_one_line() -> None:
    with pytest.raises(InputError, match="split 'val': one of train, test"):
        notebook.CursiveDataset("val")


EXAMPLE = Path(__file__).parents[2] / "examples" / "cursive_induction.ipynb"


def run_cells(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The code of the example, cell after cell, in one namespace."""
    content = json.loads(EXAMPLE.read_text())
    found: dict[str, Any] = {}
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(EXAMPLE), "exec"), found)
            plt.close("all")
    assert "even attention" in capsys.readouterr().out
    return found


def test_the_example_has_the_notebooks_nine_sections_and_was_run() -> None:
    cells = json.loads(EXAMPLE.read_text())["cells"]
    told = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert re.findall(r"^## (\d)\.", told, flags=re.MULTILINE) == list("123456789")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in code[1:])
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])


@pytest.mark.slow
@pytest.mark.parametrize("public", [False, True])
def test_the_example_runs_on_a_small_model_and_on_a_public_checkpoint(
    public: bool,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = whole / "out" / "runs" / "handwriting"
    if public:
        model = tmp_path / "best.pt"
        torch.save({"model_state_dict": public_checkpoint(context=300)}, model)
    monkeypatch.setenv("CURSIVE_MODEL", str(model))
    monkeypatch.setenv("CURSIVE_BANK", str(whole / "mine.zip"))
    monkeypatch.setenv("CURSIVE_PROFILE", str(whole / "mine.yaml"))
    found = run_cells(capsys)
    assert np.shape(found["scores"]) == (2, 2)
