"""Taps: the call sites of attention in diffusers ask which layer is running.

A processor of diffusers calls ``dispatch_attention_fn``, or ``F.scaled_dot_product_attention``;
both names are globals of the Python module that defines the processor. While a session is active
they are taps: with a current layer they hand it the tensors, without one they call the original.
No processor is copied or replaced, and the user's attention backend stays the dense path.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch
from torch import Tensor, nn

from vidsparse.kernels.autocast import cast_as_attention
from vidsparse.pipelines import compiled
from vidsparse.pipelines.call import AttentionRequest, Dense, DenseOf, Layer
from vidsparse.pipelines.undo import Undo, drop_hooks

LAYER = "_vidsparse_layer"  # attribute of a module
_lock = threading.RLock()  # Ctrl-C may come, and undo, while it is held
_taps: dict[str, set[int]] = {}  # by Python module, who wants it tapped
_watchers: dict[int, Callable[[], None]] = {}


class _Current(threading.local):
    def __init__(self) -> None:  # a class-level default would break torch.compile's guards
        self.layer: Layer | None = None
        self.inside = False  # a forward call of a transformer that is in a session
        self.entered: set[int] = set()  # the attention modules that ran in it, by id


current = _Current()
epoch = ""  # who has hooks now; compiled code reads it, which does not notice hooks themselves
_hooked: dict[int, str] = {}  # by owner: what compiled code has to know of its hooks
_numbers: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # of transformers
_number = itertools.count(1)


def begin(owner: object, transformers: Sequence[nn.Module]) -> None:
    """Somebody hooks into layers: code that was compiled without hooks is not for now.

    Code that was compiled for another owner is, if the transformers are the same: it asks the
    module for its layer.

    Args:
        owner: Who it is.
        transformers: Whose layers.
    """
    with _lock:
        numbers = [_numbers.setdefault(each, next(_number)) for each in transformers]
        _hooked[id(owner)] = "+".join(map(str, sorted(numbers)))
        _tell()


def end(owner: object) -> None:
    """Its hooks are gone."""
    with _lock:
        _hooked.pop(id(owner), None)
        _tell()


def _tell() -> None:
    global epoch
    epoch = ", ".join(sorted(set(_hooked.values())))


def attach(module: nn.Module, layer: Layer, undo: Undo) -> None:
    """Let a layer take over a module's attention, in the place of one that does so already.

    The last layer attached has to go first.
    """
    site, before = site_of(module.processor), layer_of(module)

    def take() -> None:
        vars(module)[LAYER] = layer
        if before is None:
            module.register_forward_pre_hook(_enter)
            module.register_forward_hook(_leave)

    def give_back() -> None:
        if before is not None:
            vars(module)[LAYER] = before
            return
        drop_hooks(module, _enter, _leave)
        vars(module).pop(LAYER, None)

    undo.do(lambda: tap(site, layer), lambda: untap(site, layer))
    undo.do(take, give_back)


def watch(watcher: Callable[[], None], undo: Undo) -> None:
    """Call a function at every attention call outside of all transformers that are in a session."""
    number = id(watcher)
    undo.do(lambda: _watchers.update({number: watcher}), lambda: _watchers.pop(number, None))


def layer_of(module: nn.Module) -> Layer | None:
    """The layer that has taken over a module's attention."""
    return vars(module).get(LAYER)


def _enter(module: nn.Module, args: Any) -> None:
    """Say which layer runs; compiled blocks share a graph, so the module is asked for its own.

    The copy of a module has this hook, and no layer.
    """
    current.layer = getattr(module, LAYER, None)
    if not torch.compiler.is_compiling():
        current.entered.add(id(module))


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    current.layer = None


def tap(module: str, owner: object) -> None:
    """Put the taps into a Python module that calls attention, for as long as anyone wants them."""
    with _lock:
        _taps.setdefault(module, set()).add(id(owner))
        _swap(module, {name: (original, tapped) for name, original, tapped in _globals()})


def untap(module: str, owner: object) -> None:
    """One owner no longer wants them; the last one restores the originals."""
    with _lock:
        owners = _taps.get(module, set())
        owners.discard(id(owner))
        if not owners:
            _swap(module, {name: (tapped, original) for name, original, tapped in _globals()})
            _taps.pop(module, None)


def tapped_modules() -> list[str]:
    """The Python modules that hold a tap now."""
    return sorted(_taps)


def site_of(processor: object) -> str:
    """The Python module in which a processor calls attention: a subclass may inherit the call."""
    call = inspect.unwrap(type(processor).__call__)
    return getattr(call, "__globals__", {}).get("__name__", type(processor).__module__)


def can_tap(module: str) -> bool:
    """Whether a Python module has the names that a tap stands in for."""
    found = vars(sys.modules[module]) if module in sys.modules else {}
    return any(found.get(name) is each for name, *versions in _globals() for each in versions)


