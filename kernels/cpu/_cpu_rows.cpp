// Ops on single rows, bound by memory: norms, activations, reads and writes of tables.

#include "_cpu.h"

#include <limits>
#include <tuple>
#include <utility>

namespace rows {
namespace {

// Below this many numbers a second thread costs more than it gives.
constexpr i64 WORTH_A_THREAD = 1 << 16;

// One row of x + residual, stored to sum; of x without a residual.
template <typename T>
inline const T* add_row(const T* x, const T* residual, T* sum, i64 d) {
    if (residual == nullptr) return x;
#pragma omp simd
    for (i64 i = 0; i < d; ++i) store(sum + i, load(x + i) + load(residual + i));
    return sum;
}

template <typename T>
inline void rms_norm_row(const T* x, const T* weight, T* out, i64 d, float eps) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (i64 i = 0; i < d; ++i) squares += load(x + i) * load(x + i);
    const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(d) + eps);
#pragma omp simd
    for (i64 i = 0; i < d; ++i) {
        T normed;  // rounded before it is weighted, as T5LayerNorm does
        store(&normed, load(x + i) * inverse);
        store(out + i, load(&normed) * load(weight + i));
    }
}

template <typename T>
inline void layer_norm_row(const T* x, const T* weight, const T* bias, T* out, i64 d, float eps) {
    float total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
    for (i64 i = 0; i < d; ++i) total += load(x + i);
    const float mean = total / static_cast<float>(d);
#pragma omp simd reduction(+ : squares)
    for (i64 i = 0; i < d; ++i) squares += (load(x + i) - mean) * (load(x + i) - mean);
    const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(d) + eps);
#pragma omp simd
    for (i64 i = 0; i < d; ++i) store(out + i, (load(x + i) - mean) * inverse * load(weight + i) + load(bias + i));
}

template <typename T>
inline void norm_row(const Norm& op, i64 row) {
    const i64 at = row * op.width;
    const T *weight = static_cast<const T*>(op.weight), *bias = static_cast<const T*>(op.bias);
    const T* residual = op.residual == nullptr ? nullptr : static_cast<const T*>(op.residual) + at;
    const T* x = add_row(static_cast<const T*>(op.x) + at, residual, static_cast<T*>(op.sum) + at, op.width);
    T* out = static_cast<T*>(op.out) + at;
    if (bias == nullptr) rms_norm_row(x, weight, out, op.width, op.eps);
    else layer_norm_row(x, weight, bias, out, op.width, op.eps);
}

EVERY_LEVEL void norm_float(const Norm& op, i64 row) { norm_row<float>(op, row); }
EVERY_LEVEL void norm_half(const Norm& op, i64 row) { norm_row<uint16_t>(op, row); }

template <typename From, typename To>
inline void scatter(const WriteKV& op, int part, i64 n) {
    const i64 heads = op.heads, dim = op.dim, page = op.page;
    for (i64 i = 0; i < n; ++i) {
        To* to = static_cast<To*>(op.pages[part]) + (op.slots[i] / page * heads * page + op.slots[i] % page) * dim;
        const From* row = static_cast<const From*>(op.from[part]) + i * op.strides[part];
        for (i64 h = 0; h < heads; ++h)
            for (i64 d = 0; d < dim; ++d) store(to + h * page * dim + d, load(row + h * dim + d));
    }
}

EVERY_LEVEL void scatter_part(const WriteKV& op, int part, i64 n) {
    if (op.half) op.half_pages ? scatter<uint16_t, uint16_t>(op, part, n) : scatter<uint16_t, float>(op, part, n);
    else op.half_pages ? scatter<float, uint16_t>(op, part, n) : scatter<float, float>(op, part, n);
}

// 1 / (1 + e^-x)
inline float sigmoid(float x) {
    const float e = exp_negative(-std::fabs(x));
    return (x >= 0 ? 1.0f : e) / (1.0f + e);
}

// Abramowitz and Stegun 7.1.26, to 1.5e-7, as PyTorch's own on the CPU.
inline float erf(float x) {
    const float size = std::fabs(x), t = 1.0f / (1.0f + 0.3275911f * size);
    const float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    return std::copysign(1.0f - p * exp_negative(-size * size), x);
}

