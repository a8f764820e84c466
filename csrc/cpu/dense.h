// Small square matrices and vectors for the solvers on G, and the Gramian in units of its norms.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mtlcore::cpu {

using Vec = std::vector<double>;

// |sum|^2 over (sum of norms)^2: what is left is rounding.
constexpr double kVanished = 1e-14;

// The larger of two gaps, where one that is no number is the largest: std::max may pass over it.
inline double worse(double gap, double other) {
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
inline double dot(const double* a, const double* b, int64_t n) {
    double sums[4] = {};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        for (int k = 0; k < 4; ++k) sums[k] += a[i + k] * b[i + k];
    }
    for (; i < n; ++i) sums[0] += a[i] * b[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

inline double dot(const Vec& a, const Vec& b) {
    return dot(a.data(), b.data(), static_cast<int64_t>(a.size()));
}

inline void multiply(const Matrix& Q, const Vec& x, Vec& out) {
    for (int64_t i = 0; i < Q.n; ++i) out[i] = dot(Q[i], x.data(), Q.n);
}

inline double largest(const Vec& x) {
    double top = 0;
    for (const double value : x) top = std::max(top, std::abs(value));
    return top;
}

// Row k of the lower factor L from row k of the matrix, which may be the same memory; L's rows
// before k are there. Returns the squared pivot, which the caller must store.
inline double factor_row(const Matrix& L, int64_t k, double* row, double diagonal) {
    for (int64_t i = 0; i < k; ++i) row[i] = (row[i] - dot(L[i], row, i)) / L[i][i];
    return diagonal - dot(row, row, k);
}

// x <- (L L')^-1 x for the first `count` rows of L.
inline void solve_factored(const Matrix& L, int64_t count, double* x) {
    for (int64_t i = 0; i < count; ++i) x[i] = (x[i] - dot(L[i], x, i)) / L[i][i];
    for (int64_t i = count - 1; i >= 0; --i) {
        x[i] /= L[i][i];
        for (int64_t j = 0; j < i; ++j) x[j] -= L[i][j] * x[i];
    }
}

// Overwrites the lower half with the Cholesky factor; false if Q is not positive definite.
inline bool factor(Matrix& Q) {
    for (int64_t k = 0; k < Q.n; ++k) {
        const double pivot = factor_row(Q, k, Q[k], Q[k][k]);
        if (!(pivot > 0)) return false;
        Q[k][k] = std::sqrt(pivot);
    }
    return true;
}

// Jacobi's rotations: A becomes diagonal, the eigenvalues; the rows returned are the eigenvectors.
inline Matrix diagonalize(Matrix& A) {
    const int64_t n = A.n;
    Matrix V(n);
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
    return V;
}

// Overwrites A - shift I with its Cholesky factor; false if that is not positive definite.
inline bool factor_above(Matrix& A, double shift) {
    for (int64_t i = 0; i < A.n; ++i) A[i][i] -= shift;
    return factor(A);
}

// Raises eigenvalues below `floor` to it, and leaves the rest as it is.
inline void lift(Matrix& Q, double floor) {
    const int64_t n = Q.n;
    Matrix A = Q;
    if (factor_above(A, 10 * floor)) return;  // the usual case, at a fraction of the cost
    A = Q;
    const Matrix V = diagonalize(A);
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
    // `floor`: eigenvalues of the cosines are raised to it, unless it is 0. `least`: by the largest
    // norm, smaller ones count as 0.
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
        if (floor > 0) lift(cosines, floor);
    }
    int64_t size() const { return static_cast<int64_t>(tasks.size()); }

    std::vector<int64_t> tasks;
    Vec norms;
    Matrix cosines;
};

}  // namespace mtlcore::cpu
