// x @ weight.T in 8-bit integers, see `linear.py`, which has the twin: the weight is quantized by output once, x by row
// at every call, both to -127..127 of their largest magnitude. Sums of integers are exact, so the result of a row
// depends neither on the other rows nor on the instructions used.
//
// A packed weight is panels of 16 outputs, each with 16 x 4 bytes, one register, for every 4 inputs. The bytes are the
// quantized weight + 128, since the instruction multiplies unsigned by signed; the excess, 128 times the sum of x, is
// subtracted again. Both sizes are padded with zeros.

#include "_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#ifdef HAS_AVX512_PATH
#include <immintrin.h>
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")))
#endif

namespace int8_linear {
namespace {

constexpr i64 PANEL = 16;  // outputs
constexpr i64 QUAD = 4;    // inputs
constexpr i64 OFFSET = 128;
constexpr i64 TOGETHER = 6;  // rows that share what is read of a weight
constexpr i64 PIECE = 8 * TOGETHER;
// Below this many multiplications a second thread costs more than it gives.
constexpr i64 WORTH_A_THREAD = 1 << 20;

#ifdef HAS_AVX512_PATH
const bool has_wide = has_avx512(), has_vnni = has_wide && __builtin_cpu_supports("avx512vnni");
#endif

inline i64 up(i64 n, i64 to) { return (n + to - 1) / to * to; }

// Quantizes n numbers and returns their scale; `sum` receives the sum of the integers.
EVERY_LEVEL float quantize_plain(const float* x, int8_t* to, i64 n, int32_t* sum) {
    float most = 0;
#pragma omp simd reduction(max : most)
    for (i64 i = 0; i < n; ++i) most = std::max(most, std::fabs(x[i]));
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    int32_t total = 0;
#pragma omp simd reduction(+ : total)
    for (i64 i = 0; i < n; ++i) {
        const int32_t q = static_cast<int32_t>(std::nearbyint(x[i] * inverse));
        to[i] = static_cast<int8_t>(q);
        total += q;
    }
    *sum = total;
    return most / 127.0f;
}

#ifdef HAS_AVX512_PATH

// To the same integers: both round to the nearest, ties to even.
AVX512 float quantize_wide(const float* x, int8_t* to, i64 n, int32_t* sum) {
    const __mmask16 rest = static_cast<__mmask16>((1u << n % 16) - 1);
    const i64 whole = n / 16 * 16;
    __m512 most = _mm512_setzero_ps();  // the second operand, which the maximum is where the first is not a number
    for (i64 i = 0; i < whole; i += 16) most = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(x + i)), most);
    most = _mm512_max_ps(_mm512_abs_ps(_mm512_maskz_loadu_ps(rest, x + whole)), most);
    const float largest = _mm512_reduce_max_ps(most);
    const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
    __m512i total = _mm512_setzero_si512();
    for (i64 i = 0; i < whole; i += 16) {
        const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtepi32_epi8(q));
        total = _mm512_add_epi32(total, q);
    }
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(rest, x + whole), inverse));
    _mm512_mask_cvtepi32_storeu_epi8(to + whole, rest, q);
    *sum = _mm512_reduce_add_epi32(_mm512_add_epi32(total, q));
    return largest / 127.0f;
}

#endif

float quantize(const float* x, int8_t* to, i64 n, int32_t* sum) {
#ifdef HAS_AVX512_PATH
    if (has_wide) return quantize_wide(x, to, n, sum);
#endif
    return quantize_plain(x, to, n, sum);
}

// The quantized x: rows of `width` bytes, their scales, and the excess that the offset adds to each row's sums.
struct Rows {
    const int8_t* values;
    const float* scales;
    const int32_t* excess;
    i64 width;
};

struct Out {
    const float* scales;  // of the weight
    const float* bias;
    float* values;  // [rows, outputs]
    i64 outputs;
    bool add;  // to what the values are
};

// Panels first..last of the weight for all rows, without special instructions.
void panels_plain(const Rows& x, i64 rows, const uint8_t* packed, const Out& out, i64 first, i64 last) {
    for (i64 p = first; p < last; ++p) {
        const uint8_t* panel = packed + p * PANEL * x.width;
        const i64 width = std::min(PANEL, out.outputs - p * PANEL);
        for (i64 r = 0; r < rows; ++r) {
            int32_t sums[PANEL] = {};
            const int8_t* row = x.values + r * x.width;
            for (i64 k = 0; k < x.width; k += QUAD)
                for (i64 o = 0; o < PANEL; ++o)
                    for (i64 i = 0; i < QUAD; ++i)
                        sums[o] += static_cast<int32_t>(panel[k * PANEL + o * QUAD + i]) * row[k + i];
            for (i64 o = 0; o < width; ++o) {
                const i64 n = p * PANEL + o;
                float value = static_cast<float>(sums[o] - x.excess[r]) * (x.scales[r] * out.scales[n]);
                if (out.bias != nullptr) value += out.bias[n];
                float* to = out.values + r * out.outputs + n;
                *to = out.add ? *to + value : value;
            }
        }
    }
}

