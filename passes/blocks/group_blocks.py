"""Analysis: group parameters into blocks by their places in the model's computation, not by their names."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from baoc_compile.core.block import Block
from baoc_compile.core.errors import OptionError
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.passes.blocks.parameter_roles import ParameterRole

Grouping = Callable[[str, Tensor], Hashable] | Mapping[str, Hashable]

_BY_DIMENSIONS = ("number", "vector", "matrix")


def group_blocks(
    table: ParameterTable,
    must_agree: Mapping[int, Hashable],
    roles: Mapping[int, ParameterRole] = MappingProxyType({}),
    grouping: Grouping | None = None,
) -> tuple[Block, ...]:
    """Group the parameters of `table` into blocks, ordered by the model's first use of them.

    Every parameter is in exactly one block. Parameters share a block if they agree in role, shape and `must_agree`.

    must_agree: parameter index -> any other key that the parameters of a block must have in common.
    roles: parameter index -> role (see `roles_by_index`); a parameter without a role is described by its number of
        dimensions.
    grouping: the option `blocks`, which replaces roles and shapes by the user's labels: a function of (name,
        parameter), or a mapping from names to labels.

    Raises OptionError if `grouping` gives a parameter no label, or one that cannot be hashed, or names a parameter that
    does not exist.
    """
    count = len(table.parameters)
    if grouping is not None:
        labels = _labels(table, grouping)
        keys: list[tuple[Hashable, ...]] = [(labels[i], must_agree[i]) for i in range(count)]
        titles = [(str(labels[i]), "") for i in range(count)]
        first_use = [0] * count
    else:
        every = [roles.get(i) or _unseen(parameter) for i, parameter in enumerate(table.parameters)]
        shapes = [tuple(parameter.shape) for parameter in table.parameters]
        keys = [(every[i].name, every[i].surroundings, shapes[i], must_agree[i]) for i in range(count)]
        titles = [(every[i].name, "x".join(map(str, shapes[i]))) for i in range(count)]
        first_use = [role.first_use for role in every]

    members: dict[Hashable, list[int]] = defaultdict(list)
    for i in sorted(range(count), key=lambda i: first_use[i]):
        members[keys[i]].append(i)
    blocks: list[Block] = []
    taken: set[str] = set()
    for indices in members.values():
        role, shape = titles[indices[0]]
        block = Block(role, tuple(sorted(indices)), shape)
        number = 1
        while block.name in taken:
            number += 1
            block = Block(role, block.parameters, f"{shape} #{number}".lstrip())
        taken.add(block.name)
        blocks.append(block)
    return tuple(blocks)


def _unseen(parameter: Tensor) -> ParameterRole:
    """Return the role of a parameter that no forward pass was seen to use: its number of dimensions."""
    name = _BY_DIMENSIONS[parameter.ndim] if parameter.ndim < len(_BY_DIMENSIONS) else f"{parameter.ndim}d tensor"
    return ParameterRole(name, (), -1)


def _labels(table: ParameterTable, grouping: Any) -> list[Hashable]:
    if isinstance(grouping, Mapping):
        for name in grouping:
            if name not in table.names:
                near = difflib.get_close_matches(str(name), table.names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise OptionError(f"blocks: there is no parameter {name!r}{hint}")
        labels = [grouping.get(name) for name in table.names]
    elif callable(grouping):
        labels = [grouping(name, parameter) for name, parameter in zip(table.names, table.parameters, strict=True)]
    else:
        kind = type(grouping).__name__
        raise OptionError(
            f"blocks: expected a mapping of parameter names or a function of (name, parameter), got {kind}"
        )
    for name, label in zip(table.names, labels, strict=True):
        if label is None:
            raise OptionError(f"blocks: parameter {name!r} has no label")
        try:
            hash(label)
        except TypeError:
            raise OptionError(f"blocks: the label of parameter {name!r} cannot be hashed: {label!r}") from None
    return labels
