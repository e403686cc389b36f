// The Python modules pixelfast._cuda, which runs on GPUs, and pixelfast._emulated, which runs the same device
// code on the processor (device.h). Everything is checked here; pixelfast/runtime.py only forwards.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "core/arrays.h"
#include "cuda/conv.h"
#include "cuda/runtime.h"
#ifdef PIXELFAST_EMULATED
#include "cuda/device_emulated.h"
#include "cuda/simt.h"
#endif

namespace pixelfast {
namespace cuda {

namespace {

class DeviceProgram {
 public:
  DeviceProgram(const py::object& words, const py::object& data, int device, const std::string& precision)
      : engine_(elements<int32_t>(words, "[program] words", {length(words, "[program] words")}),
                length(words, "[program] words"),
                elements<float>(data, "[program] data", {length(data, "[program] data")}),
                length(data, "[program] data"), device, is_bf16(precision)) {}

  void run(const py::object& images, const py::object& log_prob, const py::object& given,
           const py::object& conditions, uint64_t seed, uint64_t first_index, double temperature,
           int64_t top_k, double top_p, int chunk, int team, int64_t resident_nbytes, int spread,
           const py::object& progress) {
    DeviceRequest r{};
    fill_request(r, engine_.program(), images, log_prob, given, conditions);
    set_sharing(r, chunk, team, resident_nbytes, spread);
    r.seed = seed, r.first_index = first_index, r.sampling = sampling_of(temperature, top_k, top_p);
    const py::gil_scoped_release no_gil;
    last_multiply_adds = engine_.run(r, ticker(progress));
  }

  // Tensors on the device, as addresses (0: none): Python has checked shapes, types and device. `tensors` are
  // those, which must live as long as the run.
  void run_there(const py::object& tensors, uint64_t images, uint64_t log_prob, uint64_t given,
                 bool all_given, uint64_t conditions, int64_t n, int64_t stream, uint64_t seed,
                 uint64_t first_index, double temperature, int64_t top_k, double top_p, int chunk, int team,
                 int64_t resident_nbytes, int spread, const py::object& progress) {
    if (n < 0) fail("[sample] n must not be negative, got " + std::to_string(n));
    const Program& p = engine_.program();
    if (!tensors) fail("[sample] tensors are needed");
    if (n > 0 && (images == 0 || log_prob == 0 || (p.condition_floats > 0 && conditions == 0)))
      fail("[sample] images, log_prob and conditions must be addresses on the device");
    DeviceRequest r{};
    r.images = reinterpret_cast<int32_t*>(images), r.log_prob = reinterpret_cast<float*>(log_prob);
    r.given = reinterpret_cast<const uint8_t*>(given), r.all_given = all_given;
    if (p.condition_floats > 0) r.conditions = reinterpret_cast<const float*>(conditions);
    r.n = n, r.on_device = true, r.stream = stream;
    set_sharing(r, chunk, team, resident_nbytes, spread);
    r.seed = seed, r.first_index = first_index, r.sampling = sampling_of(temperature, top_k, top_p);
    const py::gil_scoped_release no_gil;
    last_multiply_adds = engine_.run(r, ticker(progress));
  }

  py::list estimates(int64_t n, int chunk, int team, int64_t resident_nbytes, int spread) const {
    if (n < 1) fail("[explain] n must be positive, got " + std::to_string(n));
    DeviceRequest r{};
    r.n = n;
    set_sharing(r, chunk, team, resident_nbytes, spread, "[explain]");
    py::list found;
    for (const Estimate& e : engine_.estimates(r)) {
      py::dict d;
      d["teams"] = e.teams, d["blocks"] = e.blocks, d["chunk"] = e.chunk, d["spread"] = e.spread;
      d["barrier"] = e.barrier;
      d["resident_nbytes"] = e.resident_nbytes, d["weights_nbytes"] = e.weights_nbytes;
      d["cycles"] = e.cycles, d["nbytes"] = e.nbytes;
      found.append(d);
    }
    return found;
  }

