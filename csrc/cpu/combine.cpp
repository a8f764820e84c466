// out = Jᵀ w in J's dtype, with the weights of each slice of the columns. J [T, P] is read once,
// out [P] written once.
//
// 8 vectors of columns stay in registers while 8 rows are added to them; a piece's sums wait in the
// cache for its next 8 rows. All in the order of the tasks, so a column's result depends on neither
// its neighbours nor the threads.

#include <algorithm>

#include "cpu/simd.h"
#include "ops.h"

namespace mtlcore::cpu {
namespace {

constexpr int64_t kStreams = 8;           // rows at a time: the hardware prefetches only so many
constexpr int64_t kPieceColumns = 16384;  // of a chunk: 64 KB of each fp32 row

template <class Scalar>
MTLCORE_BODY void piece_body(const Rows<Scalar>& J, const Scalar* w, int64_t count, Scalar* out) {
    using Vector = typename Simd<Scalar>::Vector;
    constexpr int kLanes = Simd<Scalar>::kLanes;
    constexpr int kVectors = 8;
    for (int64_t first = 0; first == 0 || first < J.count; first += kStreams) {
        const int64_t last = std::min(first + kStreams, J.count);
        int64_t column = 0;
        for (; column + kVectors * kLanes <= count; column += kVectors * kLanes) {
            Vector sums[kVectors] = {};
            if (first > 0) {
                for (int v = 0; v < kVectors; ++v) load(out + column + v * kLanes, sums[v]);
            }
            for (int64_t t = first; t < last; ++t) {
                const Scalar* row = J.row(t) + column;
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
            for (int64_t t = first; t < last; ++t) sum += w[t] * J.row(t)[column];
            out[column] = sum;
        }
    }
}

template <class Scalar>
void piece_plain(const Rows<Scalar>& J, const Scalar* w, int64_t count, Scalar* out) {
    piece_body(J, w, count, out);
}

template <class Scalar>
MTLCORE_AVX2 void piece_avx2(const Rows<Scalar>& J, const Scalar* w, int64_t count, Scalar* out) {
    piece_body(J, w, count, out);
}

}  // namespace

template <class Scalar>
void combine(const Rows<Scalar>& J, const Scalar* w, const Cut& cut, Scalar* out,
             [[maybe_unused]] int threads) {
    const auto piece = has_avx2() ? piece_avx2<Scalar> : piece_plain<Scalar>;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (cut.chunk_count > 1)
    for (int64_t c = 0; c < cut.chunk_count; ++c) {
        const Chunk& chunk = cut.chunks[c];
        for (int64_t begin = chunk.begin; begin < chunk.end; begin += kPieceColumns) {
            piece({J.data + begin, J.count, J.stride}, w + chunk.slice * J.count,
                  std::min(kPieceColumns, chunk.end - begin), out + begin);
        }
    }
}

template void combine(const Rows<float>&, const float*, const Cut&, float*, int);
template void combine(const Rows<double>&, const double*, const Cut&, double*, int);

}  // namespace mtlcore::cpu
