"""A model as this study sees it: neurons of a layer, what they write, and the layers behind them
run again.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_core.errors import InputError
from interp_core.loading import load_model
from interp_core.mamba.families import KNOWN
from interp_core.mamba.subject import MambaSubject
from interp_core.measures.means import PlaceMeans
from interp_core.models.hooks import hooked
from interp_core.models.native import NativeSubject
from interp_core.models.recording import Recording, recording
from interp_core.models.sites import Site
from interp_core.models.spec import ModelSpec, short_name, spec_of
from interp_core.models.subject import Subject, Transformer
from interp_core.stimuli.opening import check_begun
from interp_core.training.threads import use_threads
from mamba_neurons.data import Texts
from mamba_neurons.params import MambaNeurons

# The module whose input are a transformer's neurons: the MLP's activations, which this projection
# writes out.
MLP_OUT = {
    "gpt_neox": "gpt_neox.layers.{layer}.mlp.dense_4h_to_h",
    "gpt2": "transformer.h.{layer}.mlp.c_proj",
    "llama": "model.layers.{layer}.mlp.down_proj",
    "mistral": "model.layers.{layer}.mlp.down_proj",
    "qwen2": "model.layers.{layer}.mlp.down_proj",
}


@dataclass(frozen=True, eq=False)
class Model:
    """A subject with its neurons: in a Mamba the gated inner channels (gated y, normed too in a
    Mamba-2), in a transformer the activations of the MLP. Both are what the layer's last projection
    reads, so that each writes along one direction.
    """

    subject: Subject

    def __post_init__(self) -> None:
        if not self.is_mamba and not (
            isinstance(self.subject, NativeSubject) and self._kind in MLP_OUT
        ):
            raise InputError(
                f"{self.subject.name} is a {self._kind}: neurons are known in "
                f"{', '.join((*MLP_OUT, *KNOWN))}"
            )

    @property
    def _kind(self) -> str:
        return str(self.subject.config.model_type)

    @property
    def name(self) -> str:
        """As in file names."""
        return self.subject.name

    @property
    def is_mamba(self) -> bool:
        """Whether neurons are inner channels."""
        return isinstance(self.subject, MambaSubject)

    @property
    def n_layers(self) -> int:
        """Blocks."""
        return self.subject.n_layers

    @property
    def n_neurons(self) -> int:
        """Neurons of a layer."""
        return self.write_directions(0).shape[0]

    @property
    def n_heads(self) -> int:
        """Attention heads of a layer; 0 in a Mamba, of either kind."""
        return self.subject.n_heads if isinstance(self.subject, Transformer) else 0

    def write_directions(self, layer: int) -> Float[Tensor, "neuron d_model"]:
        """What a neuron of activation 1 adds to the residual stream."""
        module: Any = self.subject.model.get_submodule(self._out_path(layer))
        weight = module.weight.detach()
        return weight if self._kind == "gpt2" else weight.T

    @property
    def precision(self) -> torch.dtype:
        """What changes of the residual stream are computed in: the model's type, float32 where that
        has less.
        """
        return torch.promote_types(self.write_directions(0).dtype, torch.float32)

    def attach(
        self, layer: int, function: Callable[[Tensor], Tensor | None]
    ) -> AbstractContextManager[None]:
        """Call `function` with the layer's neurons [batch, position, neuron]; what it returns takes
        their place.
        """
        if self.is_mamba:
            return self.subject.attach(Site(layer, "mixer.gated_y"), function)
        return hooked(self.subject.model.get_submodule(self._out_path(layer)), "input", function)

    @contextmanager
    def edited(self, edits: Mapping[int, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
        """Inside the block the neurons of these layers are what the edits return."""
        with ExitStack() as stack:
            for layer, edit in edits.items():
                stack.enter_context(self.attach(layer, edit))
            yield

    def check_layer(self, layer: int) -> None:
        """InputError for a layer that is not there."""
        if not 0 <= layer < self.n_layers:
            raise InputError(
                f"{self.name} has layers 0 to {self.n_layers - 1}; there is no layer {layer}"
            )

    def check_top_k(self, top_k: int) -> None:
        """InputError when a layer has fewer neurons."""
        if top_k > self.n_neurons:
            raise InputError(
                f"top_k: {top_k} is more than the {self.n_neurons} neurons of a layer of "
                f"{self.name}"
            )

    def _out_path(self, layer: int) -> str:
        if self.is_mamba:
            return f"backbone.layers.{layer}.mixer.out_proj"

        return MLP_OUT[self._kind].format(layer=layer)


@dataclass(frozen=True)
class CleanRun:
    """A batch as the untouched model ran it, and the means to run it again from any layer."""

    model: Model
    ids: Int[Tensor, "batch position"]
    counted: Bool[Tensor, "batch position"]
    residual: list[Float[Tensor, "batch position d_model"]]  # before each block, and after the last
    neurons: list[Float[Tensor, "batch position neuron"]]
    record: Recording | None  # of a transformer

    def changed(
        self, layer: int, changes: Float[Tensor, "copy batch position d_model"]
    ) -> Float[Tensor, "copies_batch position d_model"]:
        """The residual stream before block `layer`, plus each of these."""
        before = self.residual[layer]
        return (before + changes).to(before.dtype).flatten(0, 1)

    @torch.no_grad()
    def rerun(
        self, first: int, residual: Float[Tensor, "copies_batch position d_model"]
    ) -> Float[Tensor, "copies_batch position d_model"]:
        """Normed hidden states when the residual stream before block `first` is this one; the batch
        may hold several copies of the clean one.
        """
        subject = self.model.subject
        if isinstance(subject, MambaSubject):
            return subject.suffix(residual, first)
        assert isinstance(subject, NativeSubject)
        assert self.record is not None
        return subject.normed(self.record.run(subject, first, residual))


@torch.no_grad()
def clean_run(model: Model, texts: Texts) -> CleanRun:
    """Run a batch of texts. InputError, naming the layer, when an activation is not a number."""
    subject = model.subject
    ids = subject.ids(texts.tokens)
    neurons: dict[int, Tensor] = {}
    residual: dict[int, Tensor] = {}
    record: Recording | None = None

    with ExitStack() as stack:
        for layer in range(model.n_layers):
            stack.enter_context(
                model.attach(layer, lambda a, layer=layer: neurons.__setitem__(layer, a))
            )

        if isinstance(subject, NativeSubject):
            record = stack.enter_context(recording(subject))
        else:
            _keep_residual(subject, residual, stack)
        subject.trunk(ids)

    residual = residual if record is None else record.inputs
    for layer in range(model.n_layers):
        if not bool(torch.isfinite(neurons[layer]).all()):
            raise InputError(
                f"{model.name}: layer {layer} has activations that are not numbers on these texts"
            )

    return CleanRun(
        model,
        ids,
        torch.as_tensor(texts.counted, device=ids.device),
        [residual[layer] for layer in range(model.n_layers + 1)],
        [neurons[layer] for layer in range(model.n_layers)],
        record,
    )


def _keep_residual(subject: Subject, residual: dict[int, Tensor], stack: ExitStack) -> None:
    last = subject.n_layers - 1
    for layer in range(subject.n_layers):
        site = Site(layer, "resid_pre")
        stack.enter_context(
            subject.attach(site, lambda a, layer=layer: residual.__setitem__(layer, a))
        )
    stack.enter_context(
        subject.attach(Site(last, "resid_post"), lambda a: residual.__setitem__(last + 1, a))
    )


def load(name: str, known: Mapping[str, ModelSpec], params: MambaNeurons) -> Model:
    """The model of this name, checked, on the device and in the type that params say."""
    use_threads(params.threads)
    spec, kept_name = spec_of(name, known), short_name(name)
    check_begun(params.bos)
    subject = load_model(
        spec, name=kept_name, device=params.device, dtype=params.dtype, bos=params.bos
    )
    return Model(subject)


@torch.no_grad()
def neuron_means(model: Model, texts: Texts, batch_size: int) -> Float[Tensor, "layer neuron"]:
    """Each neuron's mean over all tokens of all texts: what mean ablation puts in its place."""
    means: PlaceMeans[int] = PlaceMeans()

    for batch in texts.batches(batch_size):
        clean = clean_run(model, batch)
        means.add(dict(enumerate(clean.neurons)), torch.as_tensor(batch.real))

    found = means.means()
    return torch.stack([found[layer] for layer in range(model.n_layers)])