#ifdef HAS_AVX512_PATH

// Adds to each of 16 sums the products of 4 weights and 4 inputs. GCC 12 turns the intrinsic into several instructions,
// which move the sums around.
VNNI inline void add_products(__m512i& sums, __m512i weights, __m512i inputs) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(inputs));
}

// R rows by P panels, whose sums all stay in registers: each loop over them is a single one, which the compiler unrolls
// before it assigns registers.
template <int R, int P>
VNNI inline void tile(const Rows& x, i64 row, const uint8_t* packed, const Out& out, i64 panel) {
    __m512i sums[R * P];
#pragma GCC unroll 64
    for (int i = 0; i < R * P; ++i) sums[i] = _mm512_setzero_si512();
    const int8_t* from = x.values + row * x.width;
    const uint8_t* weights = packed + panel * PANEL * x.width;
    for (i64 k = 0; k < x.width; k += QUAD) {
#pragma GCC unroll 64
        for (int i = 0; i < R * P; ++i) {
            int32_t four;
            std::memcpy(&four, from + i / P * x.width + k, sizeof four);
            const __m512i w = _mm512_loadu_si512(weights + (i % P * x.width + k) * PANEL);
            add_products(sums[i], w, _mm512_set1_epi32(four));
        }
    }
#pragma GCC unroll 64
    for (int i = 0; i < R * P; ++i) {
        const i64 r = row + i / P, n = (panel + i % P) * PANEL;
        const __mmask16 mask = static_cast<__mmask16>((1u << std::min(PANEL, out.outputs - n)) - 1);
        const __m512i sum = _mm512_sub_epi32(sums[i], _mm512_set1_epi32(x.excess[r]));
        const __m512 scale = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, out.scales + n), _mm512_set1_ps(x.scales[r]));
        const __m512 bias = out.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, out.bias + n);
        __m512 value = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(mask, sum), scale, bias);
        float* to = out.values + r * out.outputs + n;
        if (out.add) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, to));
        _mm512_mask_storeu_ps(to, mask, value);
    }
}

template <int R, int P>
VNNI void rows_of(const Rows& x, i64 row, const uint8_t* packed, const Out& out, i64 first, i64 last) {
    i64 panel = first;
    for (; panel + P <= last; panel += P) tile<R, P>(x, row, packed, out, panel);
    for (; panel < last; ++panel) tile<R, 1>(x, row, packed, out, panel);
}

// One row waits for memory and needs many panels under way; several rows share what is read.
VNNI void panels_vnni(const Rows& x, i64 rows, const uint8_t* packed, const Out& out, i64 first, i64 last) {
    constexpr i64 PANELS = 4;  // that all rows use while they are in the cache
    if (rows == 1) return rows_of<1, 8>(x, 0, packed, out, first, last);
    for (i64 panel = first; panel < last; panel += PANELS) {
        const i64 end = std::min(last, panel + PANELS);
        i64 row = 0;
        for (; row + TOGETHER <= rows; row += TOGETHER) rows_of<TOGETHER, PANELS>(x, row, packed, out, panel, end);
        switch (rows - row) {
            case 5: rows_of<5, PANELS>(x, row, packed, out, panel, end); break;
            case 4: rows_of<4, PANELS>(x, row, packed, out, panel, end); break;
            case 3: rows_of<3, PANELS>(x, row, packed, out, panel, end); break;
            case 2: rows_of<2, PANELS>(x, row, packed, out, panel, end); break;
            case 1: rows_of<1, PANELS>(x, row, packed, out, panel, end); break;
            default: break;
        }
    }
}

#endif

void panels(const Rows& x, i64 rows, const uint8_t* packed, const Out& out, i64 first, i64 last) {
#ifdef HAS_AVX512_PATH
    if (has_vnni) return panels_vnni(x, rows, packed, out, first, last);
#endif
    panels_plain(x, rows, packed, out, first, last);
}

}  // namespace

namespace {

inline i64 panels_of(i64 outputs) { return up(outputs, PANEL) / PANEL; }

}  // namespace

i64 packed_bytes(i64 outputs, i64 inputs) { return up(outputs, PANEL) * up(inputs, QUAD); }

