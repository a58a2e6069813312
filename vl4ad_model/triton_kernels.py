"""The Triton kernels behind `triton_scoring` and `triton_attention`. Importing this module needs Triton."""

import triton
import triton.language as tl

# Triton compiles again for a number or an address that is, or is not, a multiple of 16. Where the words end changes with every
# prompt, where the masks of an image begin with its place in the batch, and no image may wait for a compiler.
_CHANGING = (
    "masks", "count", "h", "w", "height", "width", "classes", "first_known", "last_known", "unclaimed",
    "image", "colours", "image_width", "tolerance",
)  # fmt: skip


@triton.jit
def _add(total, logits, high, low):
    """total + 2^13 sigmoid(logits) @ (high + low).

    Three products of halves keep 22 bits, about what float32 keeps: of numbers from 2^-12 to 2^15, hence the factor.
    """
    scores = tl.sigmoid(logits) * 8192.0
    top = scores.to(tl.float16)
    rest = (scores - top.to(tl.float32)).to(tl.float16)
    total = tl.dot(top, high, total)
    total = tl.dot(top, low, total)
    return tl.dot(rest, high, total)


@triton.jit
def _apart(colours, plane, cells, red, green, blue, inside):
    """Squared distance of pixels from the colours of cells."""
    r = tl.load(colours + cells, mask=inside, other=0.0) - red
    g = tl.load(colours + plane + cells, mask=inside, other=0.0) - green
    b = tl.load(colours + 2 * plane + cells, mask=inside, other=0.0) - blue
    return r * r + g * g + b * b


@triton.jit
def _weights(image, image_width, x, y, colours, plane, above, below, left, right, down, share, tolerance, inside):
    """Shares of the upper left, upper right, lower left and lower right cell in pixels x of row y; tolerance: its square."""
    place = image + (y * image_width + x) * 3
    red = tl.load(place, mask=inside, other=0).to(tl.float32)
    green = tl.load(place + 1, mask=inside, other=0).to(tl.float32)
    blue = tl.load(place + 2, mask=inside, other=0).to(tl.float32)
    a = (1 - down) * (1 - share) / (tolerance + _apart(colours, plane, above + left, red, green, blue, inside))
    b = (1 - down) * share / (tolerance + _apart(colours, plane, above + right, red, green, blue, inside))
    c = down * (1 - share) / (tolerance + _apart(colours, plane, below + left, red, green, blue, inside))
    d = down * share / (tolerance + _apart(colours, plane, below + right, red, green, blue, inside))
    whole = a + b + c + d
    return (a / whole)[:, None], (b / whole)[:, None], (c / whole)[:, None], (d / whole)[:, None]


