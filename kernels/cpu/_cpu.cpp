// The Python side of the CPU's ops: what takes a dozen of PyTorch's operators, each with its own pass over memory and
// a few microseconds of dispatch, is one call here. Calls can be recorded: a program is a decode step's calls, and
// takes one call itself. `_cpu.pyi` has the signatures.

#include "_arguments.h"

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

using Op = std::function<void(i64 rows)>;

struct Program {
    i64 most = 0;  // rows
    std::vector<Op> ops;
};

// While a program is being recorded, this thread's calls are added to it instead of being run.
thread_local std::unique_ptr<Program> recording;

// Runs an op, or adds it to the program that is being recorded.
template <typename T>
PyObject* perform(const Arguments& args, const T& op, i64 rows) {
    args.finish();
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

int threads(Arguments& args) { return static_cast<int>(args.integer("threads")); }

PyObject* attend(Arguments& args) {
    attention::Attention a;
    i64 rows = ANY, sequences = ANY, pages = ANY, entries = ANY, distances = ANY, half = ANY, half_pages = ANY;
    a.heads = a.shared = a.dim = a.page = ANY;
    a.q = args.real("q", &half, {&rows, &a.heads, &a.dim}, &a.q_stride);
    a.k = args.real("k", &half_pages, {&pages, &a.shared, &a.page, &a.dim});
    a.v = args.real("v", &half_pages, {&pages, &a.shared, &a.page, &a.dim});
    a.table = args.tensor<int32_t>("table", {&sequences, &entries}, &a.table_stride);
    a.lengths = args.tensor<int32_t>("lengths", {&sequences});
    a.begins = args.optional<int32_t>("begins", {&sequences});
    i64 borders = sequences + 1;
    a.cu_rows = args.tensor<int32_t>("cu_rows", {&borders});
    a.scale = args.number("scale");
    a.bias = args.optional<float>("bias_table", {&a.heads, &distances});
    a.reach = a.bias == nullptr ? 0 : distances - 1;
    a.softcap = args.number("softcap");
    a.sums = args.optional<float>("sums", {&rows, &a.heads});
    a.out = args.real("out", &half, {&rows, &a.heads, &a.dim});
    a.causal = args.flag("causal");
    a.by_cell = args.flag("by_cell");
    a.threads = threads(args);
    a.half = half != 0;
    a.half_pages = half_pages != 0;
    if (a.shared == 0 || a.heads % a.shared != 0) throw Refused("heads of q must share those of k evenly");
    if (a.bias != nullptr && a.reach < 0) throw Refused("bias_table must have a distance");
    if (a.begins != nullptr && a.causal) throw Refused("begins are for attention that is not causal");
    return perform(args, a, sequences);
}

// Refuses borders of packed rows unless they run from 0 to the number of rows.
void check_borders(const char* name, const int32_t* borders, i64 count, i64 rows) {
    if (borders[0] != 0 || borders[count - 1] != rows || !std::is_sorted(borders, borders + count))
        throw Refused(std::string(name) + " must run from 0 to " + std::to_string(rows));
}

PyObject* attend_inputs(Arguments& args) {
    encoder::Attention a;
    i64 rows = ANY, borders = ANY, distances = ANY, summaries = ANY, half = ANY;
    a.heads = a.shared = a.dim = ANY;
    a.q = args.real("q", &half, {&rows, &a.heads, &a.dim}, &a.q_stride);
    i64 keys = ANY;
    a.own.k = args.real("k", &half, {&keys, &a.shared, &a.dim}, &a.own.k_stride);
    a.own.v = args.real("v", &half, {&keys, &a.shared, &a.dim}, &a.own.v_stride);
    a.own.borders = args.tensor<int32_t>("cu_seqlens", {&borders});
    if (borders < 1) throw Refused("cu_seqlens must have a border");
    a.borders = args.tensor<int32_t>("cu_rows", {&borders});
    a.own.bias = args.optional<float>("bias_table", {&a.heads, &distances});
    a.own.reach = a.own.bias == nullptr ? 0 : distances / 2;
    a.windowed = args.flag("windowed");
    a.more.k = args.optional_real("summary_k", &half, {&summaries, &a.shared, &a.dim}, &a.more.k_stride);
    a.more.v = args.optional_real("summary_v", &half, {&summaries, &a.shared, &a.dim}, &a.more.v_stride);
    a.more.borders = args.optional<int32_t>("summary_cu_seqlens", {&borders});
    i64 of_summaries = ANY;
    a.more.bias = args.optional<float>("summary_bias_table", {&a.heads, &of_summaries});
    a.more.reach = a.more.bias == nullptr ? 0 : of_summaries / 2;
    a.block = args.integer("block");
    a.scale = args.number("scale");
    a.softcap = args.number("softcap");
    a.integers = args.flag("integers");
    a.out = args.real("out", &half, {&rows, &a.heads, &a.dim});
    a.lanes = static_cast<int>(args.integer("lanes"));
    a.threads = threads(args);
    a.half = half != 0;
    if (a.shared == 0 || a.heads % a.shared != 0) throw Refused("heads of q must share those of k evenly");
    if (distances % 2 == 0 || of_summaries % 2 == 0) throw Refused("bias tables must have an odd number of distances");
    if (a.windowed && a.own.reach < 1) throw Refused("windowed needs a bias_table that hides keys");
    const bool some = summaries != ANY;  // with no rows they have no memory
    if ((a.more.borders != nullptr) != some || (a.more.bias != nullptr) != some ||
        (a.more.k == nullptr) != (a.more.v == nullptr) || (summaries > 0 && a.more.k == nullptr))
        throw Refused("summary_k, summary_v, summary_cu_seqlens and summary_bias_table must come together");
    if (some && a.block < 1) throw Refused("block must be positive");
    check_borders("cu_seqlens", a.own.borders, borders, keys);
    check_borders("cu_rows", a.borders, borders, rows);
    const bool by_place = a.own.bias != nullptr || some;  // a query's and its own key's are the same
    if (by_place && !std::equal(a.borders, a.borders + borders, a.own.borders))
        throw Refused("cu_rows must be cu_seqlens where biases are by distance");
    if (some) check_borders("summary_cu_seqlens", a.more.borders, borders, summaries);
    if ((a.lanes != 4 && a.lanes != 8 && a.lanes != 16) || a.lanes > encoder::most_lanes())
        throw Refused("lanes must be 4, 8 or 16, and at most most_lanes");
    return perform(args, a, borders - 1);
}

PyObject* add_norm(Arguments& args) {
    rows::Norm op;
    i64 rows = ANY, half = ANY;
    op.width = ANY;
    op.x = args.real("x", &half, {&rows, &op.width});
    op.residual = args.optional_real("residual", &half, {&rows, &op.width});
    op.weight = args.real("weight", &half, {&op.width});
    op.bias = args.optional_real("bias", &half, {&op.width});
    op.eps = args.number("eps");
    op.out = args.real("out", &half, {&rows, &op.width});
    op.sum = args.optional_real("sum", &half, {&rows, &op.width});
    op.threads = threads(args);
    op.half = half != 0;
    if ((op.residual == nullptr) != (op.sum == nullptr)) throw Refused("residual and sum must come together");
    return perform(args, op, rows);
}

PyObject* write_kv(Arguments& args) {
    rows::WriteKV op;
    i64 rows = ANY, pages = ANY, half = ANY, half_pages = ANY;
    op.heads = op.dim = op.page = ANY;
    op.from[0] = args.real("k", &half, {&rows, &op.heads, &op.dim}, &op.strides[0]);
    op.from[1] = args.real("v", &half, {&rows, &op.heads, &op.dim}, &op.strides[1]);
    op.pages[0] = args.real("k_pages", &half_pages, {&pages, &op.heads, &op.page, &op.dim});
    op.pages[1] = args.real("v_pages", &half_pages, {&pages, &op.heads, &op.page, &op.dim});
    op.slots = args.tensor<const i64>("slots", {&rows});
    op.half = half != 0;
    op.half_pages = half_pages != 0;
    return perform(args, op, rows);
}

PyObject* embed(Arguments& args) {
    rows::Embed op;
    i64 rows = ANY, vocabulary = ANY;
    op.width = ANY;
    op.ids = args.tensor<i64>("ids", {&rows});
    op.table = args.tensor<float>("table", {&vocabulary, &op.width});
    op.onto = args.optional<float>("onto", {&rows, &op.width});
    op.out = args.tensor<float>("out", {&rows, &op.width});
    return perform(args, op, rows);
}

int activation(Arguments& args) {
    const i64 kind = args.integer("kind");
    if (kind < rows::RELU || kind > rows::SILU) throw Refused("kind must be an activation's number");
    return static_cast<int>(kind);
}

PyObject* activate(Arguments& args) {
    rows::Activate op;
    i64 rows = ANY;
    op.width = ANY;
    op.out = args.tensor<float>("out", {&rows, &op.width});
    op.gated = args.flag("gated");
    i64 width = op.gated ? 2 * op.width : op.width;
    op.x = args.tensor<float>("x", {&rows, &width});
    op.kind = activation(args);
    op.threads = threads(args);
    return perform(args, op, rows);
}

PyObject* scale(Arguments& args) {
    rows::Scale op;
    i64 rows = ANY;
    op.width = ANY;
    op.x = args.tensor<float>("x", {&rows, &op.width});
    op.factor = args.number("factor");
    op.out = args.tensor<float>("out", {&rows, &op.width});
    return perform(args, op, rows);
}

PyObject* keep_rows(Arguments& args) {
    rows::KeepRows op;
    i64 rows = ANY;
    op.width = ANY;
    op.x = args.tensor<float>("x", {&rows, &op.width});
    op.keep = args.tensor<int32_t>("keep", {&rows});
    op.out = args.tensor<float>("out", {&rows, &op.width});
    return perform(args, op, rows);
}

PyObject* argmax(Arguments& args) {
    rows::Argmax op;
    i64 rows = ANY;
    op.width = ANY;
    op.x = args.tensor<float>("x", {&rows, &op.width}, &op.stride);
    op.out = args.tensor<i64>("out", {&rows});
    op.threads = threads(args);
    return perform(args, op, rows);
}

PyObject* logsumexp(Arguments& args) {
    vocabulary::LogSumExp op;
    i64 rows = ANY, one = 1;
    op.width = ANY;
    op.x = args.tensor<float>("x", {&rows, &op.width}, &op.stride);
    op.stops = args.optional<i64>("stops", {&rows});
    op.out = args.tensor<float>("out", {&rows, &one});
    op.threads = threads(args);
    return perform(args, op, rows);
}

PyObject* ban_tokens(Arguments& args) {
    vocabulary::BanTokens op;
    i64 rows = ANY, width = ANY, lists = ANY;
    op.count = ANY;
    op.scores = args.tensor<float>("scores", {&rows, &width}, &op.stride);
    op.ids = args.tensor<i64>("ids", {&lists, &op.count});
    op.rows = args.tensor<i64>("rows", {&rows});
    return perform(args, op, rows);
}

PyObject* apply_timestamp_rules(Arguments& args) {
    vocabulary::TimestampRules op;
    i64 rows = ANY, slots = ANY, one = 1;
    op.width = op.longest = ANY;
    op.scores = args.tensor<float>("scores", {&rows, &op.width}, &op.stride);
    op.history = args.tensor<i64>("history", {&slots, &op.longest});
    op.slots = args.tensor<i64>("slots", {&rows});
    op.begins = args.tensor<i64>("begins", {&rows, &one});
    op.counts = args.tensor<i64>("counts", {&rows, &one});
    op.last_initial = args.tensor<i64>("last_initial", {&rows, &one});
    op.first = args.integer("first");
    op.text_end = args.integer("text_end");
    op.without = args.integer("without");
    op.threads = threads(args);
    if (op.text_end < 0 || op.without < op.text_end || op.first <= op.without || op.width < op.first)
        throw Refused("text_end, without and first must be tokens in this order");
    return perform(args, op, rows);
}

PyObject* gather_rows(Arguments& args) {
    rows::GatherRows op;
    i64 four = 4, slots = ANY, entries = ANY;
    op.stride = op.sequences_width = op.self_width = op.cells_width = op.cross_width = ANY;
    i64* rows = &op.stride;
    op.rows = args.tensor<i64>("rows", {&four, rows});
    op.sequences = args.tensor<i64>("sequences", {&slots, &op.sequences_width});
    op.self_pages = args.tensor<int32_t>("self_pages", {&slots, &op.self_width});
    op.cells = args.optional<int32_t>("beam_cells", {&slots, &op.cells_width});
    op.cross_pages = args.tensor<int32_t>("cross_pages", {&entries, &op.cross_width});
    op.cross_lengths = args.tensor<int32_t>("cross_lengths", {&entries});
    i64 two = 2;
    op.cross_spans = args.optional<int32_t>("cross_spans", {&slots, &two});
    op.page = args.integer("page_size");
    op.token_ids = args.tensor<i64>("token_ids", {rows});
    op.positions = args.tensor<i64>("positions", {rows});
    op.write_slots = args.tensor<i64>("write_slots", {rows});
    op.history = args.tensor<int32_t>("history", {rows, op.cells == nullptr ? &op.self_width : &op.cells_width});
    op.lengths = args.tensor<int32_t>("lengths", {rows});
    op.cross = args.tensor<int32_t>("row_cross_pages", {rows, &op.cross_width});
    op.crossed = args.tensor<int32_t>("row_cross_lengths", {rows});
    op.begins = args.optional<int32_t>("row_cross_begins", {rows});
    if (op.page < 1) throw Refused("page_size must be positive");
    if (op.sequences_width < rows::SOURCE) throw Refused("sequences must have its columns");
    if ((op.cross_spans == nullptr) != (op.begins == nullptr))
        throw Refused("cross_spans and row_cross_begins must come together");
    return perform(args, op, op.stride);
}

PyObject* match_prompt_tokens(Arguments& args) {
    rows::MatchPromptTokens op;
    i64 four = 4, three = 3, samples = ANY, slots = ANY;
    op.stride = op.width = ANY;
    op.tokens = args.tensor<i64>("tokens", {&samples});
    op.rows = args.tensor<i64>("rows", {&four, &op.stride});
    op.sequences = args.tensor<i64>("sequences", {&slots, &op.width});
    op.out = args.tensor<i64>("out", {&op.stride, &three});
    if (op.width < rows::SOURCE) throw Refused("sequences must have its columns");
    return perform(args, op, op.stride);
}

PyObject* add_depthwise(Arguments& args) {
    images::Depthwise op;
    i64 items = ANY, nine = 9, half = ANY;
    op.height = op.width = op.channels = op.rows = ANY;
    op.x = args.real("x", &half, {&items, &op.height, &op.width, &op.channels});
    op.first = args.integer("first");
    op.weight = args.real("weight", &half, {&nine, &op.channels});
    op.bias = args.real("bias", &half, {&op.channels});
    op.out = args.real("out", &half, {&items, &op.rows, &op.width, &op.channels}, &op.out_stride);
    op.threads = threads(args);
    op.half = half != 0;
    if (op.first < 0 || op.first > op.height - op.rows) throw Refused("first and the rows of out must be rows of x");
    const i64 size = op.half ? 2 : 4, row = op.width * op.channels;
    const char *x = static_cast<const char*>(op.x), *out = static_cast<const char*>(op.out);
    const char* x_end = x + items * op.height * row * size;
    const char* out_end = out + ((items - 1) * op.out_stride + op.rows * row) * size;
    if (out < x_end && x < out_end) throw Refused("out must not share memory with x, whose rows are read again");
    return perform(args, op, items);
}

PyObject* alignment_scores(Arguments& args) {
    alignment::Scores op;
    i64 tokens = ANY;
    op.heads = op.keys = op.columns = ANY;
    op.x = args.tensor<float>("x", {&op.heads, &tokens, &op.keys});
    op.scale = args.number("scale");
    op.softcap = args.number("softcap");
    op.width = args.integer("width");
    op.out = args.tensor<float>("out", {&tokens, &op.columns});
    op.threads = threads(args);
    if (op.width < 1 || op.width % 2 == 0) throw Refused("width must be odd");
    if (op.columns < 1 || op.columns > op.keys) throw Refused("out must have one column at least, and one a key at most");
    return perform(args, op, tokens);
}

PyObject* time_warp(Arguments& args) {
    alignment::TimeWarp op;
    i64 rows = ANY;
    op.columns = ANY;
    op.x = args.tensor<float>("x", {&rows, &op.columns});
    op.out = args.tensor<i64>("out", {&rows});
    return perform(args, op, rows);
}

PyObject* has_avx512(Arguments& args) {
    args.finish();
    return PyBool_FromLong(::has_avx512());
}

PyObject* most_lanes(Arguments& args) {
    args.finish();
    return PyLong_FromLong(encoder::most_lanes());
}

// Has memory that is not touched yet come in huge pages, where the system leaves that to programs: each page that is
// not there yet costs a fault, and each entry that the processor does not know a walk through the tables.
PyObject* prefer_huge_pages(Arguments& args) {
    constexpr i64 HUGE = 1 << 21;
    const i64 address = args.integer("address"), bytes = args.integer("bytes");
    args.finish();
#ifdef __linux__
    const i64 first = (address + HUGE - 1) / HUGE * HUGE, last = (address + bytes) / HUGE * HUGE;
    if (first < last) madvise(reinterpret_cast<void*>(first), static_cast<size_t>(last - first), MADV_HUGEPAGE);
#else
    (void)address, (void)bytes, (void)HUGE;
#endif
    Py_RETURN_NONE;
}

// -- matrix products

template <i64 (*SIZE)(i64 outputs, i64 inputs)>
PyObject* size(Arguments& args) {
    const i64 outputs = args.integer("outputs"), inputs = args.integer("inputs");
    args.finish();
    return PyLong_FromLongLong(SIZE(outputs, inputs));
}

PyObject* float_pack(Arguments& args) {
    i64 outputs = ANY, inputs = ANY;
    const float* weight = args.tensor<float>("weight", {&outputs, &inputs});
    i64 size = float_linear::packed_floats(outputs, inputs);
    float* packed = args.tensor<float>("packed", {&size});
    const int count = threads(args);
    args.finish();
    Py_BEGIN_ALLOW_THREADS
    float_linear::pack(weight, packed, outputs, inputs, count);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject* int8_pack(Arguments& args) {
    i64 outputs = ANY, inputs = ANY;
    const float* weight = args.tensor<float>("weight", {&outputs, &inputs});
    i64 size = int8_linear::packed_bytes(outputs, inputs);
    uint8_t* packed = args.tensor<uint8_t>("packed", {&size});
    float* scales = args.tensor<float>("scales", {&outputs});
    const int count = threads(args);
    args.finish();
    Py_BEGIN_ALLOW_THREADS
    int8_linear::pack(weight, packed, scales, outputs, inputs, count);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

// The arguments that both kinds of products have. Returns the rows.
template <typename Linear>
i64 read_product(Arguments& args, Linear& op) {
    i64 rows = ANY;
    op.outputs = op.inputs = ANY;
    op.x = args.tensor<float>("x", {&rows, &op.inputs}, &op.stride);
    op.out = args.tensor<float>("out", {&rows, &op.outputs});
    op.bias = args.optional<float>("bias", {&op.outputs});
    op.threads = threads(args);
    return rows;
}

PyObject* float_linear(Arguments& args) {
    float_linear::Linear op;
    const i64 rows = read_product(args, op);
    i64 size = float_linear::packed_floats(op.outputs, op.inputs);
    op.packed = args.tensor<float>("packed", {&size});
    return perform(args, op, rows);
}

PyObject* int8_linear(Arguments& args) {
    int8_linear::Linear op;
    const i64 rows = read_product(args, op);
    i64 size = int8_linear::packed_bytes(op.outputs, op.inputs);
    op.packed = args.tensor<uint8_t>("packed", {&size});
    op.scales = args.tensor<float>("scales", {&op.outputs});
    return perform(args, op, rows);
}

void read_weight(Arguments& args, int8_linear::FeedForward::Product& into, const char* packed, const char* bias,
                 i64 outputs, i64 inputs) {
    i64 size = int8_linear::packed_bytes(outputs, inputs);
    into.packed = args.tensor<uint8_t>(packed, {&size});
    into.bias = args.optional<float>(bias, {&outputs});
}

PyObject* int8_feed_forward(Arguments& args) {
    int8_linear::FeedForward op;
    i64 rows = ANY;
    op.inputs = op.inner = op.outputs = ANY;
    op.x = args.tensor<float>("x", {&rows, &op.inputs}, &op.stride);
    op.norm = args.optional<float>("norm", {&op.inputs});
    op.norm_bias = args.optional<float>("norm_bias", {&op.inputs});
    op.eps = args.number("eps");
    op.out = args.tensor<float>("out", {&rows, &op.outputs});
    op.gated = args.flag("gated");
    op.add = args.flag("add");
    op.kind = activation(args);
    op.threads = threads(args);
    i64 wide = ANY;
    op.up.scales = args.tensor<float>("up_scales", {&wide});
    op.inner = op.gated ? wide / 2 : wide;
    read_weight(args, op.up, "up_packed", "up_bias", wide, op.inputs);
    op.down.scales = args.tensor<float>("down_scales", {&op.outputs});
    read_weight(args, op.down, "down_packed", "down_bias", op.outputs, op.inner);
    if ((op.norm == nullptr) != (op.norm_bias == nullptr)) throw Refused("norm and norm_bias must come together");
    if (op.gated && wide % 2 != 0) throw Refused("up_scales must be of two halves");
    return perform(args, op, rows);
}

// -- programs

constexpr const char* PROGRAM = "tandem program";

PyObject* record(Arguments& args) {
    const i64 most = args.integer("most");
    args.finish();
    recording = std::make_unique<Program>();
    recording->most = most;
    Py_RETURN_NONE;
}

PyObject* recorded(Arguments& args) {
    args.finish();
    if (recording == nullptr) return PyErr_Format(PyExc_RuntimeError, "nothing is being recorded");
    return PyCapsule_New(recording.release(), PROGRAM, [](PyObject* capsule) {
        delete static_cast<Program*>(PyCapsule_GetPointer(capsule, PROGRAM));
    });
}

PyObject* run(Arguments& args) {
    const auto* program = static_cast<Program*>(PyCapsule_GetPointer(args.object("program"), PROGRAM));
    if (program == nullptr) return nullptr;
    const i64 rows = args.integer("rows");
    args.finish();
    if (rows < 0 || rows > program->most)
        return PyErr_Format(PyExc_ValueError, "a program of %lld rows is run for %lld", program->most, rows);
    Py_BEGIN_ALLOW_THREADS
    for (const Op& op : program->ops) op(rows);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

template <PyObject* (*FUNCTION)(Arguments&)>
PyObject* call(PyObject*, PyObject* const* values, Py_ssize_t positional, PyObject* names) {
    try {
        Arguments args(values, positional, names);
        return FUNCTION(args);
    } catch (const Refused& error) {
        PyErr_SetString(PyExc_TypeError, error.what());
        return nullptr;
    }
}

template <PyObject* (*FUNCTION)(Arguments&)>
PyMethodDef method(const char* name) {
    // Through void*: a function with keywords has another type than PyMethodDef's.
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(call<FUNCTION>)), METH_FASTCALL | METH_KEYWORDS,
            nullptr};
}

PyMethodDef methods[] = {
    method<attend>("attend"),
    method<attend_inputs>("attend_inputs"),
    method<add_norm>("add_norm"),
    method<write_kv>("write_kv"),
    method<embed>("embed"),
    method<activate>("activate"),
    method<scale>("scale"),
    method<keep_rows>("keep_rows"),
    method<argmax>("argmax"),
    method<logsumexp>("logsumexp"),
    method<ban_tokens>("ban_tokens"),
    method<apply_timestamp_rules>("apply_timestamp_rules"),
    method<gather_rows>("gather_rows"),
    method<match_prompt_tokens>("match_prompt_tokens"),
    method<add_depthwise>("add_depthwise"),
    method<alignment_scores>("alignment_scores"),
    method<time_warp>("time_warp"),
    method<has_avx512>("has_avx512"),
    method<most_lanes>("most_lanes"),
    method<prefer_huge_pages>("prefer_huge_pages"),
    method<size<float_linear::packed_floats>>("float_size"),
    method<float_pack>("float_pack"),
    method<float_linear>("float_linear"),
    method<size<int8_linear::packed_bytes>>("int8_size"),
    method<int8_pack>("int8_pack"),
    method<int8_linear>("int8_linear"),
    method<int8_feed_forward>("int8_feed_forward"),
    method<record>("record"),
    method<recorded>("recorded"),
    method<run>("run"),
    {},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() { return Arguments::prepare() ? PyModule_Create(&module) : nullptr; }
