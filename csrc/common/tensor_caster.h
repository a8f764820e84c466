// pybind11 caster: torch.Tensor -> TensorView through `type(tensor).__dlpack_c_exchange_api__`.
//
// No copy, no torch headers, no reference taken. What is no tensor is refused by `load`, so that
// pybind11 raises a TypeError that shows the signature.
#pragma once

#include <pybind11/pybind11.h>

#include "common/tensor_view.h"

namespace mtlcore {

inline Dtype dtype_of(const dlpack::DataType& type) {
    if (type.lanes != 1) return Dtype::kOther;
    switch (type.code) {
        case dlpack::kFloat:
            if (type.bits == 32) return Dtype::kFloat32;
            if (type.bits == 64) return Dtype::kFloat64;
            return type.bits == 16 ? Dtype::kFloat16 : Dtype::kOther;
        case dlpack::kBfloat:
            return type.bits == 16 ? Dtype::kBfloat16 : Dtype::kOther;
        case dlpack::kInt:
            if (type.bits == 32) return Dtype::kInt32;
            return type.bits == 64 ? Dtype::kInt64 : Dtype::kOther;
        case dlpack::kUInt:
            return type.bits == 8 ? Dtype::kUInt8 : Dtype::kOther;
        case dlpack::kBool:
            return Dtype::kBool;
        default:
            return Dtype::kOther;
    }
}

// The exchange table of a type, or null (no Python error is left behind).
inline const dlpack::ExchangeApi* find_exchange_api(PyObject* type) {
    PyObject* capsule = PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
    if (capsule == nullptr) {
        PyErr_Clear();
        return nullptr;
    }
    void* table = PyCapsule_GetPointer(capsule, dlpack::kCapsuleName);
    Py_DECREF(capsule);  // the table itself lives as long as the process
    if (table == nullptr) PyErr_Clear();
    auto* header = static_cast<dlpack::ApiHeader*>(table);
    while (header != nullptr && header->version.major != dlpack::kMajorVersion) {
        header = header->previous;
    }
    return reinterpret_cast<const dlpack::ExchangeApi*>(header);
}

// The same for an object's type. The last type is kept in mind: a call has a dozen tensors, and to
// look the table up costs more than all the rest. The type is held, so that no other can come to
// lie at its address. The caller holds the GIL.
inline const dlpack::ExchangeApi* exchange_api(PyObject* object) {
    static PyObject* known = nullptr;
    static const dlpack::ExchangeApi* table = nullptr;
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type != known) {
        const dlpack::ExchangeApi* found = find_exchange_api(type);
        if (found == nullptr) return nullptr;
        Py_INCREF(type);
        Py_XDECREF(known);
        known = type;
        table = found;
    }
    return table;
}

inline bool requires_grad(PyObject* tensor) {
    static PyObject* const name = PyUnicode_InternFromString("requires_grad");
    PyObject* found = PyObject_GetAttr(tensor, name);
    if (found == nullptr) throw pybind11::error_already_set();
    const bool answer = found == Py_True;
    Py_DECREF(found);
    return answer;
}

}  // namespace mtlcore

namespace pybind11::detail {

template <>
struct type_caster<mtlcore::TensorView> {
    PYBIND11_TYPE_CASTER(mtlcore::TensorView, const_name("torch.Tensor"));

    bool load(handle source, bool /*convert*/) {
        const mtlcore::dlpack::ExchangeApi* api = mtlcore::exchange_api(source.ptr());
        if (api == nullptr || api->view_from_python == nullptr) return false;
        mtlcore::dlpack::Tensor tensor;
        if (api->view_from_python(source.ptr(), &tensor) != 0) {
            // Only the check that follows knows the argument's name.
            const std::string text = str(error_already_set().value());
            value.problem = text.substr(0, text.find('\n'));
            return true;
        }
        value.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
        value.dtype = mtlcore::dtype_of(tensor.dtype);
        value.ndim = tensor.ndim;
        value.shape = tensor.shape;
        value.strides = tensor.strides;
        value.device = tensor.device;
        value.requires_grad = mtlcore::requires_grad(source.ptr());
        if (value.on_cuda() &&
            api->current_stream(tensor.device.type, tensor.device.id, &value.stream) != 0) {
            throw error_already_set();
        }
        return true;
    }
};

}  // namespace pybind11::detail
