// Ops on rows as wide as a vocabulary, each a pass or two over a row that stays in the cache.

#include "_cpu.h"

#include <limits>

namespace vocabulary {
namespace {

constexpr float NOTHING = -std::numeric_limits<float>::infinity();
constexpr i64 NONE = -1;
// Below this many numbers a second thread costs more than it gives.
constexpr i64 WORTH_A_THREAD = 1 << 16;

EVERY_LEVEL float largest(const float* x, i64 n) {
    float most = NOTHING;
#pragma omp simd reduction(max : most)
    for (i64 i = 0; i < n; ++i) most = std::max(most, x[i]);
    return most;
}

EVERY_LEVEL float log_sum_exp(const float* x, i64 n) {
    const float most = largest(x, n);
    if (most == NOTHING) return std::numeric_limits<float>::quiet_NaN();
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (i64 i = 0; i < n; ++i) total += exp_negative(x[i] - most);
    return most + std::log(total);
}

void apply_rules(const TimestampRules& op, i64 row) {
    const i64 begin = op.begins[row], count = op.counts[row];
    if (begin < 0) return;
    const i64* said = op.history + op.slots[row] * op.longest + begin;
    const auto is_time = [&](i64 at) { return said[at] >= op.first; };
    i64 latest = NONE;
    for (i64 at = count - 1; at >= 0 && latest == NONE; --at)
        if (is_time(at)) latest = said[at];
    const bool initial = count == 0, ended = count >= 1 && is_time(count - 1);
    const bool paired = count < 2 || is_time(count - 2), open = ended && !paired;
    const bool no_text = initial || open, no_special = initial;
    i64 earliest = latest == NONE ? op.first : latest + !open;
    if (ended && paired) earliest = op.width;
    const i64 stop = initial ? std::min(op.last_initial[row] + 1, op.width) : op.width;
    earliest = std::min(earliest, stop);

    float* scores = op.scores + row * op.stride;
    float *special = scores + op.text_end, *times = scores + op.first, *end = scores + op.width;
    std::fill(times, scores + earliest, NOTHING);
    std::fill(scores + stop, end, NOTHING);
    scores[op.without] = NOTHING;
    float likeliest = NOTHING;
    if (!no_text) likeliest = largest(scores, op.text_end);
    if (!no_special) likeliest = std::max(likeliest, largest(special, op.first - op.text_end));
    // A time comes where all times together are likelier than any one other token.
    const bool only_times = log_sum_exp(scores + earliest, stop - earliest) > likeliest;
    if (no_text || only_times) std::fill(scores, special, NOTHING);
    if (no_special || only_times) std::fill(special, times, NOTHING);
}

}  // namespace

void apply(const LogSumExp& op, i64 rows) {
#pragma omp parallel for num_threads(rows * op.width < WORTH_A_THREAD ? 1 : op.threads)
    for (i64 r = 0; r < rows; ++r)
        op.out[r] = log_sum_exp(op.x + r * op.stride, op.stops == nullptr ? op.width : std::min(op.stops[r], op.width));
}

void apply(const BanTokens& op, i64 rows) {
    for (i64 r = 0; r < rows; ++r) {
        if (op.rows[r] < 0) continue;
        const i64* ids = op.ids + op.rows[r] * op.count;
        for (i64 i = 0; i < op.count; ++i)
            if (ids[i] >= 0) op.scores[r * op.stride + ids[i]] = NOTHING;
    }
}

void apply(const TimestampRules& op, i64 rows) {
#pragma omp parallel for num_threads(rows * op.width < WORTH_A_THREAD ? 1 : op.threads)
    for (i64 r = 0; r < rows; ++r) apply_rules(op, r);
}

}  // namespace vocabulary
