"""Proxy risk: a weighted sum of metrics after BAOC, without shadow runs. Our reconstruction, for comparison.

BAOC (arXiv 2605.04711) prices a block's configuration by the scale anisotropy, directional stability and noise of its
gradients. Its weights are not public. Here each part of a configuration costs what the corresponding metric says:

    lower precision   relative error of the codec times (1 + anisotropy)
    sharing           variance that the shared means leave, 1 / (1 + SNR) along the axis, times (1 + anisotropy)
    no momentum       1 - stability: independent gradients need averaging most

The sum is not in nats; it only ranks configurations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from baoc_compile.core.codec import Codec
from baoc_compile.core.profile import BlockStatistics

AXIS = {"row": "row", "column": "column", "tensor": "tensor"}


def proxy_risk(statistics: BlockStatistics, codecs: Mapping[str, Codec]) -> float:
    """Return the proxy risk of one configuration of a block with these statistics."""
    total = 0.0
    spread = 1.0 + (statistics.anisotropy if math.isfinite(statistics.anisotropy) else 0.0)
    for key, codec in codecs.items():
        if codec.mechanism == "dropping":
            total += 1.0 - (statistics.stability if math.isfinite(statistics.stability) else 0.0)
        elif codec.mechanism == "sharing":
            ratios = (statistics.snr or {}).get(key, {})
            best = ratios.get(AXIS.get(codec.name, ""), max(ratios.values(), default=0.0))
            total += spread / (1.0 + best)
        else:
            total += spread * codec.relative_error
    return total
