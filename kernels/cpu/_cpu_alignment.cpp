// The ops of word times: attention compared among tokens, and dynamic time warping.

#include "_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace alignment {
namespace {

constexpr i64 BLOCK = 16;  // columns that are filtered at a time

// Scores of a token to weights that add up to 1, of which `columns` are wanted.
EVERY_LEVEL void softmax(float* x, i64 n, i64 columns, float scale, float softcap) {
    if (softcap > 0)
        for (i64 i = 0; i < n; ++i) x[i] = softcap * std::tanh(x[i] * scale / softcap);
    else
        for (i64 i = 0; i < n; ++i) x[i] *= scale;
    float most = x[0], total = 0;
#pragma omp simd reduction(max : most)
    for (i64 i = 0; i < n; ++i) most = std::max(most, x[i]);
#pragma omp simd reduction(+ : total)
    for (i64 i = 0; i < n; ++i) {
        x[i] = exp_negative(x[i] - most);
        total += x[i];
    }
    const float inverse = 1.0f / total;
    for (i64 i = 0; i < columns; ++i) x[i] *= inverse;
}

// Standardizes each of `columns` columns of x [rows, stride]. Weights are taken against the first row's, so that those
// that are alike have no deviation.
EVERY_LEVEL void standardize(float* x, i64 rows, i64 stride, i64 columns, float* mean, float* deviation) {
    std::fill_n(mean, columns, 0.0f);
    std::fill_n(deviation, columns, 0.0f);
    for (i64 r = rows - 1; r >= 0; --r)
        for (i64 c = 0; c < columns; ++c) {
            x[r * stride + c] -= x[c];
            mean[c] += x[r * stride + c];
        }
    const float share = 1.0f / static_cast<float>(rows);
    for (i64 c = 0; c < columns; ++c) mean[c] *= share;
    for (i64 r = 0; r < rows; ++r)
        for (i64 c = 0; c < columns; ++c) {
            const float apart = x[r * stride + c] - mean[c];
            deviation[c] += apart * apart;
        }
    for (i64 c = 0; c < columns; ++c) {
        deviation[c] = std::sqrt(deviation[c] * share);
        deviation[c] = deviation[c] > 0 ? 1.0f / deviation[c] : 0.0f;
    }
    for (i64 r = 0; r < rows; ++r)
        for (i64 c = 0; c < columns; ++c) x[r * stride + c] = (x[r * stride + c] - mean[c]) * deviation[c];
}

inline void sort_two(float* __restrict least, float* __restrict greatest) {
#pragma omp simd
    for (i64 i = 0; i < BLOCK; ++i) {
        const float one = least[i], other = greatest[i];
        least[i] = std::min(one, other);
        greatest[i] = std::max(one, other);
    }
}

// Adds to `sum` the medians of `width` neighbours of x [columns], an odd number, see `median_filter` of alignment.py.
// padded: [columns + width + BLOCK]; held: [width / 2 + 2, BLOCK].
EVERY_LEVEL void add_medians(const float* x, i64 columns, i64 width, float* padded, float* held, float* sum) {
    const i64 half = width / 2;
    if (columns <= half) {
        for (i64 c = 0; c < columns; ++c) sum[c] += x[c];
        return;
    }
    for (i64 i = 0; i < half; ++i) {
        padded[i] = x[half - i];
        padded[half + columns + i] = x[columns - 2 - i];
    }
    std::copy_n(x, columns, padded + half);
    for (i64 first = 0; first < columns; first += BLOCK) {
        const float* views = padded + first;
        i64 count = std::min(half + 2, width), next = count;
        for (i64 view = 0; view < count; ++view) std::copy_n(views + view, BLOCK, held + view * BLOCK);
        while (count > 1) {  // the least goes to the front and the greatest to the end
            for (i64 i = 0; i + 1 < count; ++i) sort_two(held + i * BLOCK, held + (i + 1) * BLOCK);
            for (i64 i = count - 2; i > 0; --i) sort_two(held + (i - 1) * BLOCK, held + i * BLOCK);
            count -= 2;
            std::copy_n(held + count * BLOCK, BLOCK, held);
            if (next < width) std::copy_n(views + next++, BLOCK, held + count++ * BLOCK);
        }
        const i64 left = std::min(BLOCK, columns - first);
        for (i64 i = 0; i < left; ++i) sum[first + i] += held[i];
    }
}

enum Step : uint8_t { BOTH, ROW, COLUMN };

}  // namespace

void apply(const Scores& op, i64 tokens) {
    const i64 keys = op.keys, columns = op.columns;
#pragma omp parallel num_threads(op.threads)
    {
        std::vector<float> scratch(2 * columns + op.width + BLOCK + (op.width / 2 + 2) * BLOCK);
        float *padded = scratch.data(), *held = padded + columns + op.width + BLOCK;
#pragma omp for
        for (i64 row = 0; row < op.heads * tokens; ++row)
            softmax(op.x + row * keys, keys, columns, op.scale, op.softcap);
#pragma omp for
        for (i64 head = 0; head < op.heads; ++head)
            standardize(op.x + head * tokens * keys, tokens, keys, columns, padded, padded + columns);
#pragma omp for
        for (i64 token = 0; token < tokens; ++token) {
            float* sum = op.out + token * columns;
            std::fill_n(sum, columns, 0.0f);
            for (i64 head = 0; head < op.heads; ++head)
                add_medians(op.x + (head * tokens + token) * keys, columns, op.width, padded, held, sum);
        }
    }
}

void apply(const TimeWarp& op, i64 rows) {
    constexpr float NEVER = std::numeric_limits<float>::infinity();
    std::vector<float> costs(rows + 1, NEVER);  // of the column so far; before the first column only its corner is met
    std::vector<Step> steps(rows * op.columns);
    costs[0] = 0;
    for (i64 column = 0; column < op.columns; ++column) {
        float both = costs[0];  // the row and the column before
        costs[0] = NEVER;
        for (i64 row = 0; row < rows; ++row) {
            const float up = costs[row], left = costs[row + 1];
            const Step step = both < up && both < left ? BOTH : up < both && up < left ? ROW : COLUMN;
            costs[row + 1] = (step == BOTH ? both : step == ROW ? up : left) - op.x[row * op.columns + column];
            steps[column * rows + row] = step;
            both = left;
        }
    }
    i64 column = op.columns - 1;
    for (i64 row = rows - 1; row >= 0;) {
        op.out[row] = column;
        // Only of NaN a path comes to the edge before the first row.
        const Step step = column == 0 ? ROW : steps[column * rows + row];
        row -= step != COLUMN;
        column -= step != ROW;
    }
}

}  // namespace alignment
