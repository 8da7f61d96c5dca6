"""The contenders by name, in the order in which they are run."""

from __future__ import annotations

from evidence.contenders.contender import Contender
from evidence.contenders.ours import BUDGETS, ONE_FOR_ALL, OTHER_FORMATS, REFERENCE

CONTENDERS: dict[str, Contender] = {
    contender.name: contender for contender in (REFERENCE, *ONE_FOR_ALL, *BUDGETS, *OTHER_FORMATS)
}
