// Attention within packed encoder inputs, or of other rows to them, over tiles of keys: for a block of queries, the largest score so far, the sum
// of the weights and the weighted sum of the values (Milakov and Gimelshein, 2018; Dao et al., 2022). Scores exist for
// one tile at a time, biases as a line by distance.
//
// The queries of a block lie side by side in registers: keys are read in place, each once, and the softmax needs no
// sums across a register. A row's result depends on its own input alone, whose tiles begin at the same keys whatever is
// packed around it.

#include "_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef HAS_AVX512_PATH
#include <immintrin.h>
#endif

#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, (__VA_ARGS__)...)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, Ints{(__VA_ARGS__)...})
#endif

namespace encoder {
namespace {

constexpr int BLOCK = 64;  // queries
constexpr int KEYS = 48;   // of a tile
constexpr float LOG2_E = 1.44269504088896341f;  // weights are powers of 2
// 1.5 * 2^23: adding it to |x| < 2^22 leaves the nearest integer in the lowest bits, on top of its own.
constexpr float ROUND = 12582912.0f;
constexpr int32_t ROUND_BITS = 0x4b400000;
constexpr float NOTHING = -std::numeric_limits<float>::infinity();
// What the largest integers stand for: sums of products of queries and keys, of up to LONGEST_PAIRED dimensions, and
// of weights and values, of KEYS keys, have 32 bits.
constexpr float PRODUCTS = 4095, WEIGHTS = 32767, VALUES = 1023;
constexpr i64 LONGEST_PAIRED = 128;
constexpr i64 WORTH_PAIRS = 64;  // keys, from which on integers gain
// Below this many multiplications a second thread costs more than it gives.
constexpr i64 WORTH_A_THREAD = 1 << 18;

inline i64 up(i64 n, i64 to) { return (n + to - 1) / to * to; }

// The own keys that queries see.
struct Seen {
    i64 first, last;
};

// Adjacent queries of one input.
struct Span {
    i64 row;              // the input's first query
    i64 start, length;    // its first key, and its keys
    i64 query, rows;      // the first query, and how many
    i64 more, summaries;  // the input's first summary, and its summaries
    i64 beyond;           // how far away an own key may be

    Seen seen(i64 first, i64 count) const {
        return {std::max<i64>(0, first - beyond), std::min(length, first + count + beyond)};
    }
};

// A block of queries, a tile of keys, and what the block has added up so far.
struct Tile {
    const float *keys, *values;             // [count, dim]; [count, width]
    const float* bias;                      // the first key's for all queries, the next ones' bias_step apart; or null
    float *queries, *scores;                // [dim, BLOCK], scaled; [KEYS, BLOCK]
    float *most, *before, *total, *shrink;  // [BLOCK]: the largest score, that before the tile, the sum of weights
    float* sums;                            // [BLOCK, width]
    i64 count, dim, width, bias_step;       // width: dim, padded to whole registers
    i64 rows;                               // queries
    int lanes;                              // rows, padded to whole registers
    float cap;                              // a score is cap tanh(queries . key) + bias; 0: without tanh
    float unit;                             // of scores; with integers
    float *key_units, *value_units;         // [dim]; with integers
    bool first;                             // of the block's tiles
};

// Keys and values of a head, in float32.
struct Copies {
    float *keys, *values;  // [n, dim]; [n, width]
};

// What a thread works in: a span's keys and summaries, up to so many, and a block.
class Scratch {
   public:
    Tile tile{};
    Copies own, more;
    float *line, *dense;  // biases: of a block's keys by distance; [KEYS, BLOCK]

    Scratch(const Attention& a, i64 keys, i64 summaries) {
        const i64 dim = a.dim, width = up(dim, 16);
        tile.dim = dim;
        tile.width = width;
        tile.cap = a.softcap * LOG2_E;
        const std::pair<float**, i64> parts[] = {
            {&own.keys, keys * dim}, {&own.values, keys * width}, {&more.keys, summaries * dim},
            {&more.values, summaries * width}, {&tile.queries, BLOCK * dim}, {&tile.scores, KEYS * BLOCK},
            {&tile.most, BLOCK}, {&tile.before, BLOCK}, {&tile.total, BLOCK}, {&tile.shrink, BLOCK},
            {&tile.key_units, dim}, {&tile.value_units, dim}, {&tile.sums, BLOCK * width}, {&line, keys + BLOCK}, {&dense, summaries > 0 ? KEYS * BLOCK : 0},
        };
        i64 size = 0;
        for (const auto& part : parts) size += up(part.second, 16);
        memory_.reset(static_cast<float*>(::operator new(size * sizeof(float), std::align_val_t(64))));
        float* at = memory_.get();
        for (const auto& part : parts) {
            *part.first = at;
            at += up(part.second, 16);
        }
    }

   private:
    struct Free {
        void operator()(float* memory) const { ::operator delete(memory, std::align_val_t(64)); }
    };
    std::unique_ptr<float, Free> memory_;
};

// Biases of a block's own keys: a line by distance, from which each key takes its piece, the last key the first.
class LineOfBiases {
   public:
    LineOfBiases(const Attention& a, i64 head, i64 query, const Seen& seen, Scratch& scratch)
        : line_(a.own.bias == nullptr ? nullptr : scratch.line), last_(seen.last) {
        if (line_ == nullptr) return;
        const i64 reach = a.own.reach, count = scratch.tile.lanes + seen.last - seen.first;
        const float* zero = a.own.bias + head * (2 * reach + 1) + reach;
        for (i64 i = 0; i < count; ++i)
            scratch.line[i] = LOG2_E * zero[std::clamp(seen.last - 1 - query - i, -reach, reach)];
    }

