// PCGrad and GradVac in coefficients of the task gradients: what they project on what, one after
// the other, read off G. mtlcore/ops/solvers.py states them; one thread, the same bits in every
// run.

#include <numeric>

#include "cpu/dense.h"
#include "ops.h"

namespace mtlcore::cpu {
namespace {

constexpr double kMaxTarget = 1 - 1e-6;  // of a cosine: no finite multiple reaches 1

// The others of each task [T, T - 1], lowest key first.
std::vector<int64_t> orders_of(const double* keys, int64_t T) {
    std::vector<int64_t> orders(static_cast<std::size_t>(T * (T - 1)));
    for (int64_t i = 0; i < T; ++i, keys += T - 1) {
        const auto begin = orders.begin() + i * (T - 1), end = begin + (T - 1);
        std::iota(begin, end, 0);
        std::sort(begin, end, [keys](int64_t a, int64_t b) {
            return keys[a] < keys[b] || (keys[a] == keys[b] && a < b);
        });
        std::for_each(begin, end, [i](int64_t& other) { other += other >= i; });
    }
    return orders;
}

void pcgrad_one(const double* G, int64_t T, const int64_t* orders, double* weights) {
    std::fill(weights, weights + T, 0);
    Vec row(T);
    for (int64_t i = 0; i < T; ++i) {
        std::fill(row.begin(), row.end(), 0);
        row[i] = 1;
        for (int64_t k = 0; k < T - 1; ++k) {
            const int64_t j = orders[i * (T - 1) + k];
            const double product = dot(row.data(), G + j * T, T);
            if (product < 0 && G[j * T + j] > 0) row[j] -= product / G[j * T + j];
        }
        for (int64_t j = 0; j < T; ++j) weights[j] += row[j];
    }
}

void gradvac_one(const double* G, int64_t T, double* targets, const int64_t* orders, double beta,
                 double* weights) {
    std::fill(weights, weights + T, 0);
    Vec norms(T), row(T), products(T);
    for (int64_t i = 0; i < T; ++i) norms[i] = std::sqrt(std::max(G[i * T + i], 0.0));
    for (int64_t i = 0; i < T; ++i) {
        std::fill(row.begin(), row.end(), 0);
        row[i] = 1;
        std::copy(G + i * T, G + (i + 1) * T, products.begin());
        for (int64_t k = 0; k < T - 1; ++k) {
            const int64_t j = orders[i * (T - 1) + k];
            double total = 0;
            for (int64_t l = 0; l < T; ++l) total += std::abs(row[l]) * norms[l];
            const double squared = dot(row, products);
            if (norms[j] == 0 || !(squared > kVanished * total * total)) continue;
            const double norm = std::sqrt(squared);
            const double cosine = std::clamp(products[j] / norm / norms[j], -1.0, 1.0);
            double& stored = targets[i * T + j];
            const double target = std::min(stored, kMaxTarget);
            if (cosine < target) {
                const double sine = std::sqrt(1 - cosine * cosine);
                const double target_sine = std::sqrt(1 - target * target);
                const double added =
                    norm * (target * sine - cosine * target_sine) / (norms[j] * target_sine);
                row[j] += added;
                for (int64_t l = 0; l < T; ++l) products[l] += added * G[j * T + l];
            }
            stored = (1 - beta) * stored + beta * cosine;
        }
        for (int64_t j = 0; j < T; ++j) weights[j] += row[j];
    }
}

}  // namespace

void pcgrad(const double* G, int64_t count, int64_t T, const double* keys, double* weights) {
    const std::vector<int64_t> orders = orders_of(keys, T);
    for (int64_t s = 0; s < count; ++s) {
        pcgrad_one(G + s * T * T, T, orders.data(), weights + s * T);
    }
}

void gradvac(const double* G, const double* targets, int64_t count, int64_t T, const double* keys,
             double beta, double* weights, double* new_targets) {
    const std::vector<int64_t> orders = orders_of(keys, T);
    std::copy(targets, targets + count * T * T, new_targets);
    for (int64_t s = 0; s < count; ++s) {
        gradvac_one(G + s * T * T, T, new_targets + s * T * T, orders.data(), beta,
                    weights + s * T);
    }
}

}  // namespace mtlcore::cpu
