// The machine that walk.h runs on: a GPU (device_cuda.cu) or the emulation (device_emulated.cpp), whichever
// is linked.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "cuda/flat.h"

namespace pixelfast {
namespace cuda {

struct DeviceInfo {
  std::string name;
  int index = 0;
  int threads = 0;           // of a block
  int blocks = 0;            // that can run at the same time
  int cluster = 1;           // blocks that a cluster may have
  size_t shared_nbytes = 0;  // that a block may have
  bool matrices = false;     // whether there are tensor cores for bf16
  size_t free_nbytes = 0;
};

// Memory that the device and the host see.
struct Flags {
  unsigned long long done;  // steps of chunks
  uint32_t stop;
};

const char* backend_name();
int device_count();  // 0 where there is none, or no driver
DeviceInfo device_info(int index);
size_t free_nbytes(int index);  // of its memory, now
// Teams of so many blocks that can run at the same time, where each block has so much shared memory.
int teams_at_once(int index, int blocks, Barrier barrier, size_t shared_nbytes);

// Memory of a device. Throws std::bad_alloc.
class Memory {
 public:
  Memory() = default;
  Memory(int device, size_t nbytes);
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;

  void* get() const { return start_; }
  size_t nbytes() const { return nbytes_; }
  void upload(const void* source, size_t nbytes);
  void download(void* target, size_t nbytes) const;
  void clear();

 private:
  void* start_ = nullptr;
  size_t nbytes_ = 0;
  int device_ = 0;
};

// Runs a walk to its end, and `tick(done)` now and then; what it throws stops the walk and is thrown from
// here. `walk.done` and `walk.stop` are filled in. `stream`: -1 for one of its own.
void run_walk(int device, Walk walk, int64_t stream, const std::function<void(unsigned long long)>& tick);

}  // namespace cuda
}  // namespace pixelfast
