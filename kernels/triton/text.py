"""The Triton that every kernel shares: the block of elements, and the program that walks over blocks."""

HEAD = '''"""{title}"""

import triton
import triton.language as tl

from baoc_compile.kernels.triton.device_functions import *  # noqa: F403


'''

UPDATE = """@triton.jit
def step_block({arguments}, start, count, first_index, layout, ROWS: tl.constexpr, FULL: tl.constexpr, STRIDED: tl.constexpr):
    lanes = tl.arange(0, ROWS)[:, None] * {width} + tl.arange(0, {width})[None, :]
    mask = lanes < count
{loads}
{body}
{stores}


"""

STEP = """@triton.jit
def step_tensors(
    table, numbers, programs, tickets, layouts,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, ALIGNED: tl.constexpr, STRIDED: tl.constexpr,
):
    program = tl.program_id(0)
    tensor = tl.load(programs + program)
    row = table + tensor.to(tl.int64) * {row_length}
    numel = tl.load(row + NUMEL)
    first_index = tl.load(row + FIRST_INDEX)
{pointers}
    # scalars, in double
{scalars}
    # elements
    BLOCK: tl.constexpr = ROWS * {width}
    layout = layouts + tensor.to(tl.int64) * {strided} * LAYOUT
    first = (program - tl.load(row + FIRST_PROGRAM)) * BLOCKS
    for block in range(first, tl.minimum(first + BLOCKS, tl.cdiv(numel, BLOCK))):
        start = block * BLOCK
        if start + BLOCK <= numel:
            step_block({arguments}, start, BLOCK, first_index, layout, ROWS, True, STRIDED)
        else:
            step_block({arguments}, start, (numel - start).to(tl.int32), first_index, layout, ROWS, False, STRIDED)
{counters}
"""

AVERAGE = """@triton.jit
def average(
    {arguments}, operand, first_set, first, last, piece, pieces, partials, ticket, numel, run, cycle, layout,
    SETS: tl.constexpr, ELEMENTS: tl.constexpr, STRIDED: tl.constexpr,
):
    sets = first_set + tl.arange(0, SETS)[:, None].to(tl.int64)
    total = tl.zeros((SETS, 1), tl.float64)
    for start in range(first, last, ELEMENTS):
        element = start + tl.arange(0, ELEMENTS)[None, :].to(tl.int64)
        mask = (sets < cycle) & (element < last)
        index = element // run * (run * cycle) + sets * run + element % run
{loads}
{body}
        value = {value}
        total += tl.sum(tl.where(mask, value.to(tl.float64), 0.0), axis=1, keep_dims=True)
    lanes = tl.arange(0, SETS)[:, None]
    if pieces > 1:
        tl.store(partials + piece * SETS + lanes, total)
        if is_last(ticket, pieces):
            total = tl.zeros((SETS, 1), tl.float64)
            for other in range(0, pieces):
                total += tl.load(partials + other * SETS + lanes, cache_modifier=".cg")
            finish({pointer}, {decay}, sets, total, numel, cycle)
    else:
        finish({pointer}, {decay}, sets, total, numel, cycle)


@triton.jit
def finish(pointer, decay, sets, total, numel, cycle):
    value = tl.load(pointer + sets, mask=sets < cycle, other=0).to(tl.float64)
    mean = total / (numel // cycle).to(tl.float64)
    tl.store(pointer + sets, (decay * value + mean).to(tl.float32), mask=sets < cycle)


@triton.jit
def average_tensors(
    table, numbers, tasks, tickets, layouts, partial_sums, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, STRIDED: tl.constexpr,
):
    task = tasks + tl.program_id(0).to(tl.int64) * {columns}
{task}
    row = table + tensor * {row_length}
    numel = tl.load(row + NUMEL)
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
            {arguments}, operand, first_set, first, last, piece, pieces, partials, ticket, numel, run, cycle, layout,
            BLOCK, 1, STRIDED,
        )
    elif run < BLOCK:
        average(
            {arguments}, operand, first_set, first, last, piece, pieces, partials, ticket, numel, run, cycle, layout,
            16, BLOCK // 16, STRIDED,
        )
    else:
        average(
            {arguments}, operand, first_set, first, last, piece, pieces, partials, ticket, numel, run, cycle, layout,
            1, BLOCK, STRIDED,
        )
"""

#: Names that the texts above use, which values of a rule must not take.
RESERVED = frozenset(
    [
        "table",
        "numbers",
        "programs",
        "tickets",
        "layouts",
        "program",
        "tensor",
        "row",
        "numel",
        "first_index",
        "layout",
        "first",
        "block",
        "start",
        "count",
        "lanes",
        "mask",
        "triton",
        "tl",
        "step_block",
        "step_tensors",
        "task",
        "tasks",
        "operand",
        "sets",
        "element",
        "index",
        "total",
        "value",
        "piece",
        "pieces",
        "partials",
        "ticket",
        "run",
        "cycle",
        "average",
        "finish",
        "other",
    ]
)
