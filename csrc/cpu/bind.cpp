// The Python module pixelfast._cpu. Everything is checked here; pixelfast/runtime.py only forwards.
#include <pybind11/stl.h>

#include <chrono>
#include <optional>
#include <string>

#include "core/arrays.h"
#include "core/distributions.h"
#include "core/philox.h"
#include "cpu/dispatch.h"
#include "cpu/measure.h"
#include "cpu/runtime.h"
#include "cpu/threads.h"

namespace pixelfast {
namespace {

// Seconds, summed over threads.
py::dict as_dict(const Profile& profile) {
  const auto seconds = [&](uint64_t ticks) { return static_cast<double>(ticks) * profile.seconds_per_tick; };
  py::list ops;
  for (const OpProfile& p : profile.ops) {
    py::dict d;
    d["calls"] = p.calls;
    d["rows"] = p.rows;
    d["multiply_adds"] = p.multiply_adds;
    d["weights_nbytes"] = p.weights_nbytes;
    d["gather"] = seconds(p.gather);
    d["product"] = seconds(p.product);
    d["total"] = seconds(p.total);
    ops.append(d);
  }
  py::dict result;
  result["ops"] = ops;
  result["waiting"] = seconds(profile.waiting);
  result["total"] = seconds(profile.total);
  result["seconds"] = profile.seconds;
  result["threads"] = profile.threads;
  return result;
}

class CpuProgram {
 public:
  CpuProgram(const py::object& words, const py::object& data, const std::optional<std::string>& isa,
             const std::string& precision)
      : kernels_(find_kernels(isa.value_or(""))),
        engine_(elements<int32_t>(words, "[program] words", {length(words, "[program] words")}),
                length(words, "[program] words"),
                elements<float>(data, "[program] data", {length(data, "[program] data")}),
                length(data, "[program] data"), kernels_, bf16_of(precision, kernels_)) {}

  py::object run(const py::object& images, const py::object& log_prob, const py::object& given,
                 const py::object& conditions, uint64_t seed, uint64_t first_index, double temperature,
                 int64_t top_k, double top_p, int threads, int chunk, int team, const py::object& progress,
                 bool profiled) {
    CpuRequest r{};
    fill_request(r, engine_.program(), images, log_prob, given, conditions);
    r.seed = seed;
    r.first_index = first_index;
    r.sampling = sampling_of(temperature, top_k, top_p);
    if (threads < 0 || threads > kMaxThreads) {
      fail("[sample] threads must be in [0, " + std::to_string(kMaxThreads) + "], got " +
           std::to_string(threads));
    }
    set_sharing(r, chunk, team);
    r.threads = threads;
    Profile found;
    if (profiled) r.profile = &found;
    int64_t multiply_adds = 0;
    {
      const py::gil_scoped_release no_gil;
      multiply_adds = engine_.run(r, ticker(progress));
    }
    last_multiply_adds = multiply_adds;
    if (!progress.is_none()) progress(1.0);
    if (profiled) return as_dict(found);
    return py::none();
  }

  const char* isa() const { return engine_.kernels().name; }
  int64_t arena_nbytes() const { return engine_.program().arena_floats * 4; }
  int64_t weights_nbytes() const { return engine_.weights_nbytes(); }
  int64_t working_nbytes() const { return engine_.working_nbytes(); }
  int64_t images_at_once(int64_t n, int threads, int chunk, int team) const {
    if (n < 1 || threads < 0 || threads > kMaxThreads || chunk < 0 || team < 0)
      fail("[images_at_once] n must be positive, and threads, chunk and team not negative");
    CpuRequest request;
    request.n = n, request.threads = threads, request.chunk = chunk, request.team = team;
    return engine_.images_at_once(request);
  }

  int64_t last_multiply_adds = 0;

