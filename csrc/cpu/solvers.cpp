// Small dense problems on the Gramian of T task gradients: quadratic programs by active sets, and
// a Newton method. mtlcore/ops/solvers.py states each problem, mtlcore/ops/reference/solvers.py the
// same methods in numpy.
//
// Everything is done in units of the gradients' norms, C = D^-1 G D^-1 with D = diag |g_i|, so that
// neither scale nor spread of the norms matters; tasks with a gradient of 0 are left out. One
// thread, sums in a fixed order: the same bits in every run. Each solver returns its gap: how far
// the conditions of the minimum are from being met, in those units.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include "ops.h"

namespace mtlcore::cpu {
namespace {

using Vec = std::vector<double>;

// Smallest eigenvalue of C: rounding may leave some below 0, and a task that is there twice has 0.
constexpr double kFloor = 1e-14;
// The same for `balance`, whose weights grow without bound as it goes to 0.
constexpr double kBalanceFloor = 1e-10;
constexpr double kLeast = 1e-10;     // norm, by the largest, that has a say in CAGrad's objective
constexpr double kSlope = 1e-12;     // of a coordinate that is worth freeing
constexpr double kPivot = 1e-15;     // below it a coordinate depends on those that are free
constexpr double kVanished = 1e-14;  // |sum|^2 over (sum of norms)^2: what is left is rounding
constexpr double kMaxTarget = 1 - 1e-6;  // of a cosine: no finite multiple reaches 1

// The larger of two gaps, where one that is no number is the largest: std::max may pass over it.
double worse(double gap, double other) {
    return gap >= other || std::isnan(gap) ? gap : other;
}

struct Matrix {  // square
    explicit Matrix(int64_t size) : n(size), values(static_cast<std::size_t>(size * size)) {}
    double* operator[](int64_t row) { return values.data() + row * n; }
    const double* operator[](int64_t row) const { return values.data() + row * n; }

