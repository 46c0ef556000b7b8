// Convolutions of images whose positions hold all channels side by side.

#include "_cpu.h"

#include <utility>
#include <vector>

namespace images {
namespace {

constexpr int SIDE = 3, SEEN = SIDE * SIDE;  // positions that each position sees
// Below this many numbers a second thread costs more than it gives.
constexpr i64 WORTH_A_THREAD = 1 << 14;

// x + bias + the weighted sum of what is seen, whose middle is x.
template <typename T, int... I>
inline void convolve(const T* const* seen, const T* weight, const T* bias, T* out, i64 channels,
                     std::integer_sequence<int, I...>) {
    const T* from[] = {seen[I]...};
#pragma omp simd
    for (i64 c = 0; c < channels; ++c) {
        float sum = load(bias + c);
        ((sum += load(from[I] + c) * load(weight + I * channels + c)), ...);
        store(out + c, load(from[SEEN / 2] + c) + sum);
    }
}

// A row of positions, y from the image's top; `zeros` stands for what is outside the image.
template <typename T>
inline void convolve_row(const Depthwise& op, const T* image, i64 y, const T* zeros, T* out) {
    const T* seen[SEEN];
    for (i64 x = 0; x < op.width; ++x) {
        for (int i = 0; i < SEEN; ++i) {
            const i64 row = y + i / SIDE - 1, column = x + i % SIDE - 1;
            const bool inside = row >= 0 && row < op.height && column >= 0 && column < op.width;
            seen[i] = inside ? image + (row * op.width + column) * op.channels : zeros;
        }
        convolve(seen, static_cast<const T*>(op.weight), static_cast<const T*>(op.bias), out + x * op.channels,
                 op.channels, std::make_integer_sequence<int, SEEN>());
    }
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
