// out = left rightᵀ in float64, slice by slice of the columns, the Gramian where both are J; in two
// passes without atomics, so that every run gives the same bits.
//
// Pass 1: one thread block per (chunk of columns, pair of row tiles), of a Gramian the upper
// triangle alone. A thread walks the chunk in steps of the block and keeps a Tile x Tile tile of
// sums in registers; it sees at most 512 columns (131,072 / 256), so its sums run in the rows'
// dtype; they are added up over the block in fp64.
// Pass 2: one thread block per slice and row adds the chunks in a fixed order, a warp per element.

#include <algorithm>

#include "cuda/launch.h"
#include "ops.h"

namespace mtlcore::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

__device__ double warp_sum(double value) {
    for (int offset = 16; offset > 0; offset /= 2) {
        value += __shfl_down_sync(0xffffffffu, value, offset);
    }
    return value;
}

template <class Scalar>
__device__ Scalar element(const Rows<Scalar>& rows, int64_t row, int64_t column) {
    return row < rows.count ? __ldg(rows.row(row) + column) : Scalar(0);
}

template <class Scalar, int Tile>
__global__ void __launch_bounds__(kThreads)
    chunk_kernel(Rows<Scalar> left, Rows<Scalar> right, bool symmetric,
                 const Chunk* __restrict__ chunks, double* __restrict__ partials) {
    const int64_t first = static_cast<int64_t>(blockIdx.y) * Tile;
    const int64_t second = static_cast<int64_t>(blockIdx.z) * Tile;
    if (symmetric && second < first) return;
    const bool same = symmetric && first == second;
    const Chunk chunk = chunks[blockIdx.x];

    Scalar sums[Tile][Tile] = {};
    for (int64_t column = chunk.begin + threadIdx.x; column < chunk.end; column += kThreads) {
        Scalar a[Tile], b[Tile];
#pragma unroll
        for (int r = 0; r < Tile; ++r) a[r] = element(left, first + r, column);
#pragma unroll
        for (int r = 0; r < Tile; ++r) b[r] = same ? a[r] : element(right, second + r, column);
#pragma unroll
        for (int i = 0; i < Tile; ++i) {
#pragma unroll
            for (int j = 0; j < Tile; ++j) sums[i][j] += a[i] * b[j];
        }
    }

    __shared__ double warps[kWarps][Tile * Tile];
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < Tile; ++i) {
#pragma unroll
        for (int j = 0; j < Tile; ++j) {
            const double sum = warp_sum(static_cast<double>(sums[i][j]));
            if (lane == 0) warps[warp][i * Tile + j] = sum;
        }
    }
    __syncthreads();
    if (threadIdx.x < Tile * Tile) {
        const int64_t i = first + threadIdx.x / Tile;
        const int64_t j = second + threadIdx.x % Tile;
        if (i < left.count && j < right.count) {
            double sum = 0.0;
            for (int w = 0; w < kWarps; ++w) sum += warps[w][threadIdx.x];
            partials[(static_cast<int64_t>(blockIdx.x) * left.count + i) * right.count + j] = sum;
        }
    }
}

__global__ void __launch_bounds__(kThreads)
    reduce_kernel(const double* __restrict__ partials, int64_t left, int64_t right, bool symmetric,
                  const int64_t* __restrict__ firsts, double* __restrict__ out) {
    const int64_t slice = blockIdx.x;
    const int64_t i = blockIdx.y;
    const int64_t begin = firsts[slice];
    const int64_t end = firsts[slice + 1];
    const int lane = threadIdx.x % 32;
    double* sums = out + slice * left * right;
    for (int64_t j = (symmetric ? i : 0) + threadIdx.x / 32; j < right; j += kWarps) {
        double sum = 0.0;
        for (int64_t c = begin + lane; c < end; c += 32) {
            sum += partials[(c * left + i) * right + j];
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            sums[i * right + j] = sum;
            if (symmetric) sums[j * right + i] = sum;
        }
    }
}

}  // namespace

template <class Scalar>
void gramian(const Rows<Scalar>& left, const Rows<Scalar>& right, bool symmetric, const Cut& cut,
             double* partials, double* out, int device, void* stream) {
    if (left.count == 0 || right.count == 0 || cut.slices == 0) return;
    const DeviceGuard guard(device);
    const auto queue = static_cast<cudaStream_t>(stream);
    if (cut.chunk_count > 0) {
        const int tile = std::max(left.count, right.count) <= 4 ? 4 : 8;
        const dim3 grid(static_cast<unsigned>(cut.chunk_count),
                        static_cast<unsigned>((left.count + tile - 1) / tile),
                        static_cast<unsigned>((right.count + tile - 1) / tile));
        const auto kernel = tile == 4 ? chunk_kernel<Scalar, 4> : chunk_kernel<Scalar, 8>;
        kernel<<<grid, kThreads, 0, queue>>>(left, right, symmetric, cut.chunks, partials);
        check(cudaGetLastError(), "gramian: chunks");
    }
    const dim3 grid(static_cast<unsigned>(cut.slices), static_cast<unsigned>(left.count));
    reduce_kernel<<<grid, kThreads, 0, queue>>>(partials, left.count, right.count, symmetric,
                                                cut.firsts, out);
    check(cudaGetLastError(), "gramian: reduction");
}

template void gramian(const Rows<float>&, const Rows<float>&, bool, const Cut&, double*, double*,
                      int, void*);
template void gramian(const Rows<double>&, const Rows<double>&, bool, const Cut&, double*, double*,
                      int, void*);

}  // namespace mtlcore::cuda
