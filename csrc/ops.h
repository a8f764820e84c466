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

// A pass over the tokens (unless null), then gradients that may read what it reduced. X is float,
// double, or a 16-bit type with Scalar = float.
template <class X, class Scalar>
void run_lora(const Lora<Scalar>& lora, const TokenPass<X, Scalar>* pass,
              const std::vector<LoraGrads<X, Scalar>>& grads, int threads);

}  // namespace mtlcore::cpu

namespace mtlcore::cuda {

template <class Scalar>
void gramian(const Scalar* J, int64_t tasks, int64_t columns, int64_t stride, double* partials,
             double* gramian, int device, void* stream);

template <class Scalar>
void combine(const Scalar* J, const Scalar* w, int64_t tasks, int64_t columns, int64_t stride,
             Scalar* out, int device, void* stream);

}  // namespace mtlcore::cuda
