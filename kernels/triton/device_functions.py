"""Device functions that emitted Triton kernels call: exact arithmetic, bit patterns, element addresses, and loads.

They use only operations that the interpreter (`TRITON_INTERPRET=1`) has, too. bfloat16 is converted in integers,
because the interpreter truncates. In computations, bfloat16 is int32 with its bits in the lower half, and 8- and 16-bit
integers are int32. Transcendental functions are computed in double and rounded.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: First columns of a table row; see `TritonTable`.
NUMEL, FIRST_INDEX, FIRST_INSTANCE, INSTANCES, LANES, COLUMNS, PADDED = (tl.constexpr(column) for column in range(7))
#: Elements per group.
GROUP = tl.constexpr(32)
#: Maximum dimensions of a tensor that is not contiguous.
MAX_DIMS = tl.constexpr(6)
#: Numbers that describe the layout of such a tensor.
LAYOUT = tl.constexpr(13)
_PAGE = tl.constexpr(0x85EBCA6B - (1 << 32))


# arithmetic


@triton.jit
def divide(x, y):
    """Return x / y, correctly rounded."""
    if (x + y).dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def square_root(x):
    """Return the square root, correctly rounded."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def negative(x):
    """Return -x. Triton's own minus turns 0 into 0, not -0."""
    return x * -1


@triton.jit
def larger(x, y):
    """Return the larger number, NaN if either is, as torch.maximum does."""
    return tl.where((x != x) | (x > y), x, y)


@triton.jit
def smaller(x, y):
    """Return the smaller number, NaN if either is, as torch.minimum does."""
    return tl.where((x != x) | (x < y), x, y)


@triton.jit
def sign_of(x):
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def truncate(x):
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def round_to_even(x):
    """Round to the nearest integer, ties to even: adding 2^23 (2^52 in double) leaves no fractional bits."""
    shift: tl.constexpr = 2.0**52 if x.dtype == tl.float64 else 2.0**23
    magnitude = tl.abs(x)
    rounded = (magnitude + shift) - shift
    return with_sign_of(tl.where(magnitude < shift, rounded, magnitude), x)


@triton.jit
def with_sign_of(x, y):
    if x.dtype == tl.float64:
        bits = (x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF) | ((y.to(tl.int64, bitcast=True) >> 63) << 63)
        return bits.to(tl.float64, bitcast=True)
    else:
        bits = (x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) | ((y.to(tl.int32, bitcast=True) >> 31) << 31)
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def power(x, y):
    """Return x^y as C's pow does: |x|^y through exp and log in double, with the sign of x if y is an odd integer."""
    one = tl.full((), 1.0, tl.float64)  # makes a plain number a double, too
    base, exponent = tl.broadcast(x * one, y * one)
    size = tl.abs(base)
    magnitude = tl.exp(exponent * tl.log(tl.where(size == 0.0, 1.0, size)))
    magnitude = tl.where(size == 0.0, tl.where(exponent > 0.0, 0.0, float("inf")), magnitude)
    magnitude = tl.where((size == 1.0) | (exponent == 0.0), 1.0, magnitude)
    whole = tl.floor(exponent) == exponent
    odd = whole & (tl.floor(exponent * 0.5) * 2.0 != exponent)
    result = tl.where(odd, with_sign_of(magnitude, base), magnitude)
    result = tl.where((base < 0.0) & (size < float("inf")) & (whole == 0), float("nan"), result)
    result = tl.where((base != base) | (exponent != exponent), float("nan"), result)
    return tl.where((exponent == 0.0) | (base == 1.0), 1.0, result).to((x + y).dtype)


@triton.jit
def wide(x):
    """Return x in double, in which transcendental functions are computed."""
    return x.to(tl.float64)


@triton.jit
def like(value, x):
    """Return `value` in the type of x."""
    return value.to(x.dtype)


