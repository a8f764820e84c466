// Vectors without intrinsics, and one body compiled for several instruction sets.
//
// gcc and clang lower a vector to whatever the target has: one AVX register, two SSE or NEON ones.
// A kernel writes its body once as MTLCORE_BODY and wraps it: plainly, and, on x86, under
// MTLCORE_AVX2 and MTLCORE_AVX512; `has_avx2()` and `has_avx512()` pick at run time. A kernel that
// only waits for memory (combine) stops at AVX2: 512-bit vectors gain nothing there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#define MTLCORE_BODY static inline __attribute__((always_inline))
#if defined(__x86_64__)
#define MTLCORE_AVX2 __attribute__((target("avx2,fma")))
#define MTLCORE_AVX512 __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")))
#else
#define MTLCORE_AVX2
#define MTLCORE_AVX512
#endif

namespace mtlcore::cpu {

// A Vector is computed with. Rows start anywhere and hold plain scalars, so `load` and `store` go
// by another type, which no template may deduce: its attributes would be dropped.
template <class Scalar, int Bytes = 32>
struct Simd {
    typedef Scalar Vector __attribute__((vector_size(Bytes)));
    typedef Scalar Stored __attribute__((vector_size(Bytes), aligned(sizeof(Scalar)), may_alias));
    static constexpr int kLanes = Bytes / static_cast<int>(sizeof(Scalar));
};

template <class Vector, class Scalar>
MTLCORE_BODY void load(const Scalar* place, Vector& vector) {
    vector = *reinterpret_cast<const typename Simd<Scalar, sizeof(Vector)>::Stored*>(place);
}

template <class Vector, class Scalar>
MTLCORE_BODY void store(const Vector& vector, Scalar* place) {
    *reinterpret_cast<typename Simd<Scalar, sizeof(Vector)>::Stored*>(place) = vector;
}

// MTLCORE_VECTOR_BYTES keeps to narrower vectors than the machine has, so that tests reach all.
inline int widest() {
    static const int answer = [] {
        const char* asked = std::getenv("MTLCORE_VECTOR_BYTES");
        const std::string text = asked == nullptr || *asked == 0 ? "64" : asked;
        for (const int bytes : {16, 32, 64}) {
            if (text == std::to_string(bytes)) return bytes;
        }
        throw std::invalid_argument("MTLCORE_VECTOR_BYTES must be 16, 32 or 64, found " + text);
    }();
    return answer;
}

inline bool has_avx2() {
#if defined(__x86_64__)
    static const bool answer =
        widest() >= 32 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return answer;
#else
    return false;
#endif
}

inline bool has_avx512() {
#if defined(__x86_64__)
    static const bool answer = widest() >= 64 && has_avx2() && __builtin_cpu_supports("avx512f") &&
                               __builtin_cpu_supports("avx512vl") &&
                               __builtin_cpu_supports("avx512dq") &&
                               __builtin_cpu_supports("avx512bw");
    return answer;
#else
    return false;
#endif
}

// -- sums of many vectors at once ----------------------------------------------------------------

// Lane `lane` of one of the two operands of a halving step; `upper`: the second operand.
// In groups of `group` lanes: the first half comes from a, the second from b, each time the lower
// or the upper half of the same group.
constexpr int halving_lane(int lane, int group, bool upper, int lanes) {
    const int half = group / 2;
    const int place = lane % group;
    const int base = lane - place;
    const int source = place < half ? base + place : lanes + base + place - half;
    return source + (upper ? half : 0);
}

template <int Group, class Vector, std::size_t... Lane>
MTLCORE_BODY void halve(const Vector& a, const Vector& b, Vector& out,
                        std::index_sequence<Lane...>) {
    constexpr int kLanes = sizeof...(Lane);
#if defined(__clang__)
    out = __builtin_shufflevector(a, b, halving_lane(Lane, Group, false, kLanes)...) +
          __builtin_shufflevector(a, b, halving_lane(Lane, Group, true, kLanes)...);
#else
    using Integer = std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t>;
    typedef Integer Mask __attribute__((vector_size(sizeof(Vector))));
    out = __builtin_shuffle(a, b, Mask{halving_lane(Lane, Group, false, kLanes)...}) +
          __builtin_shuffle(a, b, Mask{halving_lane(Lane, Group, true, kLanes)...});
#endif
}

// vectors[0] [p] = the sum of the lanes of vectors[p]: as many vectors as lanes, in log2 steps.
template <int Lanes, class Vector>
MTLCORE_BODY void sum_lanes(Vector (&vectors)[Lanes]) {
    constexpr auto kAll = std::make_index_sequence<Lanes>();
    if constexpr (Lanes >= 16) {
        for (int p = 0; p < 8; ++p) halve<16>(vectors[p], vectors[p + 8], vectors[p], kAll);
    }
    if constexpr (Lanes >= 8) {
        for (int p = 0; p < 4; ++p) halve<8>(vectors[p], vectors[p + 4], vectors[p], kAll);
    }
    if constexpr (Lanes >= 4) {
        for (int p = 0; p < 2; ++p) halve<4>(vectors[p], vectors[p + 2], vectors[p], kAll);
    }
    halve<2>(vectors[0], vectors[1], vectors[0], kAll);
}

}  // namespace mtlcore::cpu
