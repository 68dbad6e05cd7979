"""Read and edit activations by name inside a `with` block; nothing is left behind after it.

    with capture(subject, [Site(5, "attn.z")]) as seen:
        subject.logits(ids)
    seen[Site(5, "attn.z")]                       # [batch, position, head, d_head]

    with intervene(subject, {Site(5, "attn.z"): zero(heads=[1])}):
        subject.logits(ids)

A site that never fires, an edit whose result nobody reads, and an edit that changes a shape are
errors (HookError): each would otherwise be a silent null result.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from interp_core.errors import InputError
from interp_core.given import shown, wholes
from interp_core.models.sites import WITH_HEADS, Site

Edit = Callable[[Tensor], Tensor]


@runtime_checkable
class HasSites(Protocol):
    """A model whose activations have names: every Subject, and models that a study makes itself."""

    @property
    def pattern_is_editable(self) -> bool:
        """Whether an edited `attn.pattern` is what the model goes on with."""
        ...

    def attach(
        self, site: Site, function: Callable[[Tensor], Tensor | None]
    ) -> AbstractContextManager[None]:
        """Call `function` with the activation at a site whenever it fires; what it returns takes
        its place.
        """
        ...


class Captured(dict[Site, Tensor]):
    """Activations by site; a site's name in text finds it too."""

    if TYPE_CHECKING:

        def __getitem__(self, key: Site | str) -> Tensor: ...

    def __missing__(self, key: Any) -> Tensor:
        if isinstance(key, str):
            return self[Site.parse(key)]
        raise InputError(f"{Site.of(key)} was not captured, only {_listed(self) or 'nothing'}")


class HookError(RuntimeError):
    """A read or an edit that did not do what its author believes."""


@contextmanager
def capture(
    subject: HasSites, sites: Iterable[Site | str], *, detach: bool = True
) -> Iterator[Captured]:
    """Collect activations of the last forward pass inside the block, by site.

    detach=False keeps them in the autograd graph. HookError after the block for a site that never
    fired.
    """
    seen = Captured()
    _check_subject(subject)
    if isinstance(sites, str | Site) or not isinstance(sites, Iterable):
        raise InputError(f'sites is a list, such as ["blocks.2.attn.z"]; got {shown(sites)}')

    with ExitStack() as stack:
        wanted = [Site.of(site) for site in sites]
        for site in wanted:

            def keep(activation: Tensor, site: Site = site) -> None:
                value = _Watched.look(activation)
                seen[site] = value.detach() if detach else value

            stack.enter_context(subject.attach(site, keep))
        yield seen
    _all_fired(wanted, seen)


@contextmanager
def intervene(subject: HasSites, edits: Mapping[Site, Edit] | Mapping[str, Edit]) -> Iterator[None]:
    """Replace activations by what their edits return, in every forward pass inside the block.

    An edit gets the activation (axes as in sites.py) and returns a tensor of the same shape, type
    and device; it must not write into what it gets. HookError at once for a read-only site or a
    changed shape, and after the block for a site that never fired or an edited activation that no
    operation read.
    """
    fired: set[Site] = set()
    unread: set[Site] = set()
    _check_subject(subject)
    if not isinstance(edits, Mapping):
        right = "{Site(2, 'attn.z'): zero(heads=[1])}"
        raise InputError(f"edits map sites to functions, such as {right}; got {shown(edits)}")

    with ExitStack() as stack:
        for given, edit in edits.items():
            site = Site.of(given)
            _check_edit(site, edit)
            if site.name == "attn.pattern" and not subject.pattern_is_editable:
                raise HookError(
                    f"{site}: nothing reads an edited pattern; edit attn.rot_q, attn.rot_k or "
                    "attn.z"
                )

            def replace(activation: Tensor, site: Site = site, edit: Edit = edit) -> Tensor:
                edited = edit(activation)
                _same_kind(site, activation, edited)
                fired.add(site)
                unread.add(site)
                return _Watched.watch(edited, lambda: unread.discard(site))

            stack.enter_context(subject.attach(site, replace))
        yield
    _all_fired([Site.of(site) for site in edits], fired)
    if unread:
        raise HookError(
            f"nothing read the edited {_listed(unread)}: the model does not use this activation"
        )


def zero(heads: Sequence[int]) -> Edit:
    """Zero ablation: the heads' vectors become 0. For sites with a head axis."""
    return _OfHeads(tuple(wholes(heads, "heads")), None)


def replace_by(heads: Sequence[int], source: Tensor) -> Edit:
    """Mean, resample or patch: the heads' vectors become those of `source`, which broadcasts to the
    activation. For sites with a head axis.
    """
    if not isinstance(source, Tensor) or source.ndim < 2:
        raise InputError(f"source is a tensor [..., head, d_head]; got {shown(source)}")
    return _OfHeads(tuple(wholes(heads, "heads")), source)


