"""Which partition shares a second moment: planted structure is found, noise has none, odd tensors do no harm."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from baoc_compile.passes.risk.find_sharing import find_sharing, rank_sharing

SEEDS = 100
SHAPES = [(96, 64), (256, 128), (64, 3, 3, 3)]


def partition(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    rows, n = shape[0], torch.Size(shape).numel()
    columns = n // rows
    kind, _, size = name.partition(":")
    d = int(size or 1)
    return {
        "row": (columns, rows),
        "column": (1, columns),
        "head": (d * columns, rows // d),
        "column_head": (d, columns // d),
        "run": (d, n // d),
    }[kind]


def scale(name: str, shape: tuple[int, ...], sigma: float, rng: torch.Generator) -> Tensor:
    if name == "factored":
        return scale("row", shape, sigma, rng) * scale("column", shape, sigma, rng)
    run, cycle = partition(name, shape)
    values = torch.exp(sigma * torch.randn(cycle, generator=rng))
    return values[torch.arange(torch.Size(shape).numel()) // run % cycle].reshape(shape)


def normal(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng)


def laplace(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return normal(shape, rng) * torch.empty(shape).exponential_(generator=rng).sqrt()


def student3(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return normal(shape, rng) / normal((3, *shape), rng).square().mean(0).sqrt()


def half_zeros(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return normal(shape, rng).relu()


def answers(gradient: Callable[[torch.Generator], Tensor]) -> Counter[str]:
    return Counter(find_sharing(gradient(torch.Generator().manual_seed(seed))) for seed in range(SEEDS))


def check_planted(name: str, shape: tuple[int, ...], sigma: float) -> None:
    found = answers(lambda rng: normal(shape, rng) * scale(name, shape, sigma, rng))
    assert found[name] >= 0.95 * SEEDS, found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["row", "column", "head:16", "factored"])
def test_planted_structure_is_found(name: str, shape: tuple[int, ...]) -> None:
    check_planted(name, shape, 1.0)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("head:64", (256, 128)),
        ("head:2", (96, 64)),
        ("column_head:16", (96, 64)),
        ("column_head:16", (256, 128)),
        ("column_head:9", (64, 3, 3, 3)),
        ("run:16", (96, 64)),
        ("run:32", (256, 128)),
        ("run:9", (64, 3, 3, 3)),
        ("run:96", (96, 64)),
        ("run:16", (720,)),
        ("run:128", (1, 8192)),
        ("head:128", (8192, 1)),
    ],
    ids=str,
)
def test_planted_runs_and_heads_are_found(name: str, shape: tuple[int, ...]) -> None:
    check_planted(name, shape, 1.0)


@pytest.mark.parametrize("name", ["row", "column", "head:16", "head:64", "column_head:16", "factored"])
def test_weak_structure_is_found(name: str) -> None:
    check_planted(name, (256, 128), 0.3)


@pytest.mark.parametrize("shape", [*SHAPES, (97, 61), (6007,), (720,), (360, 2), (8, 8)], ids=str)
@pytest.mark.parametrize("noise", [normal, laplace, student3, half_zeros])
def test_noise_has_no_structure(noise: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    found = answers(lambda rng: noise(shape, rng))
    assert found["none"] >= 0.95 * SEEDS, found


def test_several_gradients_show_what_one_does_not() -> None:
    rng = torch.Generator().manual_seed(0)
    shape = (64, 3, 3, 3)
    truth = scale("row", shape, 0.1, rng)
    gradients = [truth * normal(shape, rng) for _ in range(100)]
    assert find_sharing(gradients[0]) == "none"
    assert find_sharing([*gradients, torch.zeros(shape)]) == "row"


@pytest.mark.parametrize("name", ["row", "column", "head:16", "column_head:16", "run:16", "run:96"])
def test_partition_is_described(name: str) -> None:
    shape = (96, 64)
    rng = torch.Generator().manual_seed(1)
    best = rank_sharing(normal(shape, rng) * scale(name, shape, 1.0, rng))[0]
    assert best.name == name
    assert best.z > 5
    assert best.explained == pytest.approx(4 / (4 + torch.pi**2 / 2), abs=0.2)


def test_significance_is_a_threshold() -> None:
    rng = torch.Generator().manual_seed(2)
    gradient = normal((96, 64), rng) * scale("row", (96, 64), 0.3, rng)
    z = rank_sharing(gradient)[0].z
    assert find_sharing(gradient, significance=z) == "none"


def test_embedding_with_few_used_rows() -> None:
    rng = torch.Generator().manual_seed(3)
    gradient = torch.zeros(1000, 64)
    used = torch.randperm(1000, generator=rng)[:30]
    gradient[used] = normal((30, 64), rng)
    before = gradient.clone()
    assert find_sharing(gradient) == "row"
    assert torch.equal(gradient, before)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_magnitude_and_dtype_do_not_matter(dtype: torch.dtype, factor: float) -> None:
    rng = torch.Generator().manual_seed(4)
    gradient = normal((96, 64), rng) * scale("column", (96, 64), 1.0, rng) * factor
    assert find_sharing(gradient.to(dtype)) == "column"


@pytest.mark.parametrize(
    "gradient",
    [
        torch.zeros(64, 64),
        torch.ones(64, 64),
        torch.full((64, 64), float("nan")),
        torch.full((64, 64), float("inf")),
        torch.arange(63.0),
        torch.tensor(1.0),
        torch.empty(0, 4),
    ],
    ids=["zeros", "ones", "nan", "inf", "small", "scalar", "empty"],
)
def test_nothing_to_analyse(gradient: Tensor) -> None:
    assert find_sharing(gradient) == "none"


def test_scale_without_noise() -> None:
    assert find_sharing(torch.arange(1.0, 33.0)[:, None].expand(32, 16)) == "row"