inline float activated(float x, int kind) {
    switch (kind) {
        case RELU: return x > 0 || x != x ? x : 0.0f;
        case GELU: return 0.5f * x * (1.0f + erf(x * 0.70710678118654752f));
        case GELU_TANH: return x * sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x));
        default: return x * sigmoid(x);
    }
}

template <int KIND>
inline void activate(const float* x, const float* factor, float* out, i64 n) {
    if (factor == nullptr) {
#pragma omp simd
        for (i64 i = 0; i < n; ++i) out[i] = activated(x[i], KIND);
    } else {
#pragma omp simd
        for (i64 i = 0; i < n; ++i) out[i] = activated(x[i], KIND) * factor[i];
    }
}

EVERY_LEVEL void activate_row(int kind, const float* x, const float* factor, float* out, i64 n) {
    switch (kind) {
        case RELU: return activate<RELU>(x, factor, out, n);
        case GELU: return activate<GELU>(x, factor, out, n);
        case GELU_TANH: return activate<GELU_TANH>(x, factor, out, n);
        default: return activate<SILU>(x, factor, out, n);
    }
}

EVERY_LEVEL i64 largest(const float* x, i64 n) {
    constexpr i64 CHUNK = 1024;  // looking for a number takes longer than comparing
    float most = -std::numeric_limits<float>::infinity();
    i64 start = 0;
    for (i64 at = 0; at < n; at += CHUNK) {
        float here = most;
        const i64 end = std::min(n, at + CHUNK);
#pragma omp simd reduction(max : here)
        for (i64 i = at; i < end; ++i) here = std::max(here, x[i]);
        if (here > most) {
            most = here;
            start = at;
        }
    }
    const float* found = std::find(x + start, x + n, most);
    return found == x + n ? 0 : found - x;
}

EVERY_LEVEL void layer_norm_floats(const float* x, const float* weight, const float* bias, float* out, i64 n, float eps) {
    layer_norm_row(x, weight, bias, out, n, eps);
}

}  // namespace

void activate(int kind, const float* x, const float* factor, float* out, i64 n) { activate_row(kind, x, factor, out, n); }

void normalize(const float* x, const float* weight, const float* bias, float* out, i64 n, float eps) {
    layer_norm_floats(x, weight, bias, out, n, eps);
}

void apply(const Norm& op, i64 rows) {
#pragma omp parallel for num_threads(rows * op.width < WORTH_A_THREAD ? 1 : op.threads)
    for (i64 r = 0; r < rows; ++r) {
        if (op.half) norm_half(op, r);
        else norm_float(op, r);
    }
}

void apply(const WriteKV& op, i64 rows) {
    for (int part = 0; part < 2; ++part) scatter_part(op, part, rows);
}

void apply(const Embed& op, i64 rows) {
    for (i64 r = 0; r < rows; ++r) {
        const float* from = op.table + op.ids[r] * op.width;
        const float* onto = op.onto == nullptr ? nullptr : op.onto + r * op.width;
        float* out = op.out + r * op.width;
        for (i64 i = 0; i < op.width; ++i) out[i] = onto == nullptr ? from[i] : onto[i] + from[i];
    }
}

void apply(const Activate& op, i64 rows) {
    const i64 from = op.gated ? 2 * op.width : op.width;
#pragma omp parallel for num_threads(rows * op.width < WORTH_A_THREAD / 4 ? 1 : op.threads)
    for (i64 r = 0; r < rows; ++r) {
        const float* x = op.x + r * from;
        activate_row(op.kind, x, op.gated ? x + op.width : nullptr, op.out + r * op.width, op.width);
    }
}

void apply(const Scale& op, i64 rows) {
    for (i64 i = 0; i < rows * op.width; ++i) op.out[i] = op.x[i] * op.factor;
}

void apply(const KeepRows& op, i64 rows) {
    for (i64 r = 0; r < rows; ++r) {
        const float* from = op.x + r * op.width;
        float* out = op.out + r * op.width;
        if (op.keep[r] != 0) std::copy_n(from, op.width, out);
        else std::fill_n(out, op.width, 0.0f);
    }
}

