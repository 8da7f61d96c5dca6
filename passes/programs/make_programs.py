"""Make the programs that the slices of a step need, each once in a process.

The backend starts the compilers, and the rewrite waits for them. Meanwhile torch does its own work before the first run
of the step, guards for the most part, which takes about as long as the compilers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from baoc_compile.core.codec import WEIGHT_KEY, Codec
from baoc_compile.core.errors import StateMissing
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.program_graph import Executable, ProgramGraph, Signature
from baoc_compile.core.rule import UpdateRule
from baoc_compile.core.storage import Storage, StoredParameter
from baoc_compile.kernels.codecs.catalogue import full_precision
from baoc_compile.kernels.eager.program import TorchProgram
from baoc_compile.passes.programs.compose_program import compose_step
from baoc_compile.passes.programs.lower import start_lowering
from baoc_compile.passes.recorder.recording import Piece
from baoc_compile.passes.rules.carry_slots import carry_slots
from baoc_compile.passes.rules.extract_rules import RuleClass
from baoc_compile.state.state_tensor import StateTensor

log = logging.getLogger("baoc")


@dataclass(frozen=True)
class Need:
    """What the programs of a slice depend on. Slices with equal needs are launched together.

    rule: the update rule.
    codecs: (key, codec) of every slot, and of the weight if it has a codec.
    signature: the types and the device.
    """

    rule: UpdateRule
    codecs: tuple[tuple[str, Codec], ...]
    signature: Signature

    @property
    def configuration(self) -> Mapping[str, Codec]:
        return dict(self.codecs)


def need_of(table: ParameterTable, storage: Storage, rule: UpdateRule, piece: Piece) -> Need:
    """Return the need of one piece. Raises StateMissing for missing counters and lines, KeyError for a slot without a codec."""
    index = piece.parameters[0]
    parameter, state = table.parameters[index], table.state(index)
    grad_dtype = parameter.dtype if parameter.grad is None else parameter.grad.dtype
    beside = [i for i in rule.inputs if i.kind in ("counter", "lines")]
    missing = next((i.key for i in beside if i.key not in state), None)
    if missing is not None:
        raise StateMissing(missing)
    counters = tuple((i.name, state[i.key].dtype) for i in beside)
    made = {role.key: value.dtype for role, value in piece.created}
    counters += tuple((name, made[key]) for name, key in rule.numbers.items())
    known = storage.of(index)
    signature = Signature(str(parameter.device), parameter.dtype, grad_dtype, counters)

    followers = {k: v.codec for k, v in state.items() if isinstance(v, StateTensor) and v.codec.follows_weight}
    rule = carry_slots(rule, tuple(followers))
    configuration = {s.key: followers[s.key] if s.key in followers else known.slots[s.key].codec for s in rule.slots}
    weight = state.get(WEIGHT_KEY)
    if isinstance(weight, StateTensor) and weight.codec.mechanism == "weight":
        configuration[WEIGHT_KEY] = weight.codec
    configuration |= {key: codec_of_created(known, key, parameter.dtype) for key in rule.created}
    return Need(rule, tuple(configuration.items()), signature)


def codec_of_created(known: StoredParameter, key: str, dtype: torch.dtype) -> Codec:
    """Return the codec in which a program makes a slot: its own, if that stores values, else full precision."""
    codec = known.codecs.get(key)
    is_plain = codec is None or codec.mechanism != "rounding" or any(p.per == "codebook" for p in codec.parts)
    return full_precision(dtype) if codec is None or is_plain else codec


#: The programs of this process. The next compilation makes those again that failed or fell back to torch operations.
_PROGRAMS: dict[Need, list[tuple[ProgramGraph, Future[Executable]]]] = {}


def start_programs(table: ParameterTable, storage: Storage, classes: list[RuleClass]) -> None:
    """Start compiling the programs that the step will need, if its state exists.

    Never raises: what fails here is tried again when the step runs, and raises then.
    """
    try:
        table = table.local
        pieces = [(c.rule, piece) for c in classes if c.rule is not None for piece in c.members]
        needs = dict.fromkeys(need_of(table, storage, rule, piece) for rule, piece in pieces)
        for need in needs:
            if any(_fell_back(executable) for _, executable in _PROGRAMS.get(need, ())):
                del _PROGRAMS[need]
        _start(needs)
    except Exception as reason:
        log.info("programs are compiled at the first step: %r", reason)


def programs_of(needs: Iterable[Need]) -> list[list[tuple[ProgramGraph, Executable]]]:
    """Return the programs of every need, in launch order: those that average shared slots, then the update.

    Waits for the compilers. Raises what compiling raised.
    """
    needs = list(needs)
    _start(needs)
    return [[(graph, executable.result()) for graph, executable in _PROGRAMS[need]] for need in needs]


def _start(needs: Iterable[Need]) -> None:
    for need in needs:
        if need not in _PROGRAMS or any(_failed(executable) for _, executable in _PROGRAMS[need]):
            graphs = compose_step(need.rule, need.configuration, need.signature)
            _PROGRAMS[need] = list(zip(graphs, start_lowering(graphs), strict=True))


def _failed(made: Future[Executable]) -> bool:
    return made.done() and (made.cancelled() or made.exception() is not None)


def _fell_back(made: Future[Executable]) -> bool:
    """Return whether the program fell back to torch operations; compiling may succeed next time."""
    return made.done() and not _failed(made) and isinstance(made.result(), TorchProgram)
