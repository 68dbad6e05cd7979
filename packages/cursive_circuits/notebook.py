"""The notebook's room: its functions under its names and with its signatures, for its cells to run
on.

    x_t W_Q W_K^T x_s^T / sqrt(d_head) + what the biases add = score(t, s)
    x_s W_V W_O = what a head writes

Symbols and order are the notebook's: x is a row, a head's W_Q, W_K, W_V are [d_model, d_head], its
W_O is [d_head, d_model]. x is the residual stream centred and scaled (`normalised`); the norm's
gain is in the matrices. Where this differs from the notebook's cells, the cell was wrong:

- The rows of nn.Linear's weight, not its columns, belong to a head. Of the output weight the
  columns do.
- W_OV W_QK, the cell's product, meets the reader's queries. Induction is composition with its keys:
  W_QK W_OV^T.
- `load_from_checkpoint` is a function and gives the model with its tokens (`Trained`); the cell's
  method of the model could not know them. `CursiveDataset` takes that `Trained`, for its tokens.
- A batch is (ids, text, targets): the cell's `inputs, _ = batch` is `inputs, text, _ = batch` here,
  and `model(inputs)` is `model(inputs, text)`.
- A batch holds its text too, which the model cross-attends to; queries at padding have no pattern.
- Residual axes have no order, so a heat map of d_model x d_model says little: give it a `basis` of
  tokens.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

from cursive_circuits import figures_circuits, measure_circuits
from cursive_circuits.data import Row, Words, labels_of
from cursive_circuits.data_bank import Item, load_bank, read_bank
from cursive_circuits.data_taken import take
from cursive_circuits.measure_circuits import normalised
from cursive_circuits.measure_composition import get_composition_score
from cursive_circuits.model import CursiveTransformer
from cursive_circuits.model_checkpoint import open_trained
from cursive_circuits.model_shape import NO_CHARACTER
from cursive_circuits.model_watching import observing
from cursive_circuits.params import CursiveCircuits
from cursive_circuits.run_directory import Trained
from interp_core.files.params import project_root, read_section
from interp_core.measures.paths import Reads
from interp_core.plotting import DIVERGING, centred
from interp_core.training.batches import IGNORED

__all__ = [
    "CursiveDataset",
    "CursiveTransformer",
    "compute_OV_circuit",
    "compute_QK_circuit",
    "get_QK_biases",
    "get_QK_matrices",
    "get_VO_matrices",
    "get_all_composition_scores",
    "get_attention_patterns",
    "get_composition_score",
    "load_from_checkpoint",
    "normalised",
    "plot_OV_circuit",
    "plot_QK_circuit",
    "plot_attention_pattern",
    "plot_composition_scores",
    "token_basis",
]
Square = Float[Tensor, "d_model d_model"]
SPECIAL = 3  # PAD, END, WORD: the last ids of every vocabulary


def load_from_checkpoint(path: str | Path, *, profile: str | None = None) -> Trained:
    """A run directory, or a public checkpoint beside a profile with its alphabet: the model, with
    its tokens.

    InputError for what is neither.
    """
    return open_trained(Path(path), read_section("cursive_circuits", CursiveCircuits, profile))


class CursiveDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Rows of one side of a bank's split: ids, the text, and what each place should predict
    (IGNORED where nothing).

    Rows and texts are as long as the longest. Each word is written `copies` times, the same
    strokes: twice is what shows induction. InputError as the bank gives it.
    """

    def __init__(
        self,
        split: Literal["train", "test"],
        trained: Trained,
        *,
        bank: str | Path | None = None,
        profile: str | None = None,
        copies: int = 1,
    ) -> None:
        """`bank`: a file in the public format; by default the pipeline's, which holds its words
        already taken.
        """
        params = read_section("cursive_circuits", CursiveCircuits, profile)
        sides = Words.split(
            _items(trained, params, bank), trained.tokens, trained.alphabet, params.bank.split
        )
        self.words = sides[("train", "test").index(split)]
        self.items, self.tokens, self.copies = self.words.items, trained.tokens, copies

        rows = [self._row(index) for index in range(len(self.items))]
        self._ids = self.tokens.stack(rows)
        texts = [self.words.text([item.text] * copies) for item in self.items]
        self._text = np.stack([_filled(text, max(map(len, texts))) for text in texts])

    def _row(self, index: int) -> Row:
        return self.tokens.row(self.words.inks([self.items[index]] * self.copies))

    def __len__(self) -> int:
        """Words."""
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, text and targets of a word."""
        ids = self._ids[index]
        labels = labels_of(ids[None], self.tokens)[0]
        targets = np.append(labels[1:], IGNORED)
        return torch.from_numpy(ids), torch.from_numpy(self._text[index]), torch.from_numpy(targets)


def _items(trained: Trained, params: CursiveCircuits, bank: str | Path | None) -> list[Item]:
    shape = trained.model.shape
    if bank is None:
        place = project_root() / "data" / "cursive_circuits" / "bank" / "bank.zip"
        return load_bank(place, alphabet=trained.alphabet)
    taken = take(
        read_bank(Path(bank)),
        alphabet=trained.alphabet,
        tokens=trained.tokens,
        context=shape.context,
        characters=shape.characters,
        published=params.bank.published,
        name=str(bank),
    )
    return taken.items


def _filled(text: Row, length: int) -> Row:
    return np.pad(text, (0, length - len(text)), constant_values=NO_CHARACTER)


def get_attention_patterns(
    model: CursiveTransformer,
    data_loader: Iterable[list[Tensor] | tuple[Tensor, ...]],
    layer_idx: int,
    head_idx: int,
    num_batches: int = 1,
) -> Float[Tensor, "sample query key"]:
    """Attention of one head on the first batches of (ids, text, ...).

    A query at padding has not-a-number: it reads nothing that anybody wrote.
    """
    found = []
    for number, (ids, text, *_) in enumerate(data_loader):
        if number == num_batches:
            break
        with torch.no_grad(), observing(model) as seen:
            model(ids.to(model.device), text.to(model.device))
        pattern = seen[layer_idx, "self"].call.pattern()[:, head_idx].cpu()
        padding = ids == model.embed.num_embeddings - SPECIAL
        found.append(pattern.masked_fill(padding[:, :, None], torch.nan))
    return torch.cat(found)


def plot_attention_pattern(
    patterns: Float[Tensor, "sample query key"], layer_idx: int, head_idx: int
) -> Figure:
    """The mean over the samples that are as long as a query's position.

    Words differ in length, so what stands at the same offset in all of them is sharp, and what
    stands at a copy of the query is not: look at one sample for that.
    """
    figure, axes = plt.subplots(figsize=(6, 6))
    mean = patterns.nanmean(dim=0).numpy()
    image = figures_circuits.plot_attention_pattern(axes, mean, layer_idx, head_idx)
    axes.set_title(
        f"Average attention of layer {layer_idx}, head {head_idx} ({len(patterns)} samples)"
    )
    figure.colorbar(image, ax=axes, label="attention", shrink=0.8)
    return figure


def get_QK_matrices(
    model: CursiveTransformer, layer_idx: int, head_idx: int
) -> tuple[Float[Tensor, "d_model d_head"], Float[Tensor, "d_model d_head"]]:
    """W_Q and W_K of a self-attention head, the norm's gain in them, without their biases
    (`get_QK_biases`).
    """
    W_Q, W_K = measure_circuits.get_QK_matrices(model, layer_idx, head_idx)
    return W_Q[:-1], W_K[:-1]


def get_QK_biases(
    model: CursiveTransformer, layer_idx: int, head_idx: int
) -> tuple[Float[Tensor, " d_head"], Float[Tensor, " d_head"]]:
    """What the biases of the map and of its norm add to every query and to every key."""
    W_Q, W_K = measure_circuits.get_QK_matrices(model, layer_idx, head_idx)
    return W_Q[-1], W_K[-1]


def compute_QK_circuit(
    W_Q: Float[Tensor, "d_model d_head"], W_K: Float[Tensor, "d_model d_head"]
) -> Square:
    """W_Q W_K^T. With rotary positions it is the score at distance 0."""
    return W_Q @ W_K.T


def get_VO_matrices(
    model: CursiveTransformer, layer_idx: int, head_idx: int
) -> tuple[Float[Tensor, "d_model d_head"], Float[Tensor, "d_head d_model"]]:
    """W_V of a self-attention head, the norm's gain in it, without its bias, and W_O."""
    W_V, W_O = measure_circuits.get_VO_matrices(model, layer_idx, head_idx)
    return W_V[:-1], W_O


