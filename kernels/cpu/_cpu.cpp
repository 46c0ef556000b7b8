// Python's side of the CPU's hot ops of decoding: what takes a dozen of PyTorch's operators, each with its own pass
// over memory and a few microseconds of dispatch, is one call here. Calls can be recorded: a program is a decode
// step's calls, which then takes one call itself.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "_cpu.h"

namespace {

using Op = std::function<void(i64 rows)>;

struct Program {
    i64 most = 0;  // rows
    std::vector<Op> ops;
};

// What this thread's calls go to instead of being done.
thread_local std::unique_ptr<Program> recording;

// The arguments of a call, in order.
class Arguments {
   public:
    Arguments(PyObject* const* args, Py_ssize_t count) : args_(args), left_(count) {}

    template <typename T>
    T* address() {
        PyObject* x = next();
        return x == nullptr ? nullptr : reinterpret_cast<T*>(PyLong_AsSize_t(x));
    }
    i64 integer() {
        PyObject* x = next();
        return x == nullptr ? 0 : PyLong_AsLongLong(x);
    }
    int small() { return static_cast<int>(integer()); }
    float number() {
        PyObject* x = next();
        return x == nullptr ? 0.0f : static_cast<float>(PyFloat_AsDouble(x));
    }
    bool flag() {
        PyObject* x = next();
        return x != nullptr && PyObject_IsTrue(x) == 1;
    }
    // Whether there were as many as were asked for, of the right types; else an exception is set.
    bool complete() {
        if (left_ != 0 && !PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "wrong number of arguments");
        return !PyErr_Occurred();
    }

   private:
    PyObject* next() {
        if (left_-- > 0) return *args_++;
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "wrong number of arguments");
        left_ = 0;
        return nullptr;
    }

    PyObject* const* args_;
    Py_ssize_t left_;
};

