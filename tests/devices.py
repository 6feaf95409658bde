"""A device that is not there: tensors that lie on the processor and are treated as if they lay on a card.

What a CUDA device refuses is refused, so that code which forgets to move a tensor fails on any machine:
tensors of two devices in one operation, random numbers drawn on a card with the processor's generator, an
array made of a card's tensor. Values and gradients are the processor's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CARD = torch.device("cuda", 0)

# Most of what calls are made of.
_FLAT = (Tensor, str, int, float, bool, torch.device, torch.dtype, torch.Size, type(None))

_CROSSING = {"to", "cpu", "copy_", "type", "_has_compatible_shallow_copy_type"}  # devices, by their nature
_SILENT = {"item", "tolist", "__float__", "__int__", "__bool__", "__index__", "__repr__", "__format__"}


class Misplaced(AssertionError):
    """What a card would have refused."""


def on_card(value: Any) -> bool:
    """Whether a tensor is treated as one of a card."""
    return isinstance(value, Tensor) and getattr(value, "_on_card", False)


class Pretend(TorchFunctionMode):
    """While it is entered, `CARD` is a device like any other."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func is torch.device or name == "_parse_to":
            return func(*args, **kwargs)  # they speak of a device, and touch none
        if name == "__get__" and func == Tensor.device.__get__:
            return CARD if on_card(args[0]) else func(*args)
        if name == "__set__" and func == Tensor.data.__set__:
            func(*args)
            return _mark(args[0], on_card(args[1]))
        if name == "__deepcopy__":  # its other argument is all that was copied before, and is to be filled
            copied = func(*args, **kwargs)
            _mark(copied, on_card(args[0]))
            return copied
        wanted = _wanted(name, args, kwargs)
        args, kwargs = _each(_plain, args), _each(_plain, kwargs)
        tensors = _tensors((args, kwargs))
        of_card = any(map(on_card, tensors))
        if name in ("numpy", "__array__") and of_card:
            raise Misplaced("an array cannot be made of a tensor on a card: .cpu() first")
        if "generator" in kwargs and kwargs["generator"] is not None and (of_card or wanted == CARD):
            raise Misplaced(f"{name}: a generator of the processor cannot draw on a card")
        if name not in _CROSSING | _SILENT | {"__get__", "__set__"}:
            _check(name, args, tensors)
        result = func(*args, **kwargs)
        if (name.endswith("_") and not name.endswith("__")) or name == "__setitem__":
            return result  # in place: it lies where it lay
        lies = of_card if wanted is None else wanted == CARD
        return _placed(result, args, lies=lies)


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    """What a function makes of all in tuples, lists and dictionaries; torch has a way that takes longer."""
    if isinstance(value, _FLAT):
        return function(value)
    if isinstance(value, dict):
        return {name: _each(function, one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        parts = [_each(function, one) for one in value]
        if isinstance(value, list):
            return parts
        if type(value) is tuple:
            return tuple(parts)
        # A tuple with names, torch's own take their parts as one.
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return function(value)


def _tensors(value: Any) -> list[Tensor]:
    """All that lie in tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, _FLAT):
        return []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _wanted(name: str, args: Any, kwargs: Any) -> torch.device | None:
    """The device that a call names, also that of another tensor; None where it names none."""
    if name == "cpu":
        return torch.device("cpu")
    named = [kwargs.get("device"), *args[1:]] if name == "to" else [kwargs.get("device")]
    for value in named:
        if isinstance(value, Tensor):
            return CARD if on_card(value) else torch.device("cpu")
        if isinstance(value, torch.device) or (isinstance(value, str) and value in ("cpu", "cuda", "cuda:0")):
            return CARD if torch.device(value).type == "cuda" else torch.device(value)
    return None


def _plain(value: Any) -> Any:
    """A device that is there, for torch itself."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value in ("cuda", "cuda:0") else value


def _check(name: str, args: Any, tensors: list[Tensor]) -> None:
    """Refuses tensors of two devices; single numbers may come from the processor, and so may indices."""
    if name in ("__getitem__", "__setitem__", "index", "index_put_"):
        index = _tensors(args[1])
        if any(map(on_card, index)) and not on_card(args[0]):
            raise Misplaced(f"{name}: indices on a card into a tensor on the processor")
        slices = not index  # a slice is filled by a copy, which crosses devices
        tensors = [args[0], *(v for v in args[2:] if isinstance(v, Tensor) and not slices)]
    sizable = [tensor for tensor in tensors if tensor.dim()] or tensors
    lie = {on_card(tensor) for tensor in sizable}
    if len(lie) > 1 or (not all(map(on_card, tensors)) and name in ("stack", "cat") and True in lie):
        shapes = ", ".join(f"{tuple(t.shape)} on {'the card' if on_card(t) else 'cpu'}" for t in tensors)
        raise Misplaced(f"{name}: tensors of two devices, {shapes}")


def _placed(result: Any, args: Any, *, lies: bool) -> Any:
    given = {id(value) for value in _tensors(args)}

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in given and on_card(value) != lies:
            value = value.detach().clone().requires_grad_(value.requires_grad)  # it was moved: another tensor
        _mark(value, lies)
        return value

    return _each(place, result)


def _mark(value: Tensor, lies: bool) -> None:
    value._on_card = lies  # type: ignore[attr-defined]


@contextmanager
def pretended(monkeypatch: Any) -> Iterator[None]:
    """Code inside believes in `CARD`."""
    genuine = torch.Tensor._make_subclass

    def make_subclass(cls: Any, data: Tensor, *rest: Any, **options: Any) -> Tensor:
        made = genuine(cls, data, *rest, **options)  # a Parameter, which lies where its data lie
        _mark(made, on_card(data))
        return made

    monkeypatch.setattr(torch.Tensor, "_make_subclass", staticmethod(make_subclass))
    with Pretend():
        yield
