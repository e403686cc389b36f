#include "cuda/runtime.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace pixelfast {
namespace cuda {
namespace {

template <class T>
Memory sent(int device, const T* source, size_t n) {
  Memory memory(device, n * sizeof(T));
  if (n > 0) memory.upload(source, n * sizeof(T));
  return memory;
}
template <class T>
Memory sent(int device, const std::vector<T>& source) {
  return sent(device, source.data(), source.size());
}
template <class T>
const T* as(const Memory& memory) {
  return static_cast<const T*>(memory.get());
}

int checked_device(int device) {
  if (device < 0 || device >= device_count()) {
    throw std::invalid_argument("[cuda] device must be in [0, " + std::to_string(device_count()) + "), got " +
                                std::to_string(device));
  }
  return device;
}

}  // namespace

Memory::Memory(Memory&& other) noexcept
    : start_(std::exchange(other.start_, nullptr)),
      nbytes_(std::exchange(other.nbytes_, 0)),
      device_(other.device_) {}
Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(start_, other.start_), std::swap(nbytes_, other.nbytes_), std::swap(device_, other.device_);
  return *this;
}

Engine::Engine(const int32_t* words, int64_t n_words, const float* data, int64_t n_data, int device)
    : program_(decode_program(words, n_words, n_data)),
      flat_(program_),
      device_(device_info(checked_device(device))),
      buffers_(sent(device, flat_.buffers)),
      ops_(sent(device, flat_.ops)),
      taps_(sent(device, flat_.taps)),
      instructions_(sent(device, flat_.instructions)),
      attention_(sent(device, flat_.attention)),
      runs_(sent(device, flat_.runs)),
      launches_(sent(device, flat_.launches)),
      data_(sent(device, data, static_cast<size_t>(n_data))) {}

int64_t Engine::run(const Request& r, const std::function<void(double)>& progress) {
  if (r.n == 0) return 0;
  const Program& p = program_;
  const int device = device_.index;
  const auto pixels = static_cast<size_t>(r.n) * p.colours * p.height * p.width;
  Walk walk{};
  walk.program = {as<FlatBuffer>(buffers_),
                  as<FlatOp>(ops_),
                  as<Tap>(taps_),
                  as<Instruction>(instructions_),
                  as<int32_t>(attention_),
                  as<Run>(runs_),
                  as<FlatLaunch>(launches_),
                  as<float>(data_),
                  static_cast<int32_t>(flat_.launches.size()),
                  p.colours,
                  p.height,
                  p.width,
                  p.levels,
                  p.arena_floats,
                  p.condition_floats};
  walk.threads = device_.threads;
  walk.team_blocks = r.team > 0 ? std::min(r.team, device_.blocks) : 1;
  const int most = device_.blocks / walk.team_blocks;
  walk.chunk = static_cast<int32_t>(std::min<int64_t>(r.chunk > 0 ? r.chunk : (r.n + most - 1) / most, r.n));
  walk.teams = static_cast<int32_t>(std::min<int64_t>(most, (r.n + walk.chunk - 1) / walk.chunk));

  Memory images = sent(device, r.images, pixels), log_prob = sent(device, r.log_prob, pixels);
  Memory given = sent(device, r.given, r.given != nullptr ? pixels : 0);
  const size_t condition_floats = r.conditions != nullptr ? static_cast<size_t>(r.n * p.condition_floats) : 0;
  const Memory conditions = sent(device, r.conditions, condition_floats);
  const auto threads = static_cast<size_t>(walk.teams) * walk.team_blocks * walk.threads,
             warps = threads / 32;
  const auto floats = [&](size_t n) { return Memory(device, n * sizeof(float)); };
  Memory arena = floats(static_cast<size_t>(walk.teams) * walk.chunk * std::max<int64_t>(p.arena_floats, 1));
  arena.clear();
  const Memory registers = floats(static_cast<size_t>(flat_.most_instructions) * kTileRows * threads);
  const Memory scores = floats(warps * flat_.most_keys);
  const Memory levels = floats(warps * 3 * p.levels);
  Memory states(device, walk.teams * sizeof(TeamState));
  states.clear();
  unsigned long long flaw = ~0ull;
  Memory flaws = sent(device, &flaw, 1);

  walk.images = static_cast<int32_t*>(images.get()), walk.log_prob = static_cast<float*>(log_prob.get());
  walk.given = r.given != nullptr ? as<uint8_t>(given) : nullptr, walk.all_given = r.all_given;
  walk.conditions = as<float>(conditions), walk.n = r.n;
  walk.seed = r.seed, walk.first_index = r.first_index;
  walk.inverse_temperature = r.sampling.inverse_temperature;
  walk.top_k = r.sampling.top_k, walk.top_p = r.sampling.top_p;
  walk.arena = static_cast<float*>(arena.get()), walk.registers = static_cast<float*>(registers.get());
  walk.scores = static_cast<float*>(scores.get()), walk.n_scores = flat_.most_keys;
  walk.levels = static_cast<int32_t*>(levels.get());
  walk.states = static_cast<TeamState*>(states.get());
  walk.flaw = static_cast<unsigned long long*>(flaws.get());

  const int64_t chunks = (r.n + walk.chunk - 1) / walk.chunk;
  const double all =
      static_cast<double>(chunks) * static_cast<double>(std::max<size_t>(p.step_ends.size(), 1));
  run_walk(device, walk, [&](int done) { progress(std::min(done / all, 1.0)); });
  flaws.download(&flaw, sizeof flaw);
  if (flaw != ~0ull) {
    const auto place = static_cast<int64_t>(flaw / 4);
    const int64_t x = place % p.width, y = place / p.width % p.height;
    const int64_t colour = place / p.width / p.height % p.colours,
                  image = place / p.width / p.height / p.colours;
    throw std::invalid_argument(flaw_message(static_cast<Flaw>(flaw % 4), image, y, x, colour));
  }
  images.download(r.images, pixels * sizeof(int32_t));
  log_prob.download(r.log_prob, pixels * sizeof(float));
  return flat_.multiply_adds * r.n;
}

}  // namespace cuda
}  // namespace pixelfast
