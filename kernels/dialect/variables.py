"""The variables of generated code, called so that they can mean nothing else there."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from torch import fx

from baoc_compile.core.names import identifier

#: Node and role -> what stands for that variable in a text.
Names = Callable[..., str]

_WORD = re.compile(r"(?<![\w.])[A-Za-z_]\w*")  # members of objects and modules are theirs


class Variables:
    """The variables of one scope of generated code.

    While the text is written, marks stand for them. They are named last, when all other words of the text are known: no
    variable is called like one of those, like a keyword, or like another variable.
    """

    def __init__(self, keywords: Collection[str], without: str = ""):
        """`without`: what the nodes' names begin with and the variables' need not."""
        self._keywords, self._without = keywords, without
        self._marks: dict[tuple[fx.Node, str], str] = {}

    def __call__(self, node: fx.Node, role: str = "") -> str:
        """The mark of a node's variable. `role` tells several of one node apart: its pointer, its buffer."""
        return self._marks.setdefault((node, role), f"\0{len(self._marks)}\0")

    def named(self, text: str, beside: str = "") -> str:
        """`text` with names in place of marks. `beside`: what else will stand in the same file."""
        taken = {*self._keywords, *_WORD.findall(text), *_WORD.findall(beside)}
        names = {}
        for (node, role), mark in self._marks.items():
            wanted = f"{node.name.removeprefix(self._without)} {role}"
            names[mark] = identifier(wanted.lower(), taken)  # macros of C++ are in capitals
            taken.add(names[mark])
        return re.sub("\0\\d+\0", lambda match: names[match[0]], text)
