// The loops of encoder attention, compiled for one level of the instruction set. `_cpu_encoder.cpp` includes this once
// for each level, in a namespace of its own and without a guard, with
//   LEVEL   the attribute of its functions
//   LANES   floats in a register
//   PANELS  registers side by side in a tile
//   SUMS    registers that hold a tile's sums
//   PAIRS   1: products are of integers of 16 bits, of which a register has twice as many: two adjacent ones, a
//           pair, are multiplied by another pair and added up. Where floats are read, they are a pair's bits

using Floats = float __attribute__((vector_size(4 * LANES)));
using Ints = int32_t __attribute__((vector_size(4 * LANES)));

LEVEL inline Floats read(const float* from) {
    Floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

LEVEL inline void write(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

LEVEL inline Floats all(float x) { return x - Floats{}; }

// The larger of each pair; a NaN in x stays.
#if LANES == 16
LEVEL inline Floats larger(Floats x, Floats other) {
    return reinterpret_cast<Floats>(_mm512_max_ps(reinterpret_cast<__m512>(other), reinterpret_cast<__m512>(x)));
}
#else
LEVEL inline Floats larger(Floats x, Floats other) { return x < other ? other : x; }
#endif

// 2^x as 2^n 2^r with |r| <= 1/2 and a minimax polynomial, to 2e-7 of it, for -126 < x < 126.
LEVEL inline Floats power_of_2(Floats x) {
    const Floats shifted = x + ROUND, r = x - (shifted - ROUND);
    Floats p = r * 1.32647273e-3f + 9.67151299e-3f;
    p = p * r + 5.55073358e-2f;
    p = p * r + 2.40222424e-1f;
    p = p * r + 6.93147004e-1f;
    p = p * r + 1.0f;
    Ints n, bits;
    std::memcpy(&n, &shifted, sizeof n);
    std::memcpy(&bits, &p, sizeof bits);
    bits += n << 23;
    std::memcpy(&p, &bits, sizeof p);
    return p;
}

// 2^x for x <= 0; below 2^-100 it is negligible: every softmax has a 2^0.
LEVEL inline Floats weight_of(Floats x) { return power_of_2(larger(x, all(-100.0f))); }

// By its Taylor series near 0, where the quotient loses digits.
LEVEL inline Floats tanh_of(Floats x) {
    const Floats size = x < 0 ? -x : x, square = x * x;
    const Floats power = power_of_2((size > 10.0f ? all(10.0f) : size) * (2 * LOG2_E));  // from 10 on tanh is 1
    const Floats far = 1.0f - 2.0f / (power + 1.0f);
    const Floats near = size * (1.0f + square * (-1.0f / 3 + square * (2.0f / 15 - square * (17.0f / 315))));
    const Floats tanh = size < 0.25f ? near : far;
    return x < 0 ? -tanh : tanh;
}

// The nearest integers, for |x| < 2^22.
LEVEL inline Ints nearest(Floats x) {
    const Floats shifted = x + ROUND;
    Ints n;
    std::memcpy(&n, &shifted, sizeof n);
    return n - ROUND_BITS;
}

#if PAIRS
// Adds the products of two pairs. GCC 12 turns the intrinsic into several instructions, which move the sums around.
LEVEL inline void add_products(Ints& sums, Ints pairs, Ints others) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(pairs), "v"(others));
}

LEVEL inline void write_pairs(float* to, Ints low, Ints high) {
    const Ints pairs = (low & 0xffff) | high << 16;
    std::memcpy(to, &pairs, sizeof pairs);
}

template <int R, int P>
LEVEL inline __attribute__((always_inline)) void multiply(Floats* sums, const float* rows, i64 row_step, i64 step,
                                                          const float* columns, i64 column_step, i64 n) {
    Ints products[R * P] = {};
    for (i64 k = 0; k < n; ++k) {
#pragma GCC unroll 64
        for (int i = 0; i < R * P; ++i) {
            Ints column;
            int32_t pair;
            std::memcpy(&pair, rows + i / P * row_step + k * step, sizeof pair);
            std::memcpy(&column, columns + k * column_step + i % P * LANES, sizeof column);
            add_products(products[i], pair + Ints{}, column);
        }
    }
#pragma GCC unroll 64
    for (int i = 0; i < R * P; ++i) sums[i] += __builtin_convertvector(products[i], Floats);
}
#else
// Adds to R x P registers of sums the products of R rows and P registers of columns, over n.
template <int R, int P>
LEVEL inline __attribute__((always_inline)) void multiply(Floats* sums, const float* rows, i64 row_step, i64 step,
                                                          const float* columns, i64 column_step, i64 n) {
    for (i64 k = 0; k < n; ++k) {
#pragma GCC unroll 64
        for (int i = 0; i < R * P; ++i)
            sums[i] += rows[i / P * row_step + k * step] * read(columns + k * column_step + i % P * LANES);
    }
}
#endif

