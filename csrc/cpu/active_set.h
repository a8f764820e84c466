// Quadratic programs on the weights of the tasks, by an active set.
#pragma once

#include <limits>
#include <utility>

#include "cpu/dense.h"

namespace mtlcore::cpu {

constexpr double kSlope = 1e-12;  // of a coordinate that is worth freeing
constexpr double kPivot = 1e-15;  // below it a coordinate depends on those that are free

// x that minimises 1/2 x'Qx + c'x over x >= 0 and, with a level a, over a'x = 1.
//
// Lawson and Hanson (1974): the coordinate with the steepest slope is freed, x moves to the minimum
// over the free ones, and stops on the way where one of them would turn negative, which is then
// held at 0 again. With a level Q must be C + a a', positive definite wherever the problem has one
// solution only; a'x = 1 makes that the problem with C. x goes on from where it was.
class ActiveSet {
public:
    ActiveSet(Matrix matrix, Vec a)
        : Q(std::move(matrix)), level(std::move(a)), n(Q.n), x(n), L(n), slopes(n) {
        if (level.empty()) return;
        const auto start = std::max_element(level.begin(), level.end()) - level.begin();
        x[start] = 1 / level[start];
        append(start);
    }

    // A first guess from x = 0: all coordinates whose slope points down are free, less those that
    // would turn negative.
    void guess(const Vec& c) {
        for (int64_t i = 0; i < n; ++i) {
            if (c[i] < -kSlope) append(i);
        }
        for (bool fits = false; !fits;) {
            const Vec target = minimum_over_free(c).first;
            const std::size_t before = free.size();
            keep_free([&](std::size_t k) { return target[k] > 0; });
            fits = free.size() == before;
        }
    }

    void minimize(const Vec& c) {
        std::vector<char> refused(n, 0);  // freed to no effect: rounding, not a slope
        int64_t newest = -1;
        for (int64_t pass = 0; pass < 50 * (n + 1); ++pass) {
            const auto [target, pull] = minimum_over_free(c);
            if (newest >= 0 && target.back() <= 0) {
                free.pop_back();
                refused[newest] = 1;
            } else {
                const bool blocked = !move_to(target);
                if (blocked) {
                    newest = -1;
                    continue;
                }
                std::fill(refused.begin(), refused.end(), 0);
                set_slopes(c, pull);
            }
            newest = free_steepest(refused);
            if (newest < 0) return;
        }
        set_slopes(c, minimum_over_free(c).second);  // better than where it began; see `gap`
    }

    // How far x is from the minimum, in units of what the slopes are made of.
    double gap() const {
        double worst = level.empty() ? 0 : std::abs(dot(level, x) - 1);
        const double top = std::max(largest(x), std::numeric_limits<double>::min());
        for (int64_t i = 0; i < n; ++i) {
            worst = worse(worst, -slopes[i] / scale);
            worst = worse(worst, std::abs(slopes[i]) * x[i] / top / scale);
        }
        return worst;
    }

    // The minimum over the free coordinates for tau c, a line in tau: first + tau second.
    std::pair<Vec, Vec> line(const Vec& c) const {
        const Vec p = solved(level);
        const Vec q = solved(c);
        const double length = on_free(level, p);
        const double pull = on_free(level, q) / length;
        std::pair<Vec, Vec> out{Vec(n), Vec(n)};
        for (std::size_t k = 0; k < free.size(); ++k) {
            out.first[free[k]] = p[k] / length;
            out.second[free[k]] = pull * p[k] - q[k];
        }
        return out;
    }

    const Matrix Q;
    const Vec level;
    const int64_t n;
    Vec x;
    double scale = 1;

private:
    bool append(int64_t coordinate) {
        const auto k = static_cast<int64_t>(free.size());
        if (!(set_row(k, coordinate) > kPivot)) return false;
        free.push_back(coordinate);
        return true;
    }

    double set_row(int64_t k, int64_t coordinate) {
        for (int64_t i = 0; i < k; ++i) L[k][i] = Q[coordinate][free[i]];
        const double pivot = factor_row(L, k, L[k], Q[coordinate][coordinate]);
        L[k][k] = std::sqrt(std::max(pivot, kPivot));
        return pivot;
    }

    Vec solved(const Vec& right) const {
        Vec out(free.size());
        for (std::size_t k = 0; k < free.size(); ++k) out[k] = right[free[k]];
        solve_factored(L, static_cast<int64_t>(free.size()), out.data());
        return out;
    }

    double on_free(const Vec& all, const Vec& some) const {
        double sum = 0;
        for (std::size_t k = 0; k < free.size(); ++k) sum += all[free[k]] * some[k];
        return sum;
    }

    // Of each free coordinate, and the multiplier of a'x = 1.
    std::pair<Vec, double> minimum_over_free(const Vec& c) const {
        Vec target = solved(c);
        double pull = 0;
        Vec along(target.size());
        if (!level.empty()) {
            along = solved(level);
            pull = (1 + on_free(level, target)) / on_free(level, along);
        }
        for (std::size_t k = 0; k < target.size(); ++k) target[k] = pull * along[k] - target[k];
        return {std::move(target), pull};
    }

    // False if it stopped on the way; what is at 0 is then no longer free.
    bool move_to(const Vec& target) {
        double step = 1;
        std::size_t first = free.size();
        for (std::size_t k = 0; k < free.size(); ++k) {
            if (target[k] > 0) continue;
            const double here = x[free[k]];
            const double reach = here / (here - target[k]);
            if (first == free.size() || reach < step) {
                step = reach;
                first = k;
            }
        }
        if (first == free.size()) {
            for (std::size_t k = 0; k < free.size(); ++k) x[free[k]] = target[k];
            return true;
        }
        for (std::size_t k = 0; k < free.size(); ++k) {
            double& value = x[free[k]];
            value = k == first ? 0 : std::max(value + step * (target[k] - value), 0.0);
        }
        keep_free([&](std::size_t k) { return x[free[k]] > 0; });
        return false;
    }

    template <class Keeps>
    void keep_free(Keeps keeps) {
        std::vector<int64_t> left;
        std::size_t same = 0;  // so many rows of L stay
        for (std::size_t k = 0; k < free.size(); ++k) {
            if (!keeps(k)) continue;
            if (left.size() == k) same = k + 1;
            left.push_back(free[k]);
        }
        free = left;
        for (std::size_t k = same; k < free.size(); ++k) {
            set_row(static_cast<int64_t>(k), free[k]);
        }
    }

    void set_slopes(const Vec& c, double pull) {
        multiply(Q, x, slopes);
        for (int64_t i = 0; i < n; ++i) {
            slopes[i] += c[i] - (level.empty() ? 0 : pull * level[i]);
        }
        scale = std::max({1.0, largest(x), largest(c)});
    }

    // -1 if no slope is steep.
    int64_t free_steepest(std::vector<char>& refused) {
        for (const int64_t coordinate : free) refused[coordinate] = 1;
        int64_t found = -1;
        do {
            found = -1;
            double steepest = -kSlope * scale;
            for (int64_t i = 0; i < n; ++i) {
                if (!refused[i] && slopes[i] < steepest) {
                    steepest = slopes[i];
                    found = i;
                }
            }
            if (found >= 0) refused[found] = 1;
        } while (found >= 0 && !append(found));
        return found;
    }

    std::vector<int64_t> free;
    Matrix L;  // of Q over the free coordinates, in their order
    Vec slopes;
};

}  // namespace mtlcore::cpu
