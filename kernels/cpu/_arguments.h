// The arguments of a call from Python, all of them keywords. Each is asked for by its name and as what it must be:
// a number, or a tensor of one dtype, rank and shape. Everything else is refused with a TypeError that names the
// argument, before any memory is read.
//
// A tensor is seen through DLPack's C interface, which PyTorch offers without copies, references or the headers of
// PyTorch, in about the time of one attribute's look-up.

#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "_cpu.h"

// DLPack's structs of major version 1: `dlpack.h` of the Data API consortium.
namespace dlpack {

struct Dtype {
    uint8_t code, bits;  // code 0: signed, 1: unsigned, 2: IEEE float, 4: bfloat
    uint16_t lanes;
    bool operator==(const Dtype& other) const {
        return code == other.code && bits == other.bits && lanes == other.lanes;
    }
};

struct Tensor {
    void* data;
    int32_t device_type, device_id;  // type 1: the CPU
    int32_t rank;
    Dtype dtype;
    i64 *shape, *strides;  // strides in elements
    uint64_t byte_offset;
};

struct ExchangeAPI {
    uint32_t major, minor;
    void* previous;
    void *allocate, *owned_from_python, *owned_to_python;
    int (*from_python)(void* object, Tensor* out);  // what is seen lives as long as the object
    void* current_stream;
};

}  // namespace dlpack

// A size that the first tensor decides, and all others must have.
constexpr i64 ANY = -1;

struct Refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

template <typename T>
constexpr dlpack::Dtype dtype_of() {
    using Number = std::remove_const_t<T>;
    if (std::is_same_v<Number, float>) return {2, 32, 1};
    if (std::is_same_v<Number, uint16_t>) return {4, 16, 1};  // bfloat16, see _cpu.h
    return {static_cast<uint8_t>(std::is_unsigned_v<Number>), sizeof(Number) * 8, 1};
}

class Arguments {
   public:
    using Sizes = std::initializer_list<i64*>;

    Arguments(PyObject* const* values, Py_ssize_t positional, PyObject* names)
        : values_(values), names_(names), count_(names == nullptr ? 0 : PyTuple_GET_SIZE(names)) {
        if (positional != 0) throw Refused("takes keyword arguments only");
        if (count_ > 64) throw Refused("takes fewer arguments");
    }

    // Finds torch.Tensor and its view of C; once, when the module is loaded. Else false, and an exception is set.
    static bool prepare() {
        PyObject* torch = PyImport_ImportModule("torch");
        if (torch == nullptr) return false;
        tensor_type_ = reinterpret_cast<PyTypeObject*>(PyObject_GetAttrString(torch, "Tensor"));
        Py_DECREF(torch);
        if (tensor_type_ == nullptr) return false;
        PyObject* capsule =
            PyObject_GetAttrString(reinterpret_cast<PyObject*>(tensor_type_), "__dlpack_c_exchange_api__");
        if (capsule == nullptr) return false;
        // It lives as long as the process.
        const auto* api =
            static_cast<const dlpack::ExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
        Py_DECREF(capsule);
        if (api == nullptr) return false;
        if (api->major != 1 || api->from_python == nullptr) {
            PyErr_SetString(PyExc_ImportError, "PyTorch's tensors are of another version of DLPack");
            return false;
        }
        from_python_ = api->from_python;
        return true;
    }

    // A contiguous tensor of these sizes; with row_stride, its rows may lie that many elements apart.
    template <typename T>
    T* tensor(const char* name, Sizes sizes, i64* row_stride = nullptr) {
        return static_cast<T*>(see(name, find(name), dtype_of<T>(), sizes, row_stride));
    }

    template <typename T>
    T* optional(const char* name, Sizes sizes) {
        PyObject* x = find(name);
        return x == Py_None ? nullptr : static_cast<T*>(see(name, x, dtype_of<T>(), sizes, nullptr));
    }

    // Of float32 or bfloat16. `half`: ANY, or which of them it must be.
    void* real(const char* name, i64* half, Sizes sizes, i64* row_stride = nullptr) {
        return real(name, find(name), half, sizes, row_stride);
    }

    void* optional_real(const char* name, i64* half, Sizes sizes, i64* row_stride = nullptr) {
        PyObject* x = find(name);
        return x == Py_None ? nullptr : real(name, x, half, sizes, row_stride);
    }

    i64 integer(const char* name) { return integer(find(name), name); }

    float number(const char* name) {
        PyObject* x = find(name);
        if (PyFloat_Check(x)) return static_cast<float>(PyFloat_AS_DOUBLE(x));
        if (!PyLong_Check(x) || PyBool_Check(x)) refuse(name, "a float", x);
        return static_cast<float>(integer(x, name));
    }

