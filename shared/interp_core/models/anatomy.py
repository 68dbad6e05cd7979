"""Where things are in a decoder: found by running it on a few tokens, not by a table of names.

A decoder calls attention through transformers' registry, so that one run shows which modules
attend. The blocks are the list that holds them. What reads what is found by experiment: every block
gets its clean input back, one activation is changed, the modules behind it are held as they were,
and what changes at the block's end is what that activation writes. Whatever fits no known form is
absent, with a reason; nothing is assumed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp_core.errors import first_line
from interp_core.models.attention import FoundCall, Watch, tracing, watching
from interp_core.models.divided import home_of
from interp_core.models.hooks import hooked
from interp_core.models.norms import Norm, read_norm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 8  # of the runs that look; enough for a window or a short convolution to show
_CLOSE = 1e-3  # share of a change that may be left unexplained: rounding is a hundred times smaller
# How a model's own code says that it wants more than ids.
_REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError)


class NotUnderstood(Exception):
    """Why a model cannot be run natively, in words that end a sentence."""


@dataclass(frozen=True)
class Part:
    """A module's first input or output, times a factor, is an activation that the residual stream
    knows.
    """

    module: nn.Module
    side: Literal["input", "output"]
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class LayerAnatomy:
    """One block. What is None was not understood."""

    block: nn.Module
    attention: nn.Module  # the module that calls the registry
    attention_norm: (
        nn.Module | None
    )  # what the block's first norm is, where it has one before attention
    out: nn.Module  # the output projection: the first to read what attention gives
    reads_attention: bool  # whether it reads exactly that, not a gated or normed version
    attn_out: Part | None  # what attention adds to the residual stream
    post_norm: Norm | None  # a norm between the output projection and the residual stream
    mlp_out: Part | None
    carry: float | None  # what the block multiplies the residual stream by


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A decoder as it ran."""

    layers: tuple[LayerAnatomy, ...]
    n_heads: int
    d_head: int  # of queries and keys
    d_value: int
    trunk: nn.Module  # everything before the unembedding
    final_norm: nn.Module | None  # reads the last block, and is read by nothing but the unembedding
    one_stream: bool  # whether a token has one vector that blocks hand on, and not several
    suffix: bool  # whether blocks can be called one after another, as they were called in the run
    beyond_default: (
        bool  # whether its attention has caps or sinks, which transformers' default leaves out
    )
    hidden_type: type  # of what the trunk returns


@dataclass(eq=False)
class _Call:
    """One call of a module in a run."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    begin: int
    end: int = -1
    output: Any = None

    @property
    def first(self) -> Any:
        """The first argument, wherever it was passed."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)


@dataclass
class _Run:
    """All calls of a run, in order."""

    calls: list[_Call] = field(default_factory=list)
    attention: list[tuple[int, FoundCall]] = field(default_factory=list)
    clock: int = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def of(self, module: nn.Module) -> list[_Call]:
        return [call for call in self.calls if call.module is module]


