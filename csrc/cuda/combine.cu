// out = Jᵀ w in J's dtype: one thread per column, neighbours read neighbours, tasks in their order.
//
// 4 columns per thread, a block apart, keep 4 loads in flight per task.

#include <algorithm>

#include "cuda/launch.h"
#include "ops.h"

namespace mtlcore::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 4;

template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const Scalar* __restrict__ J, const Scalar* __restrict__ w, int64_t tasks,
                   int64_t columns, int64_t stride, Scalar* __restrict__ out) {
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * (kThreads * kColumns) + threadIdx.x;
    Scalar sums[kColumns] = {};
    for (int64_t t = 0; t < tasks; ++t) {
        const Scalar weight = w[t];
        const Scalar* row = J + t * stride;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            const int64_t column = begin + c * kThreads;
            if (column < columns) sums[c] += weight * row[column];
        }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
        const int64_t column = begin + c * kThreads;
        if (column < columns) out[column] = sums[c];
    }
}

}  // namespace

template <class Scalar>
void combine(const Scalar* J, const Scalar* w, int64_t tasks, int64_t columns, int64_t stride,
             Scalar* out, int device, void* stream) {
    if (columns == 0) return;
    const DeviceGuard guard(device);
    const int64_t blocks = (columns + kThreads * kColumns - 1) / (kThreads * kColumns);
    combine_kernel<<<static_cast<unsigned>(blocks), kThreads, 0,
                     static_cast<cudaStream_t>(stream)>>>(J, w, tasks, columns, stride, out);
    check(cudaGetLastError(), "combine");
}

template void combine(const float*, const float*, int64_t, int64_t, int64_t, float*, int, void*);
template void combine(const double*, const double*, int64_t, int64_t, int64_t, double*, int, void*);

}  // namespace mtlcore::cuda
