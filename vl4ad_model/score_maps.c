/* Masks to label and anomaly map in one pass: upsample by four (bilinear, or along the image's edges as network/upsampling.py says),
 * sigmoid, class combination, argmax and score, without ever holding N x H x W. The same equations as scoring.py's tiles, for the one
 * case that real-time models use: network size out, float32, CPU.
 *
 * The four horizontal positions between two mask columns are handled as four planes, so that every inner loop runs over
 * neighbouring floats; results are interleaved at the very end, when they are two numbers per pixel. In most places most masks are
 * nothing and most classes cannot win: interval arithmetic over a block of the small masks says which are left out (see `select_for`).
 * Plain C with GCC's vector types: one source for every CPU that GCC or Clang knows.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* What the processor's registers hold: compilers take longer vectors apart, comparisons even number by number. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define BLOCK 2 /* rows of the class matrix come in multiples of this */
#define COLUMNS (2 * LANES) /* mask columns of a block */
#define STRIDE (3 * LANES)
#define LEFT_OUT 4e-6f /* all masks together that are left out add at most this share of the largest class score */
typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef float uvf __attribute__((vector_size(4 * LANES), aligned(4)));

static inline vf splat(float x) { return x - (vf){0}; }
static inline vf choose(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

/* 1 / (1 + exp(-x)) to about 2e-7; NaN stays NaN. */
static inline vf sigmoid(vf x)
{
    const vf limit = splat(87.0f), magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    x = choose(x > limit, limit, x);
    x = choose(x < -limit, -limit, x);
    vf t = x * -1.44269504088896341f;
    vf shifted = t + magic;
    vf f = t - (shifted - magic); /* in [-1/2, 1/2] */
    vf p = splat(1.32647271e-3f); /* 2^f to 1e-7, least largest relative error */
    p = p * f + 9.67151264e-3f;
    p = p * f + 5.55073374e-2f;
    p = p * f + 2.40222421e-1f;
    p = p * f + 6.93146978e-1f;
    p = p * f + 1.0f;
    vf scale = (vf)(((vi)shifted << 23) + 0x3f800000);
    return 1.0f / (1.0f + p * scale);
}

/* Largest and least of floats first..last of two rows. */
static inline void extent(const float *a, const float *b, int first, int last, float *largest, float *least)
{
    float high[LANES], low[LANES];
    if (last - first >= LANES) {
        vf most = *(const uvf *)(a + first), few = most;
        for (int x = first;; x += LANES) {
            if (x > last - LANES) /* the last vector overlaps the one before */
                x = last - LANES;
            vf u = *(const uvf *)(a + x), v = *(const uvf *)(b + x);
            vf more = choose(u > v, u, v), less = choose(u > v, v, u);
            most = choose(more > most, more, most);
            few = choose(less < few, less, few);
            if (x == last - LANES)
                break;
        }
        memcpy(high, &most, sizeof high);
        memcpy(low, &few, sizeof low);
    } else {
        for (int k = 0; k < LANES; k++) {
            const int x = first + k < last ? first + k : last - 1;
            high[k] = a[x] > b[x] ? a[x] : b[x];
            low[k] = a[x] > b[x] ? b[x] : a[x];
        }
    }
    for (int half = LANES / 2; half; half /= 2)
        for (int k = 0; k < half; k++) {
            high[k] = high[k] > high[k + half] ? high[k] : high[k + half];
            low[k] = low[k] < low[k + half] ? low[k] : low[k + half];
        }
    *largest = high[0];
    *least = low[0];
}

#define FOR_LABEL (1 << 16)
#define FOR_KNOWN (1 << 17)
#define FOR_REST (1 << 18) /* normalized score only: what is not known; never left out */

struct job {
    const float *masks, *matrix;
    int n, h, w, rows, label_rows, known_first, known_last, width;
    float unclaimed; /* < 0: the score is 1 - max; else the normalized one, of a known row and one of the rest */
    const uint8_t *image; /* (image_height, image_width, 3) that the masks' edges follow; NULL = bilinear */
    int image_height, image_width;
    float tolerance; /* its square, in grey levels */
    uint8_t *labels;
    float *anomaly, *memory;
    int band_rows;
};

/* What one block of columns needs: masks, rows of the class matrix (with what for), and that part of the matrix. */
struct choice {
    int *masks, *rows;
    float *matrix;
    int mask_count, row_count;
};

static inline int use_of(const struct job *job, int row)
{
    const int inside = row >= job->known_first && row < job->known_last;
    return (row < job->label_rows ? FOR_LABEL : 0) | (!inside ? 0 : job->unclaimed >= 0 && row > job->known_first ? FOR_REST : FOR_KNOWN);
}

/* Choose for the pixels between mask rows above and below (offsets) and columns first..last. A class is left out whose score can
 * nowhere reach what another surely has everywhere; masks that together add at most LEFT_OUT of the largest class score are, too.
 * log_all and log_label: logarithm of each mask's largest class probability, of all rows and of those for the label.
 * room: 4 floats per mask (each part padded to LANES) and 2 per row.
 */
static void select_for(const struct job *job, size_t above, size_t below, int first, int last, const float *log_all,
                       const float *log_label, float *room, struct choice *choice)
{
    const int n = job->n, rows = job->rows, even = (n + LANES - 1) / LANES * LANES;
    const size_t plane = (size_t)job->h * job->w;
    float *largest = room, *least = largest + even, *upper = least + even, *lower = upper + rows;
    float surely = -INFINITY;
    for (int i = 0; i < n; i++) {
        extent(job->masks + i * plane + above, job->masks + i * plane + below, first, last, &largest[i], &least[i]);
        /* log(sigmoid(x)) is between min(x, 0) - log(2) and min(x, 0) */
        const float here = log_label[i] + (least[i] < 0 ? least[i] : 0) - 0.6931472f;
        surely = here > surely ? here : surely;
    }
    const float limit = surely + logf(LEFT_OUT / n);
    choice->mask_count = 0;
    for (int i = 0; i < n; i++)
        if (log_all[i] + (largest[i] < 0 ? largest[i] : 0) >= limit)
            choice->masks[choice->mask_count++] = i;

    for (int i = 0; i < even; i += LANES) {
        *(uvf *)(largest + i) = sigmoid(*(uvf *)(largest + i));
        *(uvf *)(least + i) = sigmoid(*(uvf *)(least + i));
    }
    memset(upper, 0, sizeof(float) * 2 * rows);
    for (int i = 0; i < n; i++) {
        const float *restrict c = job->matrix + (size_t)i * rows;
        const float high = largest[i], low = least[i];
        for (int row = 0; row < rows; row++) {
            upper[row] += c[row] * high;
            lower[row] += c[row] * low;
        }
    }
    float best = 0, known = 0;
    for (int row = 0; row < rows; row++) {
        const int use = use_of(job, row);
        best = use & FOR_LABEL && lower[row] > best ? lower[row] : best;
        known = use & FOR_KNOWN && lower[row] > known ? lower[row] : known;
    }
    choice->row_count = 0;
    for (int row = 0; row < rows; row++) {
        int use = use_of(job, row);
        const float reach = upper[row] * 1.0001f; /* far more than rounding and LEFT_OUT can do */
        use &= (reach >= best ? FOR_LABEL : 0) | (reach >= known ? FOR_KNOWN : 0) | FOR_REST;
        if (use)
            choice->rows[choice->row_count++] = row | use;
    }
}

static void select_all(const struct job *job, struct choice *choice)
{
    choice->mask_count = job->n;
    for (int i = 0; i < job->n; i++)
        choice->masks[i] = i;
    choice->row_count = 0;
    for (int row = 0; row < job->rows; row++)
        if (use_of(job, row))
            choice->rows[choice->row_count++] = row | use_of(job, row);
}

static void gather_matrix(const struct job *job, struct choice *choice)
{
    const int wide = (choice->row_count + BLOCK - 1) / BLOCK * BLOCK;
    for (int k = 0; k < choice->mask_count; k++)
        for (int r = 0; r < wide; r++)
            choice->matrix[(size_t)k * wide + r] =
                r < choice->row_count ? job->matrix[(size_t)choice->masks[k] * job->rows + (choice->rows[r] & 0xffff)] : 0;
}

struct winner {
    vf best[2], known[2], rest[2];
    vi label[2];
};

/* `many` rows from `first`: their scores, and who wins so far. Inlined for each constant `many`. */
static inline __attribute__((always_inline)) void combine(const struct choice *choice, int wide, int first, const int many,
                                                          const float *s, struct winner *now)
{
    vf sum[12][2];
    for (int r = 0; r < many; r++)
        sum[r][0] = sum[r][1] = splat(0);
    for (int k = 0; k < choice->mask_count; k++) {
        const float *c = choice->matrix + (size_t)k * wide + first;
        vf s0 = *(const vf *)(s + (size_t)k * COLUMNS), s1 = *(const vf *)(s + (size_t)k * COLUMNS + LANES);
        for (int r = 0; r < many; r++) {
            sum[r][0] += c[r] * s0;
            sum[r][1] += c[r] * s1;
        }
    }
    for (int r = 0; r < many && first + r < choice->row_count; r++) {
        const int row = choice->rows[first + r] & 0xffff, use = choice->rows[first + r];
        for (int half = 0; half < 2; half++) {
            if (use & FOR_LABEL) {
                vi better = sum[r][half] > now->best[half];
                now->best[half] = choose(better, sum[r][half], now->best[half]);
                now->label[half] = (better & row) | (~better & now->label[half]);
            }
            if (use & FOR_KNOWN) /* written so that NaN is kept */
                now->known[half] = choose(now->known[half] >= sum[r][half], now->known[half], sum[r][half]);
            if (use & FOR_REST)
                now->rest[half] = sum[r][half];
        }
    }
}

static inline void blend_rows(const float *a, const float *b, float blend, int first, int last, float *out)
{
    if (last - first < LANES) {
        for (int x = first; x < last; x++)
            out[x - first] = a[x] + blend * (b[x] - a[x]);
        return;
    }
    for (int x = first;; x += LANES) {
        if (x > last - LANES)
            x = last - LANES;
        vf u = *(const uvf *)(a + x), v = *(const uvf *)(b + x);
        *(uvf *)(out + x - first) = u + blend * (v - u);
        if (x == last - LANES)
            break;
    }
}

static int all_finite(const float *values, size_t count)
{
    vf sum = splat(0);
    size_t x = 0;
    for (; x + LANES <= count; x += LANES)
        sum += *(const uvf *)(values + x) * 0.0f;
    float total = 0;
    for (; x < count; x++)
        total += values[x] * 0.0f;
    for (int k = 0; k < LANES; k++)
        total += sum[k];
    return total == 0;
}

/* The image around a band of rows: the mean colours of cells, and one row of pixels, apart by their place in their cell. */
struct guide {
    float *cells; /* [3][cell rows][wide]: column x is at x + 1, and the ends are repeated */
    float *pixels; /* [4][3][padded]: place in the cell, colour */
    int first, rows, wide, padded;
};

static void mean_colours(const struct job *job, struct guide *guide, int first, int last, uint16_t *sums)
{
    const int pixels = 4 * job->w, inside = job->image_width < pixels ? job->image_width : pixels;
    guide->first = first;
    guide->rows = last - first;
    for (int row = first; row < last; row++) {
        memset(sums, 0, sizeof(uint16_t) * 3 * pixels);
        for (int k = 0; k < 4; k++) {
            const int y = 4 * row + k < job->image_height ? 4 * row + k : job->image_height - 1;
            const uint8_t *restrict line = job->image + (size_t)y * job->image_width * 3;
            for (int x = 0; x < 3 * inside; x++)
                sums[x] += line[x];
        }
        for (int x = 3 * inside; x < 3 * pixels; x++)
            sums[x] = sums[x - 3];
        for (int c = 0; c < 3; c++) {
            float *restrict out = guide->cells + ((size_t)c * guide->rows + row - first) * guide->wide + 1;
            for (int x = 0; x < job->w; x++)
                out[x] = (sums[12 * x + c] + sums[12 * x + 3 + c] + sums[12 * x + 6 + c] + sums[12 * x + 9 + c]) * 0.0625f;
            out[-1] = out[0];
            for (int x = job->w; x < guide->wide - 1; x++)
                out[x] = out[job->w - 1];
        }
    }
}

typedef uint32_t word __attribute__((aligned(1), may_alias)); /* four numbers of an image, wherever they begin */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NUMBER(word, k) (float)(int32_t)((word) >> 8 * (k) & 255)
#else
#define NUMBER(word, k) (float)(int32_t)((word) >> (24 - 8 * (k)) & 255)
#endif

static void spread_pixels(const struct job *job, struct guide *guide, int y)
{
    const uint8_t *line = job->image + (size_t)(y < job->image_height ? y : job->image_height - 1) * job->image_width * 3;
    const int inside = job->image_width / 4 < guide->padded ? job->image_width / 4 : guide->padded;
    const word *cells = (const word *)line; /* the row of a cell: four pixels, three words */
    for (int third = 0; third < 3; third++) {
        float *restrict out = guide->pixels + (size_t)4 * third * guide->padded;
        for (int x = 0; x < inside; x++) {
            const uint32_t four = cells[3 * x + third];
            out[x] = NUMBER(four, 0);
            out[x + guide->padded] = NUMBER(four, 1);
            out[x + 2 * guide->padded] = NUMBER(four, 2);
            out[x + 3 * guide->padded] = NUMBER(four, 3);
        }
    }
    for (int plane = 0; plane < 12; plane++) {
        const int phase = plane / 3, c = plane % 3;
        for (int x = inside; x < guide->padded; x++)
            guide->pixels[(size_t)plane * guide->padded + x] =
                line[3 * (4 * x + phase < job->image_width ? 4 * x + phase : job->image_width - 1) + c];
    }
}

/* Weights of the four cells around the pixels of one phase, LANES columns from x: cells of rows above and below, columns from x + shift
 * - 1 and from x + shift. down, across: the bilinear shares of the lower and the right ones. */
static inline void weigh(const struct guide *guide, float tolerance, int above, int below, int x, int phase, int shift, float down,
                         float across, vf out[4])
{
    vf apart[4] = {splat(tolerance), splat(tolerance), splat(tolerance), splat(tolerance)};
    for (int c = 0; c < 3; c++) {
        const vf pixel = *(const uvf *)(guide->pixels + (size_t)(3 * phase + c) * guide->padded + x);
        const float *upper = guide->cells + ((size_t)c * guide->rows + above - guide->first) * guide->wide + x + shift;
        const float *lower = guide->cells + ((size_t)c * guide->rows + below - guide->first) * guide->wide + x + shift;
        for (int k = 0; k < 4; k++) {
            const vf off = *(const uvf *)((k < 2 ? upper : lower) + (k & 1)) - pixel;
            apart[k] += off * off;
        }
    }
    /* One division instead of five; the products stay far below what a float holds. */
    const vf top = apart[0] * apart[1], bottom = apart[2] * apart[3];
    out[0] = ((1 - down) * (1 - across)) * (apart[1] * bottom);
    out[1] = ((1 - down) * across) * (apart[0] * bottom);
    out[2] = (down * (1 - across)) * (apart[3] * top);
    out[3] = (down * across) * (apart[2] * top);
    const vf whole = 1.0f / (out[0] + out[1] + out[2] + out[3]);
    for (int k = 0; k < 4; k++)
        out[k] *= whole;
}

/* Columns begin..end of a mask's row to where column x - 1 is the first; beyond the ends the last one is repeated. */
static inline void copy_columns(const float *row, int x, int begin, int end, int w, float *out)
{
    memcpy(out + (begin - (x - 1)), row + begin, sizeof(float) * (end - begin));
    if (x == 0)
        out[0] = out[1];
    if (end == w)
        out[w - (x - 1)] = out[w - x];
}

/* Rows of the class matrix must be a multiple of this. */
int vl4ad_block(void) { return BLOCK; }

static size_t floats_needed(const struct job *job)
{
    const size_t blocks = (job->w + COLUMNS - 1) / COLUMNS;
    const size_t n = job->n, rows = job->rows;
    const size_t plain = n * (2 * STRIDE + 2 * COLUMNS + 4) + 2 * LANES + 8 * blocks * COLUMNS + 2 * rows + blocks * (n + rows + n * rows);
    if (!job->image)
        return plain;
    return plain + 3 * ((size_t)(job->band_rows / 4 + 4) * (blocks * COLUMNS + 2) + 4 * blocks * COLUMNS + 2 * job->w);
}

/* Output rows top..bottom. */
static void score_rows(const struct job *job, int top, int bottom)
{
    const float *masks = job->masks, *matrix = job->matrix;
    const int n = job->n, h = job->h, w = job->w, rows = job->rows, label_rows = job->label_rows, width = job->width;
    const int blocks = (w + COLUMNS - 1) / COLUMNS, padded = blocks * COLUMNS;
    const size_t plane = (size_t)h * w, planes = (size_t)4 * padded;
    float *blended = job->memory, *lower = blended + (size_t)n * STRIDE, *s = lower + (size_t)n * STRIDE;
    float *anomaly_planes = s + (size_t)2 * n * COLUMNS;
    int32_t *label_planes = (int32_t *)(anomaly_planes + planes);
    float *log_all = (float *)(label_planes + planes), *log_label = log_all + n;
    float *room = log_label + n, *next = room + 2 * (n + LANES) + 2 * rows;
    struct choice choices[blocks];
    for (int b = 0; b < blocks; b++, next += (size_t)n * rows + n + rows)
        choices[b] = (struct choice){(int *)(next + (size_t)n * rows), (int *)(next + (size_t)n * rows + n), next, 0, 0};
    memset(blended, 0, sizeof(float) * 2 * n * STRIDE);

    int usable = all_finite(matrix, (size_t)n * rows); /* what is no number is never left out */
    const int source_top = top / 4 > 0 ? top / 4 - 1 : 0, source_bottom = bottom / 4 + 2 < h ? bottom / 4 + 2 : h;
    for (int i = 0; i < n; i++) {
        usable &= all_finite(masks + i * plane + (size_t)source_top * w, (size_t)(source_bottom - source_top) * w);
        float all = 0, label = 0;
        for (int row = 0; row < rows; row++) {
            const float c = matrix[(size_t)i * rows + row];
            all = c > all ? c : all;
            label = row < label_rows && c > label ? c : label;
        }
        log_all[i] = logf(all);
        log_label[i] = logf(label);
    }

    struct guide guide = {.wide = padded + 2, .padded = padded};
    if (job->image) {
        guide.cells = next;
        guide.pixels = guide.cells + (size_t)3 * (job->band_rows / 4 + 4) * guide.wide;
        mean_colours(job, &guide, source_top, source_bottom, (uint16_t *)(guide.pixels + (size_t)12 * padded));
    }

    int last_above = -1, last_below = -1;
    for (int y = top; y < bottom; y++) {
        float position = (y + 0.5f) * 0.25f - 0.5f;
        if (position < 0)
            position = 0;
        int above = (int)position < h - 1 ? (int)position : h - 1;
        int below = above + 1 < h ? above + 1 : h - 1;
        float blend = position - above;
        const int fresh = above != last_above || below != last_below;
        last_above = above;
        last_below = below;
        if (job->image)
            spread_pixels(job, &guide, y);
        for (int x = 0; x < padded; x += COLUMNS) {
            const int begin = x > 0 ? x - 1 : 0, end = x + COLUMNS + 1 < w ? x + COLUMNS + 1 : w;
            struct choice *choice = choices + x / COLUMNS;
            if (fresh) {
                if (usable)
                    select_for(job, (size_t)above * w, (size_t)below * w, begin, end, log_all, log_label, room, choice);
                else
                    select_all(job, choice);
                gather_matrix(job, choice);
            }
            const int m = choice->mask_count;
            for (int k = 0; k < m; k++) {
                const float *mask = masks + choice->masks[k] * plane;
                float *out = blended + (size_t)k * STRIDE; /* out[j] is column x - 1 + j; the ends are repeated */
                if (job->image) {
                    copy_columns(mask + (size_t)above * w, x, begin, end, w, out);
                    copy_columns(mask + (size_t)below * w, x, begin, end, w, lower + (size_t)k * STRIDE);
                    continue;
                }
                blend_rows(mask + (size_t)above * w, mask + (size_t)below * w, blend, begin, end, out + (begin - (x - 1)));
                if (x == 0)
                    out[0] = out[1];
                if (end == w)
                    out[w - (x - 1)] = out[w - x];
            }
            for (int phase = 0; phase < 4; phase++) {
                const int shift = phase < 2 ? 0 : 1;
                const float mix = (float[]){0.625f, 0.875f, 0.125f, 0.375f}[phase];
                float *of_phase = s + (size_t)(phase & 1) * n * COLUMNS;
                if (phase % 2 == 0 && job->image) { /* two phases at once: they have their cells in common */
                    for (int half = 0; half < 2; half++) {
                        vf one[4], two[4];
                        weigh(&guide, job->tolerance, above, below, x + half * LANES, phase, shift, blend, mix, one);
                        weigh(&guide, job->tolerance, above, below, x + half * LANES, phase + 1, shift, blend, mix + 0.25f, two);
                        for (int k = 0; k < m; k++) {
                            const float *u = blended + (size_t)k * STRIDE + shift + half * LANES, *v = u + (lower - blended);
                            const vf a = *(const uvf *)u, b = *(const uvf *)(u + 1), c = *(const uvf *)v, d = *(const uvf *)(v + 1);
                            float *out = s + (size_t)k * COLUMNS + half * LANES;
                            *(vf *)out = sigmoid(one[0] * a + one[1] * b + one[2] * c + one[3] * d);
                            *(vf *)(out + (size_t)n * COLUMNS) = sigmoid(two[0] * a + two[1] * b + two[2] * c + two[3] * d);
                        }
                    }
                }
                for (int k = 0; !job->image && k < m; k++) {
                    const float *v = blended + (size_t)k * STRIDE + shift;
                    for (int half = 0; half < 2; half++) {
                        vf left = *(const uvf *)(v + half * LANES), right = *(const uvf *)(v + half * LANES + 1);
                        *(vf *)(of_phase + (size_t)k * COLUMNS + half * LANES) = sigmoid(left + mix * (right - left));
                    }
                }
                struct winner now = {{splat(-1), splat(-1)}, {splat(-1), splat(-1)}, {{0}, {0}}, {{0}, {0}}};
                const int wide = (choice->row_count + BLOCK - 1) / BLOCK * BLOCK;
                for (int first = 0; first < wide;) {
                    if (wide - first >= 12) {
                        combine(choice, wide, first, 12, of_phase, &now);
                        first += 12;
                    } else if (wide - first >= 8) {
                        combine(choice, wide, first, 8, of_phase, &now);
                        first += 8;
                    } else if (wide - first >= 4) {
                        combine(choice, wide, first, 4, of_phase, &now);
                        first += 4;
                    } else {
                        combine(choice, wide, first, 2, of_phase, &now);
                        first += 2;
                    }
                }
                for (int half = 0; half < 2; half++) {
                    const vf rest = now.rest[half] + job->unclaimed;
                    *(uvf *)(anomaly_planes + (size_t)phase * padded + x + half * LANES) =
                        job->unclaimed < 0 ? 1.0f - now.known[half] : rest / (now.known[half] + rest);
                    memcpy(label_planes + (size_t)phase * padded + x + half * LANES, &now.label[half], sizeof(vi));
                }
            }
        }
        uint8_t *restrict label_row = job->labels + (size_t)y * width;
        float *restrict anomaly_row = job->anomaly + (size_t)y * width;
        for (int x = 0; x < width / 4; x++)
            for (int phase = 0; phase < 4; phase++) {
                label_row[4 * x + phase] = (uint8_t)label_planes[(size_t)phase * padded + x];
                anomaly_row[4 * x + phase] = anomaly_planes[(size_t)phase * padded + x];
            }
        for (int x = width / 4 * 4; x < width; x++) {
            label_row[x] = (uint8_t)label_planes[(size_t)(x & 3) * padded + (x >> 2)];
            anomaly_row[x] = anomaly_planes[(size_t)(x & 3) * padded + (x >> 2)];
        }
    }
}

/* Bands of band_rows output rows, one after another, until *next has counted them all: threads that call this with the same `next`
 * share the work, and one that the system does not let run holds up no other.
 *
 * masks: (n, h, w) logits. matrix: (n, rows) class probabilities, rows a multiple of BLOCK, zero-padded: columns 0..label_rows are the
 * classes among which the label is the first largest, known_first..known_last those of the anomaly score: 1 - max of them where
 * unclaimed < 0, else two, known and rest, of which it is (rest + unclaimed) / (known + rest + unclaimed). labels, anomaly:
 * (height, width), height <= 4 h, width <= 4 w. image: (image_height, image_width, 3) RGB that the masks' edges follow, and tolerance in
 * grey levels; NULL = bilinear. Returns 0, or 1 when memory ran out.
 */
int vl4ad_score(const float *masks, int n, int h, int w, const float *matrix, int rows, int label_rows, int known_first,
                int known_last, int height, int width, float unclaimed, const uint8_t *image, int image_height, int image_width,
                float tolerance, uint8_t *labels, float *anomaly, int band_rows, int *next)
{
    struct job job = {.masks = masks, .matrix = matrix, .n = n, .h = h, .w = w, .rows = rows, .label_rows = label_rows,
                      .known_first = known_first, .known_last = known_last, .width = width, .unclaimed = unclaimed, .image = image,
                      .image_height = image_height, .image_width = image_width, .tolerance = tolerance * tolerance,
                      .labels = labels, .anomaly = anomaly, .band_rows = band_rows};
    if (posix_memalign((void **)&job.memory, 64, sizeof(float) * floats_needed(&job)))
        return 1;
    for (;;) {
        const long top = (long)__atomic_fetch_add(next, 1, __ATOMIC_RELAXED) * band_rows;
        if (top >= height)
            break;
        score_rows(&job, (int)top, top + band_rows < height ? (int)top + band_rows : height);
    }
    free(job.memory);
    return 0;
}
