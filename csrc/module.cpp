// mtlcore._core: checks of the arguments, then the kernel of J's device. See mtlcore/ops/ for the
// public ops; every output and every scratch tensor is allocated there.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/half.h"
#include "common/lora.h"
#include "common/tensor_caster.h"
#include "ops.h"

namespace py = pybind11;

namespace mtlcore {
namespace {

#ifdef MTLCORE_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

void check_device(const TensorView& J) {
    if (!J.on_cpu() && !(kWithCuda && J.on_cuda())) {
        throw std::invalid_argument(
            kWithCuda ? "J must be on a CPU or CUDA device"
                      : "J must be on the CPU: this mtlcore was built without CUDA kernels");
    }
}

// Run the body with Scalar = J's dtype.
template <class Body>
void for_dtype(Dtype dtype, Body body) {
    if (dtype == Dtype::kFloat32) {
        body(float{});
    } else {
        body(double{});
    }
}

// A contiguous tensor of this dtype and shape.
void check_packed(const TensorView& view, const char* name, Dtype dtype,
                  std::initializer_list<int64_t> shape) {
    check_rank(view, name, static_cast<int>(shape.size()));
    check_dtype(view, name, dtype);
    int axis = 0;
    for (const int64_t size : shape) check_size(view, name, axis++, size);
    check_contiguous(view, name);
}

void check_packed(const TensorView& view, const char* name, Dtype dtype,
                  std::initializer_list<int64_t> shape, const TensorView& J) {
    check_packed(view, name, dtype, shape);
    check_same_device(view, name, J, "J");
}

void check_rows(const TensorView& view, const char* name) {
    check_rank(view, name, 2);
    check_float(view, name);
    check_dense_rows(view, name);
}

template <class Scalar>
Rows<Scalar> rows_of(const TensorView& view) {
    return {view.ptr<const Scalar>(), view.shape[0], view.stride(0)};
}

// How the columns of J are cut; on a GPU the table cannot be read here.
Cut cut_of(const TensorView& chunks, const TensorView& firsts, const TensorView& J) {
    check_rank(chunks, "chunks", 2);
    check_packed(chunks, "chunks", Dtype::kInt64, {chunks.shape[0], 3}, J);
    check_rank(firsts, "firsts", 1);
    check_packed(firsts, "firsts", Dtype::kInt64, {firsts.shape[0]}, J);
    const Cut cut{chunks.ptr<const Chunk>(), chunks.shape[0], firsts.ptr<const int64_t>(),
                  firsts.shape[0] - 1};
    if (cut.slices < 0) throw std::invalid_argument("firsts must have one element or more");
    if (!J.on_cpu()) return cut;
    for (int64_t c = 0; c < cut.chunk_count; ++c) {
        const Chunk& one = cut.chunks[c];
        if (one.slice < 0 || one.slice >= cut.slices || one.begin < 0 || one.begin > one.end ||
            one.end > J.shape[1]) {
            throw std::invalid_argument("chunks[" + std::to_string(c) + "] = (" +
                                        std::to_string(one.slice) + ", " +
                                        std::to_string(one.begin) + ", " + std::to_string(one.end) +
                                        ") does not fit " + std::to_string(cut.slices) +
                                        " slices of " + std::to_string(J.shape[1]) + " columns");
        }
    }
    for (int64_t s = 0; s <= cut.slices; ++s) {
        if (cut.firsts[s] < (s > 0 ? cut.firsts[s - 1] : 0) || cut.firsts[s] > cut.chunk_count) {
            throw std::invalid_argument("firsts[" + std::to_string(s) +
                                        "] = " + std::to_string(cut.firsts[s]) + " does not fit " +
                                        std::to_string(cut.chunk_count) + " chunks");
        }
    }
    return cut;
}

void products(const TensorView& J, const TensorView& V, bool symmetric, const TensorView& chunks,
              const TensorView& firsts, const TensorView& partials, const TensorView& out,
              int threads) {
    const Cut cut = cut_of(chunks, firsts, J);
    const int64_t left = J.shape[0];
    const int64_t right = V.shape[0];
    check_packed(partials, "partials", Dtype::kFloat64, {cut.chunk_count, left, right}, J);
    check_packed(out, "out", Dtype::kFloat64, {cut.slices, left, right}, J);
    const py::gil_scoped_release release;
    for_dtype(J.dtype, [&](auto scalar) {
        using Scalar = decltype(scalar);
        if (J.on_cpu()) {
            cpu::gramian(rows_of<Scalar>(J), rows_of<Scalar>(V), symmetric, cut,
                         partials.ptr<double>(), out.ptr<double>(), std::max(threads, 1));
        } else {
#ifdef MTLCORE_WITH_CUDA
            cuda::gramian(rows_of<Scalar>(J), rows_of<Scalar>(V), symmetric, cut,
                          partials.ptr<double>(), out.ptr<double>(), J.device.id, J.stream);
#endif
        }
    });
}

void gramian(const TensorView& J, const TensorView& chunks, const TensorView& firsts,
             const TensorView& partials, const TensorView& out, int threads) {
    check_rows(J, "J");
    check_device(J);
    products(J, J, true, chunks, firsts, partials, out, threads);
}

void cross_gramian(const TensorView& J, const TensorView& V, const TensorView& chunks,
                   const TensorView& firsts, const TensorView& partials, const TensorView& out,
                   int threads) {
    check_rows(J, "J");
    check_device(J);
    check_rows(V, "V");
    check_dtype(V, "V", J.dtype);
    check_same_device(V, "V", J, "J");
    check_size(V, "V", 1, J.shape[1]);
    products(J, V, false, chunks, firsts, partials, out, threads);
}

void combine(const TensorView& J, const TensorView& w, const TensorView& chunks,
             const TensorView& firsts, const TensorView& out, int threads) {
    check_rows(J, "J");
    check_device(J);
    const Cut cut = cut_of(chunks, firsts, J);
    check_packed(w, "w", J.dtype, {cut.slices, J.shape[0]}, J);
    check_packed(out, "out", J.dtype, {J.shape[1]}, J);
    const py::gil_scoped_release release;
    for_dtype(J.dtype, [&](auto scalar) {
        using Scalar = decltype(scalar);
        if (J.on_cpu()) {
            cpu::combine(rows_of<Scalar>(J), w.ptr<const Scalar>(), cut, out.ptr<Scalar>(),
                         std::max(threads, 1));
        } else {
#ifdef MTLCORE_WITH_CUDA
            cuda::combine(rows_of<Scalar>(J), w.ptr<const Scalar>(), cut, out.ptr<Scalar>(),
                          J.device.id, J.stream);
#endif
        }
    });
}

// The table of a batch and its slots, and the dropout; without dropout its tensors are empty.
struct LoraViews {
    const TensorView& segments;
    const TensorView& rows;
    const TensorView& scales;
    const TensorView& shares;
    const TensorView& keys;
    const TensorView& positions;
    uint64_t layer;
};

// Likewise, on the CPU.
void check_whole(const TensorView& view, const char* name, Dtype dtype,
                 std::initializer_list<int64_t> shape) {
    check_packed(view, name, dtype, shape);
    if (!view.on_cpu()) throw std::invalid_argument(std::string(name) + " must be on the CPU");
}

void check_matrix(const TensorView& view, const char* name, Dtype dtype, int64_t tokens,
                  int64_t columns) {
    check_rank(view, name, 2);
    check_dtype(view, name, dtype);
    check_size(view, name, 0, tokens);
    check_size(view, name, 1, columns);
    check_dense_rows(view, name);
    if (!view.on_cpu()) throw std::invalid_argument(std::string(name) + " must be on the CPU");
}

template <class Scalar>
Lora<Scalar> lora_of(const LoraViews& views, Dtype dtype, int64_t tokens) {
    check_rank(views.rows, "rows", 2);
    const int64_t tasks = views.rows.shape[0];
    const int64_t width = views.rows.shape[1];
    check_whole(views.rows, "rows", Dtype::kInt32, {tasks, width});
    check_whole(views.scales, "scales", dtype, {tasks, width});
    check_rank(views.segments, "segments", 2);
    const int64_t count = views.segments.shape[0];
    check_whole(views.segments, "segments", Dtype::kInt64, {count, 3});
    const auto* segments = views.segments.ptr<const Segment>();
    for (int64_t s = 0; s < count; ++s) {
        const Segment& one = segments[s];
        if (one.task < 0 || one.task >= tasks || one.start < 0 || one.start > one.stop ||
            one.stop > tokens) {
            throw std::invalid_argument(
                "segments[" + std::to_string(s) + "] = (" + std::to_string(one.task) + ", " +
                std::to_string(one.start) + ", " + std::to_string(one.stop) + ") does not fit " +
                std::to_string(tasks) + " tasks and " + std::to_string(tokens) + " tokens");
        }
    }
    const auto* rows = views.rows.ptr<const int32_t>();
    Dropout dropout{};
    if (views.shares.ndim == 1 && views.shares.shape[0] > 0) {
        check_whole(views.shares, "shares", Dtype::kFloat64, {tasks});
        check_whole(views.keys, "keys", Dtype::kInt64, {tasks});
        check_whole(views.positions, "positions", Dtype::kInt32, {tokens});
        dropout = {views.shares.ptr<const double>(), views.keys.ptr<const int64_t>(),
                   views.positions.ptr<const int32_t>(), views.layer, true};
    }
    return {segments, count, rows, views.scales.ptr<const Scalar>(), width, tokens, dropout};
}

// Run the body with X = the dtype of x, Scalar = that of the factors, and the latter's name.
template <class Body>
void for_storage(const TensorView& x, Body body) {
    switch (x.dtype) {
        case Dtype::kFloat32:
            return body(float{}, float{}, Dtype::kFloat32);
        case Dtype::kFloat64:
            return body(double{}, double{}, Dtype::kFloat64);
        case Dtype::kBfloat16:
            return body(Bfloat16{}, float{}, Dtype::kFloat32);
        case Dtype::kFloat16:
            return body(Float16{}, float{}, Dtype::kFloat32);
        default:
            throw TypeError(std::string("x must be float32, float64, bfloat16 or float16, found ") +
                            name_of(x.dtype));
    }
}

// body(an element of x, the checked table, a scalar of the factors, its dtype); `x` is any tensor
// of tokens.
template <class Body>
void with_lora(const TensorView& x, const LoraViews& views, Body body) {
    check_rank(x, "x", 2);
    for_storage(x, [&](auto storage, auto scalar, Dtype dtype) {
        body(storage, lora_of<decltype(scalar)>(views, dtype, x.shape[0]), scalar, dtype);
    });
}

using Views = std::vector<TensorView>;

// One tensor or several.
struct ViewSpan {
    const TensorView* data;
    size_t size;
    ViewSpan(const TensorView& one) : data(&one), size(1) {}
    ViewSpan(const Views& many) : data(many.data()), size(many.size()) {}
    const TensorView& operator[](size_t index) const { return data[index]; }
};

// Add tokens and factor of each layer that is run; their rank rows follow each other.
template <class X, class Scalar>
void add_sides(std::vector<Side<X, Scalar>>& sides, ViewSpan tokens, const char* name,
               ViewSpan factors, const char* factor_name, Dtype x_dtype, Dtype dtype,
               const Lora<Scalar>& lora, int64_t tasks, bool drops) {
    if (tokens.size != factors.size) {
        throw std::invalid_argument(
            std::string(name) + " and " + factor_name + " must be as many tensors, found " +
            std::to_string(tokens.size) + " and " + std::to_string(factors.size));
    }
    int64_t ranks = 0;
    for (size_t p = 0; p < tokens.size; ++p) {
        check_rank(tokens[p], name, 2);
        const int64_t columns = tokens[p].shape[1];
        check_matrix(tokens[p], name, x_dtype, lora.tokens, columns);
        check_rank(factors[p], factor_name, 2);
        const int64_t first = ranks;
        ranks += factors[p].shape[0];
        check_whole(factors[p], factor_name, dtype, {ranks - first, columns});
        sides.push_back({tokens[p].ptr<X>(), tokens[p].stride(0), columns,
                         factors[p].ptr<const Scalar>(), first, ranks, drops});
    }
    for (int64_t task = 0; task < tasks; ++task) {
        size_t p = 0;
        for (int64_t i = task * lora.width; i < (task + 1) * lora.width; ++i) {
            const int64_t row = lora.rows[i];
            if (row < 0) break;
            if (row >= ranks) {
                throw std::invalid_argument("rows holds " + std::to_string(row) + ", but " +
                                            factor_name + " has " + std::to_string(ranks) +
                                            " rows");
            }
            if (row < sides[p].first) {
                throw std::invalid_argument("rows of task " + std::to_string(task) +
                                            " must go layer by layer, in the order of " +
                                            factor_name);
            }
            while (row >= sides[p].stop) ++p;
        }
    }
}

// Each row of a factor's gradient lies in the memory; below 0 it is not wanted.
template <class X, class Scalar>
void check_offsets(const TensorView& offsets, const char* name, const Side<X, Scalar>& side,
                   const Lora<Scalar>& lora, int64_t tasks, int64_t size) {
    for (int64_t task = 0; task < tasks; ++task) {
        const auto* values = offsets.ptr<const int64_t>() + task * lora.width;
        const auto [begin, end] = side.slots(lora, task);
        for (int64_t k = begin; k < end; ++k) {
            if (values[k] >= 0 && values[k] + side.columns > size) {
                throw std::invalid_argument(std::string(name) + " holds " +
                                            std::to_string(values[k]) + ", beyond a memory of " +
                                            std::to_string(size));
            }
        }
    }
}

// Where gradients go.
struct PlaceViews {
    const TensorView& weights;
    const TensorView& memory;
    bool square;
};

template <class X, class Scalar>
LoraGrads<X, Scalar> grads_of(const Side<const X, Scalar>& side, const TensorView& reduced,
                              bool scaled, const TensorView& offsets, const char* name,
                              const PlaceViews& places, const Lora<Scalar>& lora, Dtype dtype,
                              int64_t tasks) {
    check_whole(offsets, name, Dtype::kInt64, {tasks, lora.width});
    check_whole(places.weights, "weights", dtype, {tasks, lora.width});
    check_rank(places.memory, "memory", 1);
    check_whole(places.memory, "memory", dtype, {places.memory.shape[0]});
    check_offsets(offsets, name, side, lora, tasks, places.memory.shape[0]);
    return {side,
            reduced.ptr<const Scalar>(),
            scaled,
            offsets.ptr<const int64_t>(),
            places.weights.ptr<const Scalar>(),
            places.memory.ptr<Scalar>(),
            places.square};
}

// Run a pass over the tokens of `x` that `fill` completes; z is what it reduces to.
template <class Fill>
void run_pass(const TensorView& x, const LoraViews& views, const TensorView& z, int threads,
              Fill fill) {
    with_lora(x, views, [&](auto storage, const auto& lora, auto scalar, Dtype dtype) {
        using X = decltype(storage);
        using Scalar = decltype(scalar);
        check_whole(z, "z", dtype, {lora.tokens, lora.width});
        TokenPass<X, Scalar> pass;
        pass.reduced = z.ptr<Scalar>();
        fill(pass, lora, dtype, views.rows.shape[0]);
        const py::gil_scoped_release release;
        cpu::run_lora<X, Scalar>(lora, &pass, {}, std::max(threads, 1));
    });
}

void lora_forward(const TensorView& x, const TensorView& A, const Views& B,
                  const TensorView& segments, const TensorView& rows, const TensorView& scales,
                  const TensorView& shares, const TensorView& keys, const TensorView& positions,
                  uint64_t layer, const Views& y, const TensorView& z, int threads) {
    const LoraViews views{segments, rows, scales, shares, keys, positions, layer};
    run_pass(x, views, z, threads, [&](auto& pass, const auto& lora, Dtype dtype, int64_t tasks) {
        pass.scaling = Scaling::kOnUse;
        add_sides(pass.sources, x, "x", A, "A", x.dtype, dtype, lora, tasks, true);
        add_sides(pass.targets, y, "y", B, "B", x.dtype, dtype, lora, tasks, false);
    });
}

void lora_backward(const Views& dy, const TensorView& x, const TensorView& z, const TensorView& A,
                   const Views& B, const TensorView& segments, const TensorView& rows,
                   const TensorView& scales, const TensorView& shares, const TensorView& keys,
                   const TensorView& positions, uint64_t layer, const TensorView& a_offsets,
                   const TensorView& b_offsets, const TensorView& weights, bool square,
                   const TensorView& dx, const TensorView& dz, const TensorView& memory,
                   int threads) {
    const LoraViews views{segments, rows, scales, shares, keys, positions, layer};
    with_lora(x, views, [&](auto storage, const auto& lora, auto scalar, Dtype dtype) {
        using X = decltype(storage);
        using Scalar = decltype(scalar);
        const int64_t tasks = rows.shape[0];
        check_whole(z, "z", dtype, {lora.tokens, lora.width});
        check_whole(dz, "dz", dtype, {lora.tokens, lora.width});
        TokenPass<X, Scalar> pass;
        pass.reduced = dz.ptr<Scalar>();
        pass.scaling = Scaling::kStored;
        add_sides(pass.sources, dy, "dy", B, "B", x.dtype, dtype, lora, tasks, false);
        std::vector<Side<const X, Scalar>> inputs;
        add_sides(inputs, x, "x", A, "A", x.dtype, dtype, lora, tasks, true);
        if (dx.ndim == 2) {
            const auto& input = inputs[0];
            check_matrix(dx, "dx", x.dtype, lora.tokens, input.columns);
            pass.targets.push_back({dx.ptr<X>(), dx.stride(0), input.columns, input.factor,
                                    input.first, input.stop, input.drops});
        }
        const PlaceViews places{weights, memory, square};
        std::vector<LoraGrads<X, Scalar>> grads{
            grads_of<X>(inputs[0], dz, false, a_offsets, "a_offsets", places, lora, dtype, tasks)};
        for (const auto& side : pass.sources) {
            grads.push_back(
                grads_of<X>(side, z, true, b_offsets, "b_offsets", places, lora, dtype, tasks));
        }
        const py::gil_scoped_release release;
        cpu::run_lora<X, Scalar>(lora, &pass, grads, std::max(threads, 1));
    });
}

void lora_shrink(const TensorView& x, const TensorView& A, const TensorView& segments,
                 const TensorView& rows, const TensorView& scales, const TensorView& shares,
                 const TensorView& keys, const TensorView& positions, uint64_t layer,
                 const TensorView& z, int threads) {
    const LoraViews views{segments, rows, scales, shares, keys, positions, layer};
    run_pass(x, views, z, threads, [&](auto& pass, const auto& lora, Dtype dtype, int64_t tasks) {
        add_sides(pass.sources, x, "x", A, "A", x.dtype, dtype, lora, tasks, true);
    });
}

void lora_expand(const TensorView& z, const TensorView& B, const TensorView& segments,
                 const TensorView& rows, const TensorView& scales, const TensorView& shares,
                 const TensorView& keys, const TensorView& positions, uint64_t layer,
                 const TensorView& y, int threads) {
    const LoraViews views{segments, rows, scales, shares, keys, positions, layer};
    run_pass(y, views, z, threads, [&](auto& pass, const auto& lora, Dtype dtype, int64_t tasks) {
        add_sides(pass.targets, y, "y", B, "B", y.dtype, dtype, lora, tasks, true);
    });
}

void lora_grads(const TensorView& z, const TensorView& x, const TensorView& segments,
                const TensorView& rows, const TensorView& scales, const TensorView& shares,
                const TensorView& keys, const TensorView& positions, uint64_t layer,
                const TensorView& offsets, const TensorView& weights, const TensorView& memory,
                int threads) {
    const LoraViews views{segments, rows, scales, shares, keys, positions, layer};
    with_lora(x, views, [&](auto storage, const auto& lora, auto scalar, Dtype dtype) {
        using X = decltype(storage);
        using Scalar = decltype(scalar);
        check_matrix(x, "x", x.dtype, lora.tokens, x.shape[1]);
        check_whole(z, "z", dtype, {lora.tokens, lora.width});
        const Side<const X, Scalar> side{x.ptr<const X>(),
                                         x.stride(0),
                                         x.shape[1],
                                         nullptr,
                                         0,
                                         std::numeric_limits<int64_t>::max(),
                                         true};
        const PlaceViews places{weights, memory, false};
        const std::vector<LoraGrads<X, Scalar>> grads{
            grads_of<X>(side, z, false, offsets, "offsets", places, lora, dtype, rows.shape[0])};
        const py::gil_scoped_release release;
        cpu::run_lora<X, Scalar>(lora, nullptr, grads, std::max(threads, 1));
    });
}

// The first element of a packed tensor of float64 on the CPU that is not good, or null.
template <class Good>
const double* find_bad(const TensorView& view, Good good) {
    int64_t size = 1;
    for (int axis = 0; axis < view.ndim; ++axis) size *= view.shape[axis];
    const auto* values = view.ptr<const double>();
    const double* found = std::find_if_not(values, values + size, good);
    return found == values + size ? nullptr : found;
}

void check_finite(const TensorView& view, const char* name) {
    const double* bad = find_bad(view, [](double value) { return std::isfinite(value); });
    if (bad == nullptr) return;
    throw std::invalid_argument(std::string(name) + " must be finite, found " +
                                (std::isnan(*bad) ? "nan"
                                 : *bad > 0       ? "inf"
                                                  : "-inf"));
}

// Small problems of the CPU, on Gramians G [count, T, T] float64.
void check_square(const TensorView& G) {
    check_rank(G, "G", 3);
    check_packed(G, "G", Dtype::kFloat64, {G.shape[0], G.shape[1], G.shape[1]});
    if (!G.on_cpu()) throw std::invalid_argument("G must be on the CPU");
    check_finite(G, "G");
}

void check_keys(const TensorView& keys, const TensorView& G) {
    check_packed(keys, "keys", Dtype::kFloat64, {G.shape[1], std::max<int64_t>(G.shape[1] - 1, 0)},
                 G);
    check_finite(keys, "keys");
}

void cone_minimum(const TensorView& G, const TensorView& U, const TensorView& V,
                  const TensorView& gaps, int threads) {
    check_square(G);
    check_rank(U, "U", 3);
    check_packed(U, "U", Dtype::kFloat64, {G.shape[0], U.shape[1], G.shape[1]}, G);
    check_finite(U, "U");
    check_packed(V, "V", Dtype::kFloat64, {G.shape[0], U.shape[1], G.shape[1]}, G);
    check_packed(gaps, "gaps", Dtype::kFloat64, {G.shape[0]}, G);
    const py::gil_scoped_release release;
    cpu::cone_minimum(G.ptr<double>(), U.ptr<double>(), G.shape[0], G.shape[1], U.shape[1],
                      V.ptr<double>(), gaps.ptr<double>(), std::max(threads, 1));
}

void cagrad_minimum(const TensorView& G, double c, const TensorView& lengths, const TensorView& w,
                    const TensorView& gaps) {
    check_square(G);
    check_packed(lengths, "lengths", Dtype::kFloat64, {G.shape[0], 2}, G);
    check_packed(w, "w", Dtype::kFloat64, {G.shape[0], G.shape[1]}, G);
    check_packed(gaps, "gaps", Dtype::kFloat64, {G.shape[0]}, G);
    const py::gil_scoped_release release;
    cpu::cagrad_minimum(G.ptr<double>(), G.shape[0], G.shape[1], c, lengths.ptr<double>(),
                        w.ptr<double>(), gaps.ptr<double>());
}

template <auto solver, class... Number>
void solve(const TensorView& G, Number... number, const TensorView& out, const TensorView& gaps) {
    check_square(G);
    check_packed(out, "out", Dtype::kFloat64, {G.shape[0], G.shape[1]}, G);
    check_packed(gaps, "gaps", Dtype::kFloat64, {G.shape[0]}, G);
    const py::gil_scoped_release release;
    solver(G.ptr<double>(), G.shape[0], G.shape[1], number..., out.ptr<double>(),
           gaps.ptr<double>());
}

void pcgrad(const TensorView& G, const TensorView& keys, const TensorView& weights) {
    check_square(G);
    check_keys(keys, G);
    check_packed(weights, "weights", Dtype::kFloat64, {G.shape[0], G.shape[1]}, G);
    const py::gil_scoped_release release;
    cpu::pcgrad(G.ptr<double>(), G.shape[0], G.shape[1], keys.ptr<double>(), weights.ptr<double>());
}

void gradvac(const TensorView& G, const TensorView& targets, const TensorView& keys, double beta,
             const TensorView& weights, const TensorView& new_targets) {
    check_square(G);
    check_keys(keys, G);
    const int64_t count = G.shape[0];
    const int64_t T = G.shape[1];
    check_packed(targets, "targets", Dtype::kFloat64, {count, T, T}, G);
    if (find_bad(targets, [](double target) { return std::abs(target) <= 1; }) != nullptr) {
        throw std::invalid_argument("targets must be cosines in [-1, 1]");
    }
    check_packed(weights, "weights", Dtype::kFloat64, {count, T}, G);
    check_packed(new_targets, "new_targets", Dtype::kFloat64, {count, T, T}, G);
    const py::gil_scoped_release release;
    cpu::gradvac(G.ptr<double>(), targets.ptr<double>(), count, T, keys.ptr<double>(), beta,
                 weights.ptr<double>(), new_targets.ptr<double>());
}

}  // namespace
}  // namespace mtlcore

