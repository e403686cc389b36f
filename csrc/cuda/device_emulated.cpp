#include "cuda/device_emulated.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <vector>

#include "cpu/threads.h"
#include "cuda/device.h"
#include "cuda/walk.h"

namespace pixelfast {
namespace cuda {

const char* backend_name() { return "emulated"; }
int device_count() { return 2; }

constexpr int kThreads = 64, kCluster = 2;

Emulated emulated;
size_t free_nbytes(int) { return emulated.free_nbytes; }
DeviceInfo device_info(int index) {
  return {"an emulation on the processor",
          index,
          kThreads,
          emulated.blocks,
          kCluster,
          emulated.shared_nbytes,
          emulated.capability >= 80,
          emulated.free_nbytes};
}
int teams_at_once(int, int blocks, Barrier, size_t shared_nbytes) {
  const size_t most = emulated.all_shared_nbytes / std::max<size_t>(shared_nbytes, 1);
  return static_cast<int>(std::min<size_t>(emulated.blocks, most)) / blocks;
}

Memory::Memory(int device, size_t nbytes) : nbytes_(nbytes), device_(device) {
  start_ = std::malloc(nbytes > 0 ? nbytes : 1);
  if (start_ == nullptr) throw std::bad_alloc();
}
Memory::~Memory() { std::free(start_); }
void Memory::upload(const void* source, size_t nbytes) { std::memcpy(start_, source, nbytes); }
void Memory::download(void* target, size_t nbytes) const { std::memcpy(target, start_, nbytes); }
void Memory::clear() { std::memset(start_, 0, nbytes_); }

void run_walk(int, Walk walk, int64_t, const std::function<void(unsigned long long)>& tick) {
  const int blocks = walk.teams * walk.team_blocks;
  Flags flags{};
  std::exception_ptr error;
  try {
    tick(0);
  } catch (...) {  // so that the walk finds that it must stop
    error = std::current_exception();
    flags.stop = 1;
  }
  const FloatMode mode;
  walk.done = &flags.done, walk.stop = &flags.stop;
  const int cluster = walk.barrier == Barrier::cluster ? walk.team_blocks : 1;
  simt::emulate(blocks, walk.threads, [&] { Walker(walk).run(); }, cluster, walk.shared_words);
  emulated.steps_done = flags.done;
  if (error) std::rethrow_exception(error);
  tick(flags.done);
}

}  // namespace cuda
}  // namespace pixelfast
