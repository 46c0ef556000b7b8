// The extension's ops, each a struct of its arguments and `apply(op, rows)`, and what the ops share. `reference.py`
// defines what each computes; `_cpu.cpp` fills the structs from checked tensors. Threads are OpenMP's, of the library
// that PyTorch has loaded: one pool of threads for both.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

// Inner loops are compiled for each level of the instruction set, and one is chosen when the module is loaded, so that
// a wheel built on one machine runs on another.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define EVERY_LEVEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_LEVEL
#endif

// Loops written for AVX-512, and whether this machine runs them.
#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_AVX512_PATH
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx2,fma")))
inline bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}
inline bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
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

// e^x for x <= 0, to 2 units in the last place: 2^n e^r with |r| <= ln(2) / 2 and a Taylor series to the 7th order.
inline float exp_negative(float x) {
    x = std::max(x, -87.0f);  // e^-87 is negligible: every softmax has an e^0
    float n = std::nearbyint(x * 1.44269504088896341f);
    // ln(2) in two parts, the first with few bits, so that the difference is exact.
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
    const void* q;           // [N, H, D], rows q_stride apart: bfloat16 if half, else float32
    void* out;               // [N, H, D], in q's dtype
    const void *k, *v;       // [pages, G, P, D], bfloat16 if half_pages, else float32: H / G heads of q share one
    const int32_t* table;    // [S, table_stride]: pages; by_cell: cells, page P + offset
    const int32_t* cu_rows;  // [S + 1]
    const int32_t* lengths;  // [S]: keys
    const int32_t* begins;   // [S]: the first key that is seen; null: all are
    const float* bias;       // [H, reach + 1] by distance, or null
    float* sums;             // [N, H]: the logarithm of the softmax's denominator, or null
    i64 heads, shared, dim, page, q_stride, table_stride, reach;
    float scale, softcap;    // scores become softcap tanh(score / softcap); 0: no cap
    bool causal, by_cell, half, half_pages;
    int threads;
};

void apply(const Attention& a, i64 sequences);

}  // namespace attention

namespace encoder {

// Keys and values of each input, one input after another, and their biases by distance.
struct Keys {
    const void *k, *v;       // [rows, G, D], rows k_stride and v_stride apart: in q's dtype
    const int32_t* borders;  // [S + 1]; null: there are no summaries
    const float* bias;       // [H, 2 reach + 1], or null
    i64 k_stride, v_stride, reach;
};

struct Attention {
    const void* q;         // [N, H, D], rows q_stride apart: bfloat16 if half, else float32
    void* out;             // [N, H, D], in q's dtype
    const int32_t* borders;  // [S + 1] of the queries that read each input's keys
    Keys own, more;        // more: summaries, each of `block` of an input's own
    i64 heads, shared, dim, q_stride, block;
    float scale, softcap;  // scores become softcap tanh(score / softcap); 0: no cap
    bool windowed, half;   // windowed: own keys `reach` or more away are hidden
    bool integers;         // products may be of 16-bit integers, where they are faster
    int lanes, threads;    // lanes: floats in a register, at most `most_lanes`
};

// Of this machine: 16 with AVX-512, 8 with AVX2, else 4.
int most_lanes();

void apply(const Attention& a, i64 inputs);

}  // namespace encoder

namespace rows {

// The sum of x and the residual, and its norm: LayerNorm with a bias, RMSNorm without. Without a residual, the norm of
// x, and no sum.
struct Norm {
    const void *x, *residual;   // [rows, width]: bfloat16 if half, else float32, as all here
    const void *weight, *bias;  // [width]
    void *out, *sum;
    i64 width;
    float eps;
    bool half;
    int threads;
};

void apply(const Norm& op, i64 rows);

// K and V [rows, heads, dim] to slots, page P + offset, of pages [pages, heads, P, dim].
struct WriteKV {
    const void* from[2];  // bfloat16 if half, else float32
    void* pages[2];       // bfloat16 if half_pages, else float32
    const i64* slots;
    i64 heads, dim, page, strides[2];
    bool half, half_pages;
};

void apply(const WriteKV& op, i64 rows);

// Rows of a table by id, added to `onto` unless it is null.
struct Embed {
    const i64* ids;
    const float *table, *onto;  // [., width]
    float* out;
    i64 width;
};

void apply(const Embed& op, i64 rows);

enum Activation { RELU, GELU, GELU_TANH, SILU };

// x [rows, width]; gated, the first half of [rows, 2 width], multiplied by the other half.
struct Activate {
    const float* x;
    float* out;
    i64 width;
    int kind;  // Activation
    bool gated;
    int threads;
};

void apply(const Activate& op, i64 rows);

// A row of n numbers by itself: an `Activation`, times `factor` unless it is null. out may be x.
void activate(int kind, const float* x, const float* factor, float* out, i64 n);

// LayerNorm of a row.
void normalize(const float* x, const float* weight, const float* bias, float* out, i64 n, float eps);

struct Scale {
    const float* x;
    float* out;
    i64 width;
    float factor;
};

void apply(const Scale& op, i64 rows);

// x, with zeros in the rows whose `keep` is 0.
struct KeepRows {
    const float* x;       // [rows, width]
    const int32_t* keep;  // [rows]
    float* out;
    i64 width;
};

void apply(const KeepRows& op, i64 rows);

// The index of each row's largest number, the first of several; 0 for a row of NaN.
struct Argmax {
    const float* x;  // [rows, width], rows stride apart
    i64* out;
    i64 width, stride;
    int threads;
};

void apply(const Argmax& op, i64 rows);

// Columns of the table of sequences, as in values.py.
enum Column { LAST, BEFORE, EARLIER, POSITION, RUN, PLACE, LENGTH, SOURCE };

// What the rows of a decode step, one position each, read and write.
struct GatherRows {
    const i64* rows;               // [4, stride]: slot, position, cross entry, token
    const i64* sequences;          // [slots, sequences_width]
    const int32_t* self_pages;     // [slots, self_width]
    int32_t* cells;                // [slots, cells_width]: the beams' cells; null without beams
    const int32_t* cross_pages;    // [entries, cross_width]
    const int32_t* cross_lengths;  // [entries]
    const int32_t* cross_spans;    // [slots, 2]: the entry's keys that the slot sees, from and to; null: all
    i64 *token_ids, *positions, *write_slots;  // [rows]
    int32_t* history;              // [rows, self_width or cells_width]: the slot's pages or cells that are used
    int32_t* lengths;              // [rows]
    int32_t* cross;                // [rows, cross_width]: the entry's pages that are used
    int32_t* crossed;              // [rows]: the entry's length, or the span's end
    int32_t* begins;               // [rows]: the span's begin; null without spans
    i64 stride, sequences_width, self_width, cells_width, cross_width, page;
};

void apply(const GatherRows& op, i64 rows);

// Prompt lookup: moves sequences on by the model's tokens, and finds the next draft tokens in their sources.
struct MatchPromptTokens {
    const i64* tokens;  // [samples]
    const i64* rows;    // [4, stride]: slot, position of the token before the first sample, samples, those before
    i64* sequences;     // [slots, width]
    i64* out;           // [rows, 3]: draft tokens that were right, run, tokens left in the source
    i64 stride, width;
};

void apply(const MatchPromptTokens& op, i64 rows);

}  // namespace rows

