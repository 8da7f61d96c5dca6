"""StateTensor: compressed optimizer state that looks like the tensor the optimizer made.

A StateTensor lives in `optimizer.state[p][key]` and holds codes and scales. torch sees its logical shape and type, so
`state_dict`, `torch.save`, tracing and an uncompiled `optimizer.step()` work. Every such operation decodes, computes,
and encodes what it changed; views can be read, not written. baoc's own step works on the stored parts instead.

Over 350 lines: one class, with a method for each protocol of torch and of checkpoints that it follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.codec import CLOCK_DTYPE, GROUP_SIZE, Codec, Part, Random, Rows
from baoc_compile.core.errors import PlanError, StateError
from baoc_compile.core.torch_private import no_torch_function, wrapper_tensor
from baoc_compile.kernels.codecs.bits import pack_into, unpacked
from baoc_compile.kernels.codecs.catalogue import codec_named
from baoc_compile.kernels.codecs.counter_hash import element_words, fold_index, group_words, slot_salt, step_key
from baoc_compile.kernels.dialect.trace_codec import encoded_parts, exact_encode
from baoc_compile.state.decoded_view import DecodedView
from baoc_compile.state.eager_state import EagerState, decode_run_encode, is_fake, makes_view
from baoc_compile.state.window import windowed

#: Elements that are encoded or decoded at a time.
CHUNK_ELEMENTS = 1 << 16


class StateTensor(EagerState):
    """A tensor stored by a codec.

    codec: the codec.
    salt: what seed and slot contribute to its random words.
    parts: name -> stored tensor. Those with something per element or per group have the tensor's first dimension. A
        stochastic codec's `clock` is one of them: it counts how often the values were stored.
    anchor: the parameter, if the codec stores the difference to it; it is no part of a checkpoint.
    first_lane: number of its first lane, if it is a part of a tensor that several processes hold; see `core/shard.py`.
    loaded: what a checkpoint holds for it in another form, between reading and `load_state_dict`; else None. See `window.py`.
    origin: the state tensor that this one is an alias of; None if it is none.
    note: what a checkpoint has to say of the optimizer as a whole; see `runtime/checkpoint.py`.
    stamp: what is known of the parameter when the difference was stored, see `watched_weights`; None if nothing is.
    transcoders: what decodes and encodes it by programs; see `passes/programs/transcode.py`. No copy has them.
    """

    codec: Codec
    salt: int
    parts: dict[str, Tensor]
    rows: Rows
    anchor: Tensor | None
    first_lane: int
    origin: StateTensor | None
    note: str
    loaded: StateTensor | None
    stamp: tuple[float, float] | None
    transcoders: dict[Any, Any]

    @staticmethod
    def __new__(
        cls, shape: torch.Size, dtype: torch.dtype, codec: Codec, salt: int, parts: dict[str, Tensor]
    ) -> StateTensor:
        device = next(iter(parts.values())).device
        self = wrapper_tensor(cls, tuple(shape), dtype, device)
        self.codec, self.salt, self.parts, self.rows = codec, salt, parts, Rows.of(torch.Size(shape))
        self.anchor, self.stamp, self.first_lane = None, None, 0
        self.loaded, self.origin, self.note = None, None, ""
        self.transcoders = {}
        return self

    @classmethod
    def empty(
        cls, shape: torch.Size, dtype: torch.dtype, device: torch.device, codec: Codec, slot: str, seed: int
    ) -> StateTensor:
        """Return a state tensor that decodes to zeros. With a weight codec, it holds nothing beside the weight.

        slot, seed: the slot's key and the seed, which determine its random words.
        """
        parts = {p.name: codec.initial(p, torch.Size(shape), device) for p in codec.stored_parts}
        if codec.stochastic:
            parts["clock"] = torch.zeros((), dtype=CLOCK_DTYPE, device=device)
        return cls(torch.Size(shape), dtype, codec, slot_salt(seed, slot), parts)

    def beginning_at(self, first_lane: int) -> StateTensor:
        """Let the first lane have this number. Return the state itself."""
        self.first_lane = first_lane
        return self

    @classmethod
    def encoded(cls, value: Tensor, codec: Codec, slot: str, seed: int, anchor: Tensor | None = None) -> StateTensor:
        """Return `value` as a state tensor. It is encoded in chunks, so transient memory is bounded.

        anchor: the parameter, for a codec that stores the difference to it.
        """
        self = cls.empty(value.shape, value.dtype, value.device, codec, slot, seed).anchored(anchor)
        codec.learn(self.parts, value)
        self.store(value)
        return self

    def anchored(self, parameter: Tensor | None) -> StateTensor:
        """Let `parameter` be what differences are taken to, if the codec stores these. Return the state itself."""
        if self.codec.follows_weight:
            self.anchor = parameter
        return self

    def weight(self) -> Tensor:
        """Return the anchor. Raises StateError if there is none."""
        if self.anchor is None:
            raise StateError(
                f"{self!r} is the difference to a parameter that is not known here: load it into an optimizer that was "
                "prepared (baoc_compile.prepare)"
            )
        return self.anchor.detach()

    @property
    def storage_bytes(self) -> int:
        """Exact bytes of all parts."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())

    def decode(self) -> Tensor:
        """Return the values in the logical shape and type. A dropped slot reads as zeros.

        Raises StateError for the stored part of a weight, which has no values of its own.
        """
        plain = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        flat = plain.view(-1)
        for start in range(0, flat.numel(), CHUNK_ELEMENTS):
            stop = min(start + CHUNK_ELEMENTS, flat.numel())
            flat[start:stop] = self.decode_at(torch.arange(start, stop, device=flat.device))
        return plain

    def decode_at(self, index: Tensor) -> Tensor:
        """Return the elements at these row-major indices (int64, in any order), flat, as the codec decodes them."""
        self._refuse_weight()
        if self.codec.mechanism == "dropping":
            return torch.zeros(len(index), device=self.device)
        here = index.to(self.device)
        values = self.codec.decode({p.name: self._at(p, here) for p in self.codec.parts}).reshape(-1)
        return values + self.weight().reshape(-1)[here] if self.codec.follows_weight else values

    def decode_weight(self, weight: Tensor) -> Tensor:
        """Return the fp32 value of `weight`, whose weight codec stores this tensor."""
        stored = {name: part.view(-1) for name, part in self.parts.items()}
        first = self.codec.parts[0].name
        return self.codec.decode({**stored, first: weight.detach().reshape(-1)}).view(self.shape)

    def store_weight(self, value: Tensor, weight: Tensor) -> None:
        """Store the fp32 master weight `value`: its low-precision part in `weight`, the rest here."""
        flat, rounded = value.reshape(-1), torch.empty_like(weight, memory_format=torch.contiguous_format)
        stored = {part.name: self.parts[part.name] for part in self.codec.stored_parts}
        stored[self.codec.parts[0].name] = rounded
        half = torch.full((), -(2**31), dtype=torch.int32, device=value.device)
        for start in range(0, flat.numel(), CHUNK_ELEMENTS):
            chunk = flat[start : start + CHUNK_ELEMENTS].view(-1, 1)
            encoded = exact_encode(self.codec, chunk, Random(half.expand_as(chunk), half.expand_as(chunk)))
            for name, part in stored.items():
                part.view(-1)[start : start + len(chunk)] = encoded[name].view(-1)
        weight.copy_(rounded)

    def _refuse_weight(self) -> None:
        if self.codec.mechanism == "weight":
            raise StateError(f"{self!r} is what a weight's codec keeps beside the weight; it has no values of its own")

    def store(self, value: Tensor) -> None:
        """Encode `value`, of the logical shape, in place and advance the clock.

        Raises StateError for a dropped slot, which only baoc's own step can compute, and for the stored part of a
        weight.
        """
        flat = value.detach().reshape(-1)
        self.store_chunks(lambda start, stop: flat[start:stop])

    def store_chunks(self, read: Callable[[int, int], Tensor]) -> None:
        """Store the values that `read(start, stop)` returns, flat and in order, at most `CHUNK_ELEMENTS` at a time.

        Raises what `store` raises.
        """
        self._refuse_weight()
        if self.codec.mechanism == "dropping":
            raise StateError(
                f"{self!r} is not stored: only baoc's own step can compute it. Prepare the optimizer with another plan"
            )
        if self.codec.mechanism == "sharing":
            self._store_means(read)
            return
        if self.codec.follows_weight:
            self.stamp, whole = None, read
            read = lambda start, stop: whole(start, stop) - self.weight().reshape(-1)[start:stop]  # noqa: E731
        for first in range(0, self.rows.lane_count, CHUNK_ELEMENTS):
            self._store_lanes(read, first, min(first + CHUNK_ELEMENTS, self.rows.lane_count))
        if "clock" in self.parts:
            self.parts["clock"].add_(1)

    def _store_lanes(self, read: Callable[[int, int], Tensor], first: int, last: int) -> None:
        """Store the elements of lanes [first, last); `first` begins a group."""
        start, end = self.rows.elements(torch.tensor([first, last - 1])).tolist()
        chunk = read(start, end + 1)
        groups = -(-(last - first) // GROUP_SIZE)
        lanes = torch.arange(first, first + groups * GROUP_SIZE, device=chunk.device)
        elements = self.rows.elements(lanes)
        existing = self.rows.lanes(elements)  # missing lanes repeat the row's last, word and all
        exist = existing == lanes
        random = (
            _random(self.salt, self.parts["clock"], existing + self.first_lane) if "clock" in self.parts else _NO_RANDOM
        )
        target = torch.float64 if self.codec.name == "fp64" else torch.float32
        codebooks = {p.name: self.parts[p.name] for p in self.codec.parts if p.per == "codebook"}
        value = chunk.to(target)[elements - start].view(-1, GROUP_SIZE)
        encoded = exact_encode(self.codec, value, random, codebooks)
        for part in encoded_parts(self.codec):
            stored, new = self.parts[part.name].view(-1), encoded[part.name].reshape(-1)
            if part.per == "group":
                stored[first // GROUP_SIZE : first // GROUP_SIZE + groups] = new
            elif part.bits == 4:
                pack_into(stored, elements[exist], new[exist], self.rows)
            else:
                stored[start : end + 1] = new[exist]

    def _store_means(self, read: Callable[[int, int], Tensor]) -> None:
        """Store the means. Sums are taken in double on the host, in the elements' order: the same bits on every device."""
        spans = [(a, min(a + CHUNK_ELEMENTS, self.numel())) for a in range(0, self.numel(), CHUNK_ELEMENTS)]
        shared = [(self.parts[p.name], self.codec.sharing(p, self.shape)) for p in self.codec.parts]
        sums = [torch.zeros(sharing.cycle, dtype=torch.float64) for _, sharing in shared]
        for start, stop in spans:
            chunk = read(start, stop).cpu().double()
            for total, (_, sharing) in zip(sums, shared, strict=True):
                total.index_add_(0, sharing.of(torch.arange(start, stop)), chunk)
        for total, (stored, sharing) in zip(sums, shared, strict=True):
            if self.numel():
                stored.copy_(total / (self.numel() // sharing.cycle))

    def fill(self, value: float) -> None:
        """Set every element to `value`, each rounded by itself."""
        if (
            self.codec.mechanism == "sharing"
        ):  # a constant equals its own mean, and the product of its factors over their mean
            for shared in self.parts.values():
                shared.fill_(value)
            return
        self.store_chunks(lambda start, stop: torch.full((stop - start,), value, dtype=self.dtype, device=self.device))

    def _at(self, part: Part, index: Tensor) -> Tensor:
        """Return a part as the codec's functions see it, each lane as a group of one element."""
        stored = self.parts[part.name]
        if part.per == "codebook":
            return stored
        if part.per == "group":
            return stored.view(-1)[self.rows.lanes(index) // GROUP_SIZE].view(-1, 1)
        if part.per == "shared":
            return stored[self.codec.sharing(part, self.shape).of(index)].view(-1, 1)
        return (unpacked(stored, index, self.rows) if part.bits == 4 else stored.view(-1)[index]).view(-1, 1)

    def as_stored_by(self, codec: Codec, salt: int) -> StateTensor:
        """Return state of the same shape and place that another codec stores; it decodes to zeros."""
        parts = StateTensor.empty(self.shape, self.dtype, self.device, codec, "", 0).parts
        return (
            StateTensor(self.shape, self.dtype, codec, salt, parts).anchored(self.anchor).beginning_at(self.first_lane)
        )

    def like(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> StateTensor:
        """Return the same state with `change` applied to every stored part."""
        parts = {name: change(part) for name, part in self.parts.items()}
        found = StateTensor(self.shape, dtype or self.dtype, self.codec, self.salt, parts).anchored(self.anchor)
        found.first_lane, found.note = self.first_lane, self.note
        found.stamp = self.stamp
        return found

    def alias(self) -> StateTensor:
        """Return the same state as another tensor. What a checkpoint holds for either is the first one's."""
        found = self.like(lambda part: part)
        found.origin = self if self.origin is None else self.origin
        return found

    # torch's protocols

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Any, ...]]:
        for name, part in self.parts.items():
            setattr(self, f"part_{name}", part)
        return [f"part_{name}" for name in self.parts], (self.shape, self.dtype, self.codec.name, self.salt)

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: tuple[Any, ...], size: Any, stride: Any) -> StateTensor:
        shape, dtype, codec, salt = context
        parts = {name.removeprefix("part_"): part for name, part in inner.items()}
        return StateTensor(shape, dtype, codec_named(codec), salt, parts)

    def __reduce_ex__(self, protocol: Any) -> Any:
        known = (tuple(self.shape), self.dtype, self.codec.name, self.salt, self.parts)
        if self.note:
            return rebuild_state_tensor, (*known, self.stamp, self.note)
        return rebuild_state_tensor, known if self.stamp is None else (*known, self.stamp)

    def __deepcopy__(self, memo: dict[int, Any]) -> StateTensor:
        copied = self.like(torch.clone)
        copied.anchor = memo.get(id(self.anchor), self.anchor)
        memo[id(self)] = copied
        return copied

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return (
            f"StateTensor({self.codec.name}, shape={tuple(self.shape)}, dtype={self.dtype}, bytes={self.storage_bytes})"
        )

    __torch_function__ = no_torch_function  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        aten = torch.ops.aten
        if func in (aten.detach.default, aten.alias.default):
            return args[0].alias()
        if func is aten.clone.default:
            return args[0].like(torch.clone)
        if func is aten._to_copy.default and isinstance(args[0], StateTensor) and kwargs.get("device") is not None:
            return args[0].like(lambda part: part.to(kwargs["device"]), kwargs.get("dtype"))
        found = windowed(func, args, kwargs)
        if found is not None:
            return found
        if makes_view(func) and isinstance(args[0], StateTensor) and not is_fake(args[0]):
            return DecodedView.of(args[0], lambda values: func(values, *args[1:], **kwargs))
        return decode_run_encode(func, args, kwargs)


def _random(salt: int, clock: Tensor, lanes: Tensor) -> Random:
    key = step_key(torch.tensor(salt, dtype=CLOCK_DTYPE, device=clock.device), clock)
    counters = fold_index(lanes).view(-1, GROUP_SIZE)
    return Random(element_words(key, counters), group_words(key, counters[:, :1]))


_NO_RANDOM = Random(torch.empty(0), torch.empty(0))


def rebuild_state_tensor(
    shape: Any,
    dtype: torch.dtype,
    codec: str,
    salt: int,
    parts: dict[str, Tensor],
    stamp: tuple[float, float] | None = None,
    note: str = "",
) -> StateTensor:
    """Return the StateTensor that a pickle describes. `torch.load(weights_only=True)` may call this function.

    Until version 0.3 parts were flat. They are viewed as rows where these have the same groups.

    Raises StateError for state that was stored by a codec or in groups that are no more.
    """
    shape = torch.Size(shape)
    try:
        known = codec_named(codec)
        wanted = {p.name: known.part_shape(p, shape) for p in known.stored_parts}
        is_flat = any(parts[name].shape != size for name, size in wanted.items())
        parts = parts | {name: parts[name].view(size) for name, size in wanted.items()}
        reason = "its groups cross rows" if is_flat and known.group_size and Rows.of(shape).are_padded else ""
    except PlanError:
        reason = "the codec is no more"
    except (KeyError, RuntimeError):
        reason = "the codec stores other parts now"
    if reason:
        raise StateError(
            f"state of shape {tuple(shape)} was stored as {codec!r} by an earlier version, and this one can't read it: "
            f"{reason}. Load the checkpoint with that version, replace each StateTensor by its .decode() (in place of those that "
            "belong to bf16 weights, save baoc_compile.master_weights(optimizer)), and save it again"
        )
    found = StateTensor(shape, dtype, known, salt, parts)
    found.stamp, found.note = stamp, note
    return found


#: The name of `rebuild_state_tensor` in checkpoints of version 0.1; `torch.load(weights_only=True)` may call it by either.
_IN_VERSION_0_1 = "baoc_compile.state_tensor.rebuild_state_tensor"
torch.serialization.add_safe_globals([StateTensor, rebuild_state_tensor, (rebuild_state_tensor, _IN_VERSION_0_1)])
