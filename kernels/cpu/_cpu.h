// What the extension's parts have in common, and what each offers: ops on rows, which are as many as `rows` says.
// `cpu_ops.py` says what each computes, checks the tensors and passes their addresses; `reference.py` is the
// definition. Threads are OpenMP's, of the very library that PyTorch has loaded: one pool of threads for both.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

// Inner loops are compiled for each level of the instruction set and chosen when the module is loaded, so that a
// wheel built on one machine runs on another.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define EVERY_LEVEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_LEVEL
#endif

// Loops that are written for AVX-512, and whether this machine runs them.
#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_AVX512_PATH
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx2,fma")))
inline bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}
#else
inline bool has_avx512() { return false; }
#endif

using i64 = int64_t;

// bfloat16 is the upper half of a float32.
inline float from_bf16(uint16_t x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline uint16_t to_bf16(float f) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

inline float load(const float* p) { return *p; }
inline float load(const uint16_t* p) { return from_bf16(*p); }
inline void store(float* p, float x) { *p = x; }
inline void store(uint16_t* p, float x) { *p = to_bf16(x); }

// e^x for x <= 0, to 2 units in the last place: 2^n e^r with |r| <= ln(2) / 2 and Taylor's series to the 7th order.
inline float exp_negative(float x) {
    x = std::max(x, -87.0f);  // e^-87 is nothing beside the e^0 that every softmax has
    float n = std::nearbyint(x * 1.44269504088896341f);
    // ln(2) in two parts, the first of few bits, so that the difference is exact.
    float r = (x - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return p * scale;
}

namespace attention {

struct Attention {
    const void* q;       // [N, H, D], rows q_stride apart: bfloat16 if half, else float32
    void* out;           // [N, H, D], as q
    const float* k;      // [pages, G, P, D]: H / G heads of q share one
    const float* v;
    const int32_t* table;    // [S, table_stride]: pages, or places page P + offset where by_cell
    const int32_t* cu_rows;  // [S + 1]
    const int32_t* lengths;  // [S]: keys
    const float* bias;       // [H, reach + 1] by distance, or null
    float* sums;             // [N, H]: the logarithm of the softmax's denominator, or null
    i64 heads, shared, dim, page, q_stride, table_stride, reach;
    float scale, softcap;    // scores become softcap tanh(score / softcap), 0: they do not
    bool causal, by_cell, half;
    int threads;
};

void apply(const Attention& a, i64 sequences);

}  // namespace attention

namespace rows {

// x + residual, which is stored to sum, and its norm: LayerNorm with a bias, RMSNorm without. Without a residual, the
// norm of x.
struct Norm {
    const void *x, *residual, *weight, *bias;  // [rows, width] twice, [width] twice; bfloat16 if half, else float32
    void *out, *sum;
    i64 width;
    float eps;
    bool half;
    int threads;
};

void apply(const Norm& op, i64 rows);

// K and V [rows, heads, dim] to places page P + offset of pages [pages, heads, P, dim].
struct Scatter {
    const void* from[2];  // bfloat16 if half, else float32
    float* pages[2];
    const i64* slots;
    i64 heads, dim, page, strides[2];
    bool half;
};

void apply(const Scatter& op, i64 rows);

// Rows of a table, by id, and what they are added to, unless it is null.
struct Embed {
    const i64* ids;
    const float *table, *onto;  // [., width]
    float* out;
    i64 width;
};

void apply(const Embed& op, i64 rows);

enum Activation { RELU, GELU, GELU_TANH, SILU };

// x [rows, width], or where gated the first half of [rows, 2 width], which the other half is multiplied by.
struct Activate {
    const float* x;
    float* out;
    i64 width;
    int kind;  // Activation
    bool gated;
    int threads;
};

void apply(const Activate& op, i64 rows);

struct Scale {
    const float* x;
    float* out;
    i64 width;
    float factor;
};

void apply(const Scale& op, i64 rows);

// The place of each row's largest number, the first of several; of NaN alone the first.
struct Largest {
    const float* x;  // [rows, width], rows stride apart
    i64* out;
    i64 width, stride;
    int threads;
};

void apply(const Largest& op, i64 rows);

// Columns of the table of sequences, as in decode_rows.py.
enum Column { LAST, BEFORE, EARLIER, POSITION, RUN, PLACE, LENGTH, SOURCE };

// What rows of decode steps, of one position each, read and write.
struct Layout {
    const i64* rows;               // [4, stride]: slot, position, cross entry, token
    const i64* sequences;          // [slots, sequences_width]
    const int32_t* self_pages;     // [slots, self_width]
    int32_t* cells;                // [slots, cells_width]: of beams, else null
    const int32_t* cross_pages;    // [entries, cross_width]
    const int32_t* cross_lengths;  // [entries]
    i64 *token_ids, *positions, *write_slots;  // [rows], likewise below
    int32_t *history, *lengths;    // history: the slots' pages or cells, as far as they are used
    int32_t *cross, *crossed;      // cross: the entries' pages, likewise
    i64 stride, sequences_width, self_width, cells_width, cross_width, page;
};

void apply(const Layout& op, i64 rows);

// Sequences go on by what the model said, and in their sources.
struct Follow {
    const i64* tokens;  // [samples]
    const i64* rows;    // [4, stride]: slot, position of the token before the first sample, samples, those before
    i64* sequences;     // [slots, width]
    i64* out;           // [rows, 3]: guesses that were right, run, tokens left in the source
    i64 stride, width;
};

void apply(const Follow& op, i64 rows);

}  // namespace rows

// Matrix products with a packed weight [outputs, inputs]: x float32 [rows, inputs], rows stride apart; bias float32
// [outputs] or null; out float32 [rows, outputs].

namespace float_linear {

struct Linear {
    const float *x, *packed, *bias;
    float* out;
    i64 outputs, inputs, stride;
    int threads;
};

i64 packed_floats(i64 outputs, i64 inputs);

void pack(const float* weight, float* packed, i64 outputs, i64 inputs, int threads);

// Only where there is AVX-512.
void apply(const Linear& op, i64 rows);

}  // namespace float_linear

namespace int8_linear {

struct Linear {
    const float* x;
    const uint8_t* packed;
    const float *scales, *bias;  // scales: [outputs]
    float* out;
    i64 outputs, inputs, stride;
    int threads;
};

i64 packed_bytes(i64 outputs, i64 inputs);

void pack(const float* weight, uint8_t* packed, float* scales, i64 outputs, i64 inputs, int threads);

void apply(const Linear& op, i64 rows);

}  // namespace int8_linear
