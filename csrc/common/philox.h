// Dropout masks out of nothing but counters: Philox 4x32-10 (Salmon et al., SC 2011,
// https://doi.org/10.1145/2063384.2063405).
//
// One call makes the masks of 64 neighbouring columns of one token: 16 counters side by side, of 4
// words each. Column c of the token is word (c % 64) / 16 of the counter
// (c / 64 * 16 + c % 16, position, layer low, layer high), under the 64-bit key of the task. So a
// mask depends on key, layer, position and column alone: forward, backward, and every backend and
// cut of the batch meet the same one.
#pragma once

#include <cstdint>

namespace mtlcore {

constexpr int kMaskColumns = 64;
constexpr int kMaskLanes = 16;

// words[j * 16 + lane] for the block of columns [64 block, 64 block + 64).
static inline __attribute__((always_inline)) void philox_block(uint64_t key, uint64_t layer,
                                                               uint32_t position, uint32_t block,
                                                               uint32_t* words) {
    uint32_t c0[kMaskLanes], c1[kMaskLanes], c2[kMaskLanes], c3[kMaskLanes];
    for (int lane = 0; lane < kMaskLanes; ++lane) {
        c0[lane] = block * kMaskLanes + static_cast<uint32_t>(lane);
        c1[lane] = position;
        c2[lane] = static_cast<uint32_t>(layer);
        c3[lane] = static_cast<uint32_t>(layer >> 32);
    }
    auto k0 = static_cast<uint32_t>(key);
    auto k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        for (int lane = 0; lane < kMaskLanes; ++lane) {
            const uint64_t first = uint64_t{0xD2511F53u} * c0[lane];
            const uint64_t second = uint64_t{0xCD9E8D57u} * c2[lane];
            c0[lane] = static_cast<uint32_t>(second >> 32) ^ c1[lane] ^ k0;
            c2[lane] = static_cast<uint32_t>(first >> 32) ^ c3[lane] ^ k1;
            c1[lane] = static_cast<uint32_t>(second);
            c3[lane] = static_cast<uint32_t>(first);
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int lane = 0; lane < kMaskLanes; ++lane) {
        words[lane] = c0[lane];
        words[kMaskLanes + lane] = c1[lane];
        words[2 * kMaskLanes + lane] = c2[lane];
        words[3 * kMaskLanes + lane] = c3[lane];
    }
}

}  // namespace mtlcore