    bool flag(const char* name) {
        PyObject* x = find(name);
        if (!PyBool_Check(x)) refuse(name, "a bool", x);
        return x == Py_True;
    }

    PyObject* object(const char* name) { return find(name); }

    // To be called when all arguments are read: any other is refused.
    void finish() const {
        for (Py_ssize_t i = 0; i < count_; ++i)
            if (!(taken_ >> i & 1))
                throw Refused(std::string("takes no argument ") + PyUnicode_AsUTF8(PyTuple_GET_ITEM(names_, i)));
    }

   private:
    static i64 integer(PyObject* x, const char* name) {
        if (!PyLong_Check(x) || PyBool_Check(x)) refuse(name, "an int", x);
        const i64 value = PyLong_AsLongLong(x);
        if (value == -1 && PyErr_Occurred()) {
            PyErr_Clear();
            refuse(name, "an int of 64 bits", x);
        }
        return value;
    }

    PyObject* find(const char* name) {
        for (Py_ssize_t i = 0; i < count_; ++i) {
            // Callers name them in the order in which they are read, so the first look finds it.
            const Py_ssize_t at = (next_ + i) % count_;
            if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names_, at), name) != 0) continue;
            next_ = at + 1;
            taken_ |= uint64_t{1} << at;
            return values_[at];
        }
        throw Refused(std::string("needs the argument ") + name);
    }

    void* real(const char* name, PyObject* x, i64* half, Sizes sizes, i64* row_stride) {
        if (*half == ANY) {
            const bool is_half = look(name, x).dtype == dtype_of<uint16_t>();
            *half = is_half;
        }
        const auto dtype = *half != 0 ? dtype_of<uint16_t>() : dtype_of<float>();
        return see(name, x, dtype, sizes, row_stride);
    }

    static dlpack::Tensor look(const char* name, PyObject* x) {
        if (!PyObject_TypeCheck(x, tensor_type_)) refuse(name, "a tensor", x);
        dlpack::Tensor seen;
        if (from_python_(x, &seen) != 0) {
            PyErr_Clear();
            refuse(name, "a tensor with memory", x);
        }
        return seen;
    }

    static void* see(const char* name, PyObject* x, dlpack::Dtype dtype, Sizes sizes, i64* row_stride) {
        const dlpack::Tensor seen = look(name, x);
        if (seen.device_type != 1 || !(seen.dtype == dtype) || seen.rank != static_cast<int32_t>(sizes.size()))
            refuse(name, dtype, sizes, seen);
        i64 dense = 1;
        for (int32_t d = seen.rank - 1; d >= 0; --d) {
            i64* size = sizes.begin()[d];
            if (*size == ANY) *size = seen.shape[d];
            if (*size != seen.shape[d]) refuse(name, dtype, sizes, seen);
            if (d == 0 && row_stride != nullptr) *row_stride = seen.strides[0];
            else if (seen.shape[d] > 1 && seen.strides[d] != dense) refuse(name, dtype, sizes, seen);
            dense *= seen.shape[d];
        }
        return static_cast<char*>(seen.data) + seen.byte_offset;
    }

    [[noreturn]] static void refuse(const char* name, const char* wanted, PyObject* x) {
        throw Refused(std::string(name) + " must be " + wanted + ", not " + Py_TYPE(x)->tp_name);
    }

    [[noreturn]] static void refuse(const char* name, dlpack::Dtype dtype, Sizes sizes, const dlpack::Tensor& seen) {
        std::string wanted, found, strides;
        for (const i64* size : sizes)
            wanted += (wanted.empty() ? "" : ", ") + (*size == ANY ? "*" : std::to_string(*size));
        for (int32_t d = 0; d < seen.rank; ++d) {
            found += (d == 0 ? "" : ", ") + std::to_string(seen.shape[d]);
            strides += (d == 0 ? "" : ", ") + std::to_string(seen.strides[d]);
        }
        throw Refused(std::string(name) + " must be a dense CPU tensor of " + text(dtype) + " [" + wanted +
                      "], not of " + text(seen.dtype) + " [" + found + "] with strides [" + strides + "] on " +
                      (seen.device_type == 1 ? "the CPU" : "another device"));
    }

    static std::string text(dlpack::Dtype dtype) {
        const char* kinds[] = {"int", "uint", "float", "handle", "bfloat"};
        return (dtype.code < 5 ? kinds[dtype.code] : "dtype") + std::to_string(dtype.bits);
    }

    static inline PyTypeObject* tensor_type_ = nullptr;
    static inline int (*from_python_)(void* object, dlpack::Tensor* out) = nullptr;

    PyObject* const* values_;
    PyObject* names_;
    Py_ssize_t count_, next_ = 0;
    uint64_t taken_ = 0;
};
