// out = Jᵀ w in J's dtype, with the weights of each slice of the columns: one thread per column,
// neighbours read neighbours, tasks in their order.
//
// 4 columns per thread, a block apart, keep 4 loads in flight per task. 8 blocks share a chunk, so
// that the smallest chunks of a large J, of 8,192 columns, take one step.

#include "cuda/launch.h"
#include "ops.h"

namespace mtlcore::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 4;
constexpr int kShares = 8;

template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(Rows<Scalar> J, const Scalar* __restrict__ w, const Chunk* __restrict__ chunks,
                   Scalar* __restrict__ out) {
    constexpr int kStep = kThreads * kColumns;
    const Chunk chunk = chunks[blockIdx.x / kShares];
    const Scalar* weights = w + chunk.slice * J.count;
    const int size = static_cast<int>(chunk.end - chunk.begin);
    int column = (blockIdx.x % kShares) * kStep + threadIdx.x;
    for (; column < size; column += kShares * kStep) {
        const Scalar* row = J.data + chunk.begin + column;
        Scalar sums[kColumns] = {};
        for (int64_t t = 0; t < J.count; ++t) {
            const Scalar weight = weights[t];
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
                if (column + c * kThreads < size) sums[c] += weight * row[c * kThreads];
            }
            row += J.stride;
        }
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            const int one = column + c * kThreads;
            if (one < size) out[chunk.begin + one] = sums[c];
        }
    }
}

}  // namespace

template <class Scalar>
void combine(const Rows<Scalar>& J, const Scalar* w, const Cut& cut, Scalar* out, int device,
             void* stream) {
    if (cut.chunk_count == 0) return;
    const DeviceGuard guard(device);
    combine_kernel<<<static_cast<unsigned>(cut.chunk_count * kShares), kThreads, 0,
                     static_cast<cudaStream_t>(stream)>>>(J, w, cut.chunks, out);
    check(cudaGetLastError(), "combine");
}

template void combine(const Rows<float>&, const float*, const Cut&, float*, int, void*);
template void combine(const Rows<double>&, const double*, const Cut&, double*, int, void*);

}  // namespace mtlcore::cuda