  size_t held_nbytes() const { return engine_.held_nbytes(); }
  // In either order, of each: its op, and whether a team waits before it, and arrives for the next wait after
  // it.
  std::vector<std::tuple<int, bool, bool>> launches(bool spread) const {
    std::vector<std::tuple<int, bool, bool>> found;
    for (const FlatLaunch& l : engine_.launches(spread)) {
      found.emplace_back(l.op, l.waits != 0, l.arrives != 0);
    }
    return found;
  }

  std::string device() const { return engine_.device().name; }

  int64_t last_multiply_adds = 0;

 private:
  static bool is_bf16(const std::string& precision) {
    if (precision != "fp32" && precision != "bf16") {
      fail("[precision] must be \"fp32\" or \"bf16\", got '" + precision + "'");
    }
    return precision == "bf16";
  }

  static void set_sharing(DeviceRequest& r, int chunk, int team, int64_t resident_nbytes, int spread,
                          const std::string& where = "[sample]") {
    pixelfast::set_sharing(r, chunk, team, where);
    if (resident_nbytes < -1) {
      fail(where + " resident_nbytes must be -1, to choose, or at least 0, got " +
           std::to_string(resident_nbytes));
    }
    r.resident_nbytes = resident_nbytes, r.spread = spread;
  }

  Engine engine_;
};

// Tensors come as an address and strides in elements: Python has checked shapes and types.
struct Tensor {
  uint64_t address;
  std::vector<int64_t> strides;
};

Tensor tensor(const py::tuple& t) {
  return {t[0].cast<uint64_t>(), t.size() > 1 ? t[1].cast<std::vector<int64_t>>() : std::vector<int64_t>()};
}

Strides strides_of(const Tensor& t) {
  if (t.strides.size() != 4)
    fail("[masked_conv] a tensor has 4 strides, got " + std::to_string(t.strides.size()));
  return {t.strides[0], t.strides[1], t.strides[2], t.strides[3]};
}

template <class T>
T* address(const Tensor& t) {
  return reinterpret_cast<T*>(t.address);
}

// sizes: batch, inputs, outputs, height, width, in_height, in_width. taps: dy, dx, row and column in the
// kernel.
using Sizes = std::vector<int32_t>;
using Taps = std::vector<std::vector<int32_t>>;

void fill_shape(ConvShape& a, int type, const Sizes& sizes, const Sizes& kernel, const Taps& taps) {
  if (type < 0 || type > 3) fail("[masked_conv] there is no type " + std::to_string(type));
  if (sizes.size() != 7) fail("[masked_conv] sizes are 7 numbers, got " + std::to_string(sizes.size()));
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] < 0) fail("[masked_conv] sizes must not be negative");
    if (i >= 3 && sizes[i] > kMostSide) {
      fail("[masked_conv] sides must be at most " + std::to_string(kMostSide) + ", got " +
           std::to_string(sizes[i]));
    }
  }
  if (kernel.size() != 2) fail("[masked_conv] a kernel is 2 numbers, got " + std::to_string(kernel.size()));
  if (taps.size() > kMostTaps) {
    fail("[masked_conv] at most " + std::to_string(kMostTaps) + " taps, got " + std::to_string(taps.size()));
  }
  a.type = static_cast<Type>(type);
  a.batch = sizes[0], a.inputs = sizes[1], a.outputs = sizes[2], a.height = sizes[3], a.width = sizes[4];
  a.in_height = sizes[5], a.in_width = sizes[6];
  a.n_taps = static_cast<int32_t>(taps.size());
  for (size_t t = 0; t < taps.size(); ++t) {
    if (taps[t].size() != 4) fail("[masked_conv] a tap is 4 numbers");
    for (int i = 0; i < 2; ++i) {
      if (taps[t][i] < -kMostSide || taps[t][i] > kMostSide) {
        fail("[masked_conv] a tap must read at most " + std::to_string(kMostSide) + " away, got " +
             std::to_string(taps[t][i]));
      }
    }
    for (int i = 0; i < 2; ++i) {
      if (taps[t][2 + i] < 0 || taps[t][2 + i] >= kernel[i]) {
        fail("[masked_conv] a tap must be in a kernel of " + std::to_string(kernel[0]) + "x" +
             std::to_string(kernel[1]));
      }
    }
    a.tap_y[t] = static_cast<int16_t>(taps[t][0]), a.tap_x[t] = static_cast<int16_t>(taps[t][1]);
  }
}