 private:
  static const Bf16Kernels* bf16_of(const std::string& precision, const Kernels& kernels) {
    if (precision == "fp32") return nullptr;
    if (precision == "bf16") return &find_bf16_kernels(kernels);
    fail("[precision] must be \"fp32\" or \"bf16\", got '" + precision + "'");
  }

  const Kernels& kernels_;
  Engine engine_;
};

py::dict opcodes() {
  py::dict d;
#define PIXELFAST_OP(name) d[#name] = static_cast<int>(Op::name);
#include "core/ops.def"
#undef PIXELFAST_OP
  return d;
}

py::dict functions() {
  py::dict d;
#define PIXELFAST_FN(name, arity) d[#name] = py::make_tuple(static_cast<int>(Fn::name), arity);
#include "core/ops.def"
#undef PIXELFAST_FN
  return d;
}

py::dict constants() {
  py::dict d;
#define PIXELFAST_CONSTANT(name) d[#name] = py::int_(static_cast<int64_t>(name));
  PIXELFAST_CONSTANT(kMagic)
  PIXELFAST_CONSTANT(kVersion)
  PIXELFAST_CONSTANT(kStepMark)
  PIXELFAST_CONSTANT(kHeaderWords)
  PIXELFAST_CONSTANT(kBufferWords)
  PIXELFAST_CONSTANT(kTapWords)
  PIXELFAST_CONSTANT(kInstructionWords)
  PIXELFAST_CONSTANT(kRunWords)
  PIXELFAST_CONSTANT(kMaxSide)
  PIXELFAST_CONSTANT(kMaxStride)
  PIXELFAST_CONSTANT(kMaxLevels)
  PIXELFAST_CONSTANT(kMaxThreads)
  PIXELFAST_CONSTANT(kFrequencyTotal)
#undef PIXELFAST_CONSTANT
  d["spaces"] = py::make_tuple("arena", "data", "condition");
  return d;
}

// ---- parts of the runtime, for tests and benchmarks
// --------------------------------------------------------

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

py::array_t<float> math(const std::string& name, const std::vector<FloatArray>& x, const std::string& isa) {
  const Kernels& kernels = find_kernels(isa);
  const FloatMode mode;
  if (x.empty() || x.size() > 3) fail("[math] takes one to three arrays");
  for (const FloatArray& a : x) {
    if (a.size() != x[0].size()) fail("[math] arrays must have the same size");
  }
  py::array_t<float> y(shape_of(x[0]));
  const py::ssize_t n = x[0].size();
  if (name == "fma" && x.size() == 3) {
    kernels.fma(x[0].data(), x[1].data(), x[2].data(), y.mutable_data(), n);
    return y;
  }
#define PIXELFAST_FN(fn, arity)                                        \
  if (name == #fn && arity == 1 && x.size() == 1)                      \
    return kernels.unary(Fn::fn, x[0].data(), y.mutable_data(), n), y; \
  if (name == #fn && arity == 2 && x.size() == 2)                      \
    return kernels.binary(Fn::fn, x[0].data(), x[1].data(), y.mutable_data(), n), y;
#include "core/ops.def"
#undef PIXELFAST_FN
  fail("[math] there is no function '" + name + "' of " + std::to_string(x.size()) + " arrays");
}

py::array_t<uint32_t> table(const FloatArray& logits, double temperature, int64_t top_k, double top_p,
                            const std::string& isa) {
  if (logits.ndim() != 1 || logits.size() < 1 || logits.size() > kMaxLevels) {
    fail("[table] logits must be of shape (levels,), 1 to " + std::to_string(kMaxLevels) + " of them");
  }
  const FloatMode mode;
  LevelTable t(find_kernels(isa), static_cast<int>(logits.size()));
  const Flaw flaw = t.build(logits.data(), sampling_of(temperature, top_k, top_p));
  if (flaw != Flaw::none) fail(std::string("[sample] the model gave ") + describe(flaw));
  py::array_t<uint32_t> frequencies(logits.size());
  for (py::ssize_t k = 0; k < logits.size(); ++k)
    frequencies.mutable_data()[k] = t.frequency(static_cast<int>(k));
  return frequencies;
}

// The level that a number in [0, 2^31) draws, and for an array of such numbers an array of levels.
py::array_t<int32_t> draw(const FloatArray& logits, const py::array_t<uint32_t, py::array::c_style>& u,
                          const std::string& isa) {
  const FloatMode mode;
  if (logits.ndim() != 1 || logits.size() < 1 || logits.size() > kMaxLevels)
    fail("[draw] logits must be (levels,)");
  LevelTable t(find_kernels(isa), static_cast<int>(logits.size()));
  const Flaw flaw = t.build(logits.data(), Sampling{});
  if (flaw != Flaw::none) fail(std::string("[sample] the model gave ") + describe(flaw));
  py::array_t<int32_t> levels(shape_of(u));
  for (py::ssize_t i = 0; i < u.size(); ++i) {
    if (u.data()[i] >= kFrequencyTotal) fail("[draw] u must be below 2^31");
    levels.mutable_data()[i] = t.draw(u.data()[i]);
  }
  return levels;
}

// As table and draw for the rows of logits (n, levels), u (n) and levels (n), where -1 is to be drawn.
// Returns the levels and their frequencies.
py::tuple draw_rows(const FloatArray& logits, const py::array_t<uint32_t, py::array::c_style>& u,
                    const py::array_t<int32_t, py::array::c_style>& given, double temperature, int64_t top_k,
                    double top_p, const std::string& isa) {
  const FloatMode mode;
  if (logits.ndim() != 2 || logits.shape(0) < 1 || logits.shape(0) > kBlockRows || logits.shape(1) < 1 ||
      logits.shape(1) > kMaxLevels || u.size() != logits.shape(0) || given.size() != logits.shape(0)) {
    fail("[draw_rows] logits must be (n, levels), n in [1, " + std::to_string(kBlockRows) +
         "], and u and given (n,)");
  }
  const int n = static_cast<int>(logits.shape(0)), levels = static_cast<int>(logits.shape(1));
  py::array_t<int32_t> level(n);
  py::array_t<uint32_t> frequency(n);
  const float* rows[kBlockRows];
  for (int r = 0; r < n; ++r) {
    rows[r] = logits.data() + static_cast<py::ssize_t>(r) * levels;
    level.mutable_data()[r] = given.data()[r];
    if (given.data()[r] >= levels || u.data()[r] >= kFrequencyTotal)
      fail("[draw_rows] u must be below 2^31, and given below the levels");
  }
  LevelTable t(find_kernels(isa), levels);
  int row = 0;
  const Flaw flaw = t.draw_rows(rows, n, sampling_of(temperature, top_k, top_p), u.data(),
                                level.mutable_data(), frequency.mutable_data(), &row);
  if (flaw != Flaw::none) {
    fail(std::string("[sample] the model gave ") + describe(flaw) + " in row " + std::to_string(row));
  }
  return py::make_tuple(level, frequency);
}

py::tuple philox_words(uint64_t seed, uint64_t image, uint64_t counter) {
  const Philox p = philox(seed, image, counter);
  return py::make_tuple(p.word[0], p.word[1], p.word[2], p.word[3]);
}

double peak(const std::string& isa, int threads, double seconds) {
  const Kernels& kernels = find_kernels(isa);
  if (threads < 0 || threads > kMaxThreads)
    fail("[peak] threads must be in [0, " + std::to_string(kMaxThreads) + "]");
  const py::gil_scoped_release no_gil;
  return measure_peak(kernels, threads == 0 ? default_threads() : threads, seconds, [] {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  });
}

double bandwidth(int64_t nbytes, const std::string& isa, double seconds) {
  const Kernels& kernels = find_kernels(isa);
  if (nbytes < kLeastBandwidth || nbytes > int64_t{1} << 32) {
    fail("[bandwidth] nbytes must be in [" + std::to_string(kLeastBandwidth) + ", 2**32], got " +
         std::to_string(nbytes));
  }
  const py::gil_scoped_release no_gil;
  return measure_bandwidth(kernels, nbytes, seconds);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* k : usable_kernels()) names.push_back(k->name);
  return names;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "The cpu runtime of pixelfast.";
  m.def("opcodes", &opcodes, "Opcodes by name.");
  m.def("functions", &functions, "(opcode, arity) of the instructions of expressions, by name.");
  m.def("constants", &constants, "The constants of the program format.");
  m.def("isas", &isas, "The instruction sets that this machine runs, the best last.");
  m.def(
      "bf16_kernels",
      [](const std::string& isa) -> std::string {
        const Kernels& kernels = find_kernels(isa);
        return has_bf16(kernels) ? find_bf16_kernels(kernels).name : "";
      },
      py::arg("isa") = "", "What the bf16 mode runs on, here: avx512bf16 or amx; empty if on nothing.");
  m.def("default_isa", [] { return find_kernels("").name; });
  m.def("default_threads", &default_threads);
  m.def("math", &math, py::arg("name"), py::arg("x"), py::arg("isa") = "");
  m.def("table", &table, py::arg("logits"), py::arg("temperature") = 1.0, py::arg("top_k") = 0,
        py::arg("top_p") = 1.0, py::arg("isa") = "");
  m.def("draw_rows", &draw_rows, py::arg("logits"), py::arg("u"), py::arg("given"),
        py::arg("temperature") = 1.0, py::arg("top_k") = 0, py::arg("top_p") = 1.0, py::arg("isa") = "");
  m.def("draw", &draw, py::arg("logits"), py::arg("u"), py::arg("isa") = "");
  m.def("philox", &philox_words, py::arg("seed"), py::arg("image"), py::arg("counter"));
  m.def("peak", &peak, py::arg("isa") = "", py::arg("threads") = 1, py::arg("seconds") = 0.2);
  m.def("second_level", &second_level, "Bytes of the second level cache.");
  m.def("near_fetch", [] { return kNearFetch; });
  m.def("far_fetch", &far_fetch, py::call_guard<py::gil_scoped_release>(),
        "Multiply-adds that take as long as fetching a weight from beyond the second level cache.");
  m.def("bandwidth", &bandwidth, py::arg("nbytes"), py::arg("isa") = "", py::arg("seconds") = 0.2);
  py::class_<CpuProgram>(m, "Program")
      .def(py::init<const py::object&, const py::object&, const std::optional<std::string>&,
                    const std::string&>(),
           py::arg("words"), py::arg("data"), py::arg("isa") = py::none(), py::arg("precision") = "fp32")
      .def("run", &CpuProgram::run, py::kw_only(), py::arg("images"), py::arg("log_prob"),
           py::arg("given") = py::none(), py::arg("conditions") = py::none(), py::arg("seed") = 0,
           py::arg("first_index") = 0, py::arg("temperature") = 1.0, py::arg("top_k") = 0,
           py::arg("top_p") = 1.0, py::arg("threads") = 0, py::arg("chunk") = 0, py::arg("team") = 0,
           py::arg("progress") = py::none(), py::arg("profiled") = false)
      .def_property_readonly("isa", &CpuProgram::isa)
      .def_property_readonly("arena_nbytes", &CpuProgram::arena_nbytes)
      .def_property_readonly("weights_nbytes", &CpuProgram::weights_nbytes)
      .def_property_readonly("working_nbytes", &CpuProgram::working_nbytes)
      .def("images_at_once", &CpuProgram::images_at_once, py::kw_only(), py::arg("n"), py::arg("threads") = 0,
           py::arg("chunk") = 0, py::arg("team") = 0)
      .def_readonly("last_multiply_adds", &CpuProgram::last_multiply_adds);
}

}  // namespace pixelfast
