// Products of rows with rows, as many at once as a vector has lanes: their sums are reduced
// together at the end, in as many steps as one alone would take.
#pragma once

#include "cpu/simd.h"

namespace mtlcore::cpu {

template <class Scalar, int Bytes>
struct Tile {
    using Vector = typename Simd<Scalar, Bytes>::Vector;
    static constexpr int kLanes = Simd<Scalar, Bytes>::kLanes;
    // dots: kLeft x kRight = kLanes sums. outer: kRows x kVectors vectors of sums.
    static constexpr int kRight = kLanes >= 16 ? 4 : 2;
    static constexpr int kLeft = kLanes / kRight;
    static constexpr int kRows = 4;
    static constexpr int kVectors = Bytes >= 64 ? 4 : 2;
};

// sums[i * kRight + j] = left[i] . right[j] over `count` columns.
template <int Bytes, class Scalar>
MTLCORE_BODY void dots(const Scalar* const* left, const Scalar* const* right, int64_t count,
                       Scalar* sums) {
    using T = Tile<Scalar, Bytes>;
    using Vector = typename T::Vector;
    Vector lanes[T::kLanes] = {};
    int64_t column = 0;
    for (; column + T::kLanes <= count; column += T::kLanes) {
        Vector b[T::kRight];
        for (int j = 0; j < T::kRight; ++j) load(right[j] + column, b[j]);
        for (int i = 0; i < T::kLeft; ++i) {
            Vector a;
            load(left[i] + column, a);
            for (int j = 0; j < T::kRight; ++j) lanes[i * T::kRight + j] += a * b[j];
        }
    }
    if (column < count) {
        const int64_t rest = count - column;
        Vector b[T::kRight] = {};
        for (int j = 0; j < T::kRight; ++j) {
            for (int64_t lane = 0; lane < rest; ++lane) b[j][lane] = right[j][column + lane];
        }
        for (int i = 0; i < T::kLeft; ++i) {
            Vector a = {};
            for (int64_t lane = 0; lane < rest; ++lane) a[lane] = left[i][column + lane];
            for (int j = 0; j < T::kRight; ++j) lanes[i * T::kRight + j] += a * b[j];
        }
    }
    sum_lanes<T::kLanes>(lanes);
    store(lanes[0], sums);
}

}  // namespace mtlcore::cpu
