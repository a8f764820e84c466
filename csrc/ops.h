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

// Problems on `count` Gramians G [count, T, T]; `gaps` [count] tells how far each is from solved.
// `keys` [T, T - 1], those of all problems, order the others of each task.
void simplex_minimum(const double* G, int64_t count, int64_t T, double* w, double* gaps);
void cone_minimum(const double* G, const double* U, int64_t count, int64_t T, int64_t rows,
                  double* V, double* gaps, int threads);
void cagrad_minimum(const double* G, int64_t count, int64_t T, double c, double* lengths, double* w,
                    double* gaps);  // lengths [count, 2]: |J'w|, 0 where it is rounding, and |g0|
void balance(const double* G, int64_t count, int64_t T, double exponent, double* a, double* gaps);
void equal_projections(const double* G, int64_t count, int64_t T, double* a, double* gaps);
void pcgrad(const double* G, int64_t count, int64_t T, const double* keys, double* weights);
void gradvac(const double* G, const double* targets, int64_t count, int64_t T, const double* keys,
             double beta, double* weights, double* new_targets);

}  // namespace mtlcore::cpu

namespace mtlcore::cuda {

template <class Scalar>
void gramian(const Rows<Scalar>& left, const Rows<Scalar>& right, bool symmetric, const Cut& cut,
             double* partials, double* out, int device, void* stream);

template <class Scalar>
void combine(const Rows<Scalar>& J, const Scalar* w, const Cut& cut, Scalar* out, int device,
             void* stream);

}  // namespace mtlcore::cuda
