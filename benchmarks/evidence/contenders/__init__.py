"""The contenders by name, in the order in which they are run."""

from __future__ import annotations

from evidence.contenders.contender import Contender
from evidence.contenders.formats import ROUNDED
from evidence.contenders.ours import BUDGETS, FORMATS, OTHER_FORMATS, REFERENCE
from evidence.contenders.packages import BITSANDBYTES, OTHER_OPTIMIZERS, TORCHAO
from evidence.contenders.shared_moments import SHARED_MOMENTS

#: What is run on all seeds before the next begins.
STAGES: tuple[tuple[Contender, ...], ...] = (
    (REFERENCE, *FORMATS, *BUDGETS),
    (*TORCHAO, BITSANDBYTES, *ROUNDED, *SHARED_MOMENTS, *OTHER_OPTIMIZERS),
    OTHER_FORMATS,
)

CONTENDERS: dict[str, Contender] = {contender.name: contender for stage in STAGES for contender in stage}
