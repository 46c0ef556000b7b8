// Convolutions of images whose positions hold all channels side by side.

#include "_cpu.h"

#include <utility>
#include <vector>

namespace images {
namespace {

constexpr int SIDE = 3, SEEN = SIDE * SIDE;  // positions that each position sees
constexpr int TOGETHER = 4;  // adjacent positions, which share what is read of the weights and the image
// Below this many numbers a second thread costs more than it gives.
constexpr i64 WORTH_A_THREAD = 1 << 14;

// Where a row of an image is read; outside the image all its positions are the same zeros.
template <typename T>
struct Line {
    const T* first;
    i64 step;
};

// Into the function of each level of the instruction set, which it is compiled for there.
#define ALWAYS inline __attribute__((always_inline))

// x + bias + the weighted sum of what is seen, whose middle is x, for N adjacent positions: I counts what is seen.
template <typename T, int N, int... I>
ALWAYS void convolve(const T* const (&seen)[SIDE][N + SIDE - 1], const T* weight, const T* bias, T* out, i64 channels,
                     std::integer_sequence<int, I...>) {
#pragma omp simd
    for (i64 c = 0; c < channels; ++c) {
        float sums[N];
        for (int n = 0; n < N; ++n) sums[n] = load(bias + c);
        const float weights[] = {load(weight + I * channels + c)...};
        float from[SIDE][N + SIDE - 1];
        for (int y = 0; y < SIDE; ++y)
            for (int x = 0; x < N + SIDE - 1; ++x) from[y][x] = load(seen[y][x] + c);
        for (int n = 0; n < N; ++n) ((sums[n] += from[I / SIDE][n + I % SIDE] * weights[I]), ...);
        for (int n = 0; n < N; ++n) store(out + n * channels + c, from[1][n + 1] + sums[n]);
    }
}

// N positions of a row, from x on.
template <int N, typename T>
ALWAYS void convolve_some(const Depthwise& op, const Line<T> (&lines)[SIDE], i64 x, const T* zeros, T* out) {
    const T* seen[SIDE][N + SIDE - 1];
    for (int y = 0; y < SIDE; ++y)
        for (int i = 0; i < N + SIDE - 1; ++i) {
            const i64 column = x + i - 1;
            seen[y][i] = column >= 0 && column < op.width ? lines[y].first + column * lines[y].step : zeros;
        }
    convolve<T, N>(seen, static_cast<const T*>(op.weight), static_cast<const T*>(op.bias), out + x * op.channels,
                   op.channels, std::make_integer_sequence<int, SEEN>());
}

// A row of positions, y from the image's top; `zeros` stands for what is outside the image.
template <typename T>
ALWAYS void convolve_row(const Depthwise& op, const T* image, i64 y, const T* zeros, T* out) {
    Line<T> lines[SIDE];
    for (int i = 0; i < SIDE; ++i) {
        const i64 row = y + i - 1;
        const bool inside = row >= 0 && row < op.height;
        lines[i] = inside ? Line<T>{image + row * op.width * op.channels, op.channels} : Line<T>{zeros, 0};
    }
    i64 x = 0;
    for (; x + TOGETHER <= op.width; x += TOGETHER) convolve_some<TOGETHER>(op, lines, x, zeros, out);
    for (; x < op.width; ++x) convolve_some<1>(op, lines, x, zeros, out);
}

EVERY_LEVEL void row_of_floats(const Depthwise& op, const float* image, i64 y, const float* zeros, float* out) {
    convolve_row(op, image, y, zeros, out);
}
EVERY_LEVEL void row_of_halves(const Depthwise& op, const uint16_t* image, i64 y, const uint16_t* zeros,
                               uint16_t* out) {
    convolve_row(op, image, y, zeros, out);
}

template <typename T, void (*ROW)(const Depthwise&, const T*, i64, const T*, T*)>
void apply_to(const Depthwise& op, i64 items) {
    const std::vector<T> zeros(op.channels, T{});
    const i64 numbers = items * op.rows * op.width * op.channels;
#pragma omp parallel for num_threads(numbers < WORTH_A_THREAD ? 1 : op.threads)
    for (i64 row = 0; row < items * op.rows; ++row) {
        const i64 item = row / op.rows, y = row % op.rows;
        const T* image = static_cast<const T*>(op.x) + item * op.height * op.width * op.channels;
        T* out = static_cast<T*>(op.out) + item * op.out_stride + y * op.width * op.channels;
        ROW(op, image, op.first + y, zeros.data(), out);
    }
}

}  // namespace

void apply(const Depthwise& op, i64 items) {
    if (op.half) apply_to<uint16_t, row_of_halves>(op, items);
    else apply_to<float, row_of_floats>(op, items);
}

}  // namespace images
