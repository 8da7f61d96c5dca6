"""A small denoising diffusion model of scikit-learn's 8x8 digits: a convolutional U-Net that predicts the noise."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import digits_vit

#: Noisy images `[batch, 1, 8, 8]`, times `[batch]` in 0 ... 1, and the noise `[batch, 1, 8, 8]`.
Noised = tuple[Tensor, Tensor, Tensor]


class Residual(nn.Module):
    """Two 3x3 convolutions with a skip connection; the embedded time shifts the channels between them."""

    def __init__(self, channels_in: int, channels: int, time_width: int):
        super().__init__()
        self.norm_in = nn.GroupNorm(4, channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.time = nn.Linear(time_width, channels)
        self.norm_out = nn.GroupNorm(4, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv_in(F.silu(self.norm_in(x))) + self.time(time)[..., None, None]
        return self.skip(x) + self.conv_out(F.silu(self.norm_out(hidden)))


class UNet(nn.Module):
    """A U-Net of two resolutions, 8x8 and 4x4; the 8x8 features skip the inner blocks."""

    frequencies: Tensor

    def __init__(self, channels: int = 32, time_width: int = 128):
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, 2, time_width // 2), persistent=False)
        self.time = nn.Sequential(nn.Linear(time_width, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.down = Residual(channels, channels, time_width)
        self.inner = nn.ModuleList(Residual(c, 2 * channels, time_width) for c in (channels, 2 * channels))
        self.up = Residual(3 * channels, channels, time_width)
        self.norm = nn.GroupNorm(4, channels)
        self.out = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, noised: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Return the mean squared error of the predicted noise."""
        angles = times[:, None] * self.frequencies
        time = self.time(torch.cat((angles.sin(), angles.cos()), dim=1))
        outer = self.down(self.stem(noised), time)
        x = F.avg_pool2d(outer, 2)
        for block in self.inner:
            x = block(x, time)
        x = self.up(torch.cat((outer, F.interpolate(x, scale_factor=2.0)), dim=1), time)
        return F.mse_loss(self.out(F.silu(self.norm(x))), noise)


def load_digits() -> tuple[Tensor, Tensor]:
    """Return training and validation images `[count, 1, 8, 8]` in -1 ... 1."""
    (train, _), (validation, _) = digits_vit.load_digits()
    return 2 * train[:, None] - 1, 2 * validation[:, None] - 1


def add_noise(images: Tensor, times: Tensor, generator: torch.Generator) -> Noised:
    """Return noisy images, their times and the noise, by the cosine schedule.

    A noisy image is cos(pi/2 t) image + sin(pi/2 t) noise: at every time t, the two squared factors add up to 1.
    """
    noise = torch.randn(images.shape, generator=generator)
    angles = (math.pi / 2 * times)[:, None, None, None]
    return angles.cos() * images + angles.sin() * noise, times, noise


def random_batches(images: Tensor, batch_size: int, seed: int) -> Iterator[Noised]:
    """Yield training batches without end; the same seed gives the same batches."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        yield add_noise(images[chosen], torch.rand(batch_size, generator=generator), generator)


@torch.no_grad()
def evaluate(model: UNet, images: Tensor, copies: int = 8) -> float:
    """Return the mean loss over `images`, each at `copies` times and noises that are the same at every call."""
    generator = torch.Generator().manual_seed(0)
    times = (torch.randperm(copies * len(images), generator=generator) + 0.5) / (copies * len(images))
    return torch.stack([model(*add_noise(images, t, generator)) for t in times.chunk(copies)]).mean().item()
