// The CPU's hot ops of decoding, fused: what takes a dozen of PyTorch's operators, each with its own pass over
// memory and a few microseconds of dispatch, is one call here. `cpu_ops.py` says what each computes, checks
// the tensors and passes their addresses; `reference.py` is the definition.
//
// Threads are OpenMP's, of the very library that PyTorch has loaded: one pool of threads for both.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "_cpu_int8.h"

namespace {

using i64 = int64_t;

// bfloat16 is the upper half of a float32.
inline float from_bf16(uint16_t x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline uint16_t to_bf16(float f) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

inline float load(const float* p) { return *p; }
inline float load(const uint16_t* p) { return from_bf16(*p); }
inline void store(float* p, float x) { *p = x; }
inline void store(uint16_t* p, float x) { *p = to_bf16(x); }

// e^x for x <= 0, to 2 units in the last place: 2^n e^r with |r| <= ln(2) / 2 and Taylor's series to the 7th order.
inline float exp_negative(float x) {
    x = std::max(x, -87.0f);  // e^-87 is nothing beside the e^0 that every softmax has
    float n = std::nearbyint(x * 1.44269504088896341f);
    // ln(2) in two parts, the first of few bits, so that the difference is exact.
    float r = (x - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return p * scale;
}

// ---- attention

struct Attention {
    const void* q;       // [N, H, D], rows q_stride apart, of T
    void* out;           // [N, H, D] of T
    const float* k;      // [pages, G, P, D]: H / G heads of q share one
    const float* v;
    const int32_t* table;    // [S, table_stride]: pages, or places page P + offset where by_cell
    const int32_t* cu_rows;  // [S + 1]
    const int32_t* lengths;  // [S]: keys
    const float* bias;       // [H, reach + 1] by distance, or null
    float* sums;             // [N, H]: the logarithm of the softmax's denominator, or null
    i64 sequences, heads, shared, dim, page, q_stride, table_stride, reach;
    float scale, softcap;    // scores become softcap tanh(score / softcap), 0: they do not
    bool causal, by_cell, half;
};

// Where a sequence's key t begins, for a head of K and V.
inline i64 place(const Attention& a, const int32_t* table, i64 head, i64 t) {
    i64 cell = a.by_cell ? table[t] : table[t / a.page] * a.page + t % a.page;
    return ((cell / a.page * a.shared + head) * a.page + cell % a.page) * a.dim;
}

// Neighbours in memory from key t on: those of a page.
inline i64 run_length(const Attention& a, i64 t, i64 end) {
    return a.by_cell ? 1 : std::min(end, (t / a.page + 1) * a.page) - t;
}

// All rows of one sequence for one head. K and V are read once, a page at a time, by all rows.
// scratch: rows x length scores, rows x D queries, rows x D sums.
EVERY_LEVEL void attend(const Attention& a, i64 sequence, i64 head, float* scratch) {
    const i64 first = a.cu_rows[sequence], rows = a.cu_rows[sequence + 1] - first;
    const i64 length = a.lengths[sequence], dim = a.dim, shared = head / (a.heads / a.shared);
    const int32_t* table = a.table + sequence * a.table_stride;
    float* scores = scratch;
    float* queries = scores + rows * length;
    float* sums = queries + rows * dim;
    for (i64 r = 0; r < rows; ++r) {
        const i64 at = (first + r) * a.q_stride + head * dim;
        for (i64 d = 0; d < dim; ++d) {
            float x = a.half ? load(static_cast<const uint16_t*>(a.q) + at + d)
                             : load(static_cast<const float*>(a.q) + at + d);
            queries[r * dim + d] = x * a.scale;
        }
    }
    for (i64 t = 0; t < length;) {
        const float* k = a.k + place(a, table, shared, t);
        const i64 run = run_length(a, t, length);
        for (i64 r = 0; r < rows; ++r) {
            const float* q = queries + r * dim;
            for (i64 i = 0; i < run; ++i) {
                const float* key = k + i * dim;
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (i64 d = 0; d < dim; ++d) sum += q[d] * key[d];
                scores[r * length + t + i] = sum;
            }
        }
        t += run;
    }
    std::fill(sums, sums + rows * dim, 0.0f);
    for (i64 r = 0; r < rows; ++r) {
        const i64 visible = a.causal ? std::max<i64>(0, length - (rows - 1 - r)) : length;
        float* s = scores + r * length;
        if (a.softcap > 0)
            for (i64 t = 0; t < visible; ++t) s[t] = a.softcap * std::tanh(s[t] / a.softcap);
        if (a.bias != nullptr) {
            const float* bias = a.bias + head * (a.reach + 1);
            for (i64 t = 0; t < visible; ++t) s[t] += bias[std::min(visible - 1 - t, a.reach)];
        }
        float most = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : most)
        for (i64 t = 0; t < visible; ++t) most = std::max(most, s[t]);
        float total = 0;
        if (most == -std::numeric_limits<float>::infinity()) {  // all it could see is masked by the bias
            std::fill(s, s + length, 0.0f);
            if (a.sums != nullptr) a.sums[(first + r) * a.heads + head] = most;
            continue;
        }
#pragma omp simd reduction(+ : total)
        for (i64 t = 0; t < visible; ++t) {
            s[t] = s[t] == -std::numeric_limits<float>::infinity() ? 0.0f : exp_negative(s[t] - most);
            total += s[t];
        }
        if (a.sums != nullptr) a.sums[(first + r) * a.heads + head] = most + std::log(total);
        const float inverse = 1.0f / total;
        for (i64 t = 0; t < visible; ++t) s[t] *= inverse;
        std::fill(s + visible, s + length, 0.0f);
    }
    for (i64 t = 0; t < length;) {
        const float* v = a.v + place(a, table, shared, t);
        const i64 run = run_length(a, t, length);
        for (i64 r = 0; r < rows; ++r) {
            float* sum = sums + r * dim;
            const float* weights = scores + r * length + t;
            const i64 seen = a.causal ? std::min(run, length - (rows - 1 - r) - t) : run;
            for (i64 i = 0; i < seen; ++i) {
                const float* value = v + i * dim;
                const float weight = weights[i];
#pragma omp simd
                for (i64 d = 0; d < dim; ++d) sum[d] += weight * value[d];
            }
        }
        t += run;
    }
    for (i64 r = 0; r < rows; ++r) {
        const i64 at = ((first + r) * a.heads + head) * dim;
        for (i64 d = 0; d < dim; ++d) {
            if (a.half) store(static_cast<uint16_t*>(a.out) + at + d, sums[r * dim + d]);
            else store(static_cast<float*>(a.out) + at + d, sums[r * dim + d]);
        }
    }
}

// Below this many multiplications a second thread costs more than it gives.
constexpr i64 WORTH_A_THREAD = 1 << 16;

void attend_all(const Attention& a, int threads) {
    i64 cells = 0, most = 0;
    for (i64 s = 0; s < a.sequences; ++s) {
        const i64 rows = a.cu_rows[s + 1] - a.cu_rows[s];
        cells += rows * a.lengths[s];
        most = std::max(most, rows * (a.lengths[s] + 2 * a.dim));
    }
    if (2 * cells * a.heads * a.dim < WORTH_A_THREAD) threads = 1;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scratch(most);
#pragma omp for collapse(2) schedule(dynamic, 4)
        for (i64 s = 0; s < a.sequences; ++s)
            for (i64 h = 0; h < a.heads; ++h) attend(a, s, h, scratch.data());
    }
}

// ---- norms

// x + residual, in T, and its RMS norm: of one row.
template <typename T>
inline void add_rms_norm_row(const T* x, const T* residual, const T* weight, T* out, T* sum, i64 d, float eps) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (i64 i = 0; i < d; ++i) {
        float total = load(x + i);
        if (residual != nullptr) {
            store(sum + i, total + load(residual + i));
            total = load(sum + i);
        }
        squares += total * total;
    }
    const T* from = residual == nullptr ? x : sum;
    const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(d) + eps);