    void operator()(Tile& tile, i64 key) const {
        tile.bias = line_ == nullptr ? nullptr : line_ + last_ - 1 - key;
        tile.bias_step = -1;
    }

   private:
    const float* line_;
    i64 last_;
};

// Biases of summaries by their distance from the query's own.
class BiasesOfSummaries {
   public:
    BiasesOfSummaries(const Attention& a, i64 head, i64 query, i64 summaries, Scratch& scratch)
        : reach_(a.more.reach), dense_(scratch.dense) {
        if (summaries == 0) return;
        zero_ = a.more.bias + head * (2 * reach_ + 1) + reach_;
        for (i64 i = 0; i < scratch.tile.lanes; ++i) own_[i] = std::min((query + i) / a.block, summaries - 1);
    }

    void operator()(Tile& tile, i64 summary) const {
        for (i64 key = 0; key < tile.count; ++key)
            for (i64 i = 0; i < tile.lanes; ++i)
                dense_[key * BLOCK + i] = LOG2_E * zero_[std::clamp(summary + key - own_[i], -reach_, reach_)];
        tile.bias = dense_;
        tile.bias_step = BLOCK;
    }

   private:
    i64 reach_;
    float* dense_;
    const float* zero_ = nullptr;
    i64 own_[BLOCK];
};

#define PAIRS 0
#ifdef HAS_AVX512_PATH
namespace avx512 {
#define LEVEL AVX512
#define LANES 16
#define PANELS 4
#define SUMS 24
#include "_encoder_level.h"
#undef LEVEL
}  // namespace avx512

namespace vnni {
#define LEVEL __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")))
#undef PAIRS
#define PAIRS 1
#include "_encoder_level.h"
#undef LEVEL
#undef LANES
#undef PANELS
#undef SUMS
#undef PAIRS
#define PAIRS 0
}  // namespace vnni

namespace avx2 {
#define LEVEL __attribute__((target("avx2,fma")))
#define LANES 8
#define PANELS 2
#define SUMS 12
#include "_encoder_level.h"
#undef LEVEL
#undef LANES
#undef PANELS
#undef SUMS
}  // namespace avx2
#endif

namespace plain {
#define LEVEL
#define LANES 4
#define PANELS 4
#define SUMS 24
#include "_encoder_level.h"
}  // namespace plain

using Attend = void (*)(const Attention&, const Span&, i64 head, Scratch&);

Attend attend(int lanes, bool half) {
#ifdef HAS_AVX512_PATH
    if (lanes == 16) return half ? avx512::attend<uint16_t> : avx512::attend<float>;
    if (lanes == 8) return half ? avx2::attend<uint16_t> : avx2::attend<float>;
#endif
    (void)lanes;
    return half ? plain::attend<uint16_t> : plain::attend<float>;
}

// The way for inputs of WORTH_PAIRS keys and more.
Attend attend_many(const Attention& a) {
#ifdef HAS_AVX512_PATH
    const bool plain = !a.half && !a.windowed && a.more.borders == nullptr && a.softcap == 0;
    if (a.integers && plain && a.lanes == 16 && a.dim % 2 == 0 && a.dim <= LONGEST_PAIRED && has_vnni())
        return vnni::attend<float>;
#endif
    return attend(a.lanes, a.half);
}

// All inputs in spans of at most `most` queries.
std::vector<Span> spans_of(const Attention& a, i64 inputs, i64 most) {
    std::vector<Span> spans;
    for (i64 i = 0; i < inputs; ++i) {
        const i64 start = a.own.borders[i], length = a.own.borders[i + 1] - start;
        const i64 row = a.borders[i], rows = a.borders[i + 1] - row;
        const i64 more = a.more.borders == nullptr ? 0 : a.more.borders[i];
        const i64 summaries = a.more.borders == nullptr ? 0 : a.more.borders[i + 1] - more;
        const i64 beyond = a.windowed ? a.own.reach - 1 : std::max(length, rows);
        for (i64 query = 0; query < rows; query += most)
            spans.push_back({row, start, length, query, std::min(most, rows - query), more, summaries, beyond});
    }
    return spans;
}

}  // namespace

int most_lanes() {
#ifdef HAS_AVX512_PATH
    if (has_avx512()) return 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
    return 4;
}

void apply(const Attention& a, i64 inputs) {
    // Enough spans to share out evenly; a longer one copies fewer keys.
    const i64 blocks = a.borders[inputs] / BLOCK * a.heads;
    const i64 most = BLOCK * std::clamp<i64>(blocks / (8 * a.threads), 1, 16);
    const std::vector<Span> spans = spans_of(a, inputs, most);
    i64 keys = 0, summaries = 0, pairs = 0;
    for (const Span& span : spans) {
        const Seen seen = span.seen(span.query, span.rows);
        keys = std::max(keys, seen.last - seen.first);
        summaries = std::max(summaries, span.summaries);
        pairs += span.rows * (seen.last - seen.first + span.summaries);
    }
    const int threads = 2 * pairs * a.heads * a.dim < WORTH_A_THREAD ? 1 : a.threads;
    const Attend few = attend(a.lanes, a.half), many = attend_many(a);
    const i64 count = static_cast<i64>(spans.size()), tasks = count * a.heads;
    const int piece = static_cast<int>(std::clamp<i64>(tasks / (16 * threads), 1, 16));
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(a, keys, summaries);
#pragma omp for schedule(dynamic, piece)
        for (i64 task = 0; task < tasks; ++task) {
            const Span& span = spans[task % count];
            (span.length < WORTH_PAIRS ? few : many)(a, span, task / count, scratch);
        }
    }
}

}  // namespace encoder