def compute_OV_circuit(
    W_V: Float[Tensor, "d_model d_head"], W_O: Float[Tensor, "d_head d_model"]
) -> Square:
    """W_V W_O: what a head writes, by what stands where it attends."""
    return W_V @ W_O


def plot_QK_circuit(
    QK_circuit: Square, *, basis: Float[Tensor, "token d_model"] | None = None
) -> Figure:
    """The circuit on residual axes, or between the tokens of a basis."""
    return _circuit(QK_circuit, basis, basis, "QK circuit", ("key", "query"))


def plot_OV_circuit(
    OV_circuit: Square,
    *,
    basis: Float[Tensor, "token d_model"] | None = None,
    written: Float[Tensor, "out d_model"] | None = None,
) -> Figure:
    """The circuit on residual axes, or from the tokens of a basis to what they raise (`written`,
    unembeddings).
    """
    return _circuit(OV_circuit, basis, written, "OV circuit", ("written", "attended"))


def _circuit(
    circuit: Square,
    rows: Tensor | None,
    columns: Tensor | None,
    title: str,
    axes_of: tuple[str, str],
) -> Figure:
    values = circuit if rows is None else rows @ circuit
    values = (values if columns is None else values @ columns.T).detach().cpu().numpy()

    figure, axes = plt.subplots(figsize=(8, 6))
    image = axes.imshow(
        values, cmap=DIVERGING, norm=centred(values, least=1e-6), interpolation="nearest"
    )
    x, y = (
        f"{name} {'axis of the residual stream' if base is None else 'token'}"
        for name, base in zip(axes_of, (columns, rows), strict=True)
    )
    axes.set(title=title, xlabel=x, ylabel=y)
    figure.colorbar(image, ax=axes)
    return figure