template <class Args>
void fill_weights(Args& a, const Taps& taps, const Tensor& weight, const Tensor& mask) {
  a.weight = address<std::remove_pointer_t<decltype(a.weight)>>(weight);
  a.weight_strides = strides_of(weight);
  a.mask = address<const uint8_t>(mask);
  a.mask_strides = mask.address != 0 ? strides_of(mask) : Strides{};
  for (size_t t = 0; t < taps.size(); ++t) {
    a.tap_weight[t] = taps[t][2] * a.weight_strides.y + taps[t][3] * a.weight_strides.x;
    a.tap_mask[t] = taps[t][2] * a.mask_strides.y + taps[t][3] * a.mask_strides.x;
  }
}

// Memory for a launch: an address, and how many bytes there are.
void* room_for(size_t nbytes, const py::tuple& given) {
  if (given.size() != 2) fail("[masked_conv] memory is an address and a size");
  const auto there = given[1].cast<size_t>();
  if (there < nbytes) {
    fail("[masked_conv] " + std::to_string(nbytes) + " bytes are needed, got " + std::to_string(there));
  }
  const auto address = given[0].cast<uint64_t>();
  if (address == 0 && nbytes > 0) fail("[masked_conv] there is no memory");
  if (address % 16 != 0) fail("[masked_conv] memory must start at a multiple of 16 bytes");
  return reinterpret_cast<void*>(address);
}

// What is read or written, if anything is, needs an address.
void check_address(const void* address, const char* name, int64_t a, int64_t b, int64_t c) {
  if (address == nullptr && a > 0 && b > 0 && c > 0) {
    fail("[masked_conv] " + std::string(name) + " is not empty, and has no address");
  }
}

void check_blocks(int64_t blocks) {
  if (blocks > INT32_MAX) fail("[masked_conv] too large: " + std::to_string(blocks) + " blocks");
}

size_t conv_nbytes(int type, const Sizes& sizes, const Sizes& kernel, const Taps& taps, bool gate,
                   int device) {
  ConvArgs a{};
  fill_shape(a, type, sizes, kernel, taps);
  a.gate = gate;
  return plan(a, conv_device(device));
}

void conv(int type, const Sizes& sizes, const Sizes& kernel, const Taps& taps, const py::tuple& in,
          const py::tuple& weight, const py::tuple& mask, const py::tuple& bias, const py::tuple& condition,
          const py::tuple& residual, const py::tuple& factors, const py::tuple& out, const py::tuple& packed,
          bool gate, int device, uint64_t stream) {
  ConvArgs a{};
  fill_shape(a, type, sizes, kernel, taps);
  fill_weights(a, taps, tensor(weight), tensor(mask));
  const auto strides = [](const Tensor& t) { return t.address != 0 ? strides_of(t) : Strides{}; };
  a.in = address<void>(tensor(in)), a.in_strides = strides_of(tensor(in));
  a.bias = address<void>(tensor(bias));
  a.condition = address<void>(tensor(condition)), a.condition_strides = strides(tensor(condition));
  a.residual = address<void>(tensor(residual)), a.residual_strides = strides(tensor(residual));
  a.factors = address<void>(tensor(factors)), a.factor_strides = strides(tensor(factors));
  a.out = address<void>(tensor(out)), a.out_strides = strides_of(tensor(out));
  a.gate = gate;
  if (gate && a.outputs % 2 != 0) fail("[masked_conv] a gate has two factors");
  const int64_t area = int64_t{a.height} * a.width, in_area = int64_t{a.in_height} * a.in_width;
  check_address(a.in, "input", a.batch, a.inputs, in_area);
  check_address(a.weight, "weight", a.outputs, a.inputs, a.n_taps);
  check_address(a.out, "out", a.batch, a.outputs, area);
  if (gate) check_address(a.factors, "factors", a.batch, a.outputs, area);
  a.packed = room_for(plan(a, conv_device(device)), packed);
  check_blocks(conv_blocks(a));
  const py::gil_scoped_release no_gil;
  if (conv_blocks(a) > 0) masked_conv(a, device, stream);
}