PYBIND11_MODULE(_core, m) {
    m.doc() = "The compiled core of mtlcore; the public ops are in mtlcore.ops.";
    // No pybind11 exception type of our own: users catch Python's TypeError.
    py::register_local_exception_translator([](std::exception_ptr error) {
        try {
            if (error) std::rethrow_exception(error);
        } catch (const mtlcore::TypeError& wrong) {
            PyErr_SetString(PyExc_TypeError, wrong.what());
        }
    });
    m.attr("has_cuda") = mtlcore::kWithCuda;
    m.def("gramian", &mtlcore::gramian, py::arg("J"), py::arg("chunks"), py::arg("firsts"),
          py::arg("partials"), py::arg("out"), py::arg("threads"));
    m.def("cross_gramian", &mtlcore::cross_gramian, py::arg("J"), py::arg("V"), py::arg("chunks"),
          py::arg("firsts"), py::arg("partials"), py::arg("out"), py::arg("threads"));
    m.def("combine", &mtlcore::combine, py::arg("J"), py::arg("w"), py::arg("chunks"),
          py::arg("firsts"), py::arg("out"), py::arg("threads"));
    m.def("lora_forward", &mtlcore::lora_forward, py::arg("x"), py::arg("A"), py::arg("B"),
          py::arg("segments"), py::arg("rows"), py::arg("scales"), py::arg("shares"),
          py::arg("keys"), py::arg("positions"), py::arg("layer"), py::arg("y"), py::arg("z"),
          py::arg("threads"));
    m.def("lora_backward", &mtlcore::lora_backward, py::arg("dy"), py::arg("x"), py::arg("z"),
          py::arg("A"), py::arg("B"), py::arg("segments"), py::arg("rows"), py::arg("scales"),
          py::arg("shares"), py::arg("keys"), py::arg("positions"), py::arg("layer"),
          py::arg("a_offsets"), py::arg("b_offsets"), py::arg("weights"), py::arg("square"),
          py::arg("dx"), py::arg("dz"), py::arg("memory"), py::arg("threads"));
    m.def("lora_shrink", &mtlcore::lora_shrink, py::arg("x"), py::arg("A"), py::arg("segments"),
          py::arg("rows"), py::arg("scales"), py::arg("shares"), py::arg("keys"),
          py::arg("positions"), py::arg("layer"), py::arg("z"), py::arg("threads"));
    m.def("lora_expand", &mtlcore::lora_expand, py::arg("z"), py::arg("B"), py::arg("segments"),
          py::arg("rows"), py::arg("scales"), py::arg("shares"), py::arg("keys"),
          py::arg("positions"), py::arg("layer"), py::arg("y"), py::arg("threads"));
    m.def("lora_grads", &mtlcore::lora_grads, py::arg("z"), py::arg("x"), py::arg("segments"),
          py::arg("rows"), py::arg("scales"), py::arg("shares"), py::arg("keys"),
          py::arg("positions"), py::arg("layer"), py::arg("offsets"), py::arg("weights"),
          py::arg("memory"), py::arg("threads"));
    m.def("simplex_minimum", &mtlcore::solve<mtlcore::cpu::simplex_minimum>, py::arg("G"),
          py::arg("w"), py::arg("gaps"));
    m.def("equal_projections", &mtlcore::solve<mtlcore::cpu::equal_projections>, py::arg("G"),
          py::arg("a"), py::arg("gaps"));
    m.def("cone_minimum", &mtlcore::cone_minimum, py::arg("G"), py::arg("U"), py::arg("V"),
          py::arg("gaps"), py::arg("threads"));
    m.def("cagrad_minimum", &mtlcore::cagrad_minimum, py::arg("G"), py::arg("c"),
          py::arg("lengths"), py::arg("w"), py::arg("gaps"));
    m.def("balance", &mtlcore::solve<mtlcore::cpu::balance, double>, py::arg("G"),
          py::arg("exponent"), py::arg("a"), py::arg("gaps"));
    m.def("pcgrad", &mtlcore::pcgrad, py::arg("G"), py::arg("keys"), py::arg("weights"));
    m.def("gradvac", &mtlcore::gradvac, py::arg("G"), py::arg("targets"), py::arg("keys"),
          py::arg("beta"), py::arg("weights"), py::arg("new_targets"));
}
