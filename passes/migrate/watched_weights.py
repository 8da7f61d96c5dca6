"""Watch the weights to which state is stored as a difference: nobody but the optimizer may change them.

After every step, the mean of a weight and the mean of its magnitudes are kept, both in double, and before the next step they are
computed again. Whoever changes a weight in between changes the state with it, and what it was before is lost. So a step on
changed weights is refused. A change that leaves both means alone, to 2^-40 of the magnitudes, passes: one that permutes
elements, for example, after which no state of an optimizer fits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, fx

from baoc_compile.core.codec import Sharing
from baoc_compile.core.errors import StateError
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.program_graph import Signature, TensorArguments
from baoc_compile.core.rule import RuleInput, RuleOutput, UpdateRule
from baoc_compile.kernels.dialect.nodes import ValueMeta, set_meta
from baoc_compile.kernels.launch.launch_table import LayoutChanged
from baoc_compile.passes.programs.make_programs import Need, programs_of
from baoc_compile.state.state_tensor import StateTensor

TOLERANCE = 2.0**-40


class WatchedWeights:
    """The weights of the state tensors that are differences to them; often there are none.

    states: (the parameter's name, the slot's key, the state tensor).
    """

    def __init__(self, table: ParameterTable):
        table = table.local
        self.states: list[tuple[str, str, StateTensor]] = []
        by_device: dict[str, list[Tensor]] = defaultdict(list)
        for index, parameter in enumerate(table.parameters):
            for key, value in table.state(index).items():
                if isinstance(value, StateTensor) and value.anchor is parameter:
                    self.states.append((table.names[index], str(key), value))
                    by_device[str(parameter.device)].append(parameter)
        self._looks = [_Look(device, weights) for device, weights in by_device.items()]

    def check(self) -> None:
        """Raise StateError if a weight is not what it was after the last step. Nothing is checked in a CUDA graph."""
        if not any(state.stamp for _, _, state in self.states) or self._is_captured():
            return
        known = self._seen()
        for name, key, state in self.states:
            now, held = known[id(state.anchor)], state.stamp
            if held is not None and not all(
                abs(a - b) <= TOLERANCE * abs(held[1]) for a, b in zip(now, held, strict=True)
            ):
                raise StateError(
                    f"{name} has been changed since the last step, and its state {key!r} is stored as the difference to it "
                    f"({state.codec.name}), so that would change, too. Change weights in methods of the optimizer, or store the "
                    f'state apart from them: baoc_compile.prepare(optimizer, plan={{"{key}": "16bit", "*": "8bit"}}). If '
                    "the state shall move with the weights: optimizer.load_state_dict(optimizer.state_dict())"
                )

    def note(self) -> None:
        """Keep what the weights are now."""
        known = {} if self._is_captured() else self._seen()
        for _, _, state in self.states:
            state.stamp = known.get(id(state.anchor))

    def _is_captured(self) -> bool:
        return any(s.device.type == "cuda" for _, _, s in self.states) and torch.cuda.is_current_stream_capturing()

    def _seen(self) -> dict[int, tuple[float, float]]:
        found: dict[int, tuple[float, float]] = {}
        for look in self._looks:
            found |= look()
        return found


class _Look:
    """One launch that computes both means of weights on a device."""

    def __init__(self, device: str, weights: Sequence[Tensor]):
        self.weights = {id(w): w for w in weights}
        rule = _means()
        (((graph, self.executable),),) = programs_of([Need(rule, (), Signature(device, torch.float32, torch.float32))])
        self.means = torch.zeros(len(self.weights), 2, dtype=torch.float64, device=device)
        batch = []
        for weight, means in zip(self.weights.values(), self.means, strict=True):
            tensors = {"param": weight, **{o.name: mean for o, mean in zip(graph.shared, means, strict=True)}}
            sharing = dict.fromkeys((o.name for o in graph.shared), Sharing(max(weight.numel(), 1), 1))
            batch.append(TensorArguments(weight.numel(), tensors, {}, sharing))
        self.batch, self.table = batch, None

    def __call__(self) -> dict[int, tuple[float, float]]:
        """Return both means by the weight's id."""
        try:
            if self.table is not None:
                self.table.refresh((), ())
        except LayoutChanged:
            self.table = None
        if self.table is None:
            self.table = self.executable.table(self.batch)
        self.executable.run(self.table)
        return {key: (a, b) for key, (a, b) in zip(self.weights, self.means.tolist(), strict=True)}


@cache
def _means() -> UpdateRule:
    """Return the rule that reduces a weight and its magnitude."""
    graph = fx.Graph()
    weight = set_meta(graph.placeholder("param"), ValueMeta("element", torch.float32))
    size = set_meta(graph.call_function(torch.ops.aten.abs.default, (weight,)), ValueMeta("element", torch.float32))
    graph.output((weight, size))
    outputs = RuleOutput("mean", "mean"), RuleOutput("mean", "size")
    return UpdateRule(fx.GraphModule(torch.nn.Module(), graph), (RuleInput("param", "param"),), outputs, ())
