/* Masks to label and anomaly map in one pass: upsample by four, sigmoid, class combination, argmax and max, without ever holding
 * N x H x W. The same equations as scoring.py's tiles, for the one case that real-time models use: network size out, float32, CPU.
 *
 * The four horizontal positions between two mask columns are handled as four planes, so that every inner loop runs over
 * neighbouring floats; results are interleaved at the very end, when they are two numbers per pixel. Plain C with GCC's vector
 * types: one source for every CPU that GCC or Clang knows.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define BLOCK 8 /* rows of the class matrix at once: 16 accumulators of two vectors */
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
    vf p = splat(1.53533619e-4f);
    p = p * f + 1.33988744e-3f;
    p = p * f + 9.61843736e-3f;
    p = p * f + 5.55033632e-2f;
    p = p * f + 2.40226478e-1f;
    p = p * f + 6.93147182e-1f;
    p = p * f + 1.0f;
    vf scale = (vf)(((vi)shifted << 23) + 0x3f800000);
    return 1.0f / (1.0f + p * scale);
}

/* Output rows top..bottom.
 *
 * masks: (n, h, w) logits. matrix: (n, rows) class probabilities, rows a multiple of BLOCK, zero-padded: columns 0..label_rows are the
 * classes among which the label is the first largest, known_first..known_last those of the anomaly score. labels, anomaly:
 * (height, width), of which this call writes its rows; height <= 4 h, width <= 4 w. Returns 0, or 1 when memory ran out.
 */
int vl4ad_score(const float *masks, int n, int h, int w, const float *matrix, int rows, int label_rows, int known_first,
                int known_last, int width, int top, int bottom, uint8_t *labels, float *anomaly)
{
    const int padded = (w + 2 * LANES - 1) / (2 * LANES) * (2 * LANES);
    const int stride = padded + 2 * LANES;
    float *memory = NULL;
    const size_t line = (size_t)n * stride, scores = (size_t)n * 2 * LANES, planes = (size_t)4 * padded;
    if (posix_memalign((void **)&memory, 64, sizeof(float) * (line + scores + 2 * planes)))
        return 1;
    float *blended = memory, *s = memory + line, *anomaly_planes = s + scores;
    int32_t *label_planes = (int32_t *)(anomaly_planes + planes);
    memset(blended, 0, sizeof(float) * line);

    for (int y = top; y < bottom; y++) {
        float position = (y + 0.5f) * 0.25f - 0.5f;
        if (position < 0)
            position = 0;
        int above = (int)position < h - 1 ? (int)position : h - 1;
        int below = above + 1 < h ? above + 1 : h - 1;
        float blend = position - above;
        for (int i = 0; i < n; i++) {
            const float *a = masks + ((size_t)i * h + above) * w, *b = masks + ((size_t)i * h + below) * w;
            float *out = blended + (size_t)i * stride + LANES; /* one column beside each end repeats the end */
            for (int x = 0; x < w; x++)
                out[x] = a[x] + blend * (b[x] - a[x]);
            out[-1] = out[0];
            out[w] = out[w - 1];
        }
        for (int x = 0; x < padded; x += 2 * LANES) {
            for (int phase = 0; phase < 4; phase++) {
                const int shift = phase < 2 ? -1 : 0;
                const float mix = (float[]){0.625f, 0.875f, 0.125f, 0.375f}[phase];
                for (int i = 0; i < n; i++) {
                    const float *v = blended + (size_t)i * stride + LANES + x + shift;
                    for (int half = 0; half < 2; half++) {
                        vf left = *(const uvf *)(v + half * LANES), right = *(const uvf *)(v + half * LANES + 1);
                        *(vf *)(s + (size_t)i * 2 * LANES + half * LANES) = sigmoid(left + mix * (right - left));
                    }
                }
                vf best[2] = {splat(-1), splat(-1)}, known[2] = {splat(-1), splat(-1)};
                vi label[2] = {{0}, {0}};
                for (int first = 0; first < rows; first += BLOCK) {
                    vf sum[BLOCK][2];
                    for (int r = 0; r < BLOCK; r++)
                        sum[r][0] = sum[r][1] = splat(0);
                    for (int i = 0; i < n; i++) {
                        const float *c = matrix + (size_t)i * rows + first;
                        vf s0 = *(const vf *)(s + (size_t)i * 2 * LANES), s1 = *(const vf *)(s + (size_t)i * 2 * LANES + LANES);
                        for (int r = 0; r < BLOCK; r++) {
                            sum[r][0] += c[r] * s0;
                            sum[r][1] += c[r] * s1;
                        }
                    }
                    for (int r = 0; r < BLOCK; r++) {
                        const int row = first + r;
                        for (int half = 0; half < 2; half++) {
                            if (row < label_rows) {
                                vi better = sum[r][half] > best[half];
                                best[half] = choose(better, sum[r][half], best[half]);
                                label[half] = (better & row) | (~better & label[half]);
                            }
                            if (row >= known_first && row < known_last) /* written so that NaN is kept */
                                known[half] = choose(known[half] >= sum[r][half], known[half], sum[r][half]);
                        }
                    }
                }
                for (int half = 0; half < 2; half++) {
                    *(uvf *)(anomaly_planes + (size_t)phase * padded + x + half * LANES) = 1.0f - known[half];
                    memcpy(label_planes + (size_t)phase * padded + x + half * LANES, &label[half], sizeof(vi));
                }
            }
        }
        uint8_t *label_row = labels + (size_t)y * width;
        float *anomaly_row = anomaly + (size_t)y * width;
        for (int x = 0; x < width; x++) {
            label_row[x] = (uint8_t)label_planes[(size_t)(x & 3) * padded + (x >> 2)];
            anomaly_row[x] = anomaly_planes[(size_t)(x & 3) * padded + (x >> 2)];
        }
    }
    free(memory);
    return 0;
}
