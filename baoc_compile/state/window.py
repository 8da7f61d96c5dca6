"""Window: a rectangular part of compressed state, to be read, and to be copied into.

A distributed checkpoint is read and written in such parts, since it may be loaded on another number of processes than saved it.
Between states of one codec the codes are copied, with the clock: nothing is encoded again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.codec import GROUP_SIZE
from baoc_compile.core.torch_private import no_torch_function, wrapper_tensor
from baoc_compile.state.decoded_view import DecodedView
from baoc_compile.state.eager_state import EagerState, is_fake

#: First and last index (excluded) of each dimension.
Spans = tuple[tuple[int, int], ...]


class Window(DecodedView):
    """The elements of a state tensor within `spans`."""

    spans: Spans

    @staticmethod
    def at(state: EagerState, spans: Spans) -> Window:
        """Return a window on a state, which is not decoded for that."""
        index = tuple(slice(*span) for span in spans)
        shown = torch.empty(tuple(state.shape), dtype=state.dtype, device="meta")[index]
        self: Any = wrapper_tensor(Window, tuple(shown.shape), state.dtype, state.device, shown.stride())
        self.state, self.show, self.spans = state, lambda values: values[index], spans
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Window({self.state!r}, {self.spans})"

    __torch_function__ = no_torch_function  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        aten, first = torch.ops.aten, args[0] if args else None
        if isinstance(first, Window):
            if func in (aten.detach.default, aten.alias.default):
                return Window.at(first.state, first.spans)
            if func is aten.slice.Tensor and (spans := sliced(first.spans, *args[1:], **kwargs or {})) is not None:
                return Window.at(first.state, spans)
            if func is aten.copy_.default:
                receive(first.state, first.spans, args[1])
                return first
        return DecodedView.__torch_dispatch__.__func__(DecodedView, func, types, args, kwargs)  # type: ignore[attr-defined]


def whole(state: Tensor) -> Spans:
    """Return the spans of all elements."""
    return tuple((0, size) for size in state.shape)


def sliced(spans: Spans, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Spans | None:
    """Return the spans of a slice of a window; None if it leaves out elements in between."""
    if step != 1 or not spans:
        return None
    first, last = spans[dim]
    begin, stop, _ = slice(start, end).indices(last - first)
    changed = list(spans)
    changed[dim] = first + begin, first + max(begin, stop)
    return tuple(changed)


def windowed(func: Any, args: Any, kwargs: Any) -> Any:
    """Return what an operation of a checkpoint on compressed state does without decoding it; None for any other operation."""
    aten, state = torch.ops.aten, args[0] if args else None
    if not isinstance(state, EagerState) or is_fake(state):
        return None
    if func is aten.copy_.default and isinstance(args[1], (EagerState, Window)) and args[1].shape == state.shape:
        receive(state, whole(state), args[1])
        return state
    if func is aten.view.default and tuple(args[1]) == tuple(state.shape):
        return state.alias()  # type: ignore[attr-defined]
    if func is aten.slice.Tensor and (spans := sliced(whole(state), *args[1:], **kwargs)) is not None:
        return Window.at(state, spans)
    if func is aten.is_pinned.default:
        return any(part.is_pinned() for part in state.parts.values())
    if func is aten.new_empty.default and tuple(args[1]) == tuple(state.shape) and kwargs.get("device") is not None:
        # by this, checkpoints that are saved in the background make a copy, whose attributes they then set
        return state.like(lambda part: torch.empty_like(part, device=kwargs["device"]))  # type: ignore[attr-defined]
    return None


def receive(state: Any, spans: Spans, source: Tensor) -> None:
    """Copy `source` into the elements of `state` within `spans`.

    Codes of the same codec are copied as they are, where the part has whole groups. Other values are stored anew. Those that
    another codec has stored are kept beside it, too, as `state.loaded`, until `load_state_dict` takes them in their own form.
    """
    state = state if state.origin is None else state.origin
    of: Any = source.state if isinstance(source, Window) else source if isinstance(source, EagerState) else None
    there = source.spans if isinstance(source, Window) else whole(source)
    if of is not None:
        state.note = of.note or state.note
        if of.codec is state.codec:
            mine, theirs = parts_within(state, spans), parts_within(of, there)
            if mine is not None and theirs is not None:
                for name, part in mine.items():
                    part.copy_(theirs[name])
                state.salt, state.stamp = of.salt, None
                return
        else:
            state.loaded = state.as_stored_by(of.codec, of.salt) if state.loaded is None else state.loaded
            receive(state.loaded, spans, source)
    if state.codec.mechanism != "dropping":
        _store(state, spans, source)
    if of is not None and "clock" in of.parts and "clock" in state.parts:
        state.parts["clock"].copy_(of.parts["clock"])


def _store(state: Any, spans: Spans, source: Any) -> None:
    """Store values within `spans`; what is around them is stored again as it was, and the clock stays."""
    values = (
        source.plain()
        if isinstance(source, DecodedView)
        else source.decode()
        if isinstance(source, EagerState)
        else source
    )
    if spans == whole(state):
        state.store(values.to(state.dtype).expand(state.shape))
        return
    around = state.decode()
    around[tuple(slice(*span) for span in spans)] = values.to(around.dtype)
    clock = {name: part.clone() for name, part in state.parts.items() if name == "clock"}
    state.store(around)
    for name, part in clock.items():
        state.parts[name].copy_(part)


def parts_within(state: Any, spans: Spans) -> dict[str, Tensor] | None:
    """Return views of the stored parts of the elements within `spans`; None if these are not whole groups of rows."""
    if spans == whole(state):
        return dict(state.parts)
    shape = state.shape
    rows, columns = spans[0] if len(shape) > 1 else (0, 1), spans[-1]
    if spans[1:] != whole(state)[1:] and len(shape) > 2:
        return None
    is_cut = len(shape) < 3 and columns != (0, shape[-1])
    ends_group = columns[1] % GROUP_SIZE == 0 or columns[1] == shape[-1]
    if is_cut and (columns[0] % GROUP_SIZE or not ends_group):
        return None
    found = {"clock": state.parts["clock"]} if "clock" in state.parts else {}
    for part in state.codec.stored_parts:
        stored = state.parts[part.name]
        if part.per == "shared" and state.codec.unites_rows and not is_cut and len(shape) > 1:
            is_of_rows = state.codec.sharing(part, shape).is_of_rows(shape)
            found[part.name] = stored[slice(*rows)] if is_of_rows else stored
            continue
        if part.per not in ("element", "group"):
            return None
        if len(shape) > 1:
            stored = stored[slice(*rows)]
        if is_cut:
            per_entry = GROUP_SIZE if part.per == "group" else 8 // part.bits
            stored = stored[..., columns[0] // per_entry : -(-columns[1] // per_entry)]
        found[part.name] = stored
    return found