def get_all_composition_scores(
    model: CursiveTransformer, *, writer_layer: int = 0, reader_layer: int = 1, reads: Reads = "k"
) -> Float[np.ndarray, "writer reader"]:
    """|W_A W_B| / (|W_A| |W_B|) of all pairs of heads of two layers: what the writer adds to the
    reader's keys (the composition of induction), queries (the notebook's product) or values. Random
    pairs score about 1 / sqrt(d_model).
    """
    scores = np.empty((model.n_heads, model.n_heads))
    for writer, reader in np.ndindex(*scores.shape):
        W_OV = compute_OV_circuit(*get_VO_matrices(model, writer_layer, writer))
        W_QK = compute_QK_circuit(*get_QK_matrices(model, reader_layer, reader))
        read = compute_OV_circuit(*get_VO_matrices(model, reader_layer, reader))

        product = {"k": (W_QK, W_OV.T), "q": (W_OV, W_QK), "v": (W_OV, read)}[reads]
        scores[writer, reader] = get_composition_score(*product)
    return scores


def plot_composition_scores(
    scores: Float[np.ndarray, "writer reader"], writer_layer: int, reader_layer: int
) -> Figure:
    """The scores of all pairs of two layers."""
    figure, axes = plt.subplots(figsize=(8, 6))
    image = axes.imshow(scores, cmap="plasma", interpolation="nearest")
    axes.set(
        title=f"Composition scores between layer {writer_layer} and layer {reader_layer} heads",
        xlabel=f"layer {reader_layer} head",
        ylabel=f"layer {writer_layer} head",
    )
    figure.colorbar(image, ax=axes, label="composition score")
    return figure


def token_basis(
    model: CursiveTransformer, ids: Int[Tensor, " token"]
) -> Float[Tensor, "token d_model"]:
    """Embeddings of tokens as a head of layer 0 reads them: centred and scaled."""
    return normalised(model.embed.weight[ids])[:, :-1].detach()