#pragma omp simd
    for (i64 i = 0; i < d; ++i) {
        T normed;  // rounded before it is weighted, as T5LayerNorm does
        store(&normed, load(from + i) * inverse);
        store(out + i, load(&normed) * load(weight + i));
    }
}

EVERY_LEVEL void norm_row(const float* x, const float* residual, const float* weight, float* out, float* sum,
                          i64 d, float eps) {
    add_rms_norm_row(x, residual, weight, out, sum, d, eps);
}

EVERY_LEVEL void norm_row(const uint16_t* x, const uint16_t* residual, const uint16_t* weight, uint16_t* out,
                          uint16_t* sum, i64 d, float eps) {
    add_rms_norm_row(x, residual, weight, out, sum, d, eps);
}

template <typename T>
void norm_all(void* const* p, i64 n, i64 d, float eps, int threads) {
    const T *x = static_cast<T*>(p[0]), *residual = static_cast<T*>(p[1]), *weight = static_cast<T*>(p[2]);
    T *out = static_cast<T*>(p[3]), *sum = static_cast<T*>(p[4]);
#pragma omp parallel for num_threads(n * d < WORTH_A_THREAD ? 1 : threads)
    for (i64 i = 0; i < n * d; i += d)
        norm_row(x + i, residual ? residual + i : nullptr, weight, out + i, sum ? sum + i : nullptr, d, eps);
}

// ---- K and V into the pages

template <typename T>
void scatter(const T* from, float* pages, const i64* slots, i64 n, i64 heads, i64 dim, i64 page, i64 stride) {
    for (i64 i = 0; i < n; ++i) {
        float* to = pages + (slots[i] / page * heads * page + slots[i] % page) * dim;
        const T* row = from + i * stride;
        for (i64 h = 0; h < heads; ++h)
            for (i64 d = 0; d < dim; ++d) to[h * page * dim + d] = load(row + h * dim + d);
    }
}

