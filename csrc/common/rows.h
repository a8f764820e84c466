// Rows of equally many columns, and the columns cut into slices and chunks (mtlcore/ops/slices.py).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MTLCORE_ANYWHERE __host__ __device__
#else
#define MTLCORE_ANYWHERE
#endif

namespace mtlcore {

template <class Scalar>
struct Rows {
    const Scalar* data;
    int64_t count;
    int64_t stride;  // elements from row to row

    MTLCORE_ANYWHERE const Scalar* row(int64_t i) const { return data + i * stride; }
};

// Columns [begin, end) of a slice: the unit of work.
struct Chunk {
    int64_t slice;
    int64_t begin;
    int64_t end;
};

struct Cut {
    const Chunk* chunks;
    int64_t chunk_count;
    const int64_t* firsts;  // slice s has the chunks firsts[s] .. firsts[s + 1]
    int64_t slices;
};

}  // namespace mtlcore
