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

template <class Scalar>
struct Lora {
    const Segment* segments;
    int64_t segment_count;
    // Slot k of task t is the rank row rows[t, k] of A and B, with scale scales[t, k]; a row below
    // 0 ends the slots of a task.
    const int32_t* rows;
    const Scalar* scales;
    int64_t width;    // slots of the task that has most
    const Scalar* A;  // [R, in]
    const Scalar* B;  // [R, out]
    int64_t in;
    int64_t out;
    int64_t tokens;
    Dropout dropout;

    int64_t slots(int64_t task) const {
        int64_t count = 0;
        while (count < width && rows[task * width + count] >= 0) ++count;
        return count;
    }
};

// Where the gradients of a task's slots go: `memory + offsets[t, k]` is the row of that slot's
// gradient; below 0 it is not wanted.
template <class Scalar>
struct LoraGrads {
    Scalar* memory;
    const int64_t* a_offsets;  // [T, width]
    const int64_t* b_offsets;  // [T, width]
    const Scalar* weights;     // [T, width] what the gradient of each slot is multiplied with
    bool square;               // add the squares of each segment's gradient instead
};

}  // namespace mtlcore