// The rows of a tile whose columns are P registers, and of the tiles for what is left.
constexpr int rows_of(int panels) { return SUMS / panels < 8 ? SUMS / panels : 8; }
constexpr int fewer(int rows) { return rows > 4 ? 4 : rows / 2; }

// Scores of R keys for P registers of queries, and the largest so far of each query.
template <int R, int P>
LEVEL inline void score_tile(const Tile& tile, i64 key, int lane) {
    Floats sums[R * P] = {};
    constexpr int PACKED = PAIRS ? 2 : 1;
    const i64 depth = tile.dim / PACKED;
    multiply<R, P>(sums, tile.keys + key * depth, depth, 1, tile.queries + lane, BLOCK, depth);
    if constexpr (PAIRS != 0) {
#pragma GCC unroll 64
        for (int i = 0; i < R * P; ++i) sums[i] *= tile.unit;
    }
    if (tile.cap > 0) {
#pragma GCC unroll 64
        for (int i = 0; i < R * P; ++i) sums[i] = tanh_of(sums[i]) * tile.cap;
    }
    if (tile.bias != nullptr) {
        const float* bias = tile.bias + key * tile.bias_step + lane;
#pragma GCC unroll 64
        for (int i = 0; i < R * P; ++i) sums[i] += read(bias + i / P * tile.bias_step + i % P * LANES);
    }
    Floats most[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) most[p] = read(tile.most + lane + p * LANES);
#pragma GCC unroll 64
    for (int i = 0; i < R * P; ++i) {
        most[i % P] = larger(sums[i], most[i % P]);
        write(tile.scores + (key + i / P) * BLOCK + lane + i % P * LANES, sums[i]);
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) write(tile.most + lane + p * LANES, most[p]);
}

template <int R, int P>
LEVEL void score_keys(const Tile& tile, i64 key, int lane) {
    for (; key + R <= tile.count; key += R) score_tile<R, P>(tile, key, lane);
    if constexpr (R > 1) score_keys<fewer(R), P>(tile, key, lane);
}

template <int P>
LEVEL void score(const Tile& tile, int lane) {
    for (; lane + P * LANES <= tile.lanes; lane += P * LANES) score_keys<rows_of(P), P>(tile, 0, lane);
    if constexpr (P > 1) score<P - 1>(tile, lane);
}

// Turns scores into weights against the largest so far; what was added up before shrinks as it grows.
LEVEL inline void weigh(const Tile& tile) {
    for (int lane = 0; lane < tile.lanes; lane += LANES) {
        const Floats most = read(tile.most + lane), shrink = weight_of(read(tile.before + lane) - most);
        Floats total = read(tile.total + lane) * shrink;
#if PAIRS
        Ints weights = {};
        for (i64 key = 0; key < tile.count; key += 2) {
            const float* at = tile.scores + key * BLOCK + lane;
            const Ints low = nearest(weight_of(read(at) - most) * WEIGHTS);
            Ints high = {};
            if (key + 1 < tile.count) high = nearest(weight_of(read(at + BLOCK) - most) * WEIGHTS);
            write_pairs(tile.scores + key / 2 * BLOCK + lane, low, high);
            weights += low + high;
        }
        total += __builtin_convertvector(weights, Floats);
#else
        for (i64 key = 0; key < tile.count; ++key) {
            float* at = tile.scores + key * BLOCK + lane;
            const Floats weight = weight_of(read(at) - most);
            write(at, weight);
            total += weight;
        }
#endif
        write(tile.before + lane, most);
        write(tile.shrink + lane, shrink);
        write(tile.total + lane, total);
    }
}

