// 32-byte vectors without intrinsics, and one body compiled for two instruction sets.
//
// gcc and clang lower a vector to whatever the target has: one AVX register, two SSE or NEON ones.
// A kernel writes its body once as MTLCORE_BODY and wraps it twice: plainly, and, on x86, under
// MTLCORE_AVX2; `has_avx2()` picks at run time. 512-bit vectors gain nothing here: the kernels
// wait for memory (8 x 5e6 fp32: 2 cores draw all the bandwidth there is).
#pragma once

#include <cstdint>

#define MTLCORE_BODY static inline __attribute__((always_inline))
#if defined(__x86_64__)
#define MTLCORE_AVX2 __attribute__((target("avx2,fma")))
#else
#define MTLCORE_AVX2
#endif

namespace mtlcore::cpu {

template <class Scalar>
struct Simd;

// aligned(sizeof(Scalar)): rows start anywhere; may_alias: the memory holds plain scalars.
template <>
struct Simd<float> {
    typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
    static constexpr int kLanes = 8;
};

template <>
struct Simd<double> {
    typedef double Vector __attribute__((vector_size(32), aligned(8), may_alias));
    static constexpr int kLanes = 4;
};

inline bool has_avx2() {
#if defined(__x86_64__)
    static const bool answer = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return answer;
#else
    return false;
#endif
}

}  // namespace mtlcore::cpu
