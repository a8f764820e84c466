// The arguments that forward and backward of low-rank adapters share. Raw pointers, checked before.
#pragma once

#include <cstdint>

namespace mtlcore {

// The tokens [start, stop) of one task.
struct Segment {
    int64_t task;
    int64_t start;
    int64_t stop;
};

// Which masks multiply the adapters' input x; see common/philox.h.
struct Dropout {
    const double* shares;      // [T] share of x that is dropped
    const int64_t* keys;       // [T]
    const int32_t* positions;  // [N] of each token within its task; below 0: nothing is dropped
    uint64_t layer = 0;
    bool any = false;
};

// The segments of a batch and the slots of its tasks.
template <class Scalar>
struct Lora {
    const Segment* segments;
    int64_t segment_count;
    // Slot k of task t is the rank row rows[t, k] of a factor, with scale scales[t, k]; a row below
    // 0 ends the slots of a task.
    const int32_t* rows;
    const Scalar* scales;
    int64_t width;  // slots of the task that has most
    int64_t tokens;
    Dropout dropout;

    int64_t slots(int64_t task) const {
        int64_t count = 0;
        while (count < width && rows[task * width + count] >= 0) ++count;
        return count;
    }
};

// Whether the products in rank space are multiplied with the scales: not at all, where they are
// used while they are stored without, or where they are stored.
enum class Scaling { kNone, kOnUse, kStored };

// reduced = source downᵀ, unless there is no source: then it is given. target += reduced up, unless
// there is no target. X is what tokens are stored in, Scalar what the factors are.
template <class X, class Scalar>
struct TokenPass {
    Scalar* reduced = nullptr;  // [tokens, width]
    Scaling scaling = Scaling::kNone;
    const X* source = nullptr;  // [tokens, source_columns]
    int64_t source_stride = 0;
    int64_t source_columns = 0;
    const Scalar* down = nullptr;  // [R, source_columns]
    bool drops_source = false;
    X* target = nullptr;  // [tokens, target_columns]
    int64_t target_stride = 0;
    int64_t target_columns = 0;
    const Scalar* up = nullptr;  // [R, target_columns]
    bool drops_target = false;
};

// The gradient of one factor, reducedᵀ source of each segment: `memory + offsets[t, k]` is the row
// of a slot's gradient; below 0 it is not wanted.
template <class X, class Scalar>
struct LoraGrads {
    const X* source;  // [tokens, columns]
    int64_t stride;
    int64_t columns;
    bool drops_source;
    const Scalar* coefficients;  // [tokens, width]
    bool scaled;                 // times the scales
    const int64_t* offsets;      // [T, width]
    const Scalar* weights;       // [T, width] what the gradient of each slot is multiplied with
    Scalar* memory;
    bool square;  // add the squares of each segment's gradient instead
};

}  // namespace mtlcore