@triton.jit(do_not_specialize=_CHANGING)
def score_maps(
    masks, matrix, labels, anomaly, count, h, w, height, width, classes, first_known, last_known, unclaimed,
    image, colours, image_width, tolerance, GUIDED: tl.constexpr,
    ROWS: tl.constexpr, PAIRS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """PAIRS pairs of pixels in one row of the maps, which are four times as large as the masks.

    masks (count, h, w); matrix (queries, ROWS) float32, zero where there is no query or no row. unclaimed < 0: 1 - max of rows
    first_known..last_known; else the normalized score of two rows, what is known and what is not. GUIDED: masks along the edges of
    an image (at least height, image_width, 3) uint8, with the mean colours (3, h, w) of their cells and the square of a tolerance.
    """
    across = tl.cdiv(width, 2 * PAIRS)
    y = tl.program_id(0) // across
    start = (tl.program_id(0) % across) * PAIRS
    # Bilinear, align_corners=False: the centre of row y lies at (y + 1/2) / 4 - 1/2. Both pixels of a pair lie between the same
    # two columns: 5/8 and 7/8 of the way for an even pair, 1/8 and 3/8 for an odd one.
    position = tl.maximum((y + 0.5) * 0.25 - 0.5, 0.0)
    above = position.to(tl.int32)
    below = tl.minimum(above + 1, h - 1)
    down = position - above
    pair = start + tl.arange(0, PAIRS)
    inside = 2 * pair < width
    left = (pair + 1) // 2 - 1
    right = tl.minimum(left + 1, w - 1)
    left = tl.maximum(left, 0)
    share = tl.where(pair % 2 == 0, 0.625, 0.125)[:, None]
    if GUIDED:
        even = tl.where(pair % 2 == 0, 0.625, 0.125)
        a0, b0, c0, d0 = _weights(
            image, image_width, 2 * pair, y, colours, h * w, above * w, below * w, left, right, down, even, tolerance, inside
        )
        a1, b1, c1, d1 = _weights(
            image, image_width, 2 * pair + 1, y, colours, h * w, above * w, below * w, left, right, down, even + 0.25, tolerance,
            2 * pair + 1 < width,
        )  # fmt: skip
    queries = tl.arange(0, QUERIES)
    rows = tl.arange(0, ROWS)
    first = tl.zeros((PAIRS, ROWS), tl.float32)
    second = tl.zeros((PAIRS, ROWS), tl.float32)
    for query in range(0, count, QUERIES):
        which = query + queries
        there = inside[:, None] & (which < count)[None, :]
        upper = masks + (which.to(tl.int64) * h + above)[None, :] * w
        lower = masks + (which.to(tl.int64) * h + below)[None, :] * w
        a = tl.load(upper + left[:, None], mask=there, other=0.0).to(tl.float32)
        b = tl.load(upper + right[:, None], mask=there, other=0.0).to(tl.float32)
        c = tl.load(lower + left[:, None], mask=there, other=0.0).to(tl.float32)
        d = tl.load(lower + right[:, None], mask=there, other=0.0).to(tl.float32)
        of_classes = tl.load(matrix + which[:, None] * ROWS + rows[None, :])
        of_classes *= 8192.0
        high = of_classes.to(tl.float16)
        low = (of_classes - high.to(tl.float32)).to(tl.float16)
        if GUIDED:
            first = _add(first, a0 * a + b0 * b + c0 * c + d0 * d, high, low)
            second = _add(second, a1 * a + b1 * b + c1 * c + d1 * d, high, low)
        else:
            a += down * (c - a)
            b += down * (d - b)
            step = b - a
            first = _add(first, a + share * step, high, low)
            second = _add(second, a + (share + 0.25) * step, high, low)
    labelled = (rows < classes)[None, :]
    known = ((rows >= first_known) & (rows < last_known))[None, :]
    lowest = float("-inf")
    label = tl.interleave(
        tl.argmax(tl.where(labelled, first, lowest), axis=1), tl.argmax(tl.where(labelled, second, lowest), axis=1)
    )
    best = tl.interleave(tl.max(tl.where(known, first, lowest), axis=1), tl.max(tl.where(known, second, lowest), axis=1))
    best *= 1.0 / (8192.0 * 8192.0)
    is_known = (rows == first_known)[None, :]
    is_rest = (rows == first_known + 1)[None, :]
    claimed = tl.interleave(tl.sum(tl.where(is_known, first, 0.0), axis=1), tl.sum(tl.where(is_known, second, 0.0), axis=1))
    rest = tl.interleave(tl.sum(tl.where(is_rest, first, 0.0), axis=1), tl.sum(tl.where(is_rest, second, 0.0), axis=1))
    rest = rest * (1.0 / (8192.0 * 8192.0)) + unclaimed
    claimed = claimed * (1.0 / (8192.0 * 8192.0)) + rest
    surprise = tl.where(unclaimed < 0, 1.0 - best, rest / claimed)
    x = 2 * start + tl.arange(0, 2 * PAIRS)
    place = y.to(tl.int64) * width + x
    tl.store(labels + place, label.to(tl.uint8), mask=x < width)
    tl.store(anomaly + place, surprise, mask=x < width)


_SIZES = ("length", "h0", "w0", "h1", "w1", "h2", "w2", "h3", "w3")


@triton.jit(do_not_specialize=_SIZES)
def deformable_sum(
    values, offsets, logits, centres, output, length, h0, w0, h1, w1, h2, w2, h3, w3,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, DEPTH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """One head of TOKENS tokens: softmax of the logits, and the weighted sum of what lies at the places, bilinear, zero outside.

    values, output (B, length, HEADS, DEPTH); offsets (B, length, HEADS, LEVELS, POINTS, 2) in cells, x before y; logits without the
    2; centres (length, 2) float32 in [0, 1]. Levels 0.. are h0 x w0 and so on, one after another in `values`.
    """
    blocks = tl.cdiv(length, TOKENS)
    head = tl.program_id(0) % HEADS
    image = (tl.program_id(0) // HEADS) // blocks
    token = (tl.program_id(0) // HEADS) % blocks * TOKENS + tl.arange(0, TOKENS)
    inside = token < length
    row = (image.to(tl.int64) * length + token) * HEADS + head
    channel = tl.arange(0, DEPTH)
    largest = tl.full((TOKENS,), float("-inf"), tl.float32)
    for point in range(LEVELS * POINTS):
        largest = tl.maximum(largest, tl.load(logits + row * (LEVELS * POINTS) + point, mask=inside, other=0.0).to(tl.float32))
    centre_x = tl.load(centres + token * 2, mask=inside, other=0.0)
    centre_y = tl.load(centres + token * 2 + 1, mask=inside, other=0.0)
    of_image = values + image.to(tl.int64) * length * HEADS * DEPTH + head * DEPTH
    total = tl.zeros((TOKENS, DEPTH), tl.float32)
    weights = tl.zeros((TOKENS,), tl.float32)
    start = 0
    for level in tl.static_range(LEVELS):
        if level == 0:
            h = h0
            w = w0
        elif level == 1:
            h = h1
            w = w1
        elif level == 2:
            h = h2
            w = w2
        else:
            h = h3
            w = w3
        for each in range(POINTS):
            point = level * POINTS + each
            logit = tl.load(logits + row * (LEVELS * POINTS) + point, mask=inside, other=0.0).to(tl.float32)
            weight = tl.exp(logit - largest)
            weights += weight
            place = offsets + (row * (LEVELS * POINTS) + point) * 2
            x = centre_x * w + tl.load(place, mask=inside, other=0.0).to(tl.float32) - 0.5
            y = centre_y * h + tl.load(place + 1, mask=inside, other=0.0).to(tl.float32) - 0.5
            left = tl.floor(x)
            top = tl.floor(y)
            right = x - left
            down = y - top
            # Far outside, an integer would overflow: what is compared is the float.
            in_left = inside & (left >= 0) & (left < w)
            in_right = inside & (left >= -1) & (left < w - 1)
            in_top = (top >= 0) & (top < h)
            in_bottom = (top >= -1) & (top < h - 1)
            cell = (start + tl.where(in_top | in_bottom, top, 0.0).to(tl.int32) * w) + tl.where(in_left | in_right, left, 0.0).to(
                tl.int32
            )
            at = of_image + (cell * (HEADS * DEPTH))[:, None] + channel[None, :]
            a = tl.load(at, mask=(in_left & in_top)[:, None], other=0.0).to(tl.float32)
            b = tl.load(at + HEADS * DEPTH, mask=(in_right & in_top)[:, None], other=0.0).to(tl.float32)
            c = tl.load(at + w * (HEADS * DEPTH), mask=(in_left & in_bottom)[:, None], other=0.0).to(tl.float32)
            d = tl.load(at + (w + 1) * (HEADS * DEPTH), mask=(in_right & in_bottom)[:, None], other=0.0).to(tl.float32)
            total += (weight * (1 - right) * (1 - down))[:, None] * a
            total += (weight * right * (1 - down))[:, None] * b
            total += (weight * (1 - right) * down)[:, None] * c
            total += (weight * right * down)[:, None] * d
        start += h * w
    total = total / weights[:, None]
    place = output + row[:, None] * DEPTH + channel[None, :]
    tl.store(place, total.to(output.dtype.element_ty), mask=inside[:, None])
