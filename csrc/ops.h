// Entry points of the kernels: raw pointers, sizes and strides; the checks are made before.
//
// Scalar is float or double.
#pragma once

#include <cstdint>

#include "common/lora.h"
#include "common/rows.h"

namespace mtlcore::cpu {

// out [slices, left, right] = left rightᵀ over the columns of each slice, partials [chunks, left,
// right] is scratch; `symmetric`: both are the same rows.
template <class Scalar>
void gramian(const Rows<Scalar>& left, const Rows<Scalar>& right, bool symmetric, const Cut& cut,
             double* partials, double* out, int threads);

// out [columns] = Jᵀ w with the weights of the columns' slice, of w [slices, tasks].
template <class Scalar>
void combine(const Rows<Scalar>& J, const Scalar* w, const Cut& cut, Scalar* out, int threads);

// A pass over the tokens (unless null), then gradients that may read what it reduced. X is float,
// double, or a 16-bit type with Scalar = float.
template <class X, class Scalar>
void run_lora(const Lora<Scalar>& lora, const TokenPass<X, Scalar>* pass,
              const std::vector<LoraGrads<X, Scalar>>& grads, int threads);

}  // namespace mtlcore::cpu

namespace mtlcore::cuda {

template <class Scalar>
void gramian(const Rows<Scalar>& left, const Rows<Scalar>& right, bool symmetric, const Cut& cut,
             double* partials, double* out, int device, void* stream);

template <class Scalar>
void combine(const Rows<Scalar>& J, const Scalar* w, const Cut& cut, Scalar* out, int device,
             void* stream);

}  // namespace mtlcore::cuda
