// mtlcore._core: checks of the arguments, then the kernel of J's device. See mtlcore/ops/ for the
// public ops; every output and every scratch tensor is allocated there.

#include <pybind11/pybind11.h>

#include <algorithm>

#include "common/chunks.h"
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

void gramian(const TensorView& J, const TensorView& partials, const TensorView& out, int threads) {
    check_rank(J, "J", 2);
    check_float(J, "J");
    check_dense_rows(J, "J");
    check_device(J);
    const int64_t tasks = J.shape[0];
    const int64_t columns = J.shape[1];
    check_rank(partials, "partials", 3);
    check_dtype(partials, "partials", Dtype::kFloat64);
    check_same_device(partials, "partials", J, "J");
    check_size(partials, "partials", 0, chunk_count(columns));
    check_size(partials, "partials", 1, tasks);
    check_size(partials, "partials", 2, tasks);
    check_contiguous(partials, "partials");
    check_rank(out, "out", 2);
    check_dtype(out, "out", Dtype::kFloat64);
    check_same_device(out, "out", J, "J");
    check_size(out, "out", 0, tasks);
    check_size(out, "out", 1, tasks);
    check_contiguous(out, "out");
    const py::gil_scoped_release release;
    for_dtype(J.dtype, [&](auto scalar) {
        using Scalar = decltype(scalar);
        if (J.on_cpu()) {
            cpu::gramian(J.ptr<const Scalar>(), tasks, columns, J.stride(0), partials.ptr<double>(),
                         out.ptr<double>(), std::max(threads, 1));
        } else {
#ifdef MTLCORE_WITH_CUDA
            cuda::gramian(J.ptr<const Scalar>(), tasks, columns, J.stride(0),
                          partials.ptr<double>(), out.ptr<double>(), J.device.id, J.stream);
#endif
        }
    });
}

void combine(const TensorView& J, const TensorView& w, const TensorView& out, int threads) {
    check_rank(J, "J", 2);
    check_float(J, "J");
    check_dense_rows(J, "J");
    check_device(J);
    const int64_t tasks = J.shape[0];
    const int64_t columns = J.shape[1];
    check_rank(w, "w", 1);
    check_dtype(w, "w", J.dtype);
    check_same_device(w, "w", J, "J");
    check_size(w, "w", 0, tasks);
    check_contiguous(w, "w");
    check_rank(out, "out", 1);
    check_dtype(out, "out", J.dtype);
    check_same_device(out, "out", J, "J");
    check_size(out, "out", 0, columns);
    check_contiguous(out, "out");
    const py::gil_scoped_release release;
    for_dtype(J.dtype, [&](auto scalar) {
        using Scalar = decltype(scalar);
        if (J.on_cpu()) {
            cpu::combine(J.ptr<const Scalar>(), w.ptr<const Scalar>(), tasks, columns, J.stride(0),
                         out.ptr<Scalar>(), std::max(threads, 1));
        } else {
#ifdef MTLCORE_WITH_CUDA
            cuda::combine(J.ptr<const Scalar>(), w.ptr<const Scalar>(), tasks, columns, J.stride(0),
                          out.ptr<Scalar>(), J.device.id, J.stream);
#endif
        }
    });
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
    m.def("gramian_chunks", &mtlcore::chunk_count, py::arg("columns"));
    m.def("gramian", &mtlcore::gramian, py::arg("J"), py::arg("partials"), py::arg("out"),
          py::arg("threads"));
    m.def("combine", &mtlcore::combine, py::arg("J"), py::arg("w"), py::arg("out"),
          py::arg("threads"));
}
