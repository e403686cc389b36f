// The Python modules pixelfast._cuda, which runs on GPUs, and pixelfast._emulated, which runs the same device
// code on the processor (device.h). Everything is checked here; pixelfast/runtime.py only forwards.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "core/arrays.h"
#include "cuda/runtime.h"
#ifdef PIXELFAST_EMULATED
#include "cuda/emulator.h"
#endif

namespace pixelfast {
namespace cuda {
namespace {

class DeviceProgram {
 public:
  DeviceProgram(const py::object& words, const py::object& data, int device)
      : engine_(elements<int32_t>(words, "[program] words", {length(words, "[program] words")}),
                length(words, "[program] words"),
                elements<float>(data, "[program] data", {length(data, "[program] data")}),
                length(data, "[program] data"), device) {}

  void run(const py::object& images, const py::object& log_prob, const py::object& given,
           const py::object& conditions, uint64_t seed, uint64_t first_index, double temperature,
           int64_t top_k, double top_p, int chunk, int team, const py::object& progress) {
    const Program& p = engine_.program();
    const py::ssize_t n =
        py::isinstance<py::array>(images) && py::reinterpret_borrow<py::array>(images).ndim() > 0
            ? py::reinterpret_borrow<py::array>(images).shape(0)
            : 0;
    const std::vector<py::ssize_t> shape = {n, p.colours, p.height, p.width};
    Request r{};
    r.n = n;
    r.images = elements<int32_t>(images, "[sample] images", shape, true);
    r.log_prob = elements<float>(log_prob, "[sample] log_prob", shape, true);
    if (py::isinstance<py::bool_>(given)) {
      r.all_given = given.cast<bool>();
    } else if (!given.is_none()) {
      r.given = elements<uint8_t>(given, "[sample] given", shape);
    }
    check_levels(p, r.images, r.given, r.all_given, n);
    if (p.condition_floats > 0) {
      r.conditions = elements<float>(conditions, "[sample] conditions", {n, p.condition_floats});
    }
    if (chunk < 0) fail("[sample] chunk must not be negative, got " + std::to_string(chunk));
    if (team < 0) fail("[sample] team must not be negative, got " + std::to_string(team));
    r.seed = seed, r.first_index = first_index, r.sampling = sampling_of(temperature, top_k, top_p);
    r.chunk = chunk, r.team = team;
    const bool reports = !progress.is_none();
    const auto tick = [&](double fraction) {
      const py::gil_scoped_acquire gil;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (reports) progress(fraction);
    };
    const py::gil_scoped_release no_gil;
    last_multiply_adds = engine_.run(r, tick);
  }

  std::string device() const { return engine_.device().name; }

  int64_t last_multiply_adds = 0;

 private:
  Engine engine_;
};

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
#ifdef PIXELFAST_EMULATED
  m.def("provoke", [](const std::string& name) {
    if (!simt::provoke(name.c_str())) fail("[provoke] there is no fault '" + name + "'");
  });
#endif
  py::class_<DeviceProgram>(m, "Program", py::module_local())
      .def(py::init<const py::object&, const py::object&, int>(), py::arg("words"), py::arg("data"),
           py::arg("device") = 0)
      .def("run", &DeviceProgram::run, py::kw_only(), py::arg("images"), py::arg("log_prob"),
           py::arg("given") = py::none(), py::arg("conditions") = py::none(), py::arg("seed") = 0,
           py::arg("first_index") = 0, py::arg("temperature") = 1.0, py::arg("top_k") = 0,
           py::arg("top_p") = 1.0, py::arg("chunk") = 0, py::arg("team") = 0,
           py::arg("progress") = py::none())
      .def_property_readonly("device", &DeviceProgram::device)
      .def_readonly("last_multiply_adds", &DeviceProgram::last_multiply_adds);
}

}  // namespace cuda
}  // namespace pixelfast