namespace images {

// x and its convolution of 3 x 3 positions, each channel by itself, for some rows of the images.
struct Depthwise {
    const void* x;              // [items, height, width, channels]: bfloat16 if half, else float32, as all here
    const void *weight, *bias;  // [9, channels], by row; [channels]
    void* out;                  // [items, rows, width, channels], items out_stride apart
    i64 height, width, channels, first, rows, out_stride;  // first: row of x
    bool half;
    int threads;
};

void apply(const Depthwise& op, i64 items);

}  // namespace images

namespace vocabulary {

// The logarithm of what the exponentials of a row add up to.
struct LogSumExp {
    const float* x;    // [rows, width], rows stride apart
    const i64* stops;  // [rows]: so many of a row's first numbers count; null: all do
    float* out;        // [rows]
    i64 width, stride;
    int threads;
};

void apply(const LogSumExp& op, i64 rows);

// Makes scores of some tokens minus infinity.
struct BanTokens {
    float* scores;    // [rows, width], rows stride apart
    const i64* ids;   // [lists, count]; -1: none
    const i64* rows;  // [rows]: each row's list, or -1
    i64 stride, count;
};

void apply(const BanTokens& op, i64 rows);

// Bans the tokens that may not come next where times stand in pairs around text: ids from `first` on are times, those
// below `text_end` text.
struct TimestampRules {
    float* scores;                                // [rows, width], rows stride apart
    const i64* history;                           // [slots, longest]
    const i64 *slots, *begins, *counts;           // [rows]: begins below 0: a row without rules
    const i64* last_initial;                      // [rows]: the latest time that may come first
    i64 width, stride, longest;
    i64 first, text_end, without;                 // without: says that no times follow
    int threads;
};

void apply(const TimestampRules& op, i64 rows);

}  // namespace vocabulary

namespace alignment {

// Scores of tokens for keys, of which some columns count, to how much more each token attends to each of them than the
// other tokens do, summed over heads: softmax, standard score over the tokens, median of `width` neighbours.
struct Scores {
    float* x;              // [heads, tokens, keys], overwritten
    float* out;            // [tokens, columns]
    i64 heads, keys, columns, width;
    float scale, softcap;  // scores become softcap tanh(scale x / softcap); 0: scale x
    int threads;
};

void apply(const Scores& op, i64 tokens);

// The path through x on which it adds up to the most: the first column of each row.
struct TimeWarp {
    const float* x;  // [rows, columns]
    i64* out;        // [rows]
    i64 columns;
};

void apply(const TimeWarp& op, i64 rows);

}  // namespace alignment

// Matrix products with a packed weight [outputs, inputs]: x float32 [rows, inputs], its rows `stride` apart; bias
// float32 [outputs] or null; out float32 [rows, outputs].

namespace float_linear {

struct Linear {
    const float *x, *packed, *bias;
    float* out;
    i64 outputs, inputs, stride;
    int threads;
};

i64 packed_floats(i64 outputs, i64 inputs);

void pack(const float* weight, float* packed, i64 outputs, i64 inputs, int threads);

// Needs AVX-512.
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

// down(activation(up(x))), each row by itself.
struct FeedForward {
    struct Product {
        const uint8_t* packed;
        const float *scales, *bias;
    };
    const float* x;                 // [rows, inputs], rows `stride` apart
    const float *norm, *norm_bias;  // [inputs]: LayerNorm's of x before; null: none
    Product up, down;               // [inner, inputs], gated twice as many; [outputs, inner]
    float* out;                     // [rows, outputs]
    i64 inputs, inner, outputs, stride;
    float eps;
    int kind;                       // rows::Activation
    bool gated, add;                // add: to what `out` is
    int threads;
};

i64 packed_bytes(i64 outputs, i64 inputs);

void pack(const float* weight, uint8_t* packed, float* scales, i64 outputs, i64 inputs, int threads);

void apply(const Linear& op, i64 rows);
void apply(const FeedForward& op, i64 rows);

}  // namespace int8_linear
