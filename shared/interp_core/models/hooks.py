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
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from interp_core.errors import InputError
from interp_core.models.sites import Site

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
        raise KeyError(key)


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
    with ExitStack() as stack:
        wanted = [_site(site) for site in sites]
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
    with ExitStack() as stack:
        for given, edit in edits.items():
            site = _site(given)
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
    _all_fired([_site(site) for site in edits], fired)
    if unread:
        raise HookError(
            f"nothing read the edited {_listed(unread)}: the model does not use this activation"
        )


def zero(heads: Sequence[int]) -> Edit:
    """Zero ablation: the heads' vectors become 0. For sites with a head axis."""
    return lambda z: _with_heads(z, heads, torch.zeros_like(z[..., _chosen(z, heads), :]))


def replace_by(heads: Sequence[int], source: Tensor) -> Edit:
    """Mean, resample or patch: the heads' vectors become those of `source`, which broadcasts to the
    activation.
    """
    return lambda z: _with_heads(
        z, heads, source[..., _chosen(z, heads), :].expand(*z.shape[:-2], len(heads), z.shape[-1])
    )


def _site(site: Site | str) -> Site:
    return Site.parse(site) if isinstance(site, str) else site


def _chosen(z: Tensor, heads: Sequence[int]) -> list[int]:
    """The heads, of those that the activation has. InputError for another number."""
    n_heads = z.shape[-2]
    for head in heads:
        if not 0 <= head < n_heads:
            raise InputError(f"there is no head {head}: this layer has heads 0 to {n_heads - 1}")
    return list(heads)


def _with_heads(z: Tensor, heads: Sequence[int], vectors: Tensor) -> Tensor:
    edited = z.clone()
    edited[..., list(heads), :] = vectors.to(z.dtype)
    return edited


def _all_fired(wanted: Iterable[Site], fired: Iterable[Site]) -> None:
    if missing := set(wanted) - set(fired):
        raise HookError(
            f"{_listed(missing)} never fired: the model's forward pass does not go through it"
        )


def _same_kind(site: Site, before: Tensor, after: Tensor) -> None:
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