size_t weight_grad_nbytes(int type, const Sizes& sizes, const Sizes& kernel, const Taps& taps, int device) {
  WeightGradArgs a{};
  fill_shape(a, type, sizes, kernel, taps);
  return plan(a, conv_device(device));
}

void weight_grad(int type, const Sizes& sizes, const Sizes& kernel, const Taps& taps, const py::tuple& grad,
                 const py::tuple& in, const py::tuple& mask, const py::tuple& weight, const py::tuple& bias,
                 const py::tuple& parts, int device, uint64_t stream) {
  WeightGradArgs a{};
  fill_shape(a, type, sizes, kernel, taps);
  fill_weights(a, taps, tensor(weight), tensor(mask));
  a.grad = address<void>(tensor(grad)), a.grad_strides = strides_of(tensor(grad));
  a.in = address<void>(tensor(in)), a.in_strides = strides_of(tensor(in));
  a.bias = address<void>(tensor(bias));
  const int64_t area = int64_t{a.height} * a.width, in_area = int64_t{a.in_height} * a.in_width;
  if (area == 0) fail("[masked_conv] a result has no positions");
  check_address(a.grad, "grad", a.batch, a.outputs, area);
  check_address(a.in, "input", a.batch, a.inputs, in_area);
  check_address(a.weight, "weight", a.outputs, a.inputs, a.n_taps);
  a.parts = room_for(plan(a, conv_device(device)), parts);
  check_blocks(weight_grad_blocks(a));
  const py::gil_scoped_release no_gil;
  if (weight_grad_blocks(a) > 0) masked_conv_weight_grad(a, device, stream);
}

py::list devices() {
  py::list found;
  for (int i = 0; i < device_count(); ++i) {
    const DeviceInfo info = device_info(i);
    py::dict d;
    d["name"] = info.name, d["blocks"] = info.blocks, d["free_nbytes"] = info.free_nbytes;
    found.append(d);
  }
  return found;
}

}  // namespace

