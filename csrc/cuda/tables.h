// What every launch looks things up in: in memory of the device, or copied to the block's, which is nearer.
// Part of walk.h.
#pragma once

#include "cuda/flat.h"
#include "cuda/simt.h"

namespace pixelfast {
namespace cuda {
namespace {

class Tables {
 public:
  PIXELFAST_DEVICE explicit Tables(const Walk& walk)
      : p_(walk.program),
        near_(walk.tables_near != 0),
        start_(reinterpret_cast<const char*>(near_ ? simt::dynamic_memory().words : p_.tables)) {}

  // To be read after the block's next barrier, by pointers, which the emulation does not watch.
  PIXELFAST_DEVICE void load() const {
    for (int i = simt::thread(); near_ && i < p_.table_words; i += simt::threads()) {
      simt::dynamic_memory().set(i, p_.tables[i]);
    }
  }

  PIXELFAST_DEVICE const FlatBuffer& buffer(int32_t i) const { return at(p_.at.buffers, i); }
  PIXELFAST_DEVICE const FlatOp& op(int32_t i) const { return at(p_.at.ops, i); }
  PIXELFAST_DEVICE const Tap& tap(int32_t i) const { return at(p_.at.taps, i); }
  PIXELFAST_DEVICE const Instruction& instruction(int32_t i) const { return at(p_.at.instructions, i); }
  PIXELFAST_DEVICE const Part& part(int32_t i) const { return at(p_.at.parts, i); }
  PIXELFAST_DEVICE int32_t place(int32_t i) const { return at(p_.at.places, i); }

 private:
  template <class T>
  PIXELFAST_DEVICE const T& at(Table<T> table, int32_t i) const {
    return reinterpret_cast<const T*>(start_ + table.begin)[i];
  }

  const FlatProgram& p_;
  const bool near_;
  const char* start_;
};

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
