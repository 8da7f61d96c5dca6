"""Identifiers for what users name freely: state keys, hyperparameters, parameters.

Data keeps the exact keys. Where a graph or generated code needs an identifier, `identifier` makes one.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Container

#: Names that have a meaning in the code that FX writes.
_TAKEN_BY_PYTHON = frozenset(
    (*keyword.kwlist, *dir(builtins), "self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree")
)

#: Largest length of an identifier, without the number that tells it from others.
_LONGEST = 200


def identifier(text: str, taken: Container[str] = ()) -> str:
    """Return `text` if it is a plain identifier without a meaning in Python and not `taken`, else a similar one.

    The result begins with a letter and consists of ASCII letters, digits and underscores.

        >>> identifier("exp_avg"), identifier("exp avg"), identifier("for"), identifier("a.b", {"a_b"}), identifier("é")
        ('exp_avg', 'exp_avg', 'for_2', 'a_b_2', 'n')
    """
    plain = "_".join(re.findall("[0-9A-Za-z]+", text[: 10 * _LONGEST]))[:_LONGEST].strip("_")
    if not plain[:1].isalpha():
        plain = f"n_{plain}".strip("_")
    name, number = plain, 1
    while name in taken or name in _TAKEN_BY_PYTHON:
        number += 1
        name = f"{plain}_{number}"
    return name


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())
