// 16-bit floats as they lie in memory, and their conversions in plain integer arithmetic, which
// compilers vectorize on every target.
#pragma once

#include <cstdint>
#include <cstring>

namespace mtlcore {

struct Bfloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

inline float float_from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float widen(float value) {
    return value;
}
inline double widen(double value) {
    return value;
}
inline float widen(Bfloat16 value) {
    return float_from_bits(uint32_t{value.bits} << 16);
}

inline float widen(Float16 value) {
    const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
    const uint32_t magnitude = value.bits & 0x7fffu;
    // The exponent moves from 5 to 8 bits by a product, which makes subnormals normal.
    const float scaled = float_from_bits(magnitude << 13) * 0x1p112f;
    const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
    return float_from_bits(bits_of(scaled) | special | sign);
}

// Round to nearest, ties to even; NaN stays NaN.
inline void narrow(float value, float& out) {
    out = value;
}
inline void narrow(double value, double& out) {
    out = value;
}

inline void narrow(float value, Bfloat16& out) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out.bits = static_cast<uint16_t>(value != value ? (bits >> 16) | 0x40u : rounded);
}

inline void narrow(float value, Float16& out) {
    const uint32_t bits = bits_of(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t result;
    if (magnitude >= 0x47800000u) {  // 65536 and more, or NaN
        result = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds at the right bit
        result = bits_of(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        const uint32_t odd = (magnitude >> 13) & 1u;
        result = (magnitude + 0xc8000fffu + odd) >> 13;  // less 112 << 23, plus half a unit
    }
    out.bits = static_cast<uint16_t>(result | sign);
}

}  // namespace mtlcore
