// Small dense problems on the Gramian of T task gradients: quadratic programs by active sets
// (cpu/active_set.h), a Newton method, and a linear system. mtlcore/ops/solvers.py states each
// problem, mtlcore/ops/reference/solvers.py the same methods in numpy.
//
// Everything is done in units of the gradients' norms, C = D^-1 G D^-1 with D = diag |g_i|, so that
// neither scale nor spread of the norms matters; tasks with a gradient of 0 are left out. A
// solution, of cone_minimum a row of V, is found by one thread with sums in a fixed order: the same
// bits in every run. Each solver returns its gap: how far the conditions of the minimum are from
// being met, in those units.

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "cpu/active_set.h"
#include "ops.h"

namespace mtlcore::cpu {
namespace {

// Smallest eigenvalue of C: rounding may leave some below 0, and a task that is there twice has 0.
constexpr double kFloor = 1e-14;
// The same for `balance`, whose weights grow without bound as it goes to 0.
constexpr double kBalanceFloor = 1e-10;
constexpr double kLeast = 1e-10;  // norm, by the largest, that has a say in CAGrad's objective
// Eigenvalue of C, by the largest, that counts as 0: what the rounding of float32 gradients makes.
constexpr double kRank = 1e-13;
constexpr double kNoDirection = 1e-12;  // largest weight of a unit gradient: less is rounding of 0
constexpr int64_t kThreadsFrom = 24;    // tasks: fewer are solved before threads have started

// 1/|g_i| in units of the smallest norm: y_i = w_i / a_i are weights of the unit gradients.
Vec levels(const Units& units) {
    Vec a = units.norms;
    const double smallest = *std::min_element(a.begin(), a.end());
    for (double& value : a) value = smallest / value;
    return a;
}

ActiveSet on_simplex(const Units& units, const Vec& a) {
    Matrix Q = units.cosines;
    for (int64_t i = 0; i < Q.n; ++i) {
        for (int64_t j = 0; j < Q.n; ++j) Q[i][j] += a[i] * a[j];
    }
    return {std::move(Q), a};
}

void put_shares(const Units& units, const ActiveSet& set, double* w) {
    const double total = dot(set.level, set.x);
    for (int64_t i = 0; i < units.size(); ++i) {
        w[units.tasks[i]] = set.level[i] * set.x[i] / total;
    }
}

double simplex_one(const Units& units, int64_t T, double* w) {
    std::fill(w, w + T, units.size() > 0 ? 0 : 1.0 / static_cast<double>(T));
    if (units.size() == 0) return 0;
    ActiveSet set = on_simplex(units, levels(units));
    set.minimize(Vec(units.size()));
    put_shares(units, set, w);
    return set.gap();
}

double cone_one(const Units& units, int64_t T, const double* u, double* v) {
    std::copy(u, u + T, v);
    Vec bound(units.size());
    for (int64_t i = 0; i < units.size(); ++i) bound[i] = u[units.tasks[i]] * units.norms[i];
    const double top = largest(bound);
    if (top == 0) return 0;
    for (double& value : bound) value /= top;
    Vec c(units.size());
    multiply(units.cosines, bound, c);
    ActiveSet set(units.cosines, {});
    set.guess(c);
    set.minimize(c);
    for (int64_t i = 0; i < units.size(); ++i) {
        v[units.tasks[i]] += set.x[i] * top / units.norms[i];
    }
    return set.gap();
}

double squared_norm(const Matrix& C, const Vec& y) {
    Vec product(y.size());
    multiply(C, y, product);
    return std::max(dot(y, product), 0.0);
}

// With sqrt(s) = min over t of (s/t + t)/2 the problem is, for tau = t/k, a quadratic program with
// the linear part tau b. Its solution moves along a line while no coordinate turns 0, so that the
// root |J'w| = k tau on the line is the root if the free coordinates stay.
double cagrad_one(const Units& units, int64_t T, double c, double* w) {
    const int64_t n = units.size();
    std::fill(w, w + T, 1.0 / static_cast<double>(T));
    if (n == 0) return 0;
    const Vec a = levels(units);
    const Matrix& C = units.cosines;
    Vec mean(n);  // of the unit gradients
    for (int64_t i = 0; i < n; ++i) mean[i] = 1 / a[i] / static_cast<double>(T);
    Vec b(n);
    multiply(C, mean, b);
    const double mean_squared = dot(mean, b);
    double total = 0;
    for (const double value : mean) total += value;
    if (!(mean_squared > kVanished * total * total)) return 0;  // all weights are as good
    const double k = c * std::sqrt(mean_squared);

    ActiveSet set = on_simplex(units, a);
    double low = 0;
    // |J'w| is at most the largest norm, but for rounding of C.
    double high = 2 / *std::min_element(a.begin(), a.end()) / k;
    double tau = std::min(1 / k, high);
    double gap = 0;
    for (int pass = 0; pass < 200; ++pass) {
        Vec linear = b;
        for (double& value : linear) value *= tau;
        set.minimize(linear);
        const double squared = squared_norm(C, set.x);
        const double wanted = k * tau * k * tau;
        const double unit = set.scale * set.scale;
        gap = std::abs(squared - wanted) / unit;
        (squared > wanted ? low : high) = tau;
        if (std::max(squared, wanted) <= 1e-16 * unit) break;  // J'w = 0

        const auto [first, second] = set.line(b);
        Vec product(n);
        multiply(C, first, product);
        const double A = std::max(dot(first, product), 0.0);
        const double B = dot(second, product);
        const double D = squared_norm(C, second) - k * k;  // A + 2 B tau + D tau^2 = 0
        const double root = std::sqrt(B * B - A * D);
        double next = B > 0 ? -(B + root) / D : A / (root - B);
        if (std::abs(next - tau) <= 1e-14 * tau) break;
        if (!(next > low && next < high)) next = (low + high) / 2;
        if (next == tau || !(high - low > 1e-15 * high)) break;
        tau = next;
    }
    std::fill(w, w + T, 0);
    put_shares(units, set, w);
    return worse(gap, set.gap());
}

// |J'w|^2, and the sum of the w_i |g_i| that it is made of.
std::pair<double, double> combined(const double* G, int64_t T, const double* w) {
    double squared = 0;
    double total = 0;
    for (int64_t i = 0; i < T; ++i) {
        squared += w[i] * dot(G + i * T, w, T);
        total += w[i] * std::sqrt(std::max(G[i * T + i], 0.0));
    }
    return {std::max(squared, 0.0), total};
}

// Newton's method on 1/2 y'Cy - sum_i m_i phi(y_i), phi'(y) = y^-e, strictly convex in y > 0; with
// y_i = a_i |g_i| its minimum has (C y)_i = m_i y_i^-e, m_i = |g_i|^(e - 1).
double balance_one(const Units& units, int64_t T, double e, double* out) {
    const int64_t n = units.size();
    std::fill(out, out + T, 0);
    if (n == 0) return 0;
    const Matrix& C = units.cosines;
    double shift = 0;  // log of the geometric mean of m
    for (const double norm : units.norms)
        shift += (e - 1) * std::log(norm) / static_cast<double>(n);
    Vec m(n), y(n), product(n), slopes(n);
    for (int64_t i = 0; i < n; ++i) {
        m[i] = std::exp((e - 1) * std::log(units.norms[i]) - shift);
        y[i] = std::pow(m[i], 1 / (1 + e));
    }
    const auto set_slopes = [&](const Vec& at) {
        multiply(C, at, product);
        for (int64_t i = 0; i < n; ++i) slopes[i] = product[i] - m[i] * std::pow(at[i], -e);
    };
    // The best point on the ray through y: of the right size where tasks nearly cancel.
    double have = 0;
    for (int64_t i = 0; i < n; ++i) have += m[i] * std::pow(y[i], 1 - e);
    const double stretch = std::pow(have / squared_norm(C, y), 1 / (1 + e));
    for (double& value : y) value *= stretch;

    double gap = std::numeric_limits<double>::infinity();
    Vec terms(n), move(n), next(n);
    set_slopes(y);
    for (int pass = 0; pass < 1000; ++pass) {
        const double last = gap;
        gap = 0;
        for (int64_t i = 0; i < n; ++i) {
            terms[i] = m[i] * std::pow(y[i], -e);
            for (int64_t j = 0; j < n; ++j) terms[i] += std::abs(C[i][j]) * y[j];
            gap = worse(gap, std::abs(slopes[i]) / terms[i]);
        }
        if (gap <= 1e-15 || (gap <= 1e-11 && gap >= last / 2)) break;
        Matrix H = C;
        for (int64_t i = 0; i < n; ++i) H[i][i] += e * m[i] * std::pow(y[i], -e - 1);
        if (!factor(H)) break;
        Vec step = slopes;
        solve_factored(H, n, step.data());  // against it y moves
        double longest = 1;
        for (int64_t i = 0; i < n; ++i) {
            if (step[i] > 0) longest = std::min(longest, 0.95 * y[i] / step[i]);
        }
        // Convex along a move: where its slope, but for rounding, still points on, the objective
        // has fallen.
        const auto fell = [&] {
            double before = 0;
            double rounding = 0;
            for (int64_t i = 0; i < n; ++i) {
                before += move[i] * slopes[i];
                rounding += 1e-15 * std::abs(move[i]) * terms[i];
                next[i] = y[i] - move[i];
            }
            const Vec old = slopes;
            set_slopes(next);
            if (before > 0 && -dot(move, slopes) <= 0.1 * before + rounding) return true;
            slopes = old;
            return false;
        };
        // Each coordinate as far as it may go, which some need to end far below the others; else
        // all by the same factor.
        for (int64_t i = 0; i < n; ++i) move[i] = std::min(step[i], 0.999 * y[i]);
        bool moved = fell();
        for (int halving = 0; !moved && halving < 60; ++halving, longest /= 2) {
            for (int64_t i = 0; i < n; ++i) move[i] = longest * step[i];
            moved = fell();
        }
        if (!moved) break;
        y = next;
    }
    for (int64_t i = 0; i < n; ++i) {
        out[units.tasks[i]] = y[i] * std::exp(shift / (1 + e)) / units.norms[i];
    }
    return gap;
}

// y = C⁺ 1, and a_i = y_i / |g_i|.
double equal_one(const Units& units, int64_t T, double* a) {
    const int64_t n = units.size();
    std::fill(a, a + T, 0);
    if (n == 0) return 0;
    const Matrix& C = units.cosines;
    Vec y(n, 1);
    Matrix A = C;
    const bool independent = factor_above(A, 10 * kRank * static_cast<double>(n));  // none is > n
    A = C;
    if (independent) {
        factor(A);
        solve_factored(A, n, y.data());
    } else {
        const Matrix V = diagonalize(A);
        double top = 0;
        for (int64_t e = 0; e < n; ++e) top = std::max(top, A[e][e]);
        const Vec ones = std::exchange(y, Vec(n));
        for (int64_t e = 0; e < n; ++e) {
            if (!(A[e][e] > kRank * top)) continue;
            const double share = dot(V[e], ones.data(), n) / A[e][e];
            for (int64_t i = 0; i < n; ++i) y[i] += share * V[e][i];
        }
    }
    Vec missed(n), slopes(n);  // of the squared distance to 1, over 2: C (C y - 1)
    multiply(C, y, missed);
    for (double& value : missed) value -= 1;
    multiply(C, missed, slopes);
    const double size = largest(y);
    if (size > kNoDirection) {
        for (int64_t i = 0; i < n; ++i) a[units.tasks[i]] = y[i] / units.norms[i];
    }
    double gap = 0;
    for (const double slope : slopes) gap = worse(gap, std::abs(slope) / std::max(size, 1.0));
    return gap;
}

}  // namespace

void simplex_minimum(const double* G, int64_t count, int64_t T, double* w, double* gaps) {
    for (int64_t s = 0; s < count; ++s) {
        gaps[s] = simplex_one({G + s * T * T, T, kFloor}, T, w + s * T);
    }
}

void cone_minimum(const double* G, const double* U, int64_t count, int64_t T, int64_t rows,
                  double* V, double* gaps, [[maybe_unused]] int threads) {
    Vec row_gaps(rows);
    for (int64_t s = 0; s < count; ++s) {
        const Units units(G + s * T * T, T, kFloor);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (T >= kThreadsFrom && rows > 1)
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t at = (s * rows + r) * T;
            row_gaps[r] = cone_one(units, T, U + at, V + at);
        }
        gaps[s] = 0;
        for (const double gap : row_gaps) gaps[s] = worse(gaps[s], gap);
    }
}

void cagrad_minimum(const double* G, int64_t count, int64_t T, double c, double* lengths, double* w,
                    double* gaps) {
    const Vec mean(T, 1 / static_cast<double>(T));
    for (int64_t s = 0; s < count; ++s) {
        const double* one = G + s * T * T;
        gaps[s] = cagrad_one({one, T, kFloor, kLeast}, T, c, w + s * T);
        const auto [squared, total] = combined(one, T, w + s * T);
        lengths[2 * s] = squared > kVanished * total * total ? std::sqrt(squared) : 0;
        lengths[2 * s + 1] = std::sqrt(combined(one, T, mean.data()).first);
    }
}

void balance(const double* G, int64_t count, int64_t T, double exponent, double* a, double* gaps) {
    for (int64_t s = 0; s < count; ++s) {
        gaps[s] = balance_one({G + s * T * T, T, kBalanceFloor}, T, exponent, a + s * T);
    }
}

void equal_projections(const double* G, int64_t count, int64_t T, double* a, double* gaps) {
    for (int64_t s = 0; s < count; ++s) {
        gaps[s] = equal_one({G + s * T * T, T, 0}, T, a + s * T);
    }
}

}  // namespace mtlcore::cpu
