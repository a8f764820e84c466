// G = J Jᵀ in float64, in two passes without atomics, so that every run gives the same bits.
//
// Pass 1: one thread block per (chunk of columns, pair of row tiles). A thread walks the chunk in
// steps of the block and keeps a Rows x Rows tile of sums in registers; it sees at most 512 columns
// (131,072 / 256), so its sums run in J's dtype; they are added up over the block in fp64.
// Pass 2: one thread block per element of the upper triangle adds the chunks in a fixed order.

#include <algorithm>

#include "common/chunks.h"
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

template <class Scalar, int Rows>
__global__ void __launch_bounds__(kThreads)
    chunk_kernel(const Scalar* __restrict__ J, int64_t tasks, int64_t columns, int64_t stride,
                 int64_t chunk, double* __restrict__ partials) {
    const int64_t first = static_cast<int64_t>(blockIdx.y) * Rows;
    const int64_t second = static_cast<int64_t>(blockIdx.z) * Rows;
    if (second < first) return;  // G is symmetric: the upper triangle is enough
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * chunk;
    const int64_t end = min(begin + chunk, columns);

    Scalar sums[Rows][Rows] = {};
    for (int64_t column = begin + threadIdx.x; column < end; column += kThreads) {
        Scalar a[Rows], b[Rows];
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
            a[r] = first + r < tasks ? J[(first + r) * stride + column] : Scalar(0);
        }
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
            b[r] = first == second      ? a[r]
                   : second + r < tasks ? J[(second + r) * stride + column]
                                        : Scalar(0);
        }
#pragma unroll
        for (int i = 0; i < Rows; ++i) {
#pragma unroll
            for (int j = 0; j < Rows; ++j) sums[i][j] += a[i] * b[j];
        }
    }

    __shared__ double warps[kWarps][Rows * Rows];
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < Rows; ++i) {
#pragma unroll
        for (int j = 0; j < Rows; ++j) {
            const double sum = warp_sum(static_cast<double>(sums[i][j]));
            if (lane == 0) warps[warp][i * Rows + j] = sum;
        }
    }
    __syncthreads();
    if (threadIdx.x < Rows * Rows) {
        const int64_t i = first + threadIdx.x / Rows;
        const int64_t j = second + threadIdx.x % Rows;
        if (i < tasks && j < tasks) {
            double sum = 0.0;
            for (int w = 0; w < kWarps; ++w) sum += warps[w][threadIdx.x];
            partials[(static_cast<int64_t>(blockIdx.x) * tasks + i) * tasks + j] = sum;
        }
    }
}

__global__ void __launch_bounds__(kThreads)
    reduce_kernel(const double* __restrict__ partials, int64_t tasks, int64_t chunks,
                  double* __restrict__ gramian) {
    const int64_t i = blockIdx.x;
    const int64_t j = blockIdx.y;
    if (j < i) return;
    double sum = 0.0;
    for (int64_t c = threadIdx.x; c < chunks; c += kThreads) {
        sum += partials[(c * tasks + i) * tasks + j];
    }
    __shared__ double warps[kWarps];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0.0;
        for (int w = 0; w < kWarps; ++w) total += warps[w];
        gramian[i * tasks + j] = total;
        gramian[j * tasks + i] = total;
    }
}

}  // namespace

template <class Scalar>
void gramian(const Scalar* J, int64_t tasks, int64_t columns, int64_t stride, double* partials,
             double* gramian, int device, void* stream) {
    if (tasks == 0) return;
    const DeviceGuard guard(device);
    const auto queue = static_cast<cudaStream_t>(stream);
    const int64_t chunks = chunk_count(columns);
    const int64_t size = chunk_columns(columns);
    if (chunks > 0) {
        const int rows = tasks <= 4 ? 4 : 8;
        const auto tiles = static_cast<unsigned>((tasks + rows - 1) / rows);
        const dim3 grid(static_cast<unsigned>(chunks), tiles, tiles);
        const auto kernel = rows == 4 ? chunk_kernel<Scalar, 4> : chunk_kernel<Scalar, 8>;
        kernel<<<grid, kThreads, 0, queue>>>(J, tasks, columns, stride, size, partials);
        check(cudaGetLastError(), "gramian: chunks");
    }
    const dim3 grid(static_cast<unsigned>(tasks), static_cast<unsigned>(tasks));
    reduce_kernel<<<grid, kThreads, 0, queue>>>(partials, tasks, chunks, gramian);
    check(cudaGetLastError(), "gramian: reduction");
}

template void gramian(const float*, int64_t, int64_t, int64_t, double*, double*, int, void*);
template void gramian(const double*, int64_t, int64_t, int64_t, double*, double*, int, void*);

}  // namespace mtlcore::cuda
