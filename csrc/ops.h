// Entry points of the kernels: raw pointers, sizes and strides; the checks are made before.
//
// J is [tasks, columns] with `stride` elements between rows. Scalar is float or double.
#pragma once

#include <cstdint>

namespace mtlcore::cpu {

// gramian [tasks, tasks] = J Jᵀ; partials [chunk_count(columns), tasks, tasks] is scratch.
template <class Scalar>
void gramian(const Scalar* J, int64_t tasks, int64_t columns, int64_t stride, double* partials,
             double* gramian, int threads);

// out [columns] = Jᵀ w.
template <class Scalar>
void combine(const Scalar* J, const Scalar* w, int64_t tasks, int64_t columns, int64_t stride,
             Scalar* out, int threads);

}  // namespace mtlcore::cpu

namespace mtlcore::cuda {

template <class Scalar>
void gramian(const Scalar* J, int64_t tasks, int64_t columns, int64_t stride, double* partials,
             double* gramian, int device, void* stream);

template <class Scalar>
void combine(const Scalar* J, const Scalar* w, int64_t tasks, int64_t columns, int64_t stride,
             Scalar* out, int device, void* stream);

}  // namespace mtlcore::cuda