// ---- Python's side: integers in, nothing out

template <typename T>
T* address(PyObject* x) { return reinterpret_cast<T*>(PyLong_AsSize_t(x)); }

PyObject* py_attend(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 23) return PyErr_Format(PyExc_TypeError, "attend takes 23 arguments");
    Attention a;
    a.q = address<void>(args[0]);
    a.out = address<void>(args[1]);
    a.k = address<float>(args[2]);
    a.v = address<float>(args[3]);
    a.table = address<int32_t>(args[4]);
    a.cu_rows = address<int32_t>(args[5]);
    a.lengths = address<int32_t>(args[6]);
    a.bias = address<float>(args[7]);
    a.sums = address<float>(args[8]);
    i64* const numbers[] = {&a.sequences, &a.heads, &a.shared, &a.dim, &a.page, &a.q_stride, &a.table_stride,
                            &a.reach};
    for (int i = 0; i < 8; ++i) *numbers[i] = PyLong_AsLongLong(args[9 + i]);
    a.scale = static_cast<float>(PyFloat_AsDouble(args[17]));
    a.softcap = static_cast<float>(PyFloat_AsDouble(args[18]));
    a.causal = PyObject_IsTrue(args[19]);
    a.by_cell = PyObject_IsTrue(args[20]);
    a.half = PyObject_IsTrue(args[21]);
    const int threads = static_cast<int>(PyLong_AsLong(args[22]));
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    attend_all(a, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject* py_add_rms_norm(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 10) return PyErr_Format(PyExc_TypeError, "add_rms_norm takes 10 arguments");
    void* p[5];
    for (int i = 0; i < 5; ++i) p[i] = address<void>(args[i]);
    const i64 n = PyLong_AsLongLong(args[5]), d = PyLong_AsLongLong(args[6]);
    const float eps = static_cast<float>(PyFloat_AsDouble(args[7]));
    const bool half = PyObject_IsTrue(args[8]);
    const int threads = static_cast<int>(PyLong_AsLong(args[9]));
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    if (half) norm_all<uint16_t>(p, n, d, eps, threads);
    else norm_all<float>(p, n, d, eps, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject* py_write_kv(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 12) return PyErr_Format(PyExc_TypeError, "write_kv takes 12 arguments");
    void* from[2] = {address<void>(args[0]), address<void>(args[1])};
    float* pages[2] = {address<float>(args[2]), address<float>(args[3])};
    const i64* slots = address<i64>(args[4]);
    i64 n[6];
    for (int i = 0; i < 6; ++i) n[i] = PyLong_AsLongLong(args[5 + i]);  // rows, heads, dim, page, strides
    const bool half = PyObject_IsTrue(args[11]);
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    for (int i = 0; i < 2; ++i) {
        if (half) scatter(static_cast<uint16_t*>(from[i]), pages[i], slots, n[0], n[1], n[2], n[3], n[4 + i]);
        else scatter(static_cast<float*>(from[i]), pages[i], slots, n[0], n[1], n[2], n[3], n[4 + i]);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject* py_int8_bytes(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "int8_bytes takes 2 arguments");
    const i64 outputs = PyLong_AsLongLong(args[0]), inputs = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred()) return nullptr;
    return PyLong_FromLongLong(int8_linear::packed_bytes(outputs, inputs));
}

PyObject* py_int8_pack(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 6) return PyErr_Format(PyExc_TypeError, "int8_pack takes 6 arguments");
    const float* weight = address<float>(args[0]);
    uint8_t* packed = address<uint8_t>(args[1]);
    float* scales = address<float>(args[2]);
    const i64 outputs = PyLong_AsLongLong(args[3]), inputs = PyLong_AsLongLong(args[4]);
    const int threads = static_cast<int>(PyLong_AsLong(args[5]));
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    int8_linear::pack(weight, packed, scales, outputs, inputs, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject* py_int8_linear(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 10) return PyErr_Format(PyExc_TypeError, "int8_linear takes 10 arguments");
    const float* x = address<float>(args[0]);
    const uint8_t* packed = address<uint8_t>(args[1]);
    const float *scales = address<float>(args[2]), *bias = address<float>(args[3]);
    float* out = address<float>(args[4]);
    i64 n[4];
    for (int i = 0; i < 4; ++i) n[i] = PyLong_AsLongLong(args[5 + i]);  // rows, outputs, inputs, stride
    const int threads = static_cast<int>(PyLong_AsLong(args[9]));
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    int8_linear::apply(x, packed, scales, bias, out, n[0], n[1], n[2], n[3], threads);
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
    method("add_rms_norm", py_add_rms_norm),
    method("write_kv", py_write_kv),
    method("int8_bytes", py_int8_bytes),
    method("int8_pack", py_int8_pack),
    method("int8_linear", py_int8_linear),
    {},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() { return PyModule_Create(&module); }
