"""Run a step as its user wrote it on compressed state: decode, step, encode.

While such a step runs, the entries of `optimizer.state` are dictionaries that decode a state tensor when the step asks for
it. The step computes on full-precision tensors, so nothing is rounded inside of it. A tensor is encoded once: at the end of
the step, or as soon as the step holds it no more and asks for another parameter's. A step that goes through its parameters
one by one has those of few in full precision; one that collects them first has all.

State that the step makes may be compressed as it goes, too, by the same rule, if it begins at 0, which is stored exactly. What
begins as something else, such as a copy of the gradient, may be meant to cancel with it: it is encoded when the step is over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.shard import local_of, whole_of
from baoc_compile.core.torch_private import holders_of_memory
from baoc_compile.passes.migrate.watched_weights import WatchedWeights
from baoc_compile.passes.programs.transcode import decoded, encode
from baoc_compile.state.entries import anchor_state
from baoc_compile.state.state_tensor import StateTensor


@dataclass(eq=False)
class _Open:
    """A decoded entry: where it is, and the state tensor that it is from, in a DTensor if the parameter is one."""

    entries: _Entries
    key: Any
    state: Tensor

    @property
    def waits(self) -> bool:
        """Whether it is encoded when the step is over: what is stored as the difference to a weight that will change."""
        return bool(local_of(self.state).codec.follows_weight)

    def is_held(self) -> bool:
        """Return whether anyone but the dictionary refers to the tensor that is there now, or to its memory."""
        now = dict.get(self.entries, self.key)
        if not _has_values(now):
            return False
        return (
            sys.getrefcount(now) > 3 or holders_of_memory(local_of(now)) > 1
        )  # 3: the dictionary, `now`, the argument

    def close(self) -> None:
        """Put the state tensor back, with the values that are there now.

        They are encoded even if nothing seems to have changed: `.data`, for one, is written without a trace, and what was
        decoded encodes to itself.
        """
        now = dict.get(self.entries, self.key)
        if _has_values(now) and now.shape == self.state.shape and now.dtype == self.state.dtype:
            encode(local_of(self.state), local_of(now))
            dict.__setitem__(self.entries, self.key, self.state)
        # else the step has put something else in its place, or removed it


@dataclass(eq=False)
class _Made(_Open):
    """An entry that the step has made. The state tensor is made when it is closed."""

    state: None  # type: ignore[assignment]
    is_late: bool

    @property
    def waits(self) -> bool:
        """Whether it is encoded when the step is over."""
        return self.is_late

    def close(self) -> None:
        opened, now = self.entries.opened, dict.get(self.entries, self.key)
        if not _has_values(now) or isinstance(local_of(now), StateTensor):
            return
        del now  # so that only the dictionary holds it
        new = opened.compress(opened.owner_of(self.entries), self.entries, self.key)
        if new is not None:
            dict.__setitem__(self.entries, self.key, new)


#: Returns the entry of a parameter's state with this key in the form that it is to be stored in; None to leave it as it is.
Compress = Callable[[Any, dict[Any, Any], Any], Tensor | None]


class _Opened(list[_Open]):
    """The entries that are in full precision now.

    of: the optimizer's state.
    compress: how entries that the step makes are compressed.
    held: how many were held when all were looked at.
    """

    def __init__(self, of: dict[Any, Any], compress: Compress):
        super().__init__()
        self.of, self.compress, self.held = of, compress, 0

    def owner_of(self, entries: _Entries) -> Any:
        """Return whose entries these are: most often those that were made last."""
        return next((owner for owner, found in reversed(self.of.items()) if found is entries), None)

    def close_others(self, entries: _Entries) -> None:
        """Encode what belongs to other parameters, and what nobody holds any more.

        Nothing is looked at until there is twice as much as was held: a step that holds everything costs a constant for each.
        """
        if len(self) < 2 * self.held:
            return
        kept = []
        for other in self:
            if other.entries is entries or other.waits or other.is_held():
                kept.append(other)
            else:
                other.close()
        self[:] = kept
        self.held = len(kept)


class _Entries(dict[Any, Any]):
    """The state of one parameter, which decodes what it is asked for.

    owner: the parameter; None if the step has made the dictionary.
    """

    def __init__(self, entries: dict[Any, Any], opened: _Opened, owner: Any = None):
        super().__init__(entries)
        self.opened, self.owner = opened, owner

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if not _is_closed(value):
            return value
        self.opened.close_others(self)
        self.opened.append(_Open(self, key, value))
        plain = whole_of(self.owner, decoded(local_of(value)))
        super().__setitem__(key, plain)
        return plain

    def __setitem__(self, key: Any, value: Any) -> None:
        old = super().get(key)
        if _is_closed(old):
            self.opened.append(_Open(self, key, old))
        elif key not in self and _has_values(value) and value.ndim and not isinstance(local_of(value), StateTensor):
            self.opened.close_others(self)
            self.opened.append(_Made(self, key, None, bool(value.any())))
        super().__setitem__(key, value)

    def update(self, *others: Any, **named: Any) -> None:
        for key, value in dict(*others, **named).items():
            self[key] = value

    def get(self, key: Any, default: Any = None) -> Any:
        self._open_if_there(key)
        return super().get(key, default)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def values(self) -> Any:
        self._open_all()
        return super().values()

    def items(self) -> Any:
        self._open_all()
        return super().items()

    def pop(self, key: Any, *default: Any) -> Any:
        self._open_if_there(key)
        return super().pop(key, *default)

    def copy(self) -> dict[Any, Any]:
        return dict(self.items())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (self.copy(),)  # copies are made of the values

    def _open_all(self) -> None:
        for key in self:
            self._open_if_there(key)

    def _open_if_there(self, key: Any) -> None:
        if key in self:
            self[key]


def _is_closed(value: Any) -> bool:
    """Return whether an entry is a state tensor that has values to decode."""
    local = local_of(value)
    return isinstance(local, StateTensor) and local.codec.mechanism not in ("weight", "dropping")


def _has_values(value: Any) -> bool:
    """Return whether an entry is a tensor with a value for each element."""
    return isinstance(value, Tensor) and value.layout == torch.strided


def _left_as_it_is(owner: Any, entries: dict[Any, Any], key: Any) -> None:
    return None


@contextmanager
def opened_state(optimizer: Any, compress: Compress = _left_as_it_is) -> Iterator[None]:
    """Let the user's own step see `optimizer.state` decoded.

    The state is compressed again after it, also if it raises, but for what something besides the state still holds.

    compress: how entries are compressed that the step makes.
    """
    opened = _Opened(optimizer.state, compress)
    following = _following(optimizer)
    weights = None
    if following:
        table = ParameterTable.of(optimizer)
        anchor_state(table)
        weights = WatchedWeights(table)
        weights.check()
    before: dict[Any, tuple[dict[Any, Any], _Entries]] = {}
    for owner, entries in list(optimizer.state.items()):
        if isinstance(entries, dict) and any(isinstance(local_of(v), StateTensor) for v in entries.values()):
            before[owner] = entries, _Entries(entries, opened, owner)
            optimizer.state[owner] = before[owner][1]
    for owner, keys in following.items():  # stored anew, since the weights change
        for key in keys:
            before[owner][1][key]
    is_over = False
    try:
        with _made_by(optimizer.state, lambda: _Entries({}, opened)):
            yield
        is_over = True
    finally:
        for entry in opened:
            # what is held when the step is over may be written outside of it; after an error, frames hold everything
            if not (is_over and entry.is_held()):
                entry.close()
        opened.clear()  # entries refer to it, and it to them
        for owner, (entries, shown) in before.items():
            if dict.get(optimizer.state, owner) is shown:
                entries.clear()
                entries.update(dict.items(shown))
                optimizer.state[owner] = entries
        for owner, entries in list(optimizer.state.items()):
            if isinstance(entries, _Entries):
                optimizer.state[owner] = dict(dict.items(entries))
        if weights is not None:
            weights.note()


def _following(optimizer: Any) -> dict[Any, list[Any]]:
    """Return the keys of state that is stored as the difference to its parameter, by parameter."""
    found: dict[Any, list[Any]] = {}
    for owner, entries in optimizer.state.items():
        if isinstance(entries, dict):
            local = ((k, local_of(v)) for k, v in entries.items())
            keys = [k for k, v in local if isinstance(v, StateTensor) and v.codec.follows_weight]
            found |= {owner: keys} if keys else {}
    return found


@contextmanager
def _made_by(state: Any, make: Callable[[], _Entries]) -> Iterator[None]:
    """Let `make` make the dictionaries of parameters that have none, if the state is one that makes them."""
    factory = getattr(state, "default_factory", None)
    if factory is not dict:
        yield
        return
    state.default_factory = make
    try:
        yield
    finally:
        state.default_factory = factory
