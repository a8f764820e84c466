// out = left rightᵀ in float64, slice by slice of the columns: the Gramian where both are J. The
// rows are read from memory once.
//
// The products are made block by block of the columns, a tile of rows with rows at a time
// (cpu/dots.h); of a Gramian the upper triangle alone. A block is so small that the rows that are
// read again, those on the right, stay in the L1 cache beside a tile of the left. Within a block,
// of 1,024 columns at most (of 256 with the narrowest vectors, whose lanes add four times as
// often), the sums run in the rows' dtype; then they are folded into fp64. Chunks of blocks go to
// threads; their partial sums are added in order.

#include <algorithm>

#include "cpu/dots.h"
#include "ops.h"

namespace mtlcore::cpu {
namespace {

constexpr int64_t kBlockBytes = 32 * 1024;  // of the L1 cache

// Columns of the longest fp32 sum before it is folded into fp64.
template <int Bytes>
constexpr int64_t kBlockColumns = Bytes > 16 ? 1024 : 256;

template <int Bytes, class Scalar>
int64_t block_columns(int64_t rows) {
    const int64_t fitting =
        kBlockBytes / static_cast<int64_t>(sizeof(Scalar)) / std::max<int64_t>(rows, 1) / 64 * 64;
    return std::clamp<int64_t>(fitting, 128, kBlockColumns<Bytes>);
}

// The products of one chunk.
template <int Bytes, class Scalar>
MTLCORE_BODY void chunk_body(const Rows<Scalar>& left, const Rows<Scalar>& right, bool symmetric,
                             const Chunk& chunk, double* sums) {
    using T = Tile<Scalar, Bytes>;
    std::fill_n(sums, left.count * right.count, 0.0);
    const int64_t size = block_columns<Bytes, Scalar>(right.count + (symmetric ? 0 : T::kLeft));
    for (int64_t column = chunk.begin; column < chunk.end; column += size) {
        const int64_t count = std::min(size, chunk.end - column);
        for (int64_t i = 0; i < left.count; i += T::kLeft) {
            const Scalar* a[T::kLeft];  // surplus rows of a tile repeat the last one
            for (int64_t p = 0; p < T::kLeft; ++p) {
                a[p] = left.row(std::min(i + p, left.count - 1)) + column;
            }
            for (int64_t j = symmetric ? i : 0; j < right.count; j += T::kRight) {
                const Scalar* b[T::kRight];
                for (int64_t q = 0; q < T::kRight; ++q) {
                    b[q] = right.row(std::min(j + q, right.count - 1)) + column;
                }
                Scalar products[T::kLanes];
                dots<Bytes>(a, b, count, products);
                for (int64_t p = 0; p < std::min<int64_t>(T::kLeft, left.count - i); ++p) {
                    for (int64_t q = 0; q < std::min<int64_t>(T::kRight, right.count - j); ++q) {
                        sums[(i + p) * right.count + j + q] += products[p * T::kRight + q];
                    }
                }
            }
        }
    }
}

template <class Scalar>
void chunk_plain(const Rows<Scalar>& left, const Rows<Scalar>& right, bool symmetric,
                 const Chunk& chunk, double* sums) {
    chunk_body<16>(left, right, symmetric, chunk, sums);
}

template <class Scalar>
MTLCORE_AVX2 void chunk_avx2(const Rows<Scalar>& left, const Rows<Scalar>& right, bool symmetric,
                             const Chunk& chunk, double* sums) {
    chunk_body<32>(left, right, symmetric, chunk, sums);
}

template <class Scalar>
MTLCORE_AVX512 void chunk_avx512(const Rows<Scalar>& left, const Rows<Scalar>& right,
                                 bool symmetric, const Chunk& chunk, double* sums) {
    chunk_body<64>(left, right, symmetric, chunk, sums);
}

}  // namespace

template <class Scalar>
void gramian(const Rows<Scalar>& left, const Rows<Scalar>& right, bool symmetric, const Cut& cut,
             double* partials, double* out, [[maybe_unused]] int threads) {
    const auto chunk = has_avx512() ? chunk_avx512<Scalar>
                       : has_avx2() ? chunk_avx2<Scalar>
                                    : chunk_plain<Scalar>;
    const int64_t size = left.count * right.count;
    // Dynamic: which thread takes a chunk changes no bit, and a busy core must not hold up the
    // rest.
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (cut.chunk_count > 1)
    for (int64_t c = 0; c < cut.chunk_count; ++c) {
        chunk(left, right, symmetric, cut.chunks[c], partials + c * size);
    }
#pragma omp parallel for num_threads(threads) if (cut.slices > 1)
    for (int64_t s = 0; s < cut.slices; ++s) {
        double* sums = out + s * size;
        std::fill_n(sums, size, 0.0);
        for (int64_t c = cut.firsts[s]; c < cut.firsts[s + 1]; ++c) {
            const double* partial = partials + c * size;
            for (int64_t k = 0; k < size; ++k) sums[k] += partial[k];
        }
        if (!symmetric) continue;
        for (int64_t i = 0; i < left.count; ++i) {
            for (int64_t j = 0; j < i; ++j) sums[i * left.count + j] = sums[j * left.count + i];
        }
    }
}

template void gramian(const Rows<float>&, const Rows<float>&, bool, const Cut&, double*, double*,
                      int);
template void gramian(const Rows<double>&, const Rows<double>&, bool, const Cut&, double*, double*,
                      int);

}  // namespace mtlcore::cpu
