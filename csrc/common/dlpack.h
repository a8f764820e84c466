// The DLPack C structs that the core reads (DLPack 1.2 and later; https://dmlc.github.io/dlpack).
//
// Only the layout matters: these are declarations of a public binary interface, kept to the fields
// and function pointers up to the last one that is used.
#pragma once

#include <cstdint>

namespace mtlcore::dlpack {

constexpr uint32_t kMajorVersion = 1;  // layouts may differ between major versions only
constexpr const char* kCapsuleName = "dlpack_exchange_api";

enum DeviceType : int32_t { kCPU = 1, kCUDA = 2, kCUDAHost = 3 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

struct Version {
    uint32_t major;
    uint32_t minor;
};

struct Device {
    int32_t type;
    int32_t id;
};

struct DataType {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;
    int64_t* strides;  // in elements
    uint64_t byte_offset;
};

struct ApiHeader {
    Version version;
    ApiHeader* previous;  // an older major version of the same table, or null
};

// All functions return 0, or -1 with a Python error set. None of them waits for a stream.
struct ExchangeApi {
    ApiHeader header;
    void* allocate_managed;
    void* managed_from_python;
    void* managed_to_python;
    int (*view_from_python)(void* object, Tensor* view);  // the view borrows: it owns nothing
    int (*current_stream)(int32_t device_type, int32_t device_id, void** stream);
};

}  // namespace mtlcore::dlpack