// Adds the weighted values to the sums of R queries, in P registers of dimensions.
template <int R, int P>
LEVEL inline void sum_tile(const Tile& tile, i64 query, i64 d) {
    Floats sums[R * P] = {};
    float* to = tile.sums + query * tile.width + d;
    if (!tile.first) {
#pragma GCC unroll 64
        for (int i = 0; i < R * P; ++i)
            sums[i] = read(to + i / P * tile.width + i % P * LANES) * tile.shrink[query + i / P];
    }
    const i64 depth = PAIRS ? (tile.count + 1) / 2 : tile.count;
    multiply<R, P>(sums, tile.scores + query, 1, BLOCK, tile.values + d, tile.width, depth);
#pragma GCC unroll 64
    for (int i = 0; i < R * P; ++i) write(to + i / P * tile.width + i % P * LANES, sums[i]);
}

template <int R, int P>
LEVEL void sum_queries(const Tile& tile, i64 query, i64 d) {
    for (; query + R <= tile.rows; query += R) sum_tile<R, P>(tile, query, d);
    if constexpr (R > 1) sum_queries<fewer(R), P>(tile, query, d);
}

template <int P>
LEVEL void sum(const Tile& tile, i64 d) {
    for (; d + P * LANES <= tile.width; d += P * LANES) sum_queries<rows_of(P), P>(tile, 0, d);
    if constexpr (P > 1) sum<P - 1>(tile, d);
}

// Copies rows of a head as float32 to dense rows, padded with zeros.
template <typename T>
LEVEL void copy_rows(const T* from, i64 stride, i64 n, i64 dim, float* to, i64 width) {
    for (i64 i = 0; i < n; ++i) {
        for (i64 d = 0; d < dim; ++d) to[i * width + d] = load(from + i * stride + d);
        for (i64 d = dim; d < width; ++d) to[i * width + d] = 0.0f;
    }
}

// One step of a transposition, for the registers i and i + S: lanes that the other one is to have change places.
template <int S, int... I>
LEVEL inline void exchange(Floats& one, Floats& other, std::integer_sequence<int, I...>) {
    const Floats x = one, y = other;
    one = SHUFFLE(x, y, (I & S) == 0 ? I : LANES + I - S);
    other = SHUFFLE(x, y, (I & S) == 0 ? I + S : LANES + I);
}

template <int S>
LEVEL inline void transpose(Floats (&x)[LANES]) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
        if ((i & S) == 0) exchange<S>(x[i], x[i + S], std::make_integer_sequence<int, LANES>());
    if constexpr (2 * S < LANES) transpose<2 * S>(x);
}

// Rows of a head, scaled, to columns; the lanes after them are 0.
template <typename T>
LEVEL void copy_columns(const T* from, i64 stride, i64 n, i64 dim, float scale, float* to, int lanes) {
    for (i64 lane = 0; lane < lanes; lane += LANES)
        for (i64 d = 0; d < dim; d += LANES) {
            const i64 rows = std::min<i64>(LANES, n - lane), columns = std::min<i64>(LANES, dim - d);
            const T* at = from + lane * stride + d;
            float* column = to + d * BLOCK + lane;
            Floats square[LANES];
            if constexpr (std::is_same_v<T, float>)
                if (rows == LANES && columns == LANES) {  // it stays in registers
#pragma GCC unroll 16
                    for (int i = 0; i < LANES; ++i) square[i] = read(at + i * stride) * scale;
                    transpose<1>(square);
#pragma GCC unroll 16
                    for (int c = 0; c < LANES; ++c) write(column + c * BLOCK, square[c]);
                    continue;
                }
            for (i64 i = 0; i < LANES; ++i) square[i] = Floats{};
            for (i64 i = 0; i < rows; ++i)
                for (i64 c = 0; c < columns; ++c) square[i][c] = load(at + i * stride + c) * scale;
            transpose<1>(square);
            for (i64 c = 0; c < columns; ++c) write(column + c * BLOCK, square[c]);
        }
}

#if PAIRS
// The sizes of numbers as integers, in the same order; a NaN's is the largest.
LEVEL inline Ints sizes_of(Floats x) {
    Ints bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffff;
}

LEVEL inline Ints larger(Ints x, Ints other) { return x > other ? x : other; }

// The largest size in each of P registers of columns. Rows lie in pages of their own, which the processor does not fetch
// ahead by itself.
template <int P>
LEVEL inline void sizes_of_columns(const float* from, i64 stride, i64 n, float* to) {
    constexpr i64 AHEAD = 12;
    Ints sizes[P] = {};
    for (i64 i = 0; i < n; ++i) {
        const float* row = from + i * stride;
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            __builtin_prefetch(row + AHEAD * stride + p * LANES);
            sizes[p] = larger(sizes_of(read(row + p * LANES)), sizes[p]);
        }
    }
    std::memcpy(to, sizes, sizeof sizes);
}