void pack(const float* weight, uint8_t* packed, float* scales, i64 outputs, i64 inputs, int threads) {
    const i64 width = up(inputs, QUAD);
    std::memset(packed, static_cast<int>(OFFSET), packed_bytes(outputs, inputs));
#pragma omp parallel for num_threads(threads)
    for (i64 n = 0; n < outputs; ++n) {
        std::vector<int8_t> row(inputs);
        int32_t sum;
        scales[n] = quantize(weight + n * inputs, row.data(), inputs, &sum);
        uint8_t* to = packed + n / PANEL * PANEL * width + n % PANEL * QUAD;
        for (i64 k = 0; k < inputs; ++k)
            to[k / QUAD * QUAD * PANEL + k % QUAD] = static_cast<uint8_t>(row[k] + OFFSET);
    }
}

namespace {

// Rows first..last of x, quantized, in memory of their own.
class Quantized {
   public:
    Quantized(i64 rows, i64 inputs)
        : width_(up(inputs, QUAD)), values_(new int8_t[rows * width_]), scales_(new float[rows]),
          excess_(new int32_t[rows]) {}

    void set(i64 r, const float* x, i64 inputs) {
        int8_t* row = values_.get() + r * width_;
        int32_t sum;
        scales_[r] = quantize(x, row, inputs, &sum);
        std::memset(row + inputs, 0, width_ - inputs);
        excess_[r] = static_cast<int32_t>(OFFSET) * sum;
    }

    Rows rows() const { return {values_.get(), scales_.get(), excess_.get(), width_}; }

   private:
    i64 width_;
    const std::unique_ptr<int8_t[]> values_;
    const std::unique_ptr<float[]> scales_;
    const std::unique_ptr<int32_t[]> excess_;
};

// Few rows: the threads share out the weight, which is read once.
void multiply_few(const Linear& op, i64 rows, int threads) {
    Quantized x(rows, op.inputs);
    const i64 count = panels_of(op.outputs);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (i64 r = 0; r < rows; ++r) x.set(r, op.x + r * op.stride, op.inputs);
#pragma omp for schedule(static)
        for (i64 part = 0; part < threads; ++part)
            panels(x.rows(), rows, op.packed, {op.scales, op.bias, op.out, op.outputs, false}, count * part / threads,
                   count * (part + 1) / threads);
    }
}

// Many rows: the threads share out those, in pieces that stay in the cache from being quantized to being written.
void multiply_many(const Linear& op, i64 rows, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Quantized x(PIECE, op.inputs);
#pragma omp for schedule(dynamic)
        for (i64 first = 0; first < rows; first += PIECE) {
            const i64 piece = std::min(PIECE, rows - first);
            for (i64 r = 0; r < piece; ++r) x.set(r, op.x + (first + r) * op.stride, op.inputs);
            const Out out{op.scales, op.bias, op.out + first * op.outputs, op.outputs, false};
            panels(x.rows(), piece, op.packed, out, 0, panels_of(op.outputs));
        }
    }
}

}  // namespace

void apply(const Linear& op, i64 rows) {
    const int threads = rows * op.outputs * op.inputs < WORTH_A_THREAD ? 1 : op.threads;
    if (rows < 2 * PIECE * threads) multiply_few(op, rows, threads);
    else multiply_many(op, rows, threads);
}

// The threads share out the rows, in pieces that stay in the cache throughout: what is between the products is wider
// than they are.
void apply(const FeedForward& op, i64 rows) {
    const i64 wide = op.gated ? 2 * op.inner : op.inner;
    const int threads = rows * op.inputs * wide < WORTH_A_THREAD ? 1 : op.threads;
    const i64 most = std::clamp(up(rows / (2 * threads), TOGETHER), TOGETHER, PIECE);
#pragma omp parallel num_threads(threads)
    {
        Quantized x(most, op.inputs), between(most, op.inner);
        const std::unique_ptr<float[]> normed(new float[op.inputs]), values(new float[most * wide]);
#pragma omp for schedule(dynamic)
        for (i64 first = 0; first < rows; first += most) {
            const i64 piece = std::min(most, rows - first);
            for (i64 r = 0; r < piece; ++r) {
                const float* row = op.x + (first + r) * op.stride;
                if (op.norm != nullptr) {
                    rows::normalize(row, op.norm, op.norm_bias, normed.get(), op.inputs, op.eps);
                    row = normed.get();
                }
                x.set(r, row, op.inputs);
            }
            panels(x.rows(), piece, op.up.packed, {op.up.scales, op.up.bias, values.get(), wide, false}, 0, panels_of(wide));
            for (i64 r = 0; r < piece; ++r) {
                float* row = values.get() + r * wide;
                rows::activate(op.kind, row, op.gated ? row + op.inner : nullptr, row, op.inner);
                between.set(r, row, op.inner);
            }
            const Out out{op.down.scales, op.down.bias, op.out + first * op.outputs, op.outputs, op.add};
            panels(between.rows(), piece, op.down.packed, out, 0, panels_of(op.outputs));
        }
    }
}

}  // namespace int8_linear
