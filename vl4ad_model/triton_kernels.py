"""The Triton kernel behind `triton_scoring`. Importing this module needs Triton."""

import triton
import triton.language as tl

# Where the words end changes with every prompt: a kernel specialised on it would be compiled again.
changing = ("count", "height", "width", "classes", "first_known", "last_known")


@triton.jit
def _add(total, logits, high, low, HALVES: tl.constexpr):
    """total + sigmoid(logits) @ (high + low)."""
    scores = tl.sigmoid(logits)
    if HALVES:
        # Three products of halves keep 22 bits: about what float32 keeps, on units that are twice as fast.
        top = scores.to(tl.float16)
        rest = (scores - top.to(tl.float32)).to(tl.float16)
        return tl.dot(rest, high, tl.dot(top, low, tl.dot(top, high, total)))
    return tl.dot(scores, high, total, input_precision="tf32x3")


@triton.jit(do_not_specialize=changing)
def score_maps(
    masks, matrix, labels, anomaly, count, h, w, height, width, classes, first_known, last_known,
    ROWS: tl.constexpr, CELLS: tl.constexpr, QUERIES: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """One row of output, 4 pixels for each of CELLS columns of the masks; a mask is four times as small as the map.

    masks (count, h, w); matrix (queries, ROWS) float32, zero where there is no query or no row.
    """
    across = tl.cdiv(width, 4 * CELLS)
    y = tl.program_id(0) // across
    start = (tl.program_id(0) % across) * CELLS
    # Bilinear, align_corners=False: the centre of row y lies at (y + 1/2) / 4 - 1/2.
    position = tl.maximum((y + 0.5) * 0.25 - 0.5, 0.0)
    above = position.to(tl.int32)
    below = tl.minimum(above + 1, h - 1)
    down = position - above
    middle = start + tl.arange(0, CELLS)
    inside = middle < w
    left = tl.maximum(middle - 1, 0)
    right = tl.minimum(middle + 1, w - 1)
    queries = tl.arange(0, QUERIES)
    rows = tl.arange(0, ROWS)
    first = tl.zeros((CELLS, ROWS), tl.float32)
    second = tl.zeros((CELLS, ROWS), tl.float32)
    third = tl.zeros((CELLS, ROWS), tl.float32)
    fourth = tl.zeros((CELLS, ROWS), tl.float32)
    for query in range(0, count, QUERIES):
        which = query + queries
        there = inside[:, None] & (which < count)[None, :]
        upper = masks + (which.to(tl.int64) * h + above)[None, :] * w
        lower = masks + (which.to(tl.int64) * h + below)[None, :] * w
        a = tl.load(upper + left[:, None], mask=there, other=0.0).to(tl.float32)
        a += down * (tl.load(lower + left[:, None], mask=there, other=0.0).to(tl.float32) - a)
        b = tl.load(upper + middle[:, None], mask=there, other=0.0).to(tl.float32)
        b += down * (tl.load(lower + middle[:, None], mask=there, other=0.0).to(tl.float32) - b)
        c = tl.load(upper + right[:, None], mask=there, other=0.0).to(tl.float32)
        c += down * (tl.load(lower + right[:, None], mask=there, other=0.0).to(tl.float32) - c)
        of_classes = tl.load(matrix + which[:, None] * ROWS + rows[None, :])
        if HALVES:
            high = of_classes.to(tl.float16)
            low = (of_classes - high.to(tl.float32)).to(tl.float16)
        else:
            high = of_classes
            low = of_classes
        first = _add(first, a + 0.625 * (b - a), high, low, HALVES)
        second = _add(second, a + 0.875 * (b - a), high, low, HALVES)
        third = _add(third, b + 0.125 * (c - b), high, low, HALVES)
        fourth = _add(fourth, b + 0.375 * (c - b), high, low, HALVES)
    labelled = (rows < classes)[None, :]
    known = ((rows >= first_known) & (rows < last_known))[None, :]
    lowest = float("-inf")
    even = tl.interleave(tl.argmax(tl.where(labelled, first, lowest), axis=1), tl.argmax(tl.where(labelled, third, lowest), axis=1))
    odd = tl.interleave(
        tl.argmax(tl.where(labelled, second, lowest), axis=1), tl.argmax(tl.where(labelled, fourth, lowest), axis=1)
    )
    best_even = tl.interleave(tl.max(tl.where(known, first, lowest), axis=1), tl.max(tl.where(known, third, lowest), axis=1))
    best_odd = tl.interleave(tl.max(tl.where(known, second, lowest), axis=1), tl.max(tl.where(known, fourth, lowest), axis=1))
    x = 4 * start + tl.arange(0, 4 * CELLS)
    place = y.to(tl.int64) * width + x
    tl.store(labels + place, tl.interleave(even, odd).to(tl.uint8), mask=x < width)
    tl.store(anomaly + place, 1.0 - tl.interleave(best_even, best_odd), mask=x < width)
