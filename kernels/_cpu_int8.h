// Matrix products of 8-bit integers, see _cpu_int8.cpp.

#pragma once

#include <cstdint>

// Inner loops are compiled for each level of the instruction set and chosen when the module is loaded, so that a
// wheel built on one machine runs on another.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define EVERY_LEVEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_LEVEL
#endif

namespace int8_linear {

// Bytes of a packed weight [outputs, inputs].
int64_t packed_bytes(int64_t outputs, int64_t inputs);

// weight: float32 [outputs, inputs]; packed: packed_bytes; scales: float32 [outputs].
void pack(const float* weight, uint8_t* packed, float* scales, int64_t outputs, int64_t inputs, int threads);

// x: float32 [rows, inputs], rows stride apart; bias: float32 [outputs] or null; out: float32 [rows, outputs].
void apply(const float* x, const uint8_t* packed, const float* scales, const float* bias, float* out, int64_t rows,
           int64_t outputs, int64_t inputs, int64_t stride, int threads);

}  // namespace int8_linear
