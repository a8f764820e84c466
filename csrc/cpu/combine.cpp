// out = Jᵀ w in J's dtype. J [T, P] is read once, out [P] written once.
//
// 8 vectors of columns stay in registers while 8 rows are added to them; a chunk's sums wait in the
// cache for its next 8 rows. All in the order of the tasks, so a column's result depends on neither
// its neighbours nor the threads.

#include <algorithm>

#include "cpu/simd.h"
#include "ops.h"

namespace mtlcore::cpu {
namespace {

constexpr int64_t kStreams = 8;           // rows at a time: the hardware prefetches only so many
constexpr int64_t kChunkColumns = 16384;  // the unit of work of a thread: 64 KB of each fp32 row

template <class Scalar>
MTLCORE_BODY void chunk_body(const Scalar* J, const Scalar* w, int64_t tasks, int64_t count,
                             int64_t stride, Scalar* out) {
    using Vector = typename Simd<Scalar>::Vector;
    constexpr int kLanes = Simd<Scalar>::kLanes;
    constexpr int kVectors = 8;
    for (int64_t first = 0; first == 0 || first < tasks; first += kStreams) {
        const int64_t last = std::min(first + kStreams, tasks);
        int64_t column = 0;
        for (; column + kVectors * kLanes <= count; column += kVectors * kLanes) {
            Vector sums[kVectors] = {};
            if (first > 0) {
                for (int v = 0; v < kVectors; ++v) load(out + column + v * kLanes, sums[v]);
            }
            for (int64_t t = first; t < last; ++t) {
                const Scalar* row = J + t * stride + column;
                for (int v = 0; v < kVectors; ++v) {
                    Vector part;
                    load(row + v * kLanes, part);
                    sums[v] += w[t] * part;
                }
            }
            for (int v = 0; v < kVectors; ++v) store(sums[v], out + column + v * kLanes);
        }
        for (; column < count; ++column) {
            Scalar sum = first > 0 ? out[column] : 0;
            for (int64_t t = first; t < last; ++t) sum += w[t] * J[t * stride + column];
            out[column] = sum;
        }
    }
}

template <class Scalar>
void chunk_plain(const Scalar* J, const Scalar* w, int64_t tasks, int64_t count, int64_t stride,
                 Scalar* out) {
    chunk_body(J, w, tasks, count, stride, out);
}

template <class Scalar>
MTLCORE_AVX2 void chunk_avx2(const Scalar* J, const Scalar* w, int64_t tasks, int64_t count,
                             int64_t stride, Scalar* out) {
    chunk_body(J, w, tasks, count, stride, out);
}

}  // namespace

template <class Scalar>
void combine(const Scalar* J, const Scalar* w, int64_t tasks, int64_t columns, int64_t stride,
             Scalar* out, [[maybe_unused]] int threads) {
    const auto chunk = has_avx2() ? chunk_avx2<Scalar> : chunk_plain<Scalar>;
    const int64_t chunks = (columns + kChunkColumns - 1) / kChunkColumns;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (chunks > 1)
    for (int64_t c = 0; c < chunks; ++c) {
        const int64_t begin = c * kChunkColumns;
        chunk(J + begin, w, tasks, std::min(kChunkColumns, columns - begin), stride, out + begin);
    }
}

template void combine(const float*, const float*, int64_t, int64_t, int64_t, float*, int);
template void combine(const double*, const double*, int64_t, int64_t, int64_t, double*, int);

}  // namespace mtlcore::cpu
