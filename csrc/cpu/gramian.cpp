// G = J Jᵀ in float64. J [T, P] is read from memory once.
//
// A block is 1,024 columns of all T rows: 32 KB at T = 8, so the T (T + 1) / 2 products of a block
// find its rows in the L1 cache. Within a block the sums run in J's dtype, 8 (fp64: 4) lanes side
// by side; each lane is folded into fp64 at the end of the block. Products are formed 2 x 4 rows
// at a time: 8 accumulators hide the latency of the FMA and 6 loads feed 8 of them.
// Chunks of blocks go to threads; their partial sums are added in order (see common/chunks.h).

#include <algorithm>

#include "common/chunks.h"
#include "cpu/simd.h"
#include "ops.h"

namespace mtlcore::cpu {
namespace {

constexpr int kTileRows = 2;
constexpr int kTileColumns = 4;

// sums[i][j] += dot(a_i, b_j) over one block, for I rows from `a` and J rows from `b`.
template <int I, int J, class Scalar>
MTLCORE_BODY void tile(const Scalar* a, const Scalar* b, int64_t stride, int64_t count,
                       double* sums, int64_t sums_stride) {
    using Vector = typename Simd<Scalar>::Vector;
    constexpr int kLanes = Simd<Scalar>::kLanes;
    Vector lanes[I][J] = {};
    int64_t column = 0;
    for (; column + kLanes <= count; column += kLanes) {
        Vector left[I];
        for (int i = 0; i < I; ++i) {
            left[i] = *reinterpret_cast<const Vector*>(a + i * stride + column);
        }
        for (int j = 0; j < J; ++j) {
            const Vector right = *reinterpret_cast<const Vector*>(b + j * stride + column);
            for (int i = 0; i < I; ++i) lanes[i][j] += left[i] * right;
        }
    }
    for (int i = 0; i < I; ++i) {
        for (int j = 0; j < J; ++j) {
            double sum = 0.0;
            for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(lanes[i][j][lane]);
            for (int64_t tail = column; tail < count; ++tail) {
                sum += static_cast<double>(a[i * stride + tail]) * b[j * stride + tail];
            }
            sums[i * sums_stride + j] += sum;
        }
    }
}

template <int I, class Scalar>
MTLCORE_BODY void tile_row(const Scalar* a, const Scalar* b, int64_t rows, int64_t stride,
                           int64_t count, double* sums, int64_t sums_stride) {
    int64_t j = 0;
    for (; j + kTileColumns <= rows; j += kTileColumns) {
        tile<I, kTileColumns>(a, b + j * stride, stride, count, sums + j, sums_stride);
    }
    for (; j + 2 <= rows; j += 2) {
        tile<I, 2>(a, b + j * stride, stride, count, sums + j, sums_stride);
    }
    for (; j < rows; ++j) tile<I, 1>(a, b + j * stride, stride, count, sums + j, sums_stride);
}

// The upper triangle of one chunk's Gramian. A tile on the diagonal also writes the element below
// it, which nobody reads.
template <class Scalar>
MTLCORE_BODY void chunk_body(const Scalar* J, int64_t tasks, int64_t begin, int64_t end,
                             int64_t stride, double* sums) {
    std::fill_n(sums, tasks * tasks, 0.0);
    for (int64_t column = begin; column < end; column += kBlockColumns) {
        const int64_t count = std::min(kBlockColumns, end - column);
        const Scalar* block = J + column;
        int64_t i = 0;
        for (; i + kTileRows <= tasks; i += kTileRows) {
            tile_row<kTileRows>(block + i * stride, block + i * stride, tasks - i, stride, count,
                                sums + i * tasks + i, tasks);
        }
        for (; i < tasks; ++i) {
            tile_row<1>(block + i * stride, block + i * stride, tasks - i, stride, count,
                        sums + i * tasks + i, tasks);
        }
    }
}

template <class Scalar>
void chunk_plain(const Scalar* J, int64_t tasks, int64_t begin, int64_t end, int64_t stride,
                 double* sums) {
    chunk_body(J, tasks, begin, end, stride, sums);
}

template <class Scalar>
MTLCORE_AVX2 void chunk_avx2(const Scalar* J, int64_t tasks, int64_t begin, int64_t end,
                             int64_t stride, double* sums) {
    chunk_body(J, tasks, begin, end, stride, sums);
}

}  // namespace

template <class Scalar>
void gramian(const Scalar* J, int64_t tasks, int64_t columns, int64_t stride, double* partials,
             double* gramian, int threads) {
    const auto chunk = has_avx2() ? chunk_avx2<Scalar> : chunk_plain<Scalar>;
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
