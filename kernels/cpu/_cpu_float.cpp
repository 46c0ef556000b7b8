// x @ weight.T in float32 with AVX-512, see `linear.py`. A packed weight is panels of 16 outputs, each with 16 floats,
// one register, for every input. Every sum runs over the inputs from first to last in one register lane, so the result
// of a row does not depend on the other rows.

#include "_cpu.h"

#include <algorithm>

#ifdef HAS_AVX512_PATH
#include <immintrin.h>
#endif

namespace float_linear {
namespace {

constexpr i64 PANEL = 16;  // outputs
// Below this many multiplications a second thread costs more than it gives.
constexpr i64 WORTH_A_THREAD = 1 << 16;

inline i64 panels_of(i64 outputs) { return (outputs + PANEL - 1) / PANEL; }

#ifdef HAS_AVX512_PATH

// R rows by P panels, whose sums all stay in registers.
template <int R, int P>
AVX512 inline void tile(const Linear& p, i64 row, i64 panel) {
    __m512 sums[R * P];
#pragma GCC unroll 64
    for (int i = 0; i < R * P; ++i) sums[i] = _mm512_setzero_ps();
    const float* from = p.x + row * p.stride;
    const float* weights = p.packed + panel * PANEL * p.inputs;
    for (i64 k = 0; k < p.inputs; ++k) {
#pragma GCC unroll 64
        for (int i = 0; i < R * P; ++i) {
            const __m512 w = _mm512_loadu_ps(weights + (i % P * p.inputs + k) * PANEL);
            sums[i] = _mm512_fmadd_ps(w, _mm512_set1_ps(from[i / P * p.stride + k]), sums[i]);
        }
    }
#pragma GCC unroll 64
    for (int i = 0; i < R * P; ++i) {
        const i64 r = row + i / P, n = (panel + i % P) * PANEL;
        const __mmask16 mask = static_cast<__mmask16>((1u << std::min(PANEL, p.outputs - n)) - 1);
        const __m512 bias = p.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, p.bias + n);
        _mm512_mask_storeu_ps(p.out + r * p.outputs + n, mask, _mm512_add_ps(sums[i], bias));
    }
}

template <int R, int P>
AVX512 void rows_of(const Linear& p, i64 row, i64 first, i64 last) {
    i64 panel = first;
    for (; panel + P <= last; panel += P) tile<R, P>(p, row, panel);
    for (; panel < last; ++panel) tile<R, 1>(p, row, panel);
}

// One row waits for memory and needs many panels under way; several rows share what is read.
AVX512 void panels(const Linear& p, i64 rows, i64 first, i64 last) {
    constexpr i64 TOGETHER = 4;  // panels that all rows use while they are in the cache
    if (rows == 1) return rows_of<1, 8>(p, 0, first, last);
    for (i64 panel = first; panel < last; panel += TOGETHER) {
        const i64 end = std::min(last, panel + TOGETHER);
        i64 row = 0;
        for (; row + 6 <= rows; row += 6) rows_of<6, 4>(p, row, panel, end);
        switch (rows - row) {
            case 5: rows_of<5, 4>(p, row, panel, end); break;
            case 4: rows_of<4, 4>(p, row, panel, end); break;
            case 3: rows_of<3, 4>(p, row, panel, end); break;
            case 2: rows_of<2, 4>(p, row, panel, end); break;
            case 1: rows_of<1, 4>(p, row, panel, end); break;
            default: break;
        }
    }
}

#endif

}  // namespace

i64 packed_floats(i64 outputs, i64 inputs) { return panels_of(outputs) * PANEL * inputs; }

void pack(const float* weight, float* packed, i64 outputs, i64 inputs, int threads) {
#pragma omp parallel for num_threads(threads)
    for (i64 panel = 0; panel < panels_of(outputs); ++panel)
        for (i64 k = 0; k < inputs; ++k)
            for (i64 o = 0; o < PANEL; ++o) {
                const i64 n = panel * PANEL + o;
                packed[(panel * inputs + k) * PANEL + o] = n < outputs ? weight[n * inputs + k] : 0.0f;
            }
}

void apply(const Linear& op, i64 rows) {
#ifdef HAS_AVX512_PATH
    const i64 count = panels_of(op.outputs);
    const int threads = rows * op.outputs * op.inputs < WORTH_A_THREAD ? 1 : op.threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 part = 0; part < threads; ++part)
        panels(op, rows, count * part / threads, count * (part + 1) / threads);
#else
    (void)op, (void)rows;
#endif
}

}  // namespace float_linear