    int64_t n;
    Vec values;
};

// Four sums side by side: one would wait for itself at each addition.
double dot(const double* a, const double* b, int64_t n) {
    double sums[4] = {};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        for (int k = 0; k < 4; ++k) sums[k] += a[i + k] * b[i + k];
    }
    for (; i < n; ++i) sums[0] += a[i] * b[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

double dot(const Vec& a, const Vec& b) {
    return dot(a.data(), b.data(), static_cast<int64_t>(a.size()));
}

void multiply(const Matrix& Q, const Vec& x, Vec& out) {
    for (int64_t i = 0; i < Q.n; ++i) out[i] = dot(Q[i], x.data(), Q.n);
}

double largest(const Vec& x) {
    double top = 0;
    for (const double value : x) top = std::max(top, std::abs(value));
    return top;
}

// Row k of the lower factor L from row k of the matrix, which may be the same memory; L's rows
// before k are there. Returns the squared pivot, which the caller must store.
double factor_row(const Matrix& L, int64_t k, double* row, double diagonal) {
    for (int64_t i = 0; i < k; ++i) row[i] = (row[i] - dot(L[i], row, i)) / L[i][i];
    return diagonal - dot(row, row, k);
}

// x <- (L L')^-1 x for the first `count` rows of L.
void solve_factored(const Matrix& L, int64_t count, double* x) {
    for (int64_t i = 0; i < count; ++i) x[i] = (x[i] - dot(L[i], x, i)) / L[i][i];
    for (int64_t i = count - 1; i >= 0; --i) {
        x[i] /= L[i][i];
        for (int64_t j = 0; j < i; ++j) x[j] -= L[i][j] * x[i];
    }
}

// Overwrites the lower half with the Cholesky factor; false if Q is not positive definite.
bool factor(Matrix& Q) {
    for (int64_t k = 0; k < Q.n; ++k) {
        const double pivot = factor_row(Q, k, Q[k], Q[k][k]);
        if (!(pivot > 0)) return false;
        Q[k][k] = std::sqrt(pivot);
    }
    return true;
}

// Raises eigenvalues below `floor` to it (Jacobi's rotations), and leaves the rest as it is.
void lift(Matrix& Q, double floor) {
    const int64_t n = Q.n;
    Matrix A = Q;
    for (int64_t i = 0; i < n; ++i) A[i][i] -= 10 * floor;
    if (factor(A)) return;  // the usual case, at a fraction of the cost
    A = Q;
    Matrix V(n);  // its rows become the eigenvectors
    for (int64_t i = 0; i < n; ++i) V[i][i] = 1;
    bool turned = true;
    for (int sweep = 0; turned && sweep < 30; ++sweep) {
        turned = false;
        for (int64_t p = 0; p < n; ++p) {
            for (int64_t q = p + 1; q < n; ++q) {
                if (std::abs(A[p][q]) <= 1e-17) continue;
                turned = true;
                const double theta = (A[q][q] - A[p][p]) / (2 * A[p][q]);
                const double tangent =
                    std::copysign(1, theta) / (std::abs(theta) + std::hypot(theta, 1));
                const double cosine = 1 / std::sqrt(tangent * tangent + 1);
                const double sine = tangent * cosine;
                const auto turn = [&](double& x, double& y) {
                    const double old = x;
                    x = cosine * old - sine * y;
                    y = sine * old + cosine * y;
                };
                for (int64_t k = 0; k < n; ++k) turn(A[p][k], A[q][k]);
                for (int64_t k = 0; k < n; ++k) turn(A[k][p], A[k][q]);
                for (int64_t k = 0; k < n; ++k) turn(V[p][k], V[q][k]);
                A[p][q] = A[q][p] = 0;
            }
        }
    }
    for (int64_t e = 0; e < n; ++e) {
        const double missing = floor - A[e][e];
        if (missing <= 0) continue;
        for (int64_t i = 0; i < n; ++i) {
            const double factor = missing * V[e][i];
            for (int64_t j = 0; j < n; ++j) Q[i][j] += factor * V[e][j];
        }
    }
}

struct Units {  // the tasks whose gradient is not 0, in units of their norms
    // `least`: by the largest norm, smaller ones count as 0.
    Units(const double* G, int64_t T, double floor, double least = 0) : cosines(0) {
        double top = 0;
        for (int64_t i = 0; i < T; ++i) top = std::max(top, G[i * T + i]);
        for (int64_t i = 0; i < T; ++i) {
            if (G[i * T + i] > least * least * top) {
                tasks.push_back(i);
                norms.push_back(std::sqrt(G[i * T + i]));
            }
        }
        cosines = Matrix(size());
        for (int64_t i = 0; i < size(); ++i) {
            const double* row = G + tasks[i] * T;
            for (int64_t j = 0; j < size(); ++j) {
                cosines[i][j] = i == j ? 1 : row[tasks[j]] / norms[i] / norms[j];
            }
        }
        lift(cosines, floor);
    }
    int64_t size() const { return static_cast<int64_t>(tasks.size()); }

    std::vector<int64_t> tasks;
    Vec norms;
    Matrix cosines;
};

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

void pcgrad_one(const double* G, int64_t T, const int64_t* order, double* weights) {
    std::fill(weights, weights + T, 0);
    Vec row(T);
    for (int64_t i = 0; i < T; ++i) {
        std::fill(row.begin(), row.end(), 0);
        row[i] = 1;
        for (int64_t k = 0; k < T - 1; ++k) {
            const int64_t j = order[i * (T - 1) + k];
            const double product = dot(row.data(), G + j * T, T);
            if (product < 0 && G[j * T + j] > 0) row[j] -= product / G[j * T + j];
        }
        for (int64_t j = 0; j < T; ++j) weights[j] += row[j];
    }
}

void gradvac_one(const double* G, int64_t T, double* targets, const int64_t* order, double beta,
                 double* weights) {
    std::fill(weights, weights + T, 0);
    Vec norms(T), row(T), products(T);
    for (int64_t i = 0; i < T; ++i) norms[i] = std::sqrt(std::max(G[i * T + i], 0.0));
    for (int64_t i = 0; i < T; ++i) {
        std::fill(row.begin(), row.end(), 0);
        row[i] = 1;
        std::copy(G + i * T, G + (i + 1) * T, products.begin());
        for (int64_t k = 0; k < T - 1; ++k) {
            const int64_t j = order[i * (T - 1) + k];
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

void simplex_minimum(const double* G, int64_t count, int64_t T, double* w, double* gaps) {
    for (int64_t s = 0; s < count; ++s) {
        gaps[s] = simplex_one({G + s * T * T, T, kFloor}, T, w + s * T);
    }
}

void cone_minimum(const double* G, const double* U, int64_t count, int64_t T, int64_t rows,
                  double* V, double* gaps) {
    for (int64_t s = 0; s < count; ++s) {
        const Units units(G + s * T * T, T, kFloor);
        gaps[s] = 0;
        for (int64_t r = s * rows; r < (s + 1) * rows; ++r) {
            gaps[s] = worse(gaps[s], cone_one(units, T, U + r * T, V + r * T));
        }
    }
}

void cagrad_minimum(const double* G, int64_t count, int64_t T, double c, double* w, double* gaps) {
    for (int64_t s = 0; s < count; ++s) {
        gaps[s] = cagrad_one({G + s * T * T, T, kFloor, kLeast}, T, c, w + s * T);
    }
}

void balance(const double* G, int64_t count, int64_t T, double exponent, double* a, double* gaps) {
    for (int64_t s = 0; s < count; ++s) {
        gaps[s] = balance_one({G + s * T * T, T, kBalanceFloor}, T, exponent, a + s * T);
    }
}

void pcgrad(const double* G, int64_t count, int64_t T, const int64_t* order, double* weights) {
    for (int64_t s = 0; s < count; ++s) pcgrad_one(G + s * T * T, T, order, weights + s * T);
}

void gradvac(const double* G, const double* targets, int64_t count, int64_t T, const int64_t* order,
             double beta, double* weights, double* new_targets) {
    std::copy(targets, targets + count * T * T, new_targets);
    for (int64_t s = 0; s < count; ++s) {
        gradvac_one(G + s * T * T, T, new_targets + s * T * T, order, beta, weights + s * T);
    }
}

}  // namespace mtlcore::cpu
