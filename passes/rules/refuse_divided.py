"""Refuse updates that need more of a parameter than one process holds."""

from __future__ import annotations

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.shard import is_divided
from baoc_compile.passes.rules.reading import Reading
from baoc_compile.passes.rules.reductions import reduction_of


def refuse_divided(reading: Reading, table: ParameterTable) -> None:
    """Raise UnsupportedStep if an update needs more of a DTensor at a time than one process holds."""
    divided = {i for i, p in enumerate(table.wholes) if is_divided(p)}
    if not divided:
        return
    for rule_class in reading.classes:
        here = [table.names[i] for piece in rule_class.members for i in piece.parameters if i in divided]
        rule, why = rule_class.rule, ""
        if rule is None:
            why = "is not elementwise"
        elif rule.exports or rule.inputs_of("lines") or any(map(reduction_of, rule.gm.graph.nodes)):
            why = "reduces over its elements"
        if here and why:
            raise UnsupportedStep(f"the update of {here[0]} {why}, and several processes hold parts of it")
