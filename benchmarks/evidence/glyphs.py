"""Letters and digits in the fonts that matplotlib ships: an unlimited set of small pictures.

Every character is rendered once in every font. Training sees it turned, scaled, shifted and noised, each time anew.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CHARACTERS = string.digits + string.ascii_letters
SIZE = 16  # pictures are SIZE x SIZE
RENDERED = 32  # before they are turned and scaled down
NOISE = 0.3  # standard deviation, where paper is 0 and ink is 1
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-BoldItalic", "-Italic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "BolIta", "Italic")),
    *("cmb10", "cmr10", "cmss10", "cmtt10", "cmti10"),
)
HELD_OUT = ("DejaVuSansMono-Bold", "DejaVuSans-Oblique", "DejaVuSerif-Italic", "STIXGeneralBol")

#: Pictures `[count, 1, SIZE, SIZE]`, and which character each is.
Glyphs = tuple[Tensor, Tensor]


@cache
def rendered(fonts: tuple[str, ...]) -> Glyphs:
    """Return every character in `fonts`, in the middle of RENDERED x RENDERED pixels, 0 for paper and 1 for ink."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    pictures = []
    for name in fonts:
        font = ImageFont.truetype(folder / f"{name}.ttf", 22)
        for character in CHARACTERS:
            picture = Image.new("L", (RENDERED, RENDERED))
            ImageDraw.Draw(picture).text((RENDERED / 2, RENDERED / 2), character, fill=255, font=font, anchor="mm")
            pictures.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8))
    labels = torch.arange(len(CHARACTERS)).repeat(len(fonts))
    return torch.stack(pictures).view(-1, 1, RENDERED, RENDERED) / 255, labels


def training_glyphs() -> Glyphs:
    return rendered(tuple(font for font in FONTS if font not in HELD_OUT))


def distorted(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Return `pictures` turned by up to 20 degrees, scaled by 0.8 to 1.2, and shifted by up to a tenth."""
    angle, size, *shift = torch.rand(4, len(pictures), generator=generator) * 2 - 1
    angle, size = angle * 0.35, 1.2**size
    cos, sin = angle.cos() / size, angle.sin() / size
    places = torch.stack((cos, -sin, 0.2 * shift[0], sin, cos, 0.2 * shift[1]), 1).view(-1, 2, 3)
    grid = F.affine_grid(places, [len(pictures), 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)


def noised(pictures: Tensor, generator: torch.Generator) -> Tensor:
    return pictures + NOISE * torch.randn(pictures.shape, generator=generator)


def random_glyphs(glyphs: Glyphs, batch_size: int, generator: torch.Generator) -> Iterator[Glyphs]:
    """Yield distorted glyphs without end."""
    pictures, labels = glyphs
    while True:
        chosen = torch.randint(len(pictures), (batch_size,), generator=generator)
        yield distorted(pictures[chosen], generator), labels[chosen]


def labelled_batches(glyphs: Glyphs, batch_size: int, seed: int) -> Iterator[Glyphs]:
    """Yield noisy pictures and their labels without end; the same seed gives the same batches."""
    generator = torch.Generator().manual_seed(seed)
    for pictures, labels in random_glyphs(glyphs, batch_size, generator):
        yield noised(pictures, generator), labels


def held_out_glyphs(copies: int, generator: torch.Generator) -> Sequence[Glyphs]:
    """Return every character of the fonts held out, distorted `copies` times: as many batches."""
    pictures, labels = rendered(HELD_OUT)
    order = torch.randperm(len(pictures), generator=generator)
    return [(distorted(pictures[order], generator), labels[order]) for _ in range(copies)]


def load_labelled(copies: int = 24) -> tuple[Glyphs, Sequence[Glyphs]]:
    """Return the training glyphs, and batches of noisy ones in the fonts held out."""
    generator = torch.Generator().manual_seed(0)
    held_out = held_out_glyphs(copies, generator)
    return training_glyphs(), [(noised(pictures, generator), labels) for pictures, labels in held_out]