def few_tokens(model: "PreTrainedModel") -> Int[Tensor, "batch position"]:
    """Ids to look at a model with: two rows, all different.

    NotUnderstood where the model does not embed one row of token ids.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or TOKENS
    count = min(TOKENS, longest) if longest > 0 else TOKENS
    weight = getattr(model.get_input_embeddings(), "weight", None)
    if not isinstance(weight, Tensor):
        raise NotUnderstood("it reads several rows of tokens at once")
    vocabulary = len(weight)
    return torch.arange(1, 2 * count + 1, device=home_of(model)).reshape(2, count) % vocabulary


@torch.no_grad()
def look(model: "PreTrainedModel") -> Anatomy | None:
    """Run the model a few times on a few tokens; None for one whose attention does not go through
    the registry.

    NotUnderstood, with the reason, for one that is no plain decoder.
    """
    ids = few_tokens(model)
    run = _traced(model, ids)
    if not run.attention:
        return None
    try:
        return _taken_apart(model, ids, run)
    except _REFUSALS as problem:
        # Code that reads more than its arguments, or wants them whole.
        raise NotUnderstood(f"its parts do not run apart: {first_line(problem)}") from None


def _taken_apart(
    model: "PreTrainedModel", ids: Int[Tensor, "batch position"], run: _Run
) -> Anatomy:
    blocks = _blocks(model, run)
    trunk = _trunk(model, run, blocks)
    _check_causal(model, ids)
    probe = _Probe(model, ids, run, blocks)
    hidden = trunk.output.last_hidden_state

    found = [call for _, call in run.attention]
    return Anatomy(
        layers=tuple(probe.layers()),
        n_heads=found[0].query.shape[1],
        d_head=found[0].query.shape[-1],
        d_value=found[0].value.shape[-1],
        trunk=trunk.module,
        final_norm=probe.final_norm(hidden),
        one_stream=probe.one_stream,
        suffix=probe.suffix(),
        beyond_default=any(call.beyond_default for call in found),
        hidden_type=type(trunk.output),
    )


def _traced(model: "PreTrainedModel", ids: Tensor) -> _Run:
    run = _Run()
    open_calls: list[_Call] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = _Call(module, args, dict(kwargs), run.tick())
        open_calls.append(call)
        run.calls.append(call)

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = open_calls.pop()
        call.end, call.output = run.tick(), output

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        stack.enter_context(tracing(model, lambda call: run.attention.append((run.tick(), call))))
        try:
            model(input_ids=ids, use_cache=False)
        except _REFUSALS as problem:
            raise NotUnderstood(
                f"it does not run on token ids alone: {first_line(problem)}"
            ) from None
    return run


def _blocks(model: "PreTrainedModel", run: _Run) -> list[nn.Module]:
    """The list of blocks, one attention in each. NotUnderstood for anything else."""
    found = [call for _, call in run.attention]
    if wishes := sorted({wish for call in found for wish in call.wishes}):
        raise NotUnderstood(f"its attention takes `{wishes[0]}`, which is not known here")

    modules = [call.module for call in found]
    if len(set(modules)) < len(modules):
        raise NotUnderstood("it runs a layer's attention more than once in a forward pass")

    shapes = {(call.query.shape, call.key.shape, call.value.shape) for call in found}
    if len({(shape[0][1], shape[1][2]) for shape in shapes}) > 1:
        raise NotUnderstood("its layers have different numbers of heads")

    if any(call.key.shape[2] != call.query.shape[2] for call in found):
        raise NotUnderstood("its queries look at keys that are not the prompt's tokens")

    paths = {module: path for path, module in model.named_modules()}
    lists = [_outer_list(model, paths[module]) for module in modules]
    if None in lists or len(set(lists)) > 1:
        raise NotUnderstood("its attention layers are not in one list of blocks")

    blocks = list(model.get_submodule(lists[0] or "").children())
    owners = [int(paths[module].removeprefix(f"{lists[0]}.").split(".")[0]) for module in modules]
    if owners != list(range(len(blocks))):
        without = [layer for layer in range(len(blocks)) if layer not in owners]
        where = (
            f"layers {', '.join(map(str, without[:4]))} have no attention"
            if without
            else "their order differs"
        )
        raise NotUnderstood(f"it is a hybrid: {where}")
    return blocks


def _trunk(model: nn.Module, run: _Run, blocks: Sequence[nn.Module]) -> _Call:
    """The outermost module below the model that was called and holds the blocks."""
    for call in run.calls:
        if call.module is model or blocks[0] not in call.module.modules():
            continue
        if isinstance(getattr(call.output, "last_hidden_state", None), Tensor):
            return call
    raise NotUnderstood("its layers are not in a module of their own, apart from the unembedding")


def _outer_list(model: nn.Module, path: str) -> str | None:
    parts = path.split(".")
    for end in range(1, len(parts)):
        outer = ".".join(parts[:end])
        if isinstance(model.get_submodule(outer), nn.ModuleList):
            return outer
    return None


def _check_causal(model: "PreTrainedModel", ids: Tensor) -> None:
    other = ids.clone()
    other[:, -1] = 0
    with tracing(model, lambda _: None):
        one, two = (
            model(input_ids=given, use_cache=False).logits[:, :-1] for given in (ids, other)
        )
    if not bool(one.isfinite().all() and two.isfinite().all()):
        raise NotUnderstood("its predictions for a few tokens are not finite")
    if not torch.allclose(one, two, atol=1e-4 * float(one.abs().max()), rtol=1e-4):
        raise NotUnderstood("what it says at a token depends on later tokens: it is no decoder")


@dataclass(eq=False)
class _Probe:
    """The experiments on one run.

    Each is one forward pass for all blocks at once, for every block gets its clean input back.
    """

    model: "PreTrainedModel"
    ids: Tensor
    run: _Run
    blocks: list[nn.Module]

    def __post_init__(self) -> None:
        if any(len(self.run.of(block)) != 1 for block in self.blocks):
            raise NotUnderstood("it runs a block more than once in a forward pass")

        self.calls = [self.run.of(block)[0] for block in self.blocks]
        self.residuals = [call.first for call in self.calls]
        self.ends = [_tensor(call.output) for call in self.calls]
        if not all(isinstance(tensor, Tensor) for tensor in (*self.residuals, *self.ends)):
            raise NotUnderstood("its blocks do not hand a tensor on")

        shapes = {residual.shape for residual in self.residuals}
        self.one_stream = len(shapes) == 1 and self.residuals[0].ndim == 3
        self.width = int(self.residuals[0].shape[-1])
        noise = torch.randn(self.width, generator=torch.Generator().manual_seed(0))
        self.change = noise.to(self.residuals[0]) * self.residuals[0].std()
        self.changes = [self._change(noise, end) for end in self.ends]
        self.inside = [
            [call for call in self.run.calls if outer.begin < call.begin and call.end < outer.end]
            for outer in self.calls
        ]

    def _change(self, noise: Tensor, end: Tensor) -> Tensor:
        """What an activation of a block is changed by: where numbers are rounded coarsely, as large
        as the block's end, whose rounding would hide a smaller one.
        """
        if _rounding(end) == _CLOSE:
            return self.change
        size = end.double().pow(2).mean().sqrt()
        return (noise.to(end.device).double() * size).to(end.dtype)

    def layers(self) -> Iterator[LayerAnatomy]:
        outs, reads = self._out_projections()
        every = range(len(self.blocks))
        if not self.one_stream:
            # Several streams a token, mixed in each block: nothing is a summand of one.
            yield from (
                LayerAnatomy(
                    block=self.blocks[layer],
                    attention=self.run.attention[layer][1].module,
                    attention_norm=None,
                    out=outs[layer].module,
                    reads_attention=reads[layer],
                    attn_out=None,
                    post_norm=None,
                    mlp_out=None,
                    carry=None,
                )
                for layer in every
            )
            return

        carries = self._either(lambda whole: self._carries(whole))
        plain = self._either(lambda whole: self._writers(outs, self._behind(outs, whole)))
        norms = [self._post_norm(layer, outs[layer]) for layer in every]
        normed = self._either(lambda whole: self._writers(norms, self._behind(outs, whole)))
        lasts = [self._last(layer, outs[layer]) for layer in every]
        mlps = self._writers(lasts, [])

        for layer, block in enumerate(self.blocks):
            # A block that does not carry the stream on is one that writes it anew: nothing in it is
            # a summand.
            carries_on = carries[layer] is not None
            post = norms[layer] if plain[layer] is None and normed[layer] is not None else None
            attn_out = _part(outs[layer], plain[layer]) or _part(norms[layer], normed[layer])
            yield LayerAnatomy(
                block=block,
                attention=self.run.attention[layer][1].module,
                attention_norm=self._norm_before(layer),
                out=outs[layer].module,
                reads_attention=reads[layer],
                attn_out=attn_out if carries_on else None,
                post_norm=None if post is None else read_norm(post.module, self.width),
                mlp_out=_part(lasts[layer], mlps[layer]) if carries_on else None,
                carry=carries[layer],
            )

    def straight(self) -> bool:
        """Whether each block reads what the one before it wrote."""
        return all(
            _same(end, start) for end, start in zip(self.ends, self.residuals[1:], strict=False)
        )

    def final_norm(self, hidden: Tensor) -> nn.Module | None:
        if not self.straight() or not self.one_stream:
            return None
        for call in self.run.calls:
            behind = call.begin > self.calls[-1].end and isinstance(call.first, Tensor)
            if not behind or not isinstance(call.output, Tensor):
                continue
            if _same(call.first, self.ends[-1]) and _same(call.output, hidden):
                return call.module if read_norm(call.module, self.width) is not None else None
        return None

    def suffix(self) -> bool:
        """Asked with a changed stream: a block that also reads what an earlier one kept elsewhere
        would not notice.
        """
        if not self.straight():
            return False

        changed = residual = self.residuals[0] + self.change
        ends: list[Tensor] = []
        with tracing(self.model, lambda _: None):
            with (
                hooked(self.blocks[0], "input", lambda _: changed),
                hooked(self.blocks[-1], "output", ends.append),
            ):
                self.model(input_ids=self.ids, use_cache=False)
            for call in self.calls:
                args, kwargs = rest_of(call.args, call.kwargs)
                try:
                    residual = _tensor(call.module(residual, *args, **kwargs))
                except _REFUSALS:
                    return False
        return torch.allclose(
            residual.to(ends[0].device),
            ends[0],
            rtol=_CLOSE,
            atol=_CLOSE * float(residual.abs().max()),
        )

    def _out_projections(self) -> tuple[list[_Call], list[bool]]:
        """By block the first matrix whose input follows what attention returns, and whether it
        reads exactly that.
        """
        given: dict[int, Tensor] = {}
        watches: dict[nn.Module, Watch] = {}
        for layer, (_, found) in enumerate(self.run.attention):

            def shift(z: Tensor, layer: int = layer) -> Tensor:
                noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
                given[layer] = z + noise.to(z) * z.std()
                return given[layer]

            watches[found.module] = Watch(edit_out=shift)

        candidates = [self._candidates(layer) for layer in range(len(self.blocks))]
        seen: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[module] = args[0]

        with ExitStack() as stack:
            for module in {call.module for calls in candidates for call in calls}:
                stack.callback(module.register_forward_pre_hook(keep).remove)
            stack.enter_context(watching(self.model, watches))
            self._rerun()

        outs, reads = [], []
        for layer, calls in enumerate(candidates):
            moved = [
                call
                for call in calls
                if call.module in seen and not _same(seen[call.module], call.first)
            ]
            if not moved:
                raise NotUnderstood("nothing reads what its heads give, side by side")
            outs.append(moved[0])
            reads.append(_same(seen[moved[0].module].flatten(), given[layer].flatten()))
        if not all(reads):
            self._check_side_by_side(outs)
        return outs, reads

    def _check_side_by_side(self, outs: Sequence[_Call]) -> None:
        """NotUnderstood where an output projection reads what a head gives in no place of its own.

        A gate or a norm may stand between: a head that gives nothing leaves nothing in its place.
        """
        watches: dict[nn.Module, Watch] = {}
        seen: dict[nn.Module, Tensor] = {}

        def silence(z: Tensor) -> Tensor:
            silent = z.clone()
            silent[:, :, 0] = 0
            return silent

        def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[module] = args[0]

        for _, found in self.run.attention:
            watches[found.module] = Watch(edit_out=silence)
        with ExitStack() as stack:
            for call in outs:
                stack.callback(call.module.register_forward_pre_hook(keep).remove)
            stack.enter_context(watching(self.model, watches))
            self._rerun()

        for layer, call in enumerate(outs):
            width = self.run.attention[layer][1].value.shape[-1]
            place = seen[call.module].flatten(0, -2)[:, :width].float()
            left = (place - place.mean(dim=0)).abs().max()
            if float(left) > _CLOSE * float(call.first.float().abs().max()):
                raise NotUnderstood("nothing reads what its heads give, side by side")

    def _candidates(self, layer: int) -> list[_Call]:
        when, found = self.run.attention[layer]
        width = found.query.shape[1] * found.value.shape[-1]
        calls = []
        for call in self.inside[layer]:
            weight = getattr(call.module, "weight", None)
            matrix = isinstance(weight, Tensor) and weight.ndim == 2 and width in weight.shape
            if call.begin > when and call.args and matrix and call.args[0].shape[-1] == width:
                calls.append(call)
        return calls

    def _tops(self, layer: int, *, whole: bool) -> list[_Call]:
        """The modules that a block calls itself, or (not `whole`) the innermost ones; what does
        nothing is left out.
        """
        tops: list[_Call] = []
        for call in self.inside[layer]:
            if whole and tops and call.begin < tops[-1].end:
                continue
            if not whole and any(True for _ in call.module.children()):
                continue
            tops.append(call)
        return tops

    def _behind(self, outs: Sequence[_Call], whole: bool) -> list[_Call]:
        """What each block calls after its attention."""
        behind: list[_Call] = []
        for layer, out in enumerate(outs):
            tops = self._tops(layer, whole=whole)
            end = max(call.end for call in tops if call.begin <= out.begin)
            behind += [call for call in tops if call.begin > end and not _idle(call.module)]
        return behind

    def _last(self, layer: int, out: _Call) -> _Call | None:
        """What the block calls last, beside its attention: what writes for its MLP."""
        for whole in (True, False):
            tops = [call for call in self._tops(layer, whole=whole) if not _idle(call.module)]
            others = [call for call in tops if not call.begin <= out.begin <= call.end]

            # A module that gives the whole stream has done the addition itself: the summand is
            # inside it.
            if others and not _same(_tensor(others[-1].output), self.ends[layer]):
                return others[-1]
        return None

    def _post_norm(self, layer: int, out: _Call) -> _Call | None:
        """A norm that reads exactly what the output projection gives."""
        written = _tensor(out.output)
        for call in self.inside[layer]:
            if (
                call.begin > out.end
                and isinstance(call.first, Tensor)
                and _same(call.first, written)
            ):
                return (
                    call
                    if not _idle(call.module) and read_norm(call.module, self.width) is not None
                    else None
                )
        return None

    def _norm_before(self, layer: int) -> nn.Module | None:
        when = self.run.attention[layer][0]
        for call in self.inside[layer]:
            reads = isinstance(call.first, Tensor) and _same(call.first, self.residuals[layer])
            if call.end < when and reads and read_norm(call.module, self.width) is not None:
                return call.module
        return None

    def _either(self, measure: Callable[[bool], list[float | None]]) -> list[float | None]:
        """Measured with whole modules held; where that says nothing, with only the innermost ones
        held.
        """
        found = measure(True)
        if None not in found:
            return found
        return [
            one if one is not None else two for one, two in zip(found, measure(False), strict=True)
        ]

    def _writers(
        self, writers: Sequence[_Call | None], behind: Sequence[_Call]
    ) -> list[float | None]:
        """By block the factor with which what a module gives is added to the residual stream."""
        changed = {
            layer: writer
            for layer, writer in enumerate(writers)
            if writer is not None and _tensor(writer.output).shape[-1] == self.width
        }
        frozen = [call for call in behind if call not in changed.values()]
        return self._factors(self._rerun(frozen=frozen, changed=changed))

    def _carries(self, whole: bool) -> list[float | None]:
        frozen = [
            call for layer in range(len(self.blocks)) for call in self._tops(layer, whole=whole)
        ]
        return self._factors(
            self._rerun(frozen=[call for call in frozen if not _idle(call.module)], at_start=True)
        )

    def _factors(self, ends: Sequence[Tensor]) -> list[float | None]:
        return [
            _factor(end.double() - clean.double(), change)
            for end, clean, change in zip(ends, self.ends, self.changes, strict=True)
        ]

    def _rerun(
        self,
        *,
        frozen: Sequence[_Call] = (),
        changed: Mapping[int, _Call] | None = None,
        at_start: bool = False,
    ) -> list[Tensor]:
        """The ends of the blocks when each starts from its clean input (`at_start`: changed),
        `frozen` modules give what they gave, and the outputs of `changed` ones, by layer, are moved
        by the layer's change.
        """
        ends: list[Tensor] = []
        with ExitStack() as stack:
            every = zip(self.blocks, self.residuals, self.changes, strict=True)
            for block, residual, change in every:
                start = residual + change.to(residual) if at_start else residual
                stack.enter_context(hooked(block, "input", lambda _, start=start: start))
                stack.enter_context(hooked(block, "output", lambda end: ends.append(end)))

            for module in {call.module for call in frozen}:
                stack.callback(
                    module.register_forward_hook(_given_before(self.run.of(module), frozen)).remove
                )
            for layer, call in (changed or {}).items():

                def move(given: Tensor, change: Tensor = self.changes[layer]) -> Tensor:
                    return given + change.to(given)

                stack.enter_context(hooked(call.module, "output", move))

            with tracing(self.model, lambda _: None):
                self.model(input_ids=self.ids, use_cache=False)
        return ends


@contextmanager
def trunk_giving(found: Anatomy, hidden: Float[Tensor, "batch position d_model"]) -> Iterator[None]:
    """Inside the block everything before the unembedding is skipped, and these are its normed
    hidden states.

    So that the model's own code runs what follows them: multipliers, caps, biases.
    """
    trunk: Any = found.trunk
    before = trunk.__dict__.get("forward")
    trunk.forward = lambda *args, **kwargs: found.hidden_type(last_hidden_state=hidden)
    try:
        yield
    finally:
        del trunk.forward
        if before is not None:
            trunk.forward = before


def rest_of(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a block was called with beside the residual stream, which comes first."""
    if args:
        return args[1:], dict(kwargs)
    first = next(iter(kwargs))
    return (), {name: value for name, value in kwargs.items() if name != first}


