"""The notebook's room: its functions under its names and with its signatures, for its cells to run
on.

    x_t W_Q W_K^T x_s^T / sqrt(d_head) + what the biases add = score(t, s)
    x_s W_V W_O = what a head writes

Symbols and order are the notebook's: x is a row, a head's W_Q, W_K, W_V are [d_model, d_head], its
W_O is [d_head, d_model]. x is the residual stream centred and scaled (`normalised`); the norm's
gain is in the matrices. The paths of its cells, `model.transformer.layers[0].self_attn`, have what
they ask for (`notebook_attention`): `attn_drop`'s hooks see the patterns, `q_proj.weight` and the
others are the model's raw weights. Where this differs from the notebook's cells, the cell was
wrong:

- The rows of nn.Linear's weight, not its columns, belong to a head. Of the output weight the
  columns do. Slices of raw weights are what they say; `get_QK_matrices` and `get_VO_matrices` are
  a head's.
- W_OV W_QK, the cell's product, meets the reader's queries. Induction is composition with its keys:
  W_QK W_OV^T.
- The model cross-attends to a text. `inputs` holds ids and text together (`Inputs`), so that the
  cell's `inputs, _ = batch` and `model(inputs)` do not ask what comes next after no text.
- Queries at padding have no pattern. A hook sees theirs too.
- Residual axes have no order, so a heat map of d_model x d_model says little: give it a `basis` of
  tokens.
"""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast

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
from cursive_circuits.model import Cache, Output
from cursive_circuits.model import CursiveTransformer as StudiedTransformer
from cursive_circuits.model_checkpoint import open_trained
from cursive_circuits.model_shape import NO_CHARACTER
from cursive_circuits.model_watching import observing
from cursive_circuits.notebook_attention import SelfAttention
from cursive_circuits.params import CursiveCircuits
from cursive_circuits.run_directory import Trained
from interp_core.errors import InputError
from interp_core.files.params import project_root, read_section
from interp_core.measures.paths import Reads
from interp_core.plotting import DIVERGING, centred
from interp_core.training.batches import IGNORED

__all__ = [
    "CursiveDataset",
    "CursiveTransformer",
    "Inputs",
    "compute_OV_circuit",
    "compute_QK_circuit",
    "get_QK_biases",
    "get_QK_matrices",
    "get_VO_matrices",
    "get_all_composition_scores",
    "get_attention_patterns",
    "get_composition_score",
    "normalised",
    "plot_OV_circuit",
    "plot_QK_circuit",
    "plot_attention_pattern",
    "plot_composition_scores",
    "token_basis",
]
Square = Float[Tensor, "d_model d_model"]


class Inputs(NamedTuple):
    """What a model reads: a row, or a batch of rows as a DataLoader stacks them."""

    ids: Int[Tensor, "*row position"]
    text: Int[Tensor, "*row character"]
    language: Int[Tensor, "*row"]  # the same number for the same tokens and alphabet

    def to(self, device: torch.device | str) -> "Inputs":
        """The same on a device."""
        return Inputs(*(part.to(device) for part in self))

    def unsqueeze(self, dim: int) -> "Inputs":
        """The same with an axis of one: a batch of one row, with `dim` 0."""
        return Inputs(*(part.unsqueeze(dim) for part in self))


class Layer(NamedTuple):
    """A layer, as the notebook's cells read it."""

    self_attn: SelfAttention


class Layers(NamedTuple):
    """All layers."""

    layers: list[Layer]


class CursiveTransformer(StudiedTransformer):
    """The study's model, which also knows what its tokens and its characters mean."""

    def __init__(self, trained: Trained, params: CursiveCircuits) -> None:
        """`params`: how words are taken of a bank for it, and divided."""
        super().__init__(
            trained.model.shape,
            vocabulary=trained.tokens.size,
            alphabet=len(trained.alphabet),
            seed=0,
        )
        for block in self.layers:
            block.self_attention = SelfAttention(self.shape)
        self.load_state_dict(trained.model.state_dict())
        self.eval()
        self.tokens, self.alphabet, self.params = trained.tokens, trained.alphabet, params

    @classmethod
    def load_from_checkpoint(
        cls, path: str | Path, *, profile: str | None = None
    ) -> "CursiveTransformer":
        """A run directory, or a public checkpoint beside a profile with its alphabet; in eval mode.

        InputError for what is neither.
        """
        params = read_section("cursive_circuits", CursiveCircuits, profile)
        return cls(open_trained(Path(path), params), params)

    @property
    def transformer(self) -> Layers:
        """The paths of the notebook's cells: `transformer.layers[1].self_attn.q_proj.weight`."""
        return Layers([Layer(cast(SelfAttention, block.self_attention)) for block in self.layers])

    @cached_property
    def language(self) -> int:
        """What ids and characters mean to it, as a number."""
        told = f"{type(self.tokens).__name__} {self.tokens.model_dump_json()} {self.alphabet}"
        return int.from_bytes(hashlib.sha256(told.encode()).digest()[:7])

    def forward(
        self,
        input_ids: Inputs | Tensor,
        text: Tensor | None = None,
        use_cache: bool = False,
        cache: Cache | None = None,
    ) -> Output:
        """As the study's model; of `Inputs`, with their text.

        InputError for inputs in other tokens, which would mean other strokes here.
        """
        if not isinstance(input_ids, Inputs):
            return super().forward(input_ids, text, use_cache, cache)
        if bool((input_ids.language != self.language).any()):
            raise InputError(
                "these inputs are in another model's tokens: CursiveDataset(split, model=model) "
                "writes this one's"
            )
        return super().forward(input_ids.ids, input_ids.text, use_cache, cache)


