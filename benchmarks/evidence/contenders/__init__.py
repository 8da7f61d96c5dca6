"""The contenders by name, in the order in which they are run."""

from __future__ import annotations

from evidence.contenders.contender import Contender
from evidence.contenders.formats import FORMATS
from evidence.contenders.ours import BUDGETS, ONE_FOR_ALL, OTHER_FORMATS, REFERENCE
from evidence.contenders.packages import BITSANDBYTES, OTHER_OPTIMIZERS, TORCHAO
from evidence.contenders.shared_moments import SHARED_MOMENTS

OURS_IN_ORDER = (*ONE_FOR_ALL, *BUDGETS, *OTHER_FORMATS)
RIVALS = (*TORCHAO, BITSANDBYTES, *FORMATS, *SHARED_MOMENTS, *OTHER_OPTIMIZERS)

CONTENDERS: dict[str, Contender] = {contender.name: contender for contender in (REFERENCE, *OURS_IN_ORDER, *RIVALS)}
