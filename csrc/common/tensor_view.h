// TensorView: what a kernel's entry point sees of a torch tensor, and the checks that name it.
//
// A view owns nothing: it is valid while the Python argument lives, that is, during the call.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/dlpack.h"

namespace mtlcore {

enum class Dtype { kFloat32, kFloat64, kFloat16, kBfloat16, kInt32, kInt64, kUInt8, kBool, kOther };

// Raised as Python's TypeError; std::invalid_argument becomes ValueError.
struct TypeError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct TensorView {
    void* data = nullptr;
    Dtype dtype = Dtype::kOther;
    int ndim = 0;
    const int64_t* shape = nullptr;
    const int64_t* strides = nullptr;  // in elements; null means contiguous
    dlpack::Device device{0, 0};
    void* stream = nullptr;  // the caller's current stream, on a CUDA device
    bool requires_grad = false;
    std::string problem;  // why torch gave no view of the tensor; empty when it did

    bool on_cpu() const { return device.type == dlpack::kCPU || device.type == dlpack::kCUDAHost; }
    bool on_cuda() const { return device.type == dlpack::kCUDA; }
    int64_t stride(int axis) const {
        if (strides != nullptr) return strides[axis];
        int64_t product = 1;
        for (int i = ndim - 1; i > axis; --i) product *= shape[i];
        return product;
    }
    template <class Scalar>
    Scalar* ptr() const {
        return static_cast<Scalar*>(data);
    }
};

inline const char* name_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::kFloat32:
            return "float32";
        case Dtype::kFloat64:
            return "float64";
        case Dtype::kFloat16:
            return "float16";
        case Dtype::kBfloat16:
            return "bfloat16";
        case Dtype::kInt32:
            return "int32";
        case Dtype::kInt64:
            return "int64";
        case Dtype::kUInt8:
            return "uint8";
        case Dtype::kBool:
            return "bool";
        case Dtype::kOther:
            break;
    }
    return "another dtype";
}

inline std::string shape_of(const TensorView& view) {
    std::string text = "[";
    for (int i = 0; i < view.ndim; ++i) {
        if (i > 0) text += ", ";
        text += std::to_string(view.shape[i]);
    }
    return text + "]";
}

// The first check of every argument: memory to read, no autograd behind its back, the right rank.
inline void check_rank(const TensorView& view, const char* name, int ndim) {
    if (!view.problem.empty()) {
        throw std::invalid_argument(std::string(name) + " has no memory to read: " + view.problem);
    }
    if (view.requires_grad) {
        throw std::invalid_argument(std::string(name) + " must not require grad: detach it first");
    }
    if (view.ndim != ndim) {
        throw std::invalid_argument(std::string(name) + " must have " + std::to_string(ndim) +
                                    " dimensions, found shape " + shape_of(view));
    }
}

inline void check_size(const TensorView& view, const char* name, int axis, int64_t size) {
    if (view.shape[axis] != size) {
        throw std::invalid_argument(std::string(name) + " must have size " + std::to_string(size) +
                                    " along dimension " + std::to_string(axis) + ", found shape " +
                                    shape_of(view));
    }
}

inline void check_dtype(const TensorView& view, const char* name, Dtype dtype) {
    if (view.dtype != dtype) {
        throw TypeError(std::string(name) + " must be " + name_of(dtype) + ", found " +
                        name_of(view.dtype));
    }
}

inline void check_float(const TensorView& view, const char* name) {
    if (view.dtype != Dtype::kFloat32 && view.dtype != Dtype::kFloat64) {
        throw TypeError(std::string(name) + " must be float32 or float64, found " +
                        name_of(view.dtype));
    }
}

inline void check_same_device(const TensorView& view, const char* name, const TensorView& first,
                              const char* first_name) {
    // Pinned host memory counts as CPU: a kernel reads it like any other.
    const bool same = (view.on_cpu() && first.on_cpu()) ||
                      (view.device.type == first.device.type && view.device.id == first.device.id);
    if (!same) {
        throw std::invalid_argument(std::string(name) + " must be on the device of " + first_name);
    }
}

// The last axis must be dense; earlier strides are free, so that a column slice needs no copy.
inline void check_dense_rows(const TensorView& view, const char* name) {
    const int last = view.ndim - 1;
    if (view.shape[last] > 1 && view.stride(last) != 1) {
        throw std::invalid_argument(std::string(name) +
                                    " must be contiguous along its last dimension, found stride " +
                                    std::to_string(view.stride(last)));
    }
}

inline void check_contiguous(const TensorView& view, const char* name) {
    int64_t expected = 1;
    for (int axis = view.ndim - 1; axis >= 0; --axis) {
        if (view.shape[axis] == 0) return;
        if (view.shape[axis] > 1 && view.stride(axis) != expected) {
            throw std::invalid_argument(std::string(name) + " must be contiguous");
        }
        expected *= view.shape[axis];
    }
}

}  // namespace mtlcore
