"""A residual convnet that reads characters, trained with SGD and momentum."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from evidence.glyphs import CHARACTERS, HELD_OUT, labelled_batches, load_labelled
from evidence.rules import SGD
from evidence.workload import Workload


class Residual(nn.Module):
    """Two convolutions with batch norm beside a shortcut; `stride` 2 halves the picture."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class GlyphResNet(nn.Module):
    def __init__(self, width: int = 20):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1)
        widths = (width, 2 * width, 4 * width, 6 * width)
        self.blocks = nn.Sequential(*(Residual(a, b, 1 + (a != width)) for a, b in pairwise(widths)))
        self.head = nn.Linear(widths[-1], len(CHARACTERS))

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(self.head(self.blocks(self.stem(pictures)).mean((2, 3))), labels)


WORKLOAD = Workload(
    name="convnet",
    about=f"a residual convnet of 3 blocks that names {len(CHARACTERS)} characters, trained with SGD and momentum .9; "
    f"{len(HELD_OUT)} fonts are held out",
    loss="cross-entropy, nats per picture",
    model=GlyphResNet,
    load=load_labelled,
    batches=labelled_batches,
    lr=0.1,
    batch_size=128,
    rule=SGD,
)
