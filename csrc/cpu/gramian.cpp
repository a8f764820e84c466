// G = J Jᵀ in float64. J [T, P] is read from memory once.
//
// A block is so many columns of all T rows that they stay in the L1 cache while the T (T + 1) / 2
// products of the block are made, a tile of rows with rows at a time (cpu/dots.h). Within a block,
// of 1,024 columns at most, the sums run in J's dtype; then they are folded into fp64. Chunks of
// blocks go to threads; their partial sums are added in order (see common/chunks.h).

#include <algorithm>

#include "common/chunks.h"
#include "cpu/dots.h"
#include "ops.h"

namespace mtlcore::cpu {
namespace {

constexpr int64_t kBlockBytes = 32 * 1024;  // of the L1 cache

template <class Scalar>
int64_t block_columns(int64_t tasks) {
    const int64_t fitting =
        kBlockBytes / static_cast<int64_t>(sizeof(Scalar)) / std::max<int64_t>(tasks, 1) / 64 * 64;
    return std::clamp<int64_t>(fitting, 128, kBlockColumns);
}

// The upper triangle of one chunk's Gramian.
template <int Bytes, class Scalar>
MTLCORE_BODY void chunk_body(const Scalar* J, int64_t tasks, int64_t begin, int64_t end,
                             int64_t stride, double* sums) {
    using T = Tile<Scalar, Bytes>;
    std::fill_n(sums, tasks * tasks, 0.0);
    const int64_t size = block_columns<Scalar>(tasks);
    for (int64_t column = begin; column < end; column += size) {
        const int64_t count = std::min(size, end - column);
        for (int64_t i = 0; i < tasks; i += T::kLeft) {
            const Scalar* left[T::kLeft];  // surplus rows of a tile repeat the last one
            for (int64_t p = 0; p < T::kLeft; ++p) {
                left[p] = J + std::min(i + p, tasks - 1) * stride + column;
            }
            for (int64_t j = i; j < tasks; j += T::kRight) {
                const Scalar* right[T::kRight];
                for (int64_t q = 0; q < T::kRight; ++q) {
                    right[q] = J + std::min(j + q, tasks - 1) * stride + column;
                }
                Scalar products[T::kLanes];
                dots<Bytes>(left, right, count, products);
                for (int64_t p = 0; p < std::min<int64_t>(T::kLeft, tasks - i); ++p) {
                    for (int64_t q = 0; q < std::min<int64_t>(T::kRight, tasks - j); ++q) {
                        sums[(i + p) * tasks + j + q] += products[p * T::kRight + q];
                    }
                }
            }
        }
    }
}

template <class Scalar>
void chunk_plain(const Scalar* J, int64_t tasks, int64_t begin, int64_t end, int64_t stride,
                 double* sums) {
    chunk_body<16>(J, tasks, begin, end, stride, sums);
}

template <class Scalar>
MTLCORE_AVX2 void chunk_avx2(const Scalar* J, int64_t tasks, int64_t begin, int64_t end,
                             int64_t stride, double* sums) {
    chunk_body<32>(J, tasks, begin, end, stride, sums);
}

template <class Scalar>
MTLCORE_AVX512 void chunk_avx512(const Scalar* J, int64_t tasks, int64_t begin, int64_t end,
                                 int64_t stride, double* sums) {
    chunk_body<64>(J, tasks, begin, end, stride, sums);
}

}  // namespace

template <class Scalar>
void gramian(const Scalar* J, int64_t tasks, int64_t columns, int64_t stride, double* partials,
             double* gramian, [[maybe_unused]] int threads) {
    const auto chunk = has_avx512() ? chunk_avx512<Scalar>
                       : has_avx2() ? chunk_avx2<Scalar>
                                    : chunk_plain<Scalar>;
    const int64_t chunks = chunk_count(columns);
    const int64_t size = chunk_columns(columns);
    // Dynamic: which thread takes a chunk changes no bit, and a busy core must not hold up the
    // rest.
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (chunks > 1)
    for (int64_t c = 0; c < chunks; ++c) {
        chunk(J, tasks, c * size, std::min((c + 1) * size, columns), stride,
              partials + c * tasks * tasks);
    }
    std::fill_n(gramian, tasks * tasks, 0.0);
    for (int64_t c = 0; c < chunks; ++c) {
        const double* partial = partials + c * tasks * tasks;
        for (int64_t i = 0; i < tasks; ++i) {
            for (int64_t j = i; j < tasks; ++j) gramian[i * tasks + j] += partial[i * tasks + j];
        }
    }
    for (int64_t i = 0; i < tasks; ++i) {
        for (int64_t j = 0; j < i; ++j) gramian[i * tasks + j] = gramian[j * tasks + i];
    }
}

template void gramian(const float*, int64_t, int64_t, int64_t, double*, double*, int);
template void gramian(const double*, int64_t, int64_t, int64_t, double*, double*, int);

}  // namespace mtlcore::cpu
