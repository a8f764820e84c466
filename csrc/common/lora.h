// The arguments that forward and backward of low-rank adapters share. Raw pointers, checked before.
#pragma once

#include <cstdint>
#include <vector>

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
};

// Tokens, and the factor between them and rank space. Layers that read one input have one factor A,
// but each its own B: rank rows [first, stop) are the rows of this one, and the slots of a task
// stand in the order of their rows' layers.
template <class X, class Scalar>
struct Side {
    X* tokens;  // [tokens, columns]
    int64_t stride;
    int64_t columns;
    const Scalar* factor;  // [stop - first, columns]
    int64_t first;
    int64_t stop;
    bool drops;  // whether dropout masks the tokens

    // The slots [begin, end) of a task that are rows of this factor.
    struct Range {
        int64_t begin;
        int64_t end;
    };
    Range slots(const Lora<Scalar>& lora, int64_t task) const {
        const int32_t* row = lora.rows + task * lora.width;
        int64_t begin = 0;
        while (begin < lora.width && row[begin] >= 0 && row[begin] < first) ++begin;
        int64_t end = begin;
        while (end < lora.width && row[end] >= first && row[end] < stop) ++end;
        return {begin, end};
    }
};

// Whether the products in rank space are multiplied with the scales: not at all, where they are
// used while they are stored without, or where they are stored.
enum class Scaling { kNone, kOnUse, kStored };

// reduced = tokens factorᵀ of the sources; without any it is given. Then the tokens of each target
// += reduced factor. X is what tokens are stored in, Scalar what the factors are.
template <class X, class Scalar>
struct TokenPass {
    Scalar* reduced;  // [tokens, width]
    Scaling scaling = Scaling::kNone;
    std::vector<Side<const X, Scalar>> sources;
    std::vector<Side<X, Scalar>> targets;
};

// The gradient of one factor, coefficientsᵀ tokens of each segment: `memory + offsets[t, k]` is the
// row of a slot's gradient; below 0 it is not wanted.
template <class X, class Scalar>
struct LoraGrads {
    Side<const X, Scalar> side;
    const Scalar* coefficients;  // [tokens, width]
    bool scaled;                 // times the scales
    const int64_t* offsets;      // [T, width]
    const Scalar* weights;       // [T, width] what the gradient of each slot is multiplied with
    Scalar* memory;
    bool square;  // add the squares of each segment's gradient instead
};

}  // namespace mtlcore
