// Entry points of the kernels: raw pointers, sizes and strides; the checks are made before.
//
// J is [tasks, columns] with `stride` elements between rows. Scalar is float or double.
#pragma once

#include <cstdint>

#include "common/lora.h"

namespace mtlcore::cpu {

// gramian [tasks, tasks] = J Jᵀ; partials [chunk_count(columns), tasks, tasks] is scratch.
template <class Scalar>
void gramian(const Scalar* J, int64_t tasks, int64_t columns, int64_t stride, double* partials,
             double* gramian, int threads);

// out [columns] = Jᵀ w.
template <class Scalar>
void combine(const Scalar* J, const Scalar* w, int64_t tasks, int64_t columns, int64_t stride,
             Scalar* out, int threads);

// z [tokens, width] = x Aᵀ by slots, y [tokens, out] += (z * scale) B. X is float, double, or a
// 16-bit type with Scalar = float.
template <class X, class Scalar>
void lora_forward(const Lora<Scalar>& lora, const X* x, int64_t x_stride, X* y, int64_t y_stride,
                  Scalar* z, int threads);

// dz [tokens, width] = (dy Bᵀ) * scale, dx += dz A (unless null), and the gradients of A and B.
template <class X, class Scalar>
void lora_backward(const Lora<Scalar>& lora, const LoraGrads<Scalar>& grads, const X* dy,
                   int64_t dy_stride, const X* x, int64_t x_stride, const Scalar* z, X* dx,
                   int64_t dx_stride, Scalar* dz, int threads);

}  // namespace mtlcore::cpu

namespace mtlcore::cuda {

template <class Scalar>
void gramian(const Scalar* J, int64_t tasks, int64_t columns, int64_t stride, double* partials,
             double* gramian, int device, void* stream);

template <class Scalar>
void combine(const Scalar* J, const Scalar* w, int64_t tasks, int64_t columns, int64_t stride,
             Scalar* out, int device, void* stream);

}  // namespace mtlcore::cuda
