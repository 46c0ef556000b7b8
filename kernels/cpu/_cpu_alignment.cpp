// Dynamic time warping: one pass over the cells, each of which waits for the one before it, and the way back.

#include "_cpu.h"

#include <limits>
#include <vector>

namespace alignment {
namespace {

enum Step : uint8_t { BOTH, ROW, COLUMN };

}  // namespace

void apply(const TimeWarp& op, i64 rows) {
    constexpr float NEVER = std::numeric_limits<float>::infinity();
    std::vector<float> costs(rows + 1, NEVER);  // of the column so far; before the first column only its corner is met
    std::vector<Step> steps(rows * op.columns);
    costs[0] = 0;
    for (i64 column = 0; column < op.columns; ++column) {
        float both = costs[0];  // the row and the column before
        costs[0] = NEVER;
        for (i64 row = 0; row < rows; ++row) {
            const float up = costs[row], left = costs[row + 1];
            const Step step = both < up && both < left ? BOTH : up < both && up < left ? ROW : COLUMN;
            costs[row + 1] = (step == BOTH ? both : step == ROW ? up : left) - op.x[row * op.columns + column];
            steps[column * rows + row] = step;
            both = left;
        }
    }
    i64 column = op.columns - 1;
    for (i64 row = rows - 1; row >= 0;) {
        op.out[row] = column;
        // Only of NaN a path comes to the edge before the first row.
        const Step step = column == 0 ? ROW : steps[column * rows + row];
        row -= step != COLUMN;
        column -= step != ROW;
    }
}

}  // namespace alignment