void apply(const Argmax& op, i64 rows) {
#pragma omp parallel for num_threads(rows * op.width < WORTH_A_THREAD ? 1 : op.threads)
    for (i64 r = 0; r < rows; ++r) op.out[r] = largest(op.x + r * op.stride, op.width);
}

void apply(const GatherRows& op, i64 rows) {
    const i64 *slots = op.rows, *positions = slots + op.stride, *entries = positions + op.stride;
    const i64* tokens = entries + op.stride;
    for (i64 r = 0; r < rows; ++r) {
        const i64 slot = slots[r], entry = entries[r], ahead = -1 - tokens[r];
        const i64* sequence = op.sequences + slot * op.sequences_width;
        const i64 position = positions[r] < 0 ? sequence[POSITION] - 1 - positions[r] : positions[r];
        const i64 place = sequence[PLACE] + ahead - 1;
        const bool drafted = ahead > 0 && sequence[RUN] > 0 && place < sequence[LENGTH];
        op.token_ids[r] = ahead < 0 ? tokens[r] : sequence[drafted ? SOURCE + place : LAST];
        op.positions[r] = position;
        const int32_t* pages = op.self_pages + slot * op.self_width;
        const i64 cell = static_cast<i64>(pages[position / op.page]) * op.page + position % op.page;
        op.write_slots[r] = cell;
        op.lengths[r] = static_cast<int32_t>(position) + 1;
        if (op.cells == nullptr) {
            std::copy_n(pages, position / op.page + 1, op.history + r * op.self_width);
        } else {
            int32_t* cells = op.cells + slot * op.cells_width;
            cells[position] = static_cast<int32_t>(cell);
            std::copy_n(cells, position + 1, op.history + r * op.cells_width);
        }
        const int32_t length = op.cross_spans == nullptr ? op.cross_lengths[entry] : op.cross_spans[2 * slot + 1];
        op.crossed[r] = length;
        if (op.cross_spans != nullptr) op.begins[r] = op.cross_spans[2 * slot];
        std::copy_n(op.cross_pages + entry * op.cross_width, (length + op.page - 1) / op.page,
                    op.cross + r * op.cross_width);
    }
}

namespace {

// The longest end of a sequence, of at most three tokens, that stands in its source with a token after it: the place
// after its last occurrence, and the end's length; 0: none.
std::pair<i64, i64> find_end(const i64* source, i64 length, const i64* ends) {
    i64 place = 0, run = 0;
    for (i64 at = length - 2; at >= run && run < 3; --at) {
        i64 matched = 0;
        while (matched < 3 && matched <= at && source[at - matched] == ends[matched]) ++matched;
        if (matched > run) {
            run = matched;
            place = at + 1;
        }
    }
    return {place, run};
}

}  // namespace

void apply(const MatchPromptTokens& op, i64 rows) {
    for (i64 r = 0; r < rows; ++r) {
        i64* sequence = op.sequences + op.rows[r] * op.width;
        const i64 start = op.rows[op.stride + r], samples = op.rows[2 * op.stride + r];
        const i64* sampled = op.tokens + op.rows[3 * op.stride + r];
        const i64 length = sequence[LENGTH], *source = sequence + SOURCE;
        i64 place = sequence[PLACE], run = sequence[RUN], right = 0;
        if (run > 0)
            while (right < samples && place + right < length && sampled[right] == source[place + right]) ++right;
        const i64 after = std::min(right + 1, samples);
        for (i64 i = 0; i < after; ++i) {
            std::copy_backward(sequence + LAST, sequence + EARLIER, sequence + EARLIER + 1);
            sequence[LAST] = sampled[i];
        }
        sequence[POSITION] = (start < 0 ? sequence[POSITION] : start) + after;
        if (right == samples && place + right < length) {
            place += right;
            run += right;
        } else {
            std::tie(place, run) = find_end(source, length, sequence + LAST);
        }
        sequence[RUN] = run;
        sequence[PLACE] = place;
        i64* out = op.out + 3 * r;
        out[0] = right;
        out[1] = run;
        out[2] = run > 0 ? length - place : 0;
    }
}

}  // namespace rows
