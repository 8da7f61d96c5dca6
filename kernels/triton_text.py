"""The Triton that every kernel shares: the block of elements, and the program that walks over blocks."""

HEAD = '''"""{title}"""

import triton
import triton.language as tl

from baoc_compile.kernels.triton_words import *  # noqa: F403


'''

UPDATE = '''@triton.jit
def step_block({arguments}, start, count, first_index, layout, ROWS: tl.constexpr, FULL: tl.constexpr, STRIDED: tl.constexpr):
    lanes = tl.arange(0, ROWS)[:, None] * {width} + tl.arange(0, {width})[None, :]
    mask = lanes < count
{loads}
{body}
{stores}


'''

STEP = '''@triton.jit
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
'''

#: Names that the texts above use, which values of a rule must not take.
RESERVED = frozenset(
    "table numbers programs tickets layouts program tensor row numel first_index layout first block start count lanes mask "
    "triton tl step_block step_tensors".split()
)
