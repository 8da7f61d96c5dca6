"""The variables of generated code, named so that they collide with nothing else in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from torch import fx

from baoc_compile.core.names import identifier

#: (node, role) -> the text that stands for that variable.
Names = Callable[..., str]

_WORD = re.compile(r"(?<![\w.])[A-Za-z_]\w*")  # members of objects and modules can't collide


class Variables:
    """The variables of one scope of generated code.

    Marks stand for the variables while the text is written. Names are chosen last, when all other words of the text are
    known: no variable is named like one of those words, like a keyword, or like another variable.
    """

    def __init__(self, keywords: Collection[str], without: str = ""):
        """Start without variables.

        keywords: words that no variable may be named.
        without: prefix of node names that variables drop.
        """
        self._keywords, self._without = keywords, without
        self._marks: dict[tuple[fx.Node, str], str] = {}

    def __call__(self, node: fx.Node, role: str = "") -> str:
        """Return the mark of a node's variable. `role` tells several of one node apart, such as pointer and buffer."""
        return self._marks.setdefault((node, role), f"\0{len(self._marks)}\0")

    def named(self, text: str, beside: str = "") -> str:
        """Return `text` with names in place of marks. `beside`: the other text of the same file."""
        taken = {*self._keywords, *_WORD.findall(text), *_WORD.findall(beside)}
        names = {}
        for (node, role), mark in self._marks.items():
            wanted = f"{node.name.removeprefix(self._without)} {role}"
            names[mark] = identifier(wanted.lower(), taken)  # C++ macros are in capitals
            taken.add(names[mark])
        return re.sub("\0\\d+\0", lambda match: names[match[0]], text)