// Does an op now, or when the program that is being recorded is run.
template <typename T>
PyObject* perform(Arguments& args, const T& op, i64 rows) {
    if (!args.complete()) return nullptr;
    if (recording != nullptr) {
        if (rows != recording->most)
            return PyErr_Format(PyExc_ValueError, "a program of %lld rows has an op of %lld", recording->most, rows);
        recording->ops.push_back([op](i64 n) { apply(op, n); });
        Py_RETURN_NONE;
    }
    Py_BEGIN_ALLOW_THREADS
    apply(op, rows);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject* py_attend(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    attention::Attention a;
    a.q = args.address<void>();
    a.out = args.address<void>();
    a.k = args.address<float>();
    a.v = args.address<float>();
    a.table = args.address<int32_t>();
    a.cu_rows = args.address<int32_t>();
    a.lengths = args.address<int32_t>();
    a.bias = args.address<float>();
    a.sums = args.address<float>();
    const i64 sequences = args.integer();
    for (i64* number : {&a.heads, &a.shared, &a.dim, &a.page, &a.q_stride, &a.table_stride, &a.reach})
        *number = args.integer();
    a.scale = args.number();
    a.softcap = args.number();
    a.causal = args.flag();
    a.by_cell = args.flag();
    a.half = args.flag();
    a.threads = args.small();
    return perform(args, a, sequences);
}

PyObject* py_add_norm(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    rows::Norm op;
    op.x = args.address<void>();
    op.residual = args.address<void>();
    op.weight = args.address<void>();
    op.bias = args.address<void>();
    op.out = args.address<void>();
    op.sum = args.address<void>();
    const i64 rows = args.integer();
    op.width = args.integer();
    op.eps = args.number();
    op.half = args.flag();
    op.threads = args.small();
    return perform(args, op, rows);
}

PyObject* py_write_kv(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    rows::Scatter op;
    for (const void*& from : op.from) from = args.address<void>();
    for (float*& pages : op.pages) pages = args.address<float>();
    op.slots = args.address<i64>();
    const i64 rows = args.integer();
    for (i64* number : {&op.heads, &op.dim, &op.page, &op.strides[0], &op.strides[1]}) *number = args.integer();
    op.half = args.flag();
    return perform(args, op, rows);
}

PyObject* py_embed(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    rows::Embed op;
    op.ids = args.address<i64>();
    op.table = args.address<float>();
    op.onto = args.address<float>();
    op.out = args.address<float>();
    const i64 rows = args.integer();
    op.width = args.integer();
    return perform(args, op, rows);
}

PyObject* py_activate(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    rows::Activate op;
    op.x = args.address<float>();
    op.out = args.address<float>();
    const i64 rows = args.integer();
    op.width = args.integer();
    op.kind = args.small();
    op.gated = args.flag();
    op.threads = args.small();
    return perform(args, op, rows);
}

PyObject* py_scale(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    rows::Scale op;
    op.x = args.address<float>();
    op.out = args.address<float>();
    const i64 rows = args.integer();
    op.width = args.integer();
    op.factor = args.number();
    return perform(args, op, rows);
}

PyObject* py_argmax(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    rows::Largest op;
    op.x = args.address<float>();
    op.out = args.address<i64>();
    const i64 rows = args.integer();
    op.width = args.integer();
    op.stride = args.integer();
    op.threads = args.small();
    return perform(args, op, rows);
}

PyObject* py_gather_rows(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    rows::Layout op;
    op.rows = args.address<i64>();
    op.sequences = args.address<i64>();
    op.self_pages = args.address<int32_t>();
    op.cells = args.address<int32_t>();
    op.cross_pages = args.address<int32_t>();
    op.cross_lengths = args.address<int32_t>();
    for (i64** out : {&op.token_ids, &op.positions, &op.write_slots}) *out = args.address<i64>();
    for (int32_t** out : {&op.history, &op.lengths, &op.cross, &op.crossed}) *out = args.address<int32_t>();
    const i64 rows = args.integer();
    for (i64* number :
         {&op.stride, &op.sequences_width, &op.self_width, &op.cells_width, &op.cross_width, &op.page})
        *number = args.integer();
    return perform(args, op, rows);
}

PyObject* py_match_prompt_tokens(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    rows::Follow op;
    op.tokens = args.address<i64>();
    op.rows = args.address<i64>();
    op.sequences = args.address<i64>();
    op.out = args.address<i64>();
    op.stride = args.integer();
    op.width = args.integer();
    return perform(args, op, op.stride);
}

PyObject* py_has_avx512(PyObject*, PyObject* const*, Py_ssize_t) { return PyBool_FromLong(has_avx512()); }

// ---- products

template <i64 (*SIZE)(i64 outputs, i64 inputs)>
PyObject* py_size(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    const i64 outputs = args.integer(), inputs = args.integer();
    return args.complete() ? PyLong_FromLongLong(SIZE(outputs, inputs)) : nullptr;
}

// With the arguments that every weight has.
template <typename F>
PyObject* pack(Arguments& args, const F& packing) {
    const i64 outputs = args.integer(), inputs = args.integer();
    const int threads = args.small();
    if (!args.complete()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    packing(outputs, inputs, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject* py_float_pack(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    const float* weight = args.address<float>();
    float* packed = args.address<float>();
    return pack(args, [=](i64 outputs, i64 inputs, int threads) {
        float_linear::pack(weight, packed, outputs, inputs, threads);
    });
}

PyObject* py_int8_pack(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    const float* weight = args.address<float>();
    uint8_t* packed = args.address<uint8_t>();
    float* scales = args.address<float>();
    return pack(args, [=](i64 outputs, i64 inputs, int threads) {
        int8_linear::pack(weight, packed, scales, outputs, inputs, threads);
    });
}

// With the arguments that every product has behind its weight.
template <typename Linear>
PyObject* multiply(Arguments& args, Linear& op) {
    op.bias = args.address<float>();
    op.out = args.address<float>();
    const i64 rows = args.integer();
    for (i64* number : {&op.outputs, &op.inputs, &op.stride}) *number = args.integer();
    op.threads = args.small();
    return perform(args, op, rows);
}

PyObject* py_float_linear(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    float_linear::Linear op;
    op.x = args.address<float>();
    op.packed = args.address<float>();
    return multiply(args, op);
}

PyObject* py_int8_linear(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    int8_linear::Linear op;
    op.x = args.address<float>();
    op.packed = args.address<uint8_t>();
    op.scales = args.address<float>();
    return multiply(args, op);
}

// ---- programs

constexpr const char* PROGRAM = "tandem program";

PyObject* py_record(PyObject*, PyObject* const* values, Py_ssize_t count) {
    Arguments args(values, count);
    const i64 most = args.integer();
    if (!args.complete()) return nullptr;
    recording = std::make_unique<Program>();
    recording->most = most;
    Py_RETURN_NONE;
}

PyObject* py_recorded(PyObject*, PyObject* const*, Py_ssize_t) {
    if (recording == nullptr) return PyErr_Format(PyExc_RuntimeError, "nothing is being recorded");
    return PyCapsule_New(recording.release(), PROGRAM, [](PyObject* capsule) {
        delete static_cast<Program*>(PyCapsule_GetPointer(capsule, PROGRAM));
    });
}

PyObject* py_run(PyObject*, PyObject* const* values, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "run takes 2 arguments");
    const Program* program = static_cast<Program*>(PyCapsule_GetPointer(values[0], PROGRAM));
    const i64 rows = PyLong_AsLongLong(values[1]);
    if (PyErr_Occurred()) return nullptr;
    if (rows < 0 || rows > program->most)
        return PyErr_Format(PyExc_ValueError, "a program of %lld rows is run for %lld", program->most, rows);
    Py_BEGIN_ALLOW_THREADS
    for (const Op& op : program->ops) op(rows);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

template <typename F>
PyMethodDef method(const char* name, F* function) {
    // Through void*: the type of METH_FASTCALL is another than PyMethodDef's.
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)), METH_FASTCALL, nullptr};
}

PyMethodDef methods[] = {
    method("attend", py_attend),
    method("add_norm", py_add_norm),
    method("write_kv", py_write_kv),
    method("embed", py_embed),
    method("activate", py_activate),
    method("scale", py_scale),
    method("argmax", py_argmax),
    method("gather_rows", py_gather_rows),
    method("match_prompt_tokens", py_match_prompt_tokens),
    method("has_avx512", py_has_avx512),
    method("float_size", py_size<float_linear::packed_floats>),
    method("float_pack", py_float_pack),
    method("float_linear", py_float_linear),
    method("int8_size", py_size<int8_linear::packed_bytes>),
    method("int8_pack", py_int8_pack),
    method("int8_linear", py_int8_linear),
    method("record", py_record),
    method("recorded", py_recorded),
    method("run", py_run),
    {},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() { return PyModule_Create(&module); }
