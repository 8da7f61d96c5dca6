"""The Triton shared by all kernels: the tile of elements, and the program instance that iterates over tiles.

A launch consists of many program instances of one kernel.
"""

HEAD = """import triton
import triton.language as tl

from baoc_compile.kernels.triton.device_functions import *  # noqa: F403


"""

TILE = """@triton.jit
def step_tile(
    {arguments}, start, count, columns, padded, first_index, layout,
    ROWS: tl.constexpr, FULL: tl.constexpr, STRIDED: tl.constexpr,
):
    lanes = tl.arange(0, ROWS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    first, elements, mask = elements_of(start, lanes, count, columns, padded, FULL)
{loads}
{body}
{stores}


"""

STEP = """@triton.jit
def step_tensors(
    table, numbers, instances, tickets, layouts,
    ROWS: tl.constexpr, TILES: tl.constexpr, ALIGNED: tl.constexpr, STRIDED: tl.constexpr,
):
    instance = tl.program_id(0)
    tensor = tl.load(instances + instance)
    row = table + tensor.to(tl.int64) * {row_length}
    lanes = tl.load(row + LANES)
    columns = tl.load(row + COLUMNS)
    padded = tl.load(row + PADDED)
    first_index = tl.load(row + FIRST_INDEX)
{pointers}
    # scalars, in double
{scalars}
    # elements
    BLOCK_SIZE: tl.constexpr = ROWS * GROUP
    layout = layouts + tensor.to(tl.int64) * {strided} * LAYOUT
    first = (instance - tl.load(row + FIRST_INSTANCE)) * TILES
    for tile in range(first, tl.minimum(first + TILES, tl.cdiv(lanes, BLOCK_SIZE))):
        start = tile * BLOCK_SIZE
        count = tl.minimum(lanes - start, BLOCK_SIZE).to(tl.int32)
        if (count == BLOCK_SIZE) & (columns == padded):
            step_tile({arguments}, start, BLOCK_SIZE, columns, padded, first_index, layout, ROWS, True, STRIDED)
        else:
            step_tile({arguments}, start, count, columns, padded, first_index, layout, ROWS, False, STRIDED)
{counters}
"""

AVERAGE = """@triton.jit
def average(
    {arguments}, operand, first_set, first, last, piece, pieces, partials, ticket, numel, run, cycle,
    columns, padded, layout, SETS: tl.constexpr, ELEMENTS: tl.constexpr, STRIDED: tl.constexpr,
):
    sets = first_set + tl.arange(0, SETS)[:, None].to(tl.int64)
    total = nothing(SETS, {most})
    for start in range(first, last, ELEMENTS):
        element = start + tl.arange(0, ELEMENTS)[None, :].to(tl.int64)
        mask = (sets < cycle) & (element < last)
        index = element // run * (run * cycle) + sets * run + element % run
{loads}
{body}
        value = {value}
        total = with_lanes(total, value.to(tl.float64), mask, {most})
    lanes = tl.arange(0, SETS)[:, None]
    if pieces > 1:
        tl.store(partials + piece * SETS + lanes, total)
        if is_last(ticket, pieces):
            total = nothing(SETS, {most})
            for other in range(0, pieces):
                partial = tl.load(partials + other * SETS + lanes, cache_modifier=".cg")
                total = with_lanes(total, partial, sets < cycle, {most})
            {finish}
    else:
        {finish}


# A sum, or a maximum: of no lanes, and of a row's lanes more.
@triton.jit
def nothing(SETS: tl.constexpr, most):
    return tl.zeros((SETS, 1), tl.float64) + tl.where(most, float("-inf"), 0.0).to(tl.float64)


@triton.jit
def with_lanes(total, value, mask, most):
    added = total + tl.sum(tl.where(mask, value, 0.0), axis=1, keep_dims=True)
    if most:
        added = larger(tl.reduce(tl.where(mask, value, float("-inf")), 1, larger, keep_dims=True), total)
    return added


@triton.jit
def store_average(pointer, decay, sets, total, numel, cycle):
    value = tl.load(pointer + sets, mask=sets < cycle, other=0).to(tl.float64)
    mean = total / (numel // cycle).to(tl.float64)
    tl.store(pointer + sets, (decay * value + mean).to(tl.float32), mask=sets < cycle)


@triton.jit
def store_fold(pointer, sets, total, numel, cycle, most):
    mean = total / (numel // cycle).to(tl.float64)
    tl.store(pointer + sets, total if most else mean, mask=sets < cycle)


@triton.jit
def average_tensors(
    table, numbers, tasks, tickets, layouts, partial_sums,
    BLOCK_SIZE: tl.constexpr, ALIGNED: tl.constexpr, STRIDED: tl.constexpr,
):
    task = tasks + tl.program_id(0).to(tl.int64) * {columns}
{task}
    row = table + tensor * {row_length}
    numel = tl.load(row + NUMEL)
    columns = tl.load(row + COLUMNS)
    padded = tl.load(row + PADDED)
    run = tl.load(row + {header} + 2 * operand)
    cycle = tl.load(row + {header} + 2 * operand + 1)
{pointers}
    # scalars, in double
{scalars}
    # elements
    layout = layouts + tensor * {strided} * LAYOUT
    partials += partial_sums
    ticket += tickets
    if run == 1:
        average(
            {arguments}, operand, first_set, first, last, piece, pieces, partials, ticket, numel, run, cycle,
            columns, padded, layout, BLOCK_SIZE, 1, STRIDED,
        )
    elif run < BLOCK_SIZE:
        average(
            {arguments}, operand, first_set, first, last, piece, pieces, partials, ticket, numel, run, cycle,
            columns, padded, layout, 16, BLOCK_SIZE // 16, STRIDED,
        )
    else:
        average(
            {arguments}, operand, first_set, first, last, piece, pieces, partials, ticket, numel, run, cycle,
            columns, padded, layout, 1, BLOCK_SIZE, STRIDED,
        )
"""