@triton.jit
def exp_less_one(x):
    """Return exp(x) - 1 without cancellation (W. Kahan)."""
    wide = x.to(tl.float64)
    e = tl.exp(wide)
    small = tl.where(e == 1.0, wide, (e - 1.0) * wide / tl.log(tl.where(e <= 0.0, 1.0, e)))
    return tl.where((e <= 0.0) | (tl.abs(wide) > 30.0), e - 1.0, small).to(x.dtype)


@triton.jit
def log_of_one_more(x):
    """Return log(1 + x) without cancellation (W. Kahan)."""
    wide = x.to(tl.float64)
    one_more = 1.0 + wide
    exact = (one_more == 1.0) | (one_more == float("inf"))
    scaled = tl.log(one_more) * wide / tl.where(exact, 1.0, one_more - 1.0)
    return tl.where(exact, wide, scaled).to(x.dtype)


@triton.jit
def hyperbolic_tangent(x):
    wide = tl.abs(x.to(tl.float64))
    e = exp_less_one(-2.0 * wide)
    return with_sign_of((-e / (e + 2.0)).to(x.dtype), x)


# bit patterns


@triton.jit
def bfloat16_to_float(bits):
    return (bits << 16).to(tl.float32, bitcast=True)


@triton.jit
def float_to_bfloat16(x):
    """Round to the nearest bfloat16, ties to even."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(x != x, 0x7FC0, rounded)


# groups and indices


@triton.jit
def group_max(x, mask, FULL: tl.constexpr):
    """Return the largest int32 of every row, ignoring lanes without an element."""
    if not FULL:
        x = tl.where(mask, x, -2147483648)
    return tl.max(x, axis=1, keep_dims=True)


@triton.jit
def fold_index(index, lanes, rows):
    """Return the 32-bit counters of elements index + lanes. `index`: int64, of the first element.

    `rows`: where rows of lanes start. Only between rows may a multiple of 2^32 lie.
    """
    page = (index >> 32).to(tl.int32)
    left = tl.minimum((1 << 32) - (index & 0xFFFFFFFF), 0x7FFFFFFF).to(tl.int32)
    return (index.to(tl.int32) + lanes) ^ tl.where(rows < left, page * _PAGE, (page + 1) * _PAGE)


@triton.jit
def elements_of(start, lanes, count, columns, padded, FULL: tl.constexpr):
    """Return a first index, the row-major indices of the elements of lanes start + lanes beyond it, and which exist.

    columns, padded: elements and lanes of a row; both are those of the tensor if no row is padded.
    """
    if FULL:
        return start, lanes, lanes < count
    else:
        lane = start + lanes.to(tl.int64)
        row = lane // padded
        column = lane - row * padded
        return start - start, row * columns + column, (lanes < count) & (column < columns)


@triton.jit
def group_of(element, columns, padded):
    """Return the group of an element with this row-major index."""
    row = element // columns
    return (row * padded + (element - row * columns)) // GROUP


@triton.jit
def set_index(start, lanes, elements, run, cycle, BLOCK_SIZE: tl.constexpr, FULL: tl.constexpr):
    """Return (index // run) % cycle of elements start + lanes, in 32 bits; of `elements` if the tile is not full.

    A tile meets at most one boundary of runs that are at least as long as the tile.
    """
    run = tl.maximum(run, 1)
    if not FULL:
        return ((elements // run) % tl.maximum(cycle, 1)).to(tl.int32)
    first = (start // run) % tl.maximum(cycle, 1)
    done = start % run
    left = tl.minimum(run - done, BLOCK_SIZE).to(tl.int32)
    short_run = tl.minimum(run, BLOCK_SIZE).to(tl.int32)
    short_done = tl.minimum(done, BLOCK_SIZE).to(tl.int32)
    within = tl.where(run >= BLOCK_SIZE, (lanes >= left).to(tl.int32), (short_done + lanes) // short_run)
    return (first.to(tl.int32) + within) % tl.maximum(cycle, 1).to(tl.int32)


# loads and stores


@triton.jit
def address(row, COLUMN: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Load the pointer from a column of a tensor's table row."""
    pointer = tl.load(row + COLUMN).to(tl.pointer_type(TYPE))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def offsets(start, lanes, layout):
    """Return the memory offsets of elements start + lanes.

    `layout`: {dimensions, sizes, strides}, innermost first; 0 dimensions for a contiguous tensor.
    """
    index = start + lanes.to(tl.int64)
    offset = tl.zeros_like(index)
    rest = index
    for dimension in tl.static_range(MAX_DIMS):
        size = tl.load(layout + 1 + dimension)
        offset += (rest % size) * tl.load(layout + 1 + MAX_DIMS + dimension)
        rest = rest // size
    return tl.where(tl.load(layout) == 0, index, offset)


@triton.jit
def load(pointer, start, lanes, mask, FULL: tl.constexpr):
    if FULL:
        return tl.load(pointer + start + lanes)
    else:
        return tl.load(pointer + start + lanes, mask=mask, other=0)


@triton.jit
def store(pointer, start, lanes, value, mask, FULL: tl.constexpr):
    if FULL:
        tl.store(pointer + start + lanes, value)
    else:
        tl.store(pointer + start + lanes, value, mask=mask)


@triton.jit
def load_element(pointer, start, lanes, mask, layout, FULL: tl.constexpr, STRIDED: tl.constexpr):
    if STRIDED:
        return tl.load(pointer + offsets(start, lanes, layout), mask=mask, other=0)
    else:
        return load(pointer, start, lanes, mask, FULL)


@triton.jit
def store_element(pointer, start, lanes, value, mask, layout, FULL: tl.constexpr, STRIDED: tl.constexpr):
    if STRIDED:
        tl.store(pointer + offsets(start, lanes, layout), value, mask=mask)
    else:
        store(pointer, start, lanes, value, mask, FULL)


@triton.jit
def bytes_of(start, lanes, count, columns, padded, FULL: tl.constexpr):
    """Return a first byte, the bytes of 4-bit codes beyond it, and how many of a byte's two codes exist."""
    half: tl.constexpr = GROUP // 2
    rows = tl.arange(0, lanes.shape[0])[:, None]
    pairs = tl.arange(0, half)[None, :]
    if FULL:
        return start // 2, rows * half + pairs, tl.zeros_like(rows + pairs) + 2
    else:
        lane = start + (rows * GROUP + 2 * pairs).to(tl.int64)
        row = lane // padded
        column = lane - row * padded
        left = tl.minimum(columns - column, count - (rows * GROUP + 2 * pairs))
        return start - start, row * ((columns + 1) // 2) + column // 2, left


@triton.jit
def load_packed(pointer, start, lanes, count, columns, padded, FULL: tl.constexpr):
    """Load 4-bit codes, two to a byte, the first in the low half."""
    first, bytes_, left = bytes_of(start, lanes, count, columns, padded, FULL)
    both = load(pointer, first, bytes_, left > 0, FULL).to(tl.int32)
    return tl.interleave(both & 15, both >> 4)


@triton.jit
def load_half_byte(pointer, index, mask, columns):
    """Load single 4-bit codes by element index."""
    row = index // columns
    column = index - row * columns
    both = tl.load(pointer + row * ((columns + 1) // 2) + column // 2, mask=mask, other=0).to(tl.int32)
    return (both >> ((column % 2) * 4).to(tl.int32)) & 15


@triton.jit
def store_packed(pointer, start, lanes, codes, count, columns, padded, FULL: tl.constexpr):
    first, bytes_, left = bytes_of(start, lanes, count, columns, padded, FULL)
    low, high = tl.split(tl.reshape(codes, (lanes.shape[0], GROUP // 2, 2)))
    if not FULL:
        high = tl.where(left > 1, high, 0)
    store(pointer, first, bytes_, (low | (high << 4)).to(tl.uint8), left > 0, FULL)


# counters


@triton.jit
def is_last(ticket, instances):
    """Tell whether this program instance is the last of a tensor to arrive; if so, reset the ticket to 0."""
    tl.debug_barrier()
    last = tl.atomic_add(ticket, 1) == instances - 1
    if last:
        tl.store(ticket, 0)
    return last
