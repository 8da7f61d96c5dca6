"""Rewrite: split the flat step graph into one component per parameter and a prelude that the components share.

An element node is a tensor that depends on a parameter or a gradient. Element nodes are joined along their edges, and
so are the inputs of one parameter; edges that carry only a 0-dim value are cut. For an elementwise optimizer, each
connected component is the update of exactly one parameter. An optimizer that mixes parameters gives a component with
several of them.

A scalar node belongs to every component that uses it, and is copied if there are several. The prelude runs once, before
the components. It holds the scalars that are changed in place and used by several components, and the reductions of
the step's inputs, such as a gradient norm.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import networkx as nx
import torch
from torch import fx
from torch.multiprocessing.reductions import StorageWeakRef

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.step_graph import InputRole, StepGraph
from baoc_compile.passes.capture.torch_calls import operation
from baoc_compile.passes.capture.unbatch_foreach import alias_root

_REDUCTIONS = {"norm", "sum", "mean", "amax", "amin", "max", "min", "any", "all", "dot", "std", "var"}


@dataclass
class Component:
    """The update of one parameter, or of several that the optimizer mixes.

    parameters: indices into the parameter table, ascending.
    nodes: the component's calls in program order.
    element_calls: the calls on element nodes.
    element_inputs: the inputs that are element nodes.
    new_state: output node -> the state entry that it becomes.
    """

    parameters: tuple[int, ...]
    nodes: list[fx.Node] = field(default_factory=list)
    element_calls: set[fx.Node] = field(default_factory=set)
    element_inputs: set[fx.Node] = field(default_factory=set)
    new_state: dict[fx.Node, InputRole] = field(default_factory=dict)


@dataclass
class Split:
    """A split step.

    components: one for each parameter whose update makes calls.
    prelude: the prelude's calls in program order.
    """

    components: list[Component]
    prelude: list[fx.Node]


def split_components(step: StepGraph) -> Split:
    """Split `step` into components and a prelude.

    Raises UnsupportedStep if the step returns a value that is neither new state nor computed by the prelude.
    """
    calls = [node for node in step.graph.nodes if node.op in ("call_function", "call_method")]
    elements = _element_nodes(step, calls)
    pieces = nx.utils.UnionFind(elements)
    for node in calls:
        if node in elements:
            pieces.union(node, *(i for i in node.all_input_nodes if i in elements))
    first: dict[int, fx.Node] = {}  # a parameter's inputs form one component, even if no call joins them
    for node, role in step.roles.items():
        if node in elements and role.kind != "scalar":
            pieces.union(first.setdefault(role.parameter, node), node)

    parameters: dict[fx.Node, set[int]] = defaultdict(set)  # representative of a component -> its parameters
    for node, role in step.roles.items():
        if node in elements and role.kind in ("param", "grad"):
            parameters[pieces[node]].add(role.parameter)
    owner = {node: pieces[node] for node in calls if node in elements and pieces[node] in parameters}
    users = _component_users(step, calls, owner, {index: piece for piece, ps in parameters.items() for index in ps})
    prelude = _prelude(step, calls, owner, users)

    components = {piece: Component(tuple(sorted(indices))) for piece, indices in parameters.items()}
    for node in calls:
        if node in owner:
            components[owner[node]].nodes.append(node)
            components[owner[node]].element_calls.add(node)
        elif node not in prelude:
            for piece in users[node]:
                components[piece].nodes.append(node)
    for node in step.roles:
        if node in elements and pieces[node] in components:
            components[pieces[node]].element_inputs.add(node)
    of_inputs = {_memory(node) for node in step.roles} - {None}
    for node in step.outputs:
        if isinstance(node, fx.Node) and node in owner:
            if node in step.new_state and _memory(node) in of_inputs:
                raise UnsupportedStep(
                    f"its first step keeps the memory of a parameter or gradient as state {step.new_state[node].key!r}; "
                    "later steps convert it if it has memory of its own by then (`.clone()` gives it that at once)"
                )
            if node not in step.new_state:
                raise UnsupportedStep(
                    f"the traced step returns {node.name!r}, a tensor computed from parameters or gradients; "
                    "return it from another function than the one that calls optimizer.step()"
                )
            components[owner[node]].new_state[node] = step.new_state[node]
    used = [component for component in components.values() if component.nodes]
    return Split(used, [node for node in calls if node in prelude])


def ndim(node: fx.Node) -> int:
    """Return the number of dimensions of the traced value; 0 for a number."""
    example = node.meta.get("example_value")
    return example.ndim if isinstance(example, torch.Tensor) else 0


def _element_nodes(step: StepGraph, calls: list[fx.Node]) -> set[fx.Node]:
    """Return the element nodes, as a fixpoint.

    A 0-dim state becomes an element node once an element node is written to it. A reduction becomes one if the prelude
    cannot compute it.
    """
    elements = {n for n, role in step.roles.items() if role.kind in ("param", "grad")}
    elements |= {n for n, role in step.roles.items() if role.kind == "state" and ndim(n) > 0}
    while True:
        before = len(elements)
        for node in calls:
            inputs = [i for i in node.all_input_nodes if i in elements]
            if inputs:
                joins = not (_is_reduction(node, inputs) and _is_available(inputs, step, elements))
            else:
                joins = ndim(node) > 0
            if joins:
                elements.add(node)
            if operation(node)[1] and node.args:
                root = alias_root(node)
                if node in elements and root in step.roles:
                    elements.add(root)
        if len(elements) == before:
            return elements


def _is_reduction(node: fx.Node, inputs: list[fx.Node]) -> bool:
    """Return whether the call reduces its inputs to 0 dimensions; if they have none already, its name decides."""
    return ndim(node) == 0 and (max(map(ndim, inputs)) > 0 or (operation(node)[0] in _REDUCTIONS and len(inputs) == 1))


def _is_available(inputs: list[fx.Node], step: StepGraph, elements: set[fx.Node]) -> bool:
    """Return whether the prelude can compute from these nodes: step inputs, or values that no element input reaches."""
    return all(i in step.roles for i in inputs) or not any(_reaches_parameter(i, elements) for i in inputs)


def _reaches_parameter(node: fx.Node, elements: set[fx.Node]) -> bool:
    """Return whether `node` is computed from an element input through element nodes. (A stack of norms is not.)"""
    stack, seen = [node], set()
    while stack:
        current = stack.pop()
        if current.op in ("placeholder", "get_attr") and current in elements:
            return True
        seen.add(current)
        stack += [i for i in current.all_input_nodes if i in elements and i not in seen]
    return False


def _memory(node: fx.Node) -> StorageWeakRef | None:
    """Return the memory of a traced tensor; None for other values and for tensors without a storage."""
    example = node.meta.get("example_value")
    try:
        return StorageWeakRef(example.untyped_storage()) if isinstance(example, torch.Tensor) else None
    except (NotImplementedError, RuntimeError):
        return None


def _component_users(
    step: StepGraph, calls: list[fx.Node], owner: dict[fx.Node, fx.Node], piece_of: dict[int, fx.Node]
) -> dict[fx.Node, set[fx.Node]]:
    """Map every scalar call to the components that need it.

    A component needs a call that it uses, a call that changes a scalar that it uses, and a call that changes the state
    of its parameter.
    """
    users: dict[fx.Node, set[fx.Node]] = defaultdict(set)
    for node in reversed(calls):
        if node in owner:
            continue
        for user in node.users:
            users[node] |= {owner[user]} if user in owner else users[user]
    chains = _inplace_chains(step, calls, owner)
    for root, chain in chains.items():
        together = set().union(*(users[node] for node in chain))
        role = step.roles[root]
        if role.kind == "state" and role.parameter in piece_of:
            together.add(piece_of[role.parameter])
        for node in chain:
            users[node] = set(together)
    for node in reversed(calls):  # the inputs of a chain go to the components of the chain
        if node not in owner:
            for i in node.all_input_nodes:
                if i in users:
                    users[i] |= users[node]
    return users


def _inplace_chains(
    step: StepGraph, calls: list[fx.Node], owner: dict[fx.Node, fx.Node]
) -> dict[fx.Node, list[fx.Node]]:
    """Map every scalar input that the step changes to the calls that change it."""
    chains: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in calls:
        if node not in owner and operation(node)[1] and alias_root(node) in step.roles:
            chains[alias_root(node)].append(node)
    return chains


def _prelude(
    step: StepGraph, calls: list[fx.Node], owner: dict[fx.Node, fx.Node], users: dict[fx.Node, set[fx.Node]]
) -> set[fx.Node]:
    """Return the calls that run once.

    These are shared in-place scalars, reductions, tensors of no parameter, returned scalars, the scalar calls that
    depend on them, and the calls that they are computed from.
    """
    returned = {node for node in step.outputs if isinstance(node, fx.Node)}
    chained = {node for chain in _inplace_chains(step, calls, owner).values() for node in chain}
    prelude: set[fx.Node] = set()
    for node in calls:
        if node in owner:
            continue
        inputs = node.all_input_nodes
        reads_tensor = ndim(node) > 0 or any(ndim(i) > 0 for i in inputs)
        shared = node in chained and len(users[node]) != 1
        if reads_tensor or shared or node in returned or any(i in prelude for i in inputs):
            prelude.add(node)
    stack = list(prelude)  # add the calls that these are computed from
    while stack:
        for i in stack.pop().all_input_nodes:
            if i.op in ("call_function", "call_method") and i not in prelude and i not in owner:
                prelude.add(i)
                stack.append(i)
    return prelude
