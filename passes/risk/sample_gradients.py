"""Sampling: record the gradients of whole quantization groups, chosen from every block by a seed.

Launches are observed as they happen. Per launch, sampling gathers the chosen elements and, for slots that may be
shared, computes the exact means of what the step adds. The samples are kept in host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from baoc_compile.core.codec import GROUP_SIZE
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.rule import UpdateRule
from baoc_compile.kernels.codecs.sharing import as_matrix
from baoc_compile.kernels.launch.fused_update import BoundLaunch
from baoc_compile.passes.risk.average_increments import IncrementMeans
from baoc_compile.passes.risk.gradient_stream import GradientStream, SharedIncrements
from baoc_compile.passes.risk.slot_values import moments_of, values_at

if TYPE_CHECKING:
    from baoc_compile.core.block import Block

#: Sampled elements of a block: one in `ONE_OF`, between `FEWEST` and `MOST`.
#: `MOST_IN_ALL` limits those of all blocks together, since shadow runs take time.
ONE_OF, FEWEST, MOST = 64, 2048, 65536
MOST_IN_ALL = 1 << 18


def default_buffer_bytes(parameters: Sequence[Tensor]) -> int:
    """Return the default size of the sample buffer: the larger of 16 MiB and 2 % of the parameters' bytes."""
    return max(16 << 20, sum(p.numel() * p.element_size() for p in parameters) // 50)


def elements_per_block(numel: int, blocks: int, steps: int, slots: int, buffer_bytes: int) -> int:
    """Return how many elements of a block of `numel` to sample, in whole groups, so that all blocks fit the buffer."""
    bytes_per_element = 4 * (3 * steps + 1 + 3 * slots) + 8  # per step a gradient and two means; the rest once
    fitting = buffer_bytes // (max(blocks, 1) * bytes_per_element)
    return min(max(numel // ONE_OF, FEWEST), MOST, fitting, MOST_IN_ALL // max(blocks, 1)) // GROUP_SIZE * GROUP_SIZE


def choose_elements(numel: int, count: int, generator: torch.Generator) -> Tensor:
    """Return the indices of about `count` elements of a tensor: one whole group from each of as many equal strata.

    If the tensor has no more groups than that, all of its whole groups are chosen. A tensor smaller than a group gives
    one group that repeats its last element.
    """
    whole = max(numel // GROUP_SIZE, 1)
    groups = min(max(round(count / GROUP_SIZE), 1), whole)
    bounds = torch.arange(groups + 1) * whole // groups
    within = (torch.rand(groups, generator=generator, dtype=torch.float64) * bounds.diff()).long()
    first = (bounds[:-1] + within) * GROUP_SIZE
    return (first[:, None] + torch.arange(GROUP_SIZE)).clamp(max=numel - 1).view(-1)


class GradientSampler:
    """A recorder of `steps` consecutive steps and one extra gradient, for the parameters in `rules`.

    Of DTensors, a process samples what it holds, and its share of the samples. Means are those of the rows that it holds.

    `streams` holds the samples by parameter index. A parameter without a gradient in one of these steps is given up:
    its stream is removed.
    """

    def __init__(
        self,
        table: ParameterTable,
        rules: Mapping[int, UpdateRule],
        blocks: Sequence[Block],
        steps: int,
        seed: int,
        buffer_bytes: int,
    ):
        self.table, self.rules, self.steps = table.local, rules, steps
        self.index = self._choose(blocks, seed, buffer_bytes)
        self.streams: dict[int, GradientStream] = {}
        self.seen = 0
        self._numbers: dict[int, dict[str, float]] = {}
        self._now: dict[int, UpdateRule] = {}
        self._grads: dict[int, Tensor] = {}
        self._means: dict[tuple[int, str], tuple[dict[str, Tensor], float]] = {}
        self._averages: dict[Any, IncrementMeans] = {}

    def _choose(self, blocks: Sequence[Block], seed: int, buffer_bytes: int) -> dict[int, Tensor]:
        """Return the sampled indices of every parameter, on the host."""
        parameters = self.table.parameters
        slots = max((len(rule.slots) for rule in self.rules.values()), default=0)
        chosen = {}
        for block in blocks:
            numel = sum(self.table.wholes[i].numel() for i in block.parameters)
            count = elements_per_block(numel, len(blocks), self.steps + 1, slots, buffer_bytes)
            for i in block.parameters:
                if i in self.rules and count and parameters[i].numel():
                    generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
                    chosen[i] = choose_elements(
                        parameters[i].numel(), count * parameters[i].numel() // numel, generator
                    )
        return chosen

    @property
    def is_complete(self) -> bool:
        """Whether all steps and the extra gradient have been recorded."""
        return self.seen > self.steps

    @property
    def nbytes(self) -> int:
        """Host memory that the samples take."""
        return sum(stream.nbytes for stream in self.streams.values())

    # while training runs

    @torch.no_grad()
    def begin_step(self) -> None:
        """Begin a step, before its launches. The first one copies the sampled parameters, state and counters."""
        if not self.seen:
            self.streams = {i: self._start(i) for i in self.index}

    @torch.no_grad()
    def observe(
        self,
        launch: BoundLaunch,
        present: np.ndarray | None,
        rules: Mapping[int, UpdateRule],
        numbers_of: Callable[[int], Mapping[str, float]],
    ) -> None:
        """Record one launch, before it runs, over the parameters that are `present`.

        rules: parameter index -> its rule in this step.
        numbers_of: parameter index -> the rule's scalars in this step, by input name.
        """
        for row, i in enumerate(launch.launch.indices):
            if i not in self.streams or not (present is None or present[row]):
                continue
            same_slots = [s.key for s in rules[i].slots] == [s.key for s in self.rules[i].slots]
            if same_slots and not (
                launch.launch.graph.folds or launch.launch.graph.exports
            ):  # the last launch of the parameter
                self._now[i], self._numbers[i] = rules[i], dict(numbers_of(i))
                grad = launch.params[row].grad
                assert grad is not None
                self._take(i, grad, self._numbers[i])

    def end_step(self) -> None:
        """Append what the launches of this step showed, after they have run."""
        lengths = [len(self.index[i]) for i in self._grads]
        host = torch.cat([g.cpu() for g in self._grads.values()]).split(lengths) if lengths else ()
        self.streams = {i: self.streams[i] for i in self._grads}
        for (i, stream), grad in zip(self.streams.items(), host, strict=True):
            stream.grads.append(grad)
            stream.numbers.append(self._numbers[i])
            stream.rules.append(self._now[i])
            for key, increments in stream.shared.items():
                added, decay = self._means[i, key]
                increments.added.append(added)
                increments.decays.append(decay)
        self._numbers, self._grads, self._means = {}, {}, {}
        self.seen += 1

    def _start(self, i: int) -> GradientStream:
        parameter, state, rule, at = self.table.parameters[i], self.table.state(i), self.rules[i], self.index[i]
        slots = {s.key: values_at(state.get(s.key), at) for s in rule.slots}
        counters = {c.name: float(state[c.key]) for c in rule.inputs_of("counter")}
        lines = {
            i.name: state[i.key].flatten()[i.sharing(parameter.shape).of(at)].float() for i in rule.inputs_of("lines")
        }
        stream = GradientStream(self.table.wholes[i].numel(), at, values_at(parameter, at), slots, counters, lines)
        for slot in rule.slots:
            if slot.nonnegative and not self._averages_of(rule, slot.key).reason:
                moments = moments_of(state[slot.key], parameter)
                means = self._at_elements(i, moments.rows, moments.columns)
                stream.shared[slot.key] = SharedIncrements(means, moments.snr)
        return stream

    def _take(self, i: int, grad: Tensor, numbers: Mapping[str, float]) -> None:
        self._grads[i] = values_at(grad, self.index[i])
        stream, parameter, state = self.streams[i], self.table.parameters[i], self.table.state(i)
        for key in stream.shared:
            counters = {c.name: float(state[c.key]) for c in self._now[i].inputs_of("counter")}
            found = self._averages_of(self._now[i], key).of(parameter, grad, counters, numbers)
            self._means[i, key] = (self._at_elements(i, found.rows, found.columns), found.decay)

    def _at_elements(self, i: int, rows: Tensor, columns: Tensor) -> dict[str, Tensor]:
        at, width = self.index[i], as_matrix(self.table.parameters[i].shape)[1]
        rows, columns = rows.cpu(), columns.cpu()
        return {
            "rows": rows[at // width],
            "columns": columns[at % width],
            "mean": rows.mean(dtype=torch.float64).float(),
        }

    def _averages_of(self, rule: UpdateRule, key: str) -> IncrementMeans:
        return self._averages.setdefault((rule, key), IncrementMeans(rule, key))

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "streams": {i: s.state_dict() for i, s in self.streams.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Streams of rules that no parameter has any more are given up."""
        self.seen = state["seen"]
        known = {rule.key: rule for rule in self.rules.values()}
        held = {i: s for i, s in state["streams"].items() if known.keys() >= set(s["rules"])}
        self.streams = {i: GradientStream.from_state_dict(s, known) for i, s in held.items()}
        self.index |= {i: s.index for i, s in self.streams.items()}