SPLITS = ("train", "test")


class CursiveDataset(Dataset[tuple[Inputs, Tensor]]):
    """Rows of one side of a bank's split: inputs, and what each place should predict (IGNORED where
    nothing).

    Rows and texts are as long as the longest. Each word is written `copies` times, the same
    strokes: twice is what shows induction. InputError as the bank gives it.
    """

    def __init__(
        self,
        split: str,
        *,
        model: CursiveTransformer | None = None,
        bank: str | Path | None = None,
        copies: int = 1,
    ) -> None:
        """`split`: train or test. `model`: whose tokens; by default the pipeline's that writes.

        `bank`: a file in the public format; by default the pipeline's, which holds its words
        already taken.
        """
        if split not in SPLITS:
            raise InputError(f"split {split!r}: one of {', '.join(SPLITS)}")

        model = _pipelines() if model is None else model
        self.tokens, self.copies = model.tokens, copies
        self._language = torch.tensor(model.language)

        training, held_out = Words.split(
            _items(model, bank), model.tokens, model.alphabet, model.params.bank.split
        )
        self.words = training if split == "train" else held_out
        self.items = self.words.items

        rows = [self._row(index) for index in range(len(self.items))]
        self._ids = self.tokens.stack(rows)
        texts = [self.words.text([item.text] * copies) for item in self.items]
        self._text = np.stack([_filled(text, max(map(len, texts))) for text in texts])

    def _row(self, index: int) -> Row:
        return self.tokens.row(self.words.inks([self.items[index]] * self.copies))

    def __len__(self) -> int:
        """Words."""
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Inputs, Tensor]:
        """Inputs and targets of a word."""
        ids = self._ids[index]
        labels = labels_of(ids[None], self.tokens)[0]
        targets = np.append(labels[1:], IGNORED)

        text = torch.from_numpy(self._text[index])
        return Inputs(torch.from_numpy(ids), text, self._language), torch.from_numpy(targets)


def _home() -> Path:
    return project_root() / "data" / "cursive_circuits"


def _pipelines() -> CursiveTransformer:
    return CursiveTransformer.load_from_checkpoint(_home() / "runs" / "handwriting")


def _items(model: CursiveTransformer, bank: str | Path | None) -> list[Item]:
    if bank is None:
        return load_bank(_home() / "bank" / "bank.zip", alphabet=model.alphabet)
    taken = take(
        read_bank(Path(bank)),
        alphabet=model.alphabet,
        tokens=model.tokens,
        context=model.shape.context,
        characters=model.shape.characters,
        published=model.params.bank.published,
        name=str(bank),
    )
    return taken.items


def _filled(text: Row, length: int) -> Row:
    return np.pad(text, (0, length - len(text)), constant_values=NO_CHARACTER)


def get_attention_patterns(
    model: CursiveTransformer,
    data_loader: Iterable[tuple[Inputs, Tensor]],
    layer_idx: int,
    head_idx: int,
    num_batches: int = 1,
) -> Float[Tensor, "sample query key"]:
    """Attention of one head on the first batches of (inputs, targets).

    A query at padding has not-a-number: it reads nothing that anybody wrote.
    """
    found = []
    for number, (inputs, _) in enumerate(data_loader):
        if number == num_batches:
            break
        with torch.no_grad(), observing(model) as seen:
            model(inputs.to(model.device))
        pattern = seen[layer_idx, "self"].call.pattern()[:, head_idx].cpu()
        padding = inputs.ids.cpu() == model.tokens.pad
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
