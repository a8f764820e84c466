// How the P columns of J are cut for a reduction: by P alone, never by the number of threads or
// processors, so that the sums, and with them the bits of the result, do not depend on the machine.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mtlcore {

constexpr int64_t kBlockColumns = 1024;  // longest fp32 sum before it is folded into fp64

// About 1,024 chunks, of 8,192 to 131,072 columns each, whole blocks all.
inline int64_t chunk_columns(int64_t columns) {
    const int64_t blocks = (columns / 1024 + kBlockColumns) / kBlockColumns;
    return std::clamp<int64_t>(blocks, 8, 128) * kBlockColumns;
}

inline int64_t chunk_count(int64_t columns) {
    const int64_t size = chunk_columns(columns);
    return (columns + size - 1) / size;
}

}  // namespace mtlcore