// The unit of each column of n rows, such that its largest number is `most`; and its inverse.
LEVEL void units_of(const float* from, i64 stride, i64 n, i64 dim, float most, float* units, float* inverses) {
    i64 d = 0;
    for (; d + 2 * LANES <= dim; d += 2 * LANES) sizes_of_columns<2>(from + d, stride, n, units + d);
    for (; d + LANES <= dim; d += LANES) sizes_of_columns<1>(from + d, stride, n, units + d);
    for (; d < dim; ++d) {
        units[d] = 0.0f;
        for (i64 i = 0; i < n; ++i) {
            const float size = std::fabs(from[i * stride + d]);
            units[d] = size > units[d] || size != size ? size : units[d];  // a NaN stays
        }
    }
    for (i64 d = 0; d < dim; ++d) {
        inverses[d] = units[d] > 0 ? most / units[d] : 0.0f;
        units[d] /= most;
    }
}

LEVEL inline int32_t nearest_to(float x) {
    const float shifted = x + ROUND;
    int32_t n;
    std::memcpy(&n, &shifted, sizeof n);
    return n - ROUND_BITS;
}

// Copies n keys in pairs of dimensions, and values in pairs of keys, from a row on.
template <typename T>
LEVEL inline void copy_keys(const Keys& keys, i64 row, i64 n, i64 head, const Tile& tile, const Copies& to) {
    using Shorts = int16_t __attribute__((vector_size(2 * LANES)));
    const i64 at = head * tile.dim, dim = tile.dim, whole = dim / LANES * LANES;
    const T* k = static_cast<const T*>(keys.k) + row * keys.k_stride + at;
    const T* v = static_cast<const T*>(keys.v) + row * keys.v_stride + at;
    float inverses[LONGEST_PAIRED];
    units_of(k, keys.k_stride, n, dim, PRODUCTS, tile.key_units, inverses);
    for (i64 i = 0; i < n; ++i) {
        const T* from = k + i * keys.k_stride;
        float* pairs = to.keys + i * dim / 2;
        for (i64 d = 0; d < whole; d += LANES) {
            const Shorts two = __builtin_convertvector(nearest(read(from + d) * read(inverses + d)), Shorts);
            std::memcpy(pairs + d / 2, &two, sizeof two);
        }
        for (i64 d = whole; d < dim; d += 2) {
            const int32_t low = nearest_to(from[d] * inverses[d]), high = nearest_to(from[d + 1] * inverses[d + 1]);
            const int32_t pair = (low & 0xffff) | high << 16;
            std::memcpy(pairs + d / 2, &pair, sizeof pair);
        }
    }
    units_of(v, keys.v_stride, n, dim, VALUES, tile.value_units, inverses);
    for (i64 i = 0; i < n; i += 2) {
        float* pairs = to.values + i / 2 * tile.width;
        const T *low = v + i * keys.v_stride, *high = i + 1 < n ? low + keys.v_stride : low;
        const int32_t mask = i + 1 < n ? -1 : 0;
        for (i64 d = 0; d < whole; d += LANES) {
            const Floats inverse = read(inverses + d);
            write_pairs(pairs + d, nearest(read(low + d) * inverse), nearest(read(high + d) * inverse) & mask);
        }
        for (i64 d = whole; d < dim; ++d) {
            const int32_t pair = (nearest_to(low[d] * inverses[d]) & 0xffff) | (nearest_to(high[d] * inverses[d]) & mask) << 16;
            std::memcpy(pairs + d, &pair, sizeof pair);
        }
        std::fill(pairs + dim, pairs + tile.width, 0.0f);
    }
}