PYBIND11_MODULE(PIXELFAST_MODULE, m) {
  m.doc() = "A runtime of pixelfast on GPUs, or on their emulation. See csrc/cuda/.";
  m.def("backend", &backend_name);
  m.def("devices", &devices);
  m.def("device_count", &device_count);
  m.attr("most_taps") = kMostTaps;
  m.attr("most_side") = kMostSide;
  m.def("masked_conv_nbytes", &conv_nbytes, py::kw_only(), py::arg("type"), py::arg("sizes"),
        py::arg("kernel"), py::arg("taps"), py::arg("gate"), py::arg("device"));
  m.def("masked_conv", &conv, py::kw_only(), py::arg("type"), py::arg("sizes"), py::arg("kernel"),
        py::arg("taps"), py::arg("input"), py::arg("weight"), py::arg("mask"), py::arg("bias"),
        py::arg("condition"), py::arg("residual"), py::arg("factors"), py::arg("out"), py::arg("packed"),
        py::arg("gate"), py::arg("device"), py::arg("stream"));
  m.def("masked_conv_weight_grad_nbytes", &weight_grad_nbytes, py::kw_only(), py::arg("type"),
        py::arg("sizes"), py::arg("kernel"), py::arg("taps"), py::arg("device"));
  m.def("masked_conv_weight_grad", &weight_grad, py::kw_only(), py::arg("type"), py::arg("sizes"),
        py::arg("kernel"), py::arg("taps"), py::arg("grad"), py::arg("input"), py::arg("mask"),
        py::arg("weight"), py::arg("bias"), py::arg("parts"), py::arg("device"), py::arg("stream"));
#ifdef PIXELFAST_EMULATED
  m.def("set_free_nbytes", [](size_t nbytes) { emulated.free_nbytes = nbytes; });
  m.def("set_shared_nbytes", [](size_t nbytes) { emulated.shared_nbytes = nbytes; });
  m.def("set_blocks", [](int blocks) { emulated.blocks = blocks; });
  m.def("set_all_shared_nbytes", [](size_t nbytes) { emulated.all_shared_nbytes = nbytes; });
  m.def("steps_done", [] { return emulated.steps_done; });
  m.def("set_capability", [](int capability) { emulated.capability = capability; });
  m.def("provoke", [](const std::string& name) {
    if (!simt::provoke(name.c_str())) fail("[provoke] there is no fault '" + name + "'");
  });
  m.def("multiply_by_a_warp",
        [](bool bf16, const py::object& a, const py::object& b, const py::object& product) {
          simt::multiply_by_a_warp(bf16 ? simt::Half::bfloat16 : simt::Half::float16,
                                   elements<uint16_t>(a, "[multiply] a", {16, 16}),
                                   elements<uint16_t>(b, "[multiply] b", {16, 16}),
                                   elements<float>(product, "[multiply] product", {16, 16}, true));
        });
#endif
  py::class_<DeviceProgram>(m, "Program", py::module_local())
      .def(py::init<const py::object&, const py::object&, int, const std::string&>(), py::arg("words"),
           py::arg("data"), py::arg("device") = 0, py::arg("precision") = "fp32")
      .def("run", &DeviceProgram::run, py::kw_only(), py::arg("images"), py::arg("log_prob"),
           py::arg("given") = py::none(), py::arg("conditions") = py::none(), py::arg("seed") = 0,
           py::arg("first_index") = 0, py::arg("temperature") = 1.0, py::arg("top_k") = 0,
           py::arg("top_p") = 1.0, py::arg("chunk") = 0, py::arg("team") = 0, py::arg("resident_nbytes") = -1,
           py::arg("spread") = -1, py::arg("progress") = py::none())
      .def("run_there", &DeviceProgram::run_there, py::kw_only(), py::arg("tensors"), py::arg("images"),
           py::arg("log_prob"), py::arg("given") = 0, py::arg("all_given") = false, py::arg("conditions") = 0,
           py::arg("n"), py::arg("stream") = -1, py::arg("seed") = 0, py::arg("first_index") = 0,
           py::arg("temperature") = 1.0, py::arg("top_k") = 0, py::arg("top_p") = 1.0, py::arg("chunk") = 0,
           py::arg("team") = 0, py::arg("resident_nbytes") = -1, py::arg("spread") = -1,
           py::arg("progress") = py::none())
      .def("estimates", &DeviceProgram::estimates, py::kw_only(), py::arg("n"), py::arg("chunk") = 0,
           py::arg("team") = 0, py::arg("resident_nbytes") = -1, py::arg("spread") = -1)
      .def("launches", &DeviceProgram::launches, py::arg("spread"))
      .def_property_readonly("device", &DeviceProgram::device)
      .def_property_readonly("held_nbytes", &DeviceProgram::held_nbytes)
      .def_readonly("last_multiply_adds", &DeviceProgram::last_multiply_adds);
}

}  // namespace cuda
}  // namespace pixelfast