@dataclass(frozen=True, eq=False)
class _OfHeads:
    """An edit of some heads' vectors: those of `source`, or 0."""

    heads: tuple[int, ...]
    source: Tensor | None

    def __call__(self, z: Tensor) -> Tensor:
        chosen = self._chosen(z)
        edited = z.clone()
        edited[..., chosen, :] = self._vectors(z, chosen)
        return edited

    def _chosen(self, z: Tensor) -> list[int]:
        """The heads, of those that the activation has. InputError for another number."""
        n_heads = z.shape[-2]
        for head in self.heads:
            if not 0 <= head < n_heads:
                raise InputError(
                    f"there is no head {head}: this layer has heads 0 to {n_heads - 1}"
                )
        return list(self.heads)

    def _vectors(self, z: Tensor, chosen: list[int]) -> Tensor:
        if self.source is None:
            return torch.zeros_like(z[..., chosen, :])
        try:
            whole = self.source.to(z.dtype).expand(z.shape)
        except RuntimeError:
            raise InputError(
                f"source has the shape {list(self.source.shape)}, which does not broadcast to the "
                f"activation's, {list(z.shape)}: [batch, position, head, d_head]"
            ) from None
        return whole[..., chosen, :]


def _check_subject(subject: Any) -> None:
    """InputError for a model that has no names for its activations."""
    # By its class: asking an instance would run its properties.
    if not hasattr(type(subject), "attach"):
        raise InputError(
            f"a {type(subject).__name__} has no sites: give what load_model(...) or "
            "subject_of(model) returns"
        )


def _check_edit(site: Site, edit: Any) -> None:
    """InputError for what is no function, and for heads of an activation that has none."""
    if not callable(edit):
        raise InputError(
            f"{site}: an edit is a function of the activation, such as zero(heads=[1]); got "
            f"{shown(edit)}"
        )
    if isinstance(edit, _OfHeads) and site.name not in WITH_HEADS:
        raise InputError(f"{site} has no axis of heads: those with one are {', '.join(WITH_HEADS)}")


def _all_fired(wanted: Iterable[Site], fired: Iterable[Site]) -> None:
    if missing := set(wanted) - set(fired):
        raise HookError(
            f"{_listed(missing)} never fired: the model's forward pass does not go through it"
        )


def _same_kind(site: Site, before: Tensor, after: Tensor) -> None:
    if not isinstance(after, Tensor):
        raise HookError(f"{site}: the edit returned {shown(after)}, and a tensor is wanted")

    for what in ("shape", "dtype", "device"):
        if getattr(before, what) != getattr(after, what):
            raise HookError(
                f"{site}: the edit changed {what} from {getattr(before, what)} to "
                f"{getattr(after, what)}"
            )


def _listed(sites: Iterable[Site]) -> str:
    return ", ".join(str(site) for site in sorted(sites))


@contextmanager
def hooked(
    module: nn.Module, side: Literal["input", "output"], function: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """Inside the block, call `function` with a module's first input or output; what it returns
    takes its place.
    """
    if side == "input":
        handle = module.register_forward_pre_hook(_on_input(function), with_kwargs=True)
    else:
        handle = module.register_forward_hook(_on_output(function))
    try:
        yield
    finally:
        handle.remove()


def per_head(
    function: Callable[[Tensor], Tensor | None], n_heads: int
) -> Callable[[Tensor], Tensor | None]:
    """Show a function what a module reads of heads side by side as [batch, position, head,
    d_head].
    """

    def split(flat: Tensor) -> Tensor | None:
        result = function(rearrange(flat, "... (head d_head) -> ... head d_head", head=n_heads))
        return None if result is None else result.flatten(-2)

    return split


def _on_input(function: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            result = function(args[0])
            return None if result is None else ((result, *args[1:]), kwargs)
        first = next(iter(kwargs))  # hidden_states, wherever a caller passes it by name
        result = function(kwargs[first])
        return None if result is None else (args, {**kwargs, first: result})

    return hook


def _on_output(function: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            result = function(output[0])
            return None if result is None else (result, *output[1:])
        return function(output)

    return hook


_METADATA: set[Any] = {
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "is_cuda", "layout")
} | {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.stride, torch.Tensor.is_floating_point}


# The same values in another shape or place are not yet used: adapters between a module's axes and
# a site's do only this.
_VIEWS: set[Any] = {
    getattr(torch.Tensor, name)
    for name in (
        *("flatten", "reshape", "view", "transpose", "permute", "unsqueeze", "contiguous"),
        "to",  # in a divided model an edit goes back to its layer's device
    )
}


class _Watched(Tensor):
    """A tensor that reports the first operation that reads its values, and is an ordinary tensor
    from there on.
    """

    on_read: Callable[[], None]
    plain: (
        Tensor  # what operations get: the tensor itself, so that gradients by it can be asked for
    )

    @classmethod
    def watch(cls, tensor: Tensor, on_read: Callable[[], None]) -> "_Watched":
        watched = tensor.as_subclass(cls)
        watched.on_read, watched.plain = on_read, tensor
        return watched

    @staticmethod
    def look(tensor: Tensor) -> Tensor:
        """The tensor without its watch; looking does not count as reading."""
        return tensor.plain if isinstance(tensor, _Watched) else tensor

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in _METADATA:
                return func(*args, **(kwargs or {}))
            if func in _VIEWS and isinstance(args[0], _Watched):
                return cls.watch(func(args[0].plain, *args[1:], **(kwargs or {})), args[0].on_read)
            return func(*tree_map(cls._read, args), **tree_map(cls._read, kwargs or {}))

    @staticmethod
    def _read(value: Any) -> Any:
        if isinstance(value, _Watched):
            value.on_read()
            return value.plain
        return value