// Turns the columns of a block's queries into pairs of dimensions, in units that go with those of the keys.
LEVEL inline void pair_queries(Tile& tile) {
    Floats sizes = {};
    for (i64 d = 0; d < tile.dim; ++d)
        for (int lane = 0; lane < tile.lanes; lane += LANES) {
            float* at = tile.queries + d * BLOCK + lane;
            const Floats x = read(at) * tile.key_units[d];
            write(at, x);
            const Floats size = x < 0 ? -x : x;
            sizes = (size > sizes) | (size != size) ? size : sizes;
        }
    float most = 0;
    for (int i = 0; i < LANES; ++i) most = sizes[i] > most || sizes[i] != sizes[i] ? sizes[i] : most;
    tile.unit = most / PRODUCTS;
    const float inverse = most > 0 ? PRODUCTS / most : 0.0f;
    for (i64 d = 0; d < tile.dim; d += 2)
        for (int lane = 0; lane < tile.lanes; lane += LANES) {
            const float* at = tile.queries + d * BLOCK + lane;
            write_pairs(tile.queries + d / 2 * BLOCK + lane, nearest(read(at) * inverse), nearest(read(at + BLOCK) * inverse));
        }
}
#else
// Copies n keys and values of a head, from a row on.
template <typename T>
LEVEL inline void copy_keys(const Keys& keys, i64 row, i64 n, i64 head, const Tile& tile, const Copies& to) {
    const i64 at = head * tile.dim;
    copy_rows(static_cast<const T*>(keys.k) + row * keys.k_stride + at, keys.k_stride, n, tile.dim, to.keys, tile.dim);
    copy_rows(static_cast<const T*>(keys.v) + row * keys.v_stride + at, keys.v_stride, n, tile.dim, to.values,
              tile.width);
}
#endif

// Adds the keys first..last, of which copies[0] is number `copied`, in tiles.
template <typename Biases>
LEVEL void add_keys(Tile& tile, const Copies& copies, i64 copied, i64 first, i64 last, const Biases& biases) {
    for (i64 key = first; key < last; key += KEYS) {
        tile.count = std::min<i64>(KEYS, last - key);
        tile.keys = copies.keys + (key - copied) * tile.dim / (PAIRS ? 2 : 1);
        tile.values = copies.values + (key - copied) / (PAIRS ? 2 : 1) * tile.width;
        biases(tile, key);
        score<PANELS>(tile, 0);
        weigh(tile);
        sum<PANELS>(tile, 0);
        tile.first = false;
    }
}

// Attention of a span's queries of one head.
template <typename T>
LEVEL void attend(const Attention& a, const Span& span, i64 head, Scratch& scratch) {
    Tile& tile = scratch.tile;
    const i64 shared = head / (a.heads / a.shared), at = head * a.dim, end = span.query + span.rows;
    const Seen seen_by_all = span.seen(span.query, span.rows);
    copy_keys<T>(a.own, span.start + seen_by_all.first, seen_by_all.last - seen_by_all.first, shared, tile, scratch.own);
    if (span.summaries > 0) copy_keys<T>(a.more, span.more, span.summaries, shared, tile, scratch.more);
    for (i64 query = span.query; query < end; query += BLOCK) {
        const i64 row = span.row + query;
        tile.rows = std::min<i64>(BLOCK, end - query);
        tile.lanes = static_cast<int>(up(tile.rows, LANES));
        tile.first = true;
        copy_columns(static_cast<const T*>(a.q) + row * a.q_stride + at, a.q_stride, tile.rows, a.dim,
                     a.softcap > 0 ? a.scale / a.softcap : a.scale * LOG2_E, tile.queries, tile.lanes);
#if PAIRS
        pair_queries(tile);
#endif
        std::fill_n(tile.before, tile.lanes, NOTHING);
        std::fill_n(tile.most, tile.lanes, NOTHING);
        std::fill_n(tile.total, tile.lanes, 0.0f);
        const Seen seen = span.seen(query, tile.rows);
        add_keys(tile, scratch.own, seen_by_all.first, seen.first, seen.last, LineOfBiases(a, head, query, seen, scratch));
        add_keys(tile, scratch.more, 0, 0, span.summaries, BiasesOfSummaries(a, head, query, span.summaries, scratch));
        T* out = static_cast<T*>(a.out) + row * a.heads * a.dim + at;
        for (i64 i = 0; i < tile.rows; ++i) {
#if PAIRS
            const float inverse = 1.0f / tile.total[i] + 0.0f * tile.unit;  // NaN with scores that are no numbers
            for (i64 d = 0; d < a.dim; ++d)
                out[i * a.heads * a.dim + d] = tile.sums[i * tile.width + d] * tile.value_units[d] * inverse;
#else
            const float inverse = 1.0f / tile.total[i];
            for (i64 d = 0; d < a.dim; ++d)
                store(out + i * a.heads * a.dim + d, tile.sums[i * tile.width + d] * inverse);
#endif
        }
    }
}
