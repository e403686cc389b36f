// What the bindings of all runtimes need: arrays that are checked before anything is read from them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/program.h"
#include "cpu/heads.h"

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

// Levels that are given, in range. `given`: null, where `all_given` holds for every pixel.
inline void check_levels(const Program& p, const int32_t* images, const uint8_t* given, bool all_given,
                         int64_t images_n) {
  if (given == nullptr && !all_given) return;
  const int64_t each = static_cast<int64_t>(p.colours) * p.height * p.width;
  for (int64_t i = 0; i < images_n * each; ++i) {
    if (given != nullptr && given[i] == 0) continue;
    if (images[i] < 0 || images[i] >= p.levels) {
      fail("[sample] given levels must be in [0, " + std::to_string(p.levels) + "), got " +
           std::to_string(images[i]) + " in image " + std::to_string(i / each));
    }
  }
}

}  // namespace pixelfast