def _given_before(calls: Sequence[_Call], frozen: Sequence[_Call]) -> Callable[..., Any]:
    """A hook that gives what each frozen call of a module gave, in their order: an expert runs
    several times."""
    order = iter(calls)
    held = {id(call) for call in frozen}

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call = next(order, None)
        return call.output if call is not None and id(call) in held else output

    return hook


def _factor(moved: Tensor, change: Tensor) -> float | None:
    """k where every row of `moved` is k times the change, None where it is not, or where nothing
    moved.
    """
    unit = change.to(moved.device).double()
    factors = (moved @ unit) / (unit @ unit)
    factor = float(factors.mean())
    rounding = _rounding(change)
    if abs(factor) < rounding:
        return None
    unexplained = (moved - factor * unit).norm() / moved.norm()
    if float(unexplained) > rounding:
        return None
    return 1.0 if abs(factor - 1.0) < rounding / 10 else factor


def _rounding(numbers: Tensor) -> float:
    """The share of a change that its dtype's rounding may leave unexplained."""
    return max(_CLOSE, 8 * torch.finfo(numbers.dtype).eps)


def _part(call: _Call | None, factor: float | None) -> Part | None:
    return None if call is None or factor is None else Part(call.module, "output", factor)


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output


def _same(one: Tensor, two: Tensor) -> bool:
    # A part of a divided model reads on its own device what another wrote elsewhere.
    return one.shape == two.shape and torch.equal(one, two.to(one.device))


def _idle(module: nn.Module) -> bool:
    """Whether a module in evaluation mode gives what it gets."""
    return isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd)
