"""Make the programs that the slices of a step need, each once in a process.

The backend starts the compilers, and the rewrite waits for them. Meanwhile torch does its own work before the first run
of the step, guards for the most part, which takes about as long as the compilers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from baoc_compile.core.codec import WEIGHT_KEY, Codec
from baoc_compile.core.program_graph import Executable, ProgramGraph, Signature
from baoc_compile.core.rule import UpdateRule
from baoc_compile.core.step_graph import StepGraph
from baoc_compile.core.storage import Storage
from baoc_compile.kernels.codecs.catalogue import full_precision
from baoc_compile.kernels.eager.program import TorchProgram
from baoc_compile.passes.programs.compose_program import compose_step
from baoc_compile.passes.programs.lower import start_lowering
from baoc_compile.passes.rules.extract_rules import RuleClass, Slice
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


def need_of(step: StepGraph, storage: Storage, rule: UpdateRule, piece: Slice) -> Need:
    """Return the need of one slice. Raises KeyError for a counter that does not exist, or a slot without a codec."""
    index = piece.component.parameters[0]
    parameter, state = step.table.parameters[index], step.table.state(index)
    grads = [n for n in piece.inputs if step.roles.get(n) and step.roles[n].kind == "grad"]
    grad_dtype = grads[0].meta["example_value"].dtype if grads else parameter.dtype
    counters = tuple((i.name, state[i.key].dtype) for i in rule.inputs_of("counter"))
    known = storage.of(index)
    signature = Signature(str(parameter.device), parameter.dtype, grad_dtype, counters, known.update_scale != 1.0)

    configuration = {slot.key: known.slots[slot.key].codec for slot in rule.slots}
    weight = state.get(WEIGHT_KEY)
    if isinstance(weight, StateTensor) and weight.codec.mechanism == "weight":
        configuration[WEIGHT_KEY] = weight.codec
    configuration |= {key: full_precision(parameter.dtype) for key in rule.created}
    return Need(rule, tuple(configuration.items()), signature)


#: The programs of this process. The next compilation makes those again that failed or fell back to torch operations.
_PROGRAMS: dict[Need, list[tuple[ProgramGraph, Future[Executable]]]] = {}


def start_programs(step: StepGraph, storage: Storage, classes: list[RuleClass]) -> None:
    """Start compiling the programs that the step will need, if its state exists.

    Never raises: what fails here is tried again when the step runs, and raises then.
    """
    try:
        pieces = [(c.rule, piece) for c in classes if c.rule is not None for piece in c.members]
        needs = dict.fromkeys(need_of(step, storage, rule, piece) for rule, piece in pieces)
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
