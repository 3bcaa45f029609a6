"""The Triton kernels of `toeplitz`, which says what they compute and prepares their arguments.

Rows of all products are blocks of R rows and BN columns of the output; those of one program lie at nearly the same
height and skip the steps that meet no row of the map. Addresses of maps are 64 bits wide; within a map they are 32. All
loops and sums have one order: no atomics.
"""

import triton
import triton.language as tl

SIZES = [
    *("num_images", "channels", "height", "row_units", "out_width_units", "grad_row_units", "rows", "columns", "lines"),
    *("steps", "first_step", "up", "left", "row_blocks", "column_blocks", "programs", "splits"),
    *("first_line", "first_column", "flipped"),
]
"""Numbers for whose values no kernel is compiled anew."""


@triton.jit(do_not_specialize=["num_images", "height", "width", "row_units"])
def arrange(
    source, target, num_images, channels, height, width, row_units,
    UNIT: tl.constexpr, FROM_LAST: tl.constexpr, TO_LAST: tl.constexpr, PAD: tl.constexpr, PLANES: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Maps of `width` columns to maps of longer rows, if PAD, the rest 0, from layout to layout.

    With more than one of `PLANES`, targets follow each other: the value in bfloat16, and what is left of it, again.
    """
    row = row_units * UNIT
    pixels = height * row
    pixel_blocks, channel_blocks = tl.cdiv(pixels, BP), tl.cdiv(channels, BC)
    block = tl.program_id(0)
    image = (block // (pixel_blocks * channel_blocks)).to(tl.int64)
    p = (block // channel_blocks % pixel_blocks) * BP + tl.arange(0, BP)[:, None]
    c = (block % channel_blocks) * BC + tl.arange(0, BC)[None, :]
    inside = (p < pixels) & (c < channels)
    q, filled, source_pixels = p, inside, pixels
    if PAD:
        q, filled, source_pixels = p // row * width + p % row, inside & (p % row < width), height * width
    first = image * channels * source_pixels
    if FROM_LAST:
        value = tl.load(source + (first + q.to(tl.int64) * channels + c), mask=filled, other=0.0)
    else:
        value = tl.load(source + (first + c.to(tl.int64) * source_pixels + q), mask=filled, other=0.0)
    first = image * channels * pixels
    at = first + (p.to(tl.int64) * channels + c if TO_LAST else c.to(tl.int64) * pixels + p)
    size = num_images.to(tl.int64) * channels * pixels
    for plane in tl.static_range(PLANES):
        part = value.to(target.dtype.element_ty)
        tl.store(target + plane * size + at, part, mask=inside)
        value = value - part.to(value.dtype)


@triton.jit(do_not_specialize=SIZES)
def matrices(
    weight, target, channels, lines, rows, columns, up, left, flipped,
    LINES: tl.constexpr, NX: tl.constexpr, J: tl.constexpr, BN: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Of row ky = line - `up` of every kernel the NX matrices [j, i] = weight[ky, jb * J + j - i + `left`]."""
    line_blocks = tl.cdiv(lines, LINES)
    c = (tl.program_id(0) // line_blocks).to(tl.int64)
    kd, i = tl.arange(0, LINES * J)[:, None], tl.arange(0, BN)[None, :]
    line, j = tl.program_id(0) % line_blocks * LINES + kd // J, kd % J
    ky = line - up
    size = channels.to(tl.int64) * lines * (NX * J * BN)
    for jb in range(NX):
        kx = jb * J + j - i + left
        at = ky * columns + kx
        at += flipped * (rows * columns - 1 - 2 * at)
        inside = (ky >= 0) & (ky < rows) & (kx >= 0) & (kx < columns)
        value = tl.load(weight + c * rows * columns + at, mask=inside, other=0.0)
        to = target + (c * lines * (NX * J * BN) + line * (NX * J * BN) + (jb * J + j) * BN + i)
        for plane in tl.static_range(PLANES):
            part = value.to(target.dtype.element_ty)
            tl.store(to + plane * size, part, mask=line < lines)
            value = value - part.to(value.dtype)


WIDENS = tl.constexpr(not isinstance(arrange, triton.JITFunction))
"""Triton's interpreter multiplies bfloat16 numbers as the integers that it keeps them in."""


@triton.jit
def _inside(position, bound):
    """Whether 0 <= position < bound, in one comparison."""
    return position.to(tl.uint32) < bound.to(tl.uint32)


@triton.jit
def _loaded(at, mask, TRANSPOSED: tl.constexpr):
    block = tl.load(at) if mask is None else tl.load(at, mask=mask, other=0.0)
    if WIDENS:
        block = block.to(tl.float32)
    return tl.trans(block) if TRANSPOSED else block


@triton.jit
def _accumulate(a, a_step, a_mask, b, b_step, b_mask, total, PLANES: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Add the product of what lies at two blocks of addresses, the first one transposed or not, small parts first."""
    a0, b0 = _loaded(a, a_mask, TRANSPOSED), _loaded(b, b_mask, False)
    if PLANES == 1:
        return tl.dot(a0, b0, total)
    # Sums of their own, since tensor cores cut off what they add to large ones, where others round.
    a1, b1 = _loaded(a + a_step, a_mask, TRANSPOSED), _loaded(b + b_step, b_mask, False)
    if PLANES == 2:
        part = tl.dot(a1, b0)
    else:
        a2, b2 = _loaded(a + 2 * a_step, a_mask, TRANSPOSED), _loaded(b + 2 * b_step, b_mask, False)
        part = tl.dot(a2, b0)
        part = tl.dot(a0, b2, part)
        part = tl.dot(a1, b1, part)
        part = tl.dot(a1, b0, part)
    part = tl.dot(a0, b1, part)
    part = tl.dot(a0, b0, part)
    return total + part


@triton.jit(do_not_specialize=SIZES)
def correlate(
    x, t, bias, y, num_images, channels, height, row_units, out_width_units, steps, up, row_blocks,
    column_blocks, programs,
    UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, R: tl.constexpr, BN: tl.constexpr, S: tl.constexpr, J: tl.constexpr,
    NX: tl.constexpr, LEFT: tl.constexpr, BM: tl.constexpr, PLANES: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Sums of products of S rows and J columns of the map with a matrix (S * J, R * BN), `steps` down and NX across.

    Rows of maps are `row_units` times UNIT values apart, so that the compiler knows how they are aligned.
    """
    c, pm = (tl.program_id(0) // programs).to(tl.int64), tl.program_id(0) % programs
    m = pm * BM + tl.arange(0, BM)
    xb, n, yb = m % column_blocks, m // column_blocks % num_images, m // (column_blocks * num_images)
    kd, nd = tl.arange(0, S * J), tl.arange(0, R * BN)
    s, j, r, i = kd // J, kd % J, nd // BN, nd % BN
    row = row_units * UNIT
    plane = (n.to(tl.int64) * channels + c) * height
    size = num_images.to(tl.int64) * channels * height * row
    lines = steps * S + R - 1
    x_in = xb[:, None] * BN + j[None, :] + LEFT
    y_in = yb[:, None] * R + s[None, :] - up
    a = x + (plane * row)[:, None] + (y_in * row + x_in)
    b = (
        t
        + c * lines * (NX * J * BN)
        + ((s[:, None] - r[None, :] + (R - 1)) * (NX * J * BN) + j[:, None] * BN + i[None, :])
    )
    t_size = channels.to(tl.int64) * lines * (NX * J * BN)
    highest = pm * BM // (column_blocks * num_images)
    lowest = tl.minimum(((pm + 1) * BM - 1) // (column_blocks * num_images), row_blocks - 1)
    first = tl.maximum(up - lowest * R, 0) // S
    last = tl.minimum((height - 1 + up - highest * R) // S + 1, steps)
    total = tl.zeros((BM, R * BN), tl.float32)
    for at in range(first * NX, last * NX):
        step, jb = at // NX, at % NX
        y_at, x_at = y_in + step * S, x_in + jb * J
        inside = _inside(y_at, height) & _inside(x_at, row)
        total = _accumulate(
            a + (step * S * row + jb * J), size, inside, b + (step * S * NX + jb) * (J * BN), t_size, None, total,
            PLANES, False,
        )  # fmt: skip
    y_out, x_out = yb[:, None] * R + r[None, :], xb[:, None] * BN + i[None, :]
    if BIAS:
        total += tl.load(bias + c).to(tl.float32)
    out_row = out_width_units * OUT_UNIT
    to = y + (plane * out_row)[:, None] + (y_out * out_row + x_out)
    tl.store(to, total.to(y.dtype.element_ty), mask=(y_out < height) & (x_out < out_row))


@triton.jit(do_not_specialize=SIZES)
def weight_gradient(
    x, grad, parts, num_images, channels, height, row_units, grad_row_units, steps, first_step, up, row_blocks,
    column_blocks, first_column, splits,
    UNIT: tl.constexpr, R: tl.constexpr, BN: tl.constexpr, S: tl.constexpr, J: tl.constexpr, NX: tl.constexpr,
    LEFT: tl.constexpr, BLOCK_ROWS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr, PLANES: tl.constexpr, LAGS_Y: tl.constexpr, LAGS_X: tl.constexpr,
):  # fmt: skip
    """One block of the products (S * J, R * BN) of maps and gradients, and of that the sums along its diagonals.

    What is summed over at a time are BLOCK_ROWS blocks of rows of IMAGES images and BLOCK_COLUMNS blocks of columns;
    WHOLE says that all images are there. So the addresses of one time are those of the first and a number: divisions
    would take longer than the products. A diagonal, of equal s - r and j - i, is one tap of the kernel; of the columns
    of the kernel, LAGS_X are summed.
    """
    block = tl.program_id(0)
    split, jb = block % splits, block // splits % NX
    step = block // (splits * NX) % steps
    c = (block // (splits * NX * steps)).to(tl.int64)
    kd, nd = tl.arange(0, S * J), tl.arange(0, R * BN)
    s, j, r, i = kd // J, kd % J, nd // BN, nd % BN
    m = tl.arange(0, BLOCK_ROWS * IMAGES * BLOCK_COLUMNS)
    xb, n, yb = m % BLOCK_COLUMNS, m // BLOCK_COLUMNS % IMAGES, m // (BLOCK_COLUMNS * IMAGES)
    row, grad_row = row_units * UNIT, grad_row_units * UNIT
    image, grad_image = channels.to(tl.int64) * height * row, channels.to(tl.int64) * height * grad_row
    shift = (first_step + step) * S - up
    # Only blocks of rows of the gradient from which S rows of the map, `shift` lower, are there.
    highest = tl.maximum(-shift - S + R, 0) // R
    number = tl.minimum((height - 1 - shift) // R + 1, row_blocks) - highest
    y_out, x_out = (highest + yb)[:, None] * R + r[None, :], xb[:, None] * BN + i[None, :]
    y_in = (highest + yb)[:, None] * R + s[None, :] + shift
    x_in = xb[:, None] * BN + j[None, :] + (LEFT + jb * J)
    a = x + (n.to(tl.int64) * image + c * height * row)[:, None] + (y_in * row + x_in)
    b = grad + (n.to(tl.int64) * grad_image + c * height * grad_row)[:, None] + (y_out * grad_row + x_out)
    column_groups, image_groups = tl.cdiv(column_blocks, BLOCK_COLUMNS), tl.cdiv(num_images, IMAGES)
    groups = tl.cdiv(tl.maximum(number, 0), BLOCK_ROWS) * image_groups * column_groups
    share = tl.cdiv(groups, splits)
    total = tl.zeros((S * J, R * BN), tl.float32)
    for group in range(split * share, tl.minimum((split + 1) * share, groups)):
        dx = group % column_groups * (BLOCK_COLUMNS * BN)
        first = group // column_groups % image_groups * IMAGES
        dy = group // (column_groups * image_groups) * (BLOCK_ROWS * R)
        a_mask = _inside(y_in + dy, height) & _inside(x_in + dx, row)
        b_mask = _inside(y_out + dy, height) & _inside(x_out + dx, grad_row)
        if not WHOLE:
            there = (n + first < num_images)[:, None]
            a_mask, b_mask = a_mask & there, b_mask & there
        total = _accumulate(
            a + (first.to(tl.int64) * image + (dy * row + dx)), num_images * image, a_mask,
            b + (first.to(tl.int64) * grad_image + (dy * grad_row + dx)), num_images * grad_image, b_mask,
            total, PLANES, True,
        )  # fmt: skip
    lag = tl.arange(0, LAGS_Y * LAGS_X)
    skipped = tl.maximum(-first_column - jb * J, 0)
    at_s = (lag // LAGS_X)[:, None] - (R - 1) + r[None, :]
    at_j = (lag % LAGS_X)[:, None] + skipped - (BN - 1) + i[None, :]
    inside = (at_s >= 0) & (at_s < S) & (at_j >= 0) & (at_j < J)
    found = tl.gather(total, tl.where(inside, at_s * J + at_j, 0), 0)
    tl.store(parts + block.to(tl.int64) * (LAGS_Y * LAGS_X) + lag, tl.sum(tl.where(inside, found, 0.0), 1))


@triton.jit(do_not_specialize=SIZES)
def collect(
    parts, target, rows, columns, steps, first_line, first_column, splits,
    R: tl.constexpr, BN: tl.constexpr, S: tl.constexpr, J: tl.constexpr, NX: tl.constexpr,
    LAGS_Y: tl.constexpr, LAGS_X: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Add up the diagonals that are one row of taps: of all steps, columns and splits, in that order."""
    block = tl.program_id(0)
    blocks = tl.cdiv(columns, BK)
    c, ky = (block // (blocks * rows)).to(tl.int64), block // blocks % rows
    kx = block % blocks * BK + tl.arange(0, BK)
    total = tl.zeros((BK,), tl.float32)
    for step in range(steps):
        ly = ky - first_line - step * S
        if (ly >= 0) & (ly < S + R - 1):
            for jb in range(NX):
                first = tl.maximum(first_column + jb * J, 0)
                inside = (kx >= first) & (kx < first_column + jb * J + J + BN - 1)
                for split in range(splits):
                    part = ((c * steps + step) * NX + jb) * splits + split
                    at = part * (LAGS_Y * LAGS_X) + ly * LAGS_X + kx - first
                    total += tl.load(parts + at, mask=inside, other=0.0)
    tl.store(target + (c * rows + ky) * columns + kx, total.to(target.dtype.element_ty), mask=kx < columns)
