// Attention over keys and values in pages, read in place and once.

#include "_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#ifdef HAS_AVX512_PATH
#include <immintrin.h>
#endif

namespace attention {
namespace {

constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// Where a sequence's key t begins, for a head of K and V.
inline i64 place(const Attention& a, const int32_t* table, i64 head, i64 t) {
    i64 cell = a.by_cell ? table[t] : table[t / a.page] * a.page + t % a.page;
    return ((cell / a.page * a.shared + head) * a.page + cell % a.page) * a.dim;
}

// How many keys from t on are adjacent in memory: the rest of the page.
inline i64 run_length(const Attention& a, i64 t, i64 end) {
    return a.by_cell ? 1 : std::min(end, (t / a.page + 1) * a.page) - t;
}

// The attention of one sequence's rows for one head.
struct Head {
    const Attention* a;
    const int32_t* table;  // the sequence's
    i64 shared;            // the head of K and V
    i64 rows, begin, length;  // keys begin:length are seen
    float* queries;        // [rows, D], scaled
    float* scores;         // [rows, length]
    float* sums;           // [rows, D]

    // How many of `run` keys from t on row r sees.
    i64 seen(i64 r, i64 t, i64 run) const {
        return a->causal ? std::max<i64>(0, std::min(run, length - (rows - 1 - r) - t)) : run;
    }
};

template <typename T>
inline void plain_scores(const Head& h) {
    const i64 dim = h.a->dim;
    for (i64 t = h.begin, run; t < h.length; t += run) {
        run = run_length(*h.a, t, h.length);
        const T* k = static_cast<const T*>(h.a->k) + place(*h.a, h.table, h.shared, t);
        for (i64 r = 0; r < h.rows; ++r) {
            const float* q = h.queries + r * dim;
            for (i64 i = 0; i < run; ++i) {
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (i64 d = 0; d < dim; ++d) sum += q[d] * load(k + i * dim + d);
                h.scores[r * h.length + t + i] = sum;
            }
        }
    }
}

template <typename T>
inline void plain_sums(const Head& h) {
    const i64 dim = h.a->dim;
    std::fill(h.sums, h.sums + h.rows * dim, 0.0f);
    for (i64 t = h.begin, run; t < h.length; t += run) {
        run = run_length(*h.a, t, h.length);
        const T* v = static_cast<const T*>(h.a->v) + place(*h.a, h.table, h.shared, t);
        for (i64 r = 0; r < h.rows; ++r) {
            float* sum = h.sums + r * dim;
            for (i64 i = 0; i < h.seen(r, t, run); ++i) {
                const float weight = h.scores[r * h.length + t + i];
#pragma omp simd
                for (i64 d = 0; d < dim; ++d) sum[d] += weight * load(v + i * dim + d);
            }
        }
    }
}

EVERY_LEVEL void plain_scores(const Head& h) {
    if (h.a->half_pages) plain_scores<uint16_t>(h);
    else plain_scores<float>(h);
}

EVERY_LEVEL void plain_sums(const Head& h) {
    if (h.a->half_pages) plain_sums<uint16_t>(h);
    else plain_sums<float>(h);
}

// Turns the scores of a row into weights that add up to 1.
EVERY_LEVEL void softmax(const Head& h, i64 r, const float* bias, float* log_sum) {
    const Attention& a = *h.a;
    const i64 count = h.length - h.begin, visible = h.seen(r, h.begin, count);
    float* s = h.scores + r * h.length + h.begin;
    if (a.softcap > 0)
        for (i64 t = 0; t < visible; ++t) s[t] = a.softcap * std::tanh(s[t] / a.softcap);
    if (bias != nullptr)
        for (i64 t = 0; t < visible; ++t) s[t] += bias[std::min(visible - 1 - t, a.reach)];
    float most = NOTHING;
#pragma omp simd reduction(max : most)
    for (i64 t = 0; t < visible; ++t) most = larger_of(s[t], most);
    if (most == NOTHING) {  // the bias hides all visible keys
        std::fill(s, s + count, 0.0f);
        if (log_sum != nullptr) *log_sum = most;
        return;
    }
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (i64 t = 0; t < visible; ++t) {
        s[t] = s[t] == NOTHING ? 0.0f : exp_negative(s[t] - most);
        total += s[t];
    }
    if (log_sum != nullptr) *log_sum = most + std::log(total);
    const float inverse = 1.0f / total;
    for (i64 t = 0; t < visible; ++t) s[t] *= inverse;
    std::fill(s + visible, s + count, 0.0f);
}

#ifdef HAS_AVX512_PATH

// Sums of adjacent pairs of `one`, then of `other`.
AVX512 inline __m512 add_pairs(__m512 one, __m512 other) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_add_ps(_mm512_permutex2var_ps(one, even, other), _mm512_permutex2var_ps(one, odd, other));
}

AVX512 inline __m512 sixteen(const float* at) { return _mm512_loadu_ps(at); }
AVX512 inline __m512 sixteen(const uint16_t* at) {  // bfloat16
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// q * key, summed by lane over V registers.
template <int V, typename T>
AVX512 inline __m512 product(const __m512* q, const T* key) {
    __m512 sum = _mm512_mul_ps(q[0], sixteen(key));
#pragma GCC unroll 8
    for (int i = 1; i < V; ++i) sum = _mm512_fmadd_ps(q[i], sixteen(key + 16 * i), sum);
    return sum;
}

// Prefetches a key or value: pages lie anywhere, which the hardware's prefetcher cannot predict.
template <int V, typename T>
AVX512 inline void prefetch(const T* at) {
    constexpr int LINE = 64 / sizeof(T);
#pragma GCC unroll 8
    for (int i = 0; i < 16 * V; i += LINE) _mm_prefetch(reinterpret_cast<const char*>(at + i), _MM_HINT_T0);
}

// For D = 16 V and pages of T.
template <int V, typename T>
AVX512 void wide_scores(const Head& h) {
    constexpr i64 DIM = 16 * V;
    for (i64 t = h.begin, run; t < h.length; t += run) {
        run = run_length(*h.a, t, h.length);
        const T *k = static_cast<const T*>(h.a->k), *v = static_cast<const T*>(h.a->v);
        const bool last = t + run >= h.length;
        const T* next = last ? v + place(*h.a, h.table, h.shared, h.begin) : k + place(*h.a, h.table, h.shared, t + run);
        for (i64 i = 0; i < run; ++i) prefetch<V>(next + i * DIM);
        k += place(*h.a, h.table, h.shared, t);
        for (i64 r = 0; r < h.rows; ++r) {
            __m512 q[V];
#pragma GCC unroll 8
            for (int i = 0; i < V; ++i) q[i] = _mm512_loadu_ps(h.queries + r * DIM + 16 * i);
            float* scores = h.scores + r * h.length + t;
            i64 i = 0;
            for (; i + 16 <= run; i += 16) {  // the lanes of sixteen keys are added up together, by halves
                const T* keys = k + i * DIM;
                __m512 eighths[2];
#pragma GCC unroll 2
                for (int e = 0; e < 2; ++e) {
                    __m512 four[2];
#pragma GCC unroll 2
                    for (int f = 0; f < 2; ++f) {
                        const T* at = keys + (8 * e + 4 * f) * DIM;
                        four[f] = add_pairs(add_pairs(product<V>(q, at), product<V>(q, at + DIM)),
                                            add_pairs(product<V>(q, at + 2 * DIM), product<V>(q, at + 3 * DIM)));
                    }
                    eighths[e] = add_pairs(four[0], four[1]);
                }
                _mm512_storeu_ps(scores + i, add_pairs(eighths[0], eighths[1]));
            }
            for (; i < run; ++i) {  // added up in the same order
                const __m512 zero = _mm512_setzero_ps();
                __m512 sum = product<V>(q, k + i * DIM);
#pragma GCC unroll 4
                for (int level = 0; level < 4; ++level) sum = add_pairs(sum, zero);
                scores[i] = _mm512_cvtss_f32(sum);
            }
        }
    }
}

template <int V, typename T>
AVX512 void wide_sums(const Head& h) {
    constexpr i64 DIM = 16 * V;
    for (i64 r = 0; r < h.rows; ++r) {
        __m512 sums[2 * V];  // of even and of odd keys apart: additions to one register wait for each other
#pragma GCC unroll 16
        for (int i = 0; i < 2 * V; ++i) sums[i] = _mm512_setzero_ps();
        for (i64 t = h.begin, run; t < h.length; t += run) {
            run = run_length(*h.a, t, h.length);
            const T* v = static_cast<const T*>(h.a->v) + place(*h.a, h.table, h.shared, t);
            if (r == 0 && t + run < h.length) {
                const T* next = static_cast<const T*>(h.a->v) + place(*h.a, h.table, h.shared, t + run);
                for (i64 i = 0; i < run; ++i) prefetch<V>(next + i * DIM);
            }
            const float* weights = h.scores + r * h.length + t;
            const i64 seen = h.seen(r, t, run);
            i64 i = 0;
            for (; i + 2 <= seen; i += 2) {
#pragma GCC unroll 16
                for (int j = 0; j < 2 * V; ++j)
                    sums[j] = _mm512_fmadd_ps(_mm512_set1_ps(weights[i + j / V]), sixteen(v + i * DIM + 16 * j), sums[j]);
            }
            if (i < seen) {
#pragma GCC unroll 8
                for (int j = 0; j < V; ++j)
                    sums[j] = _mm512_fmadd_ps(_mm512_set1_ps(weights[i]), sixteen(v + i * DIM + 16 * j), sums[j]);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < V; ++i)
            _mm512_storeu_ps(h.sums + r * DIM + 16 * i, _mm512_add_ps(sums[i], sums[V + i]));
    }
}

#endif

struct Way {
    void (*scores)(const Head&);
    void (*sums)(const Head&);
};

#ifdef HAS_AVX512_PATH
template <int V>
Way wide(bool half_pages) {
    if (half_pages) return {wide_scores<V, uint16_t>, wide_sums<V, uint16_t>};
    return {wide_scores<V, float>, wide_sums<V, float>};
}
#endif

Way way(const Attention& a) {
#ifdef HAS_AVX512_PATH
    if (has_avx512()) {
        if (a.dim == 32) return wide<2>(a.half_pages);
        if (a.dim == 64) return wide<4>(a.half_pages);
        if (a.dim == 128) return wide<8>(a.half_pages);
    }
#else
    (void)a;
#endif
    return {plain_scores, plain_sums};
}

void attend(const Attention& a, const Way& how, i64 sequence, i64 head, float* scratch) {
    const i64 first = a.cu_rows[sequence], rows = a.cu_rows[sequence + 1] - first, dim = a.dim;
    const i64 length = a.lengths[sequence], begin = a.begins == nullptr ? 0 : std::min<i64>(a.begins[sequence], length);
    float* queries = scratch + rows * length;
    const Head h{&a,   a.table + sequence * a.table_stride, head / (a.heads / a.shared), rows, begin, length, queries,
                 scratch, queries + rows * dim};
    for (i64 r = 0; r < rows; ++r) {
        const i64 at = (first + r) * a.q_stride + head * dim;
        for (i64 d = 0; d < dim; ++d) {
            float x = a.half ? load(static_cast<const uint16_t*>(a.q) + at + d) : load(static_cast<const float*>(a.q) + at + d);
            queries[r * dim + d] = x * a.scale;
        }
    }
    how.scores(h);
    for (i64 r = 0; r < rows; ++r)
        softmax(h, r, a.bias == nullptr ? nullptr : a.bias + head * (a.reach + 1),
                a.sums == nullptr ? nullptr : a.sums + (first + r) * a.heads + head);
    how.sums(h);
    for (i64 r = 0; r < rows; ++r) {
        const i64 at = ((first + r) * a.heads + head) * dim;
        for (i64 d = 0; d < dim; ++d) {
            if (a.half) store(static_cast<uint16_t*>(a.out) + at + d, h.sums[r * dim + d]);
            else store(static_cast<float*>(a.out) + at + d, h.sums[r * dim + d]);
        }
    }
}

// Below this many multiplications a second thread costs more than it gives.
constexpr i64 WORTH_A_THREAD = 1 << 16;

}  // namespace

void apply(const Attention& a, i64 sequences) {
    i64 cells = 0, most = 0;
    for (i64 s = 0; s < sequences; ++s) {
        const i64 rows = a.cu_rows[s + 1] - a.cu_rows[s];
        cells += rows * a.lengths[s];
        most = std::max(most, rows * (a.lengths[s] + 2 * a.dim));
    }
    const int threads = 2 * cells * a.heads * a.dim < WORTH_A_THREAD ? 1 : a.threads;
    const Way how = way(a);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scratch(most);
#pragma omp for collapse(2) schedule(dynamic, 4)
        for (i64 s = 0; s < sequences; ++s)
            for (i64 head = 0; head < a.heads; ++head) attend(a, how, s, head, scratch.data());
    }
}

}  // namespace attention