def _swap(module: str, names: dict[str, tuple[Any, Any]]) -> None:
    found = vars(sys.modules[module])
    found.update({name: new for name, (old, new) in names.items() if found.get(name) is old})


def _globals() -> tuple[tuple[str, Any, Any], ...]:
    """Name, original and tap of the globals through which processors call attention."""
    return (("dispatch_attention_fn", _dispatch, _tapped_dispatch), ("F", F, _functional))


_dispatch = attention_dispatch.dispatch_attention_fn


def _tapped_dispatch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    attention_kwargs: dict[str, Any] | None = None,
    *,
    backend: Any = None,
    parallel_config: Any = None,
) -> Tensor:
    """``dispatch_attention_fn`` with the same signature; tensors ``(batch, seq, heads, dim)``."""
    layer = _layer()
    is_plain = not attention_kwargs and not dropout_p and _is_tensor_or_none(attn_mask)
    is_compiling = torch.compiler.is_compiling()
    if layer is None or (is_compiling and not is_plain):
        return _dispatch(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, attention_kwargs,
            backend=backend, parallel_config=parallel_config,
        )  # fmt: skip
    reasons = {
        **_unsupported(is_causal, enable_gqa, dropout_p),
        "the model passes arguments of its own to the attention backend": bool(attention_kwargs),
    }
    unsupported = next((reason for reason, holds in reasons.items() if holds), None)
    query, key, value = cast_as_attention(query, key, value)
    if is_compiling:
        site = "" if backend is None else str(getattr(backend, "value", backend))
        return compiled.attend(
            query, key, value, attn_mask, scale, is_causal, enable_gqa, unsupported or "", site,
            parallel_config is not None, layer.handle,
        )  # fmt: skip

    def dense(parallel_config: Any) -> Dense:
        return lambda q, k, v, mask: _dispatch(
            q, k, v, mask, dropout_p, is_causal, scale, enable_gqa, attention_kwargs,
            backend=backend, parallel_config=parallel_config,
        )  # fmt: skip

    request = AttentionRequest(mask=attn_mask, scale=scale, unsupported=unsupported)
    return _attend(layer, query, key, value, request, dense, parallel_config)


def _tapped_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention`` for older processors; ``(batch, heads, seq, dim)``."""
    layer = _layer()
    is_compiling = torch.compiler.is_compiling()
    if layer is None or (is_compiling and dropout_p):  # which the op does not know
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    q, k, v = (x.transpose(1, 2) for x in cast_as_attention(query, key, value))
    reasons = _unsupported(is_causal, enable_gqa, dropout_p)
    unsupported = next((reason for reason, holds in reasons.items() if holds), None)
    if is_compiling:
        out = compiled.attend(
            q, k, v, attn_mask, scale, is_causal, enable_gqa, unsupported or "", compiled.SDPA,
            False, layer.handle,
        )  # fmt: skip
    else:
        request = AttentionRequest(mask=attn_mask, scale=scale, unsupported=unsupported)
        dense = compiled.dense_of(compiled.SDPA, is_causal, scale, enable_gqa, dropout_p)
        out = _attend(layer, q, k, v, request, dense, None)
    return out.transpose(1, 2)


def _is_tensor_or_none(mask: Any) -> bool:
    return mask is None or isinstance(mask, Tensor)


def _layer() -> Layer | None:
    """The layer that runs now; compiled code reads the epoch, so that it hears of a session."""
    layer = current.layer if epoch else None
    if layer is None and not torch.compiler.is_compiling() and not current.inside:
        for watcher in tuple(_watchers.values()):
            watcher()
    return layer


def _proxy() -> types.ModuleType:
    """``torch.nn.functional`` with one function changed, for modules that import it as ``F``."""
    proxy = types.ModuleType("vidsparse_functional")
    vars(proxy).update({k: v for k, v in vars(F).items() if not k.startswith("__")})
    vars(proxy)["scaled_dot_product_attention"] = _tapped_sdpa
    sys.modules[proxy.__name__] = proxy  # torch.compile resolves modules by name
    return proxy


_functional = _proxy()


def _unsupported(is_causal: bool, enable_gqa: bool, dropout_p: float) -> dict[str, bool]:
    return {
        "attention is causal": is_causal,
        "key heads are shared (grouped-query attention)": enable_gqa,
        "attention has dropout": dropout_p > 0,
    }


def _attend(
    layer: Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    request: AttentionRequest,
    dense: DenseOf,
    parallel_config: Any,
) -> Tensor:
    try:
        return layer.attend(query, key, value, request, dense, parallel_config)
    except BaseException:  # the hook that clears the layer will not run
        current.layer = None
        raise
