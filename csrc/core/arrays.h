// What the bindings of all runtimes need: arrays that are checked before anything is read from them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/program.h"
#include "core/request.h"

namespace py = pybind11;

namespace pixelfast {

[[noreturn]] inline void fail(const std::string& message) { throw std::invalid_argument(message); }

inline std::string text(const std::vector<py::ssize_t>& shape) {
  std::string s = "(";
  for (const py::ssize_t n : shape) s += (s.size() > 1 ? ", " : "") + std::to_string(n);
  return s + ")";
}

inline std::vector<py::ssize_t> shape_of(const py::array& a) { return {a.shape(), a.shape() + a.ndim()}; }

// The elements of an array of exactly this dtype and shape, C-contiguous (and writable where `out`).
template <class T>
T* elements(const py::object& object, const std::string& name, const std::vector<py::ssize_t>& shape,
            bool out = false) {
  const std::string dtype = py::str(py::dtype::of<T>());
  if (!py::isinstance<py::array>(object)) fail(name + " must be a numpy array of " + dtype);
  const auto a = py::reinterpret_borrow<py::array>(object);
  if (!a.dtype().is(py::dtype::of<T>()) && !a.dtype().equal(py::dtype::of<T>())) {
    fail(name + " must be of " + dtype + ", got " + std::string(py::str(a.dtype())));
  }
  if (shape_of(a) != shape) fail(name + " must have shape " + text(shape) + ", got " + text(shape_of(a)));
  if (!(a.flags() & py::array::c_style)) fail(name + " must be C-contiguous");
  if (out && !a.writeable()) fail(name + " must be writable");
  return static_cast<T*>(const_cast<void*>(a.data()));
}

inline py::ssize_t length(const py::object& object, const std::string& name) {
  if (!py::isinstance<py::array>(object) || py::reinterpret_borrow<py::array>(object).ndim() != 1) {
    fail(name + " must be a numpy array of one dimension");
  }
  return py::reinterpret_borrow<py::array>(object).shape(0);
}

inline Sampling sampling_of(double temperature, int64_t top_k, double top_p) {
  Sampling s;
  s.inverse_temperature = static_cast<float>(1.0 / temperature);
  if (!(temperature > 0) || !std::isfinite(s.inverse_temperature) || s.inverse_temperature <= 0) {
    fail("[sample] temperature must be positive and finite, got " +
         std::string(py::str(py::float_(temperature))));
  }
  if (top_k < 0 || top_k > kMaxLevels) {
    fail("[sample] top_k must be in [0, " + std::to_string(kMaxLevels) + "], got " + std::to_string(top_k));
  }
  if (!(top_p > 0 && top_p <= 1)) {
    fail("[sample] top_p must be in (0, 1], got " + std::string(py::str(py::float_(top_p))));
  }
  s.top_k = static_cast<int>(top_k);
  s.top_p = top_p;
  return s;
}

// Levels that are given must be in range.
inline void check_levels(const Program& p, const Request& r) {
  if (r.given == nullptr && !r.all_given) return;
  const int64_t each = static_cast<int64_t>(p.colours) * p.height * p.width;
  for (int64_t i = 0; i < r.n * each; ++i) {
    if (r.given != nullptr && r.given[i] == 0) continue;
    if (r.images[i] < 0 || r.images[i] >= p.levels) {
      fail("[sample] given levels must be in [0, " + std::to_string(p.levels) + "), got " +
           std::to_string(r.images[i]) + " in image " + std::to_string(i / each));
    }
  }
}

// The arrays of a request. The number of images is that of `images`.
inline void fill_request(Request& r, const Program& p, const py::object& images, const py::object& log_prob,
                         const py::object& given, const py::object& conditions) {
  const bool array =
      py::isinstance<py::array>(images) && py::reinterpret_borrow<py::array>(images).ndim() > 0;
  r.n = array ? py::reinterpret_borrow<py::array>(images).shape(0) : 0;
  const std::vector<py::ssize_t> shape = {r.n, p.colours, p.height, p.width};
  r.images = elements<int32_t>(images, "[sample] images", shape, true);
  r.log_prob = elements<float>(log_prob, "[sample] log_prob", shape, true);
  if (py::isinstance<py::bool_>(given)) {
    r.all_given = given.cast<bool>();
  } else if (!given.is_none()) {
    r.given = elements<uint8_t>(given, "[sample] given", shape);
  }
  check_levels(p, r);
  if (p.condition_floats > 0) {
    r.conditions = elements<float>(conditions, "[sample] conditions", {r.n, p.condition_floats});
  }
}

// How it is to be shared.
inline void set_sharing(Request& r, int chunk, int team, const std::string& where = "[sample]") {
  if (chunk < 0) fail(where + " chunk must not be negative, got " + std::to_string(chunk));
  if (team < 0) fail(where + " team must not be negative, got " + std::to_string(team));
  r.chunk = chunk, r.team = team;
}

// Notes progress, if it is to be told, and whether Ctrl-C was pressed; in a thread that does not hold the
// lock.
inline auto ticker(const py::object& progress) {
  return [&progress](double fraction) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!progress.is_none()) progress(fraction);
  };
}

}  // namespace pixelfast
