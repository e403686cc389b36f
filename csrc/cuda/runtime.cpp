#include "cuda/runtime.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
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

// Cycles, by which crews are compared. They are guesses until they are measured on a GPU.
constexpr double kFarStepCycles = 10;       // a step of the chains of a tile, its weights in memory
constexpr double kNearStepCycles = 5;       // or in the block's
constexpr double kFarMatrixCycles = 60;     // kMatrixDepth steps by tensor cores
constexpr double kNearMatrixCycles = 40;    // likewise
constexpr double kFarLaunchCycles = 1500;   // finding rows and places by tables in memory
constexpr double kNearLaunchCycles = 500;   // or in the block's
constexpr double kBlockWaitCycles = 100;    // for the threads of a block
constexpr double kClusterWaitCycles = 500;  // for the blocks of a cluster
constexpr double kTeamWaitCycles = 3000;    // for other blocks, through memory

constexpr unsigned long long kNoFlaw = ~0ull;

// Says what is wrong, and where: as `Walk::flaw` does, from image `first` on.
[[noreturn]] void refuse(unsigned long long flaw, const Program& p, int64_t first) {
  const auto place = static_cast<int64_t>(flaw / 4), plane = place / p.width / p.height;
  const int64_t x = place % p.width, y = place / p.width % p.height;
  throw std::invalid_argument(
      flaw_message(static_cast<Flaw>(flaw % 4), first + plane / p.colours, y, x, plane % p.colours));
}

const char* name_of(Barrier barrier) {
  return barrier == Barrier::block ? "block" : barrier == Barrier::cluster ? "cluster" : "memory";
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

Engine::Engine(const int32_t* words, int64_t n_words, const float* data, int64_t n_data, int device,
               bool bf16)
    : program_(decode_program(words, n_words, n_data)),
      device_(device_info(checked_device(device))),
      data_(bf16 ? sent(device, keep_data(program_, data)) : sent(device, data, static_cast<size_t>(n_data))),
      flat_(program_, bf16 ? data : nullptr),
      urgent_(by_urgency(flat_)),
      attention_(sent(device, flat_.attention)),
      positions_(sent(device, flat_.positions)),
      launches_(sent(device, flat_.launches)),
      spread_(sent(device, flat_.spread)),
      halves_(sent(device, flat_.halves)) {
  for (const FlatOp& op : flat_.ops) weights_nbytes_ += weights_nbytes(op);
}

std::optional<Engine::Crew> Engine::crew_of(const DeviceRequest& r, int blocks,
                                            size_t resident_nbytes) const {
  Residency kept = keep(flat_, urgent_, blocks, std::min(resident_nbytes, device_.shared_nbytes));
  const int most = teams_at_once(device_.index, blocks, barrier_of(blocks), kept.shared_nbytes);
  if (most == 0 && kept.shared_nbytes > 0) return crew_of(r, blocks, 0);  // there are not as many such blocks
  if (most == 0) return std::nullopt;
  const int64_t rows = std::numeric_limits<int32_t>::max() / flat_.most_positions;  // of a launch, in 31 bits
  int64_t images = std::min<int64_t>(r.chunk > 0 ? r.chunk : (r.n + most - 1) / most, r.n);
  images = std::clamp<int64_t>(images, 1, std::max<int64_t>(rows, 1));
  const int64_t chunks = (r.n + images - 1) / images;
  Crew crew{static_cast<int>(std::min<int64_t>(most, chunks)), blocks, static_cast<int>(images),
            std::move(kept), false};
  const double as_is = cost(crew, r.n);
  crew.spread = true;
  crew.spread = !flat_.spread.empty() && (r.spread < 0 ? cost(crew, r.n) < as_is : r.spread > 0);
  return crew;
}

size_t Engine::held_nbytes() const {
  return attention_.nbytes() + positions_.nbytes() + launches_.nbytes() + spread_.nbytes() + data_.nbytes() +
         halves_.nbytes();
}

// What a run takes besides its batch.
size_t Engine::nbytes_of(const Crew& crew) const {
  const size_t threads = static_cast<size_t>(crew.teams) * crew.blocks * device_.threads;
  const size_t arenas =
      static_cast<size_t>(crew.teams) * crew.chunk * std::max<int64_t>(program_.arena_floats, 1);
  const size_t registers = static_cast<size_t>(flat_.most_instructions) * kElements * threads;
  const size_t tables = threads / 32 * (flat_.most_keys + 3 * static_cast<size_t>(program_.levels));
  return (arenas + registers + tables) * sizeof(float) + crew.teams * sizeof(TeamState) +
         flat_.tables_nbytes();
}

Engine::Crew Engine::fitting(Crew crew, size_t room) const {
  while (nbytes_of(crew) > room) {
    if (crew.chunk == 1 && crew.teams == 1) {
      throw std::invalid_argument("[cuda] an image needs " + std::to_string(nbytes_of(crew)) + " bytes of " +
                                  device_.name + ", which has " + std::to_string(room) + " to spare");
    }
    (crew.chunk > 1 ? crew.chunk : crew.teams) /= 2;
  }
  return crew;
}

Barrier Engine::barrier_of(int blocks) const {
  if (blocks == 1) return Barrier::block;
  return blocks <= device_.cluster ? Barrier::cluster : Barrier::memory;
}

double Engine::cost(const Crew& crew, int64_t n) const {
  const Barrier barrier = barrier_of(crew.blocks);
  const double wait = barrier == Barrier::block     ? kBlockWaitCycles
                      : barrier == Barrier::cluster ? kClusterWaitCycles
                                                    : kTeamWaitCycles;
  const double far = matrices() ? kFarMatrixCycles : kFarStepCycles;
  const double near = matrices() ? kNearMatrixCycles : kNearStepCycles;
  const int32_t rows = matrices() ? kMatrixRows : kElements, columns = matrices() ? kGroup : 1;
  const double threads =
      static_cast<double>(device_.threads) / (matrices() ? 32 : 1);  // or warps, of a block
  // Of launches that do not wait: of a thread on average, and the most that one must do in one of them.
  // Attention and heads cost no more than finding their rows. What runs between an arrival and its wait hides
  // as much of the wait as it takes.
  double total = 0, work = 0, deepest = 0, arrived = 0;  // arrived: the total when all did
  const auto finish = [&] {
    total += std::max(work, deepest);
    work = deepest = 0;
  };
  for (const FlatLaunch& launch : launches(crew.spread)) {
    if (launch.waits) {
      finish();
      total = barrier == Barrier::block ? total + wait : std::max(total, arrived + wait);
    }
    const FlatOp& op = flat_.ops[launch.op];
    const Resident& resident = crew.kept.residents[launch.op];
    const bool is_near = resident.place >= 0;
    const auto tiles =
        static_cast<double>((static_cast<int64_t>(launch.positions) * crew.chunk + rows - 1) / rows);
    const double groups = (op.channels + columns - 1) / columns;
    const double depth =
        matrices() ? op.steps / (kMatrixDepth / 2.0) : static_cast<double>(program_.ops[launch.op].depth);
    const double sums = depth * op.n_parts * (is_near ? near : far);  // of a tile
    const double turns = is_near ? tiles * resident.width / columns / threads : 1;
    const double start = crew.kept.tables || barrier == Barrier::block ? kNearLaunchCycles : kFarLaunchCycles;
    const double units = tiles * groups / (threads * crew.blocks);  // of a thread
    work += units * sums + std::min(units, 1.0) * start;
    deepest = std::max(deepest, std::max(turns, 1.0) * sums + start);
    if (launch.arrives && barrier != Barrier::block) finish(), arrived = total;
  }
  finish();
  const int64_t chunks = (n + crew.chunk - 1) / crew.chunk;
  return total * static_cast<double>((chunks + crew.teams - 1) / crew.teams);
}

// With weights in shared memory as far as they may be, and without.
std::vector<Engine::Crew> Engine::crews(const DeviceRequest& r) const {
  std::vector<Crew> found;
  const auto add = [&](int blocks, size_t most) {
    std::optional<Crew> crew = crew_of(r, blocks, most);
    if (crew) found.push_back(std::move(*crew));
    return crew && found.back().kept.shared_nbytes > 0;
  };
  const auto add_both = [&](int blocks) {
    if (r.resident_nbytes >= 0) {
      add(blocks, static_cast<size_t>(r.resident_nbytes));
    } else if (add(blocks, device_.shared_nbytes)) {
      add(blocks, 0);
    }
  };
  const int all = std::max(device_.blocks, 1);
  if (r.team > 0) {
    add_both(std::min(r.team, all));
  } else {
    for (int blocks = 1; blocks < all; blocks *= 2) add_both(blocks);
    add_both(all);
  }
  if (found.empty()) {
    throw std::invalid_argument("[cuda] " + device_.name + " cannot run a team" +
                                (r.team > 0 ? " of " + std::to_string(r.team) + " blocks" : ""));
  }
  return found;
}

Engine::Crew Engine::choose_crew(const DeviceRequest& r) const {
  const std::vector<Crew> found = crews(r);
  return *std::min_element(found.begin(), found.end(),
                           [&](const Crew& a, const Crew& b) { return cost(a, r.n) < cost(b, r.n); });
}

std::vector<Estimate> Engine::estimates(const DeviceRequest& r) const {
  std::vector<Estimate> result;
  for (const Crew& crew : crews(r)) {
    result.push_back({crew.teams, crew.blocks, crew.chunk, crew.spread, name_of(barrier_of(crew.blocks)),
                      crew.kept.weights_nbytes, weights_nbytes_, cost(crew, r.n), nbytes_of(crew)});
  }
  return result;
}

// All but its memory.
Walk Engine::walk_of(const DeviceRequest& r, const Crew& crew) const {
  const Program& p = program_;
  Walk walk{};
  walk.program = {nullptr,
                  flat_.table_places(),
                  static_cast<int64_t>(flat_.tables_nbytes() / sizeof(uint32_t)),
                  as<int32_t>(attention_),
                  as<Position>(positions_),
                  as<FlatLaunch>(crew.spread ? spread_ : launches_),
                  as<float>(data_),
                  flat_.halves.empty() ? nullptr : as<uint32_t>(halves_),
                  static_cast<int32_t>(flat_.ops.size()),
                  static_cast<int32_t>(flat_.launches.size()),
                  p.colours,
                  p.height,
                  p.width,
                  p.levels,
                  p.arena_floats,
                  p.condition_floats};
  walk.all_given = r.all_given, walk.n = r.n;
  walk.seed = r.seed, walk.first_index = r.first_index;
  walk.inverse_temperature = r.sampling.inverse_temperature;
  walk.top_k = r.sampling.top_k, walk.top_p = r.sampling.top_p;
  walk.teams = crew.teams, walk.team_blocks = crew.blocks, walk.chunk = crew.chunk;
  walk.threads = device_.threads, walk.barrier = barrier_of(crew.blocks);
  walk.matrices = matrices();
  walk.shared_words = static_cast<int32_t>(crew.kept.shared_nbytes / sizeof(uint32_t));
  walk.tables_near = crew.kept.tables;
  walk.n_scores = flat_.most_keys, walk.most_instructions = flat_.most_instructions;
  return walk;
}

// As many images at a time as leave half of the memory that is free to the arenas.
int64_t Engine::run(const DeviceRequest& r, const std::function<void(double)>& progress) {
  const Program& p = program_;
  const int64_t pixels = static_cast<int64_t>(p.colours) * p.height * p.width;
  const size_t each = r.on_device
                          ? 0
                          : pixels * (sizeof(int32_t) + sizeof(float) + (r.given != nullptr ? 1 : 0)) +
                                p.condition_floats * sizeof(float);
  const size_t room = free_nbytes(device_.index) / 10 * 9;
  const int64_t most = each == 0 ? r.n : std::max<int64_t>(1, static_cast<int64_t>(room / 2 / each));
  for (int64_t first = 0; first < r.n; first += most) {
    DeviceRequest part = r;
    part.n = std::min(most, r.n - first), part.first_index = r.first_index + static_cast<uint64_t>(first);
    part.images += first * pixels, part.log_prob += first * pixels;
    if (part.given != nullptr) part.given += first * pixels;
    if (part.conditions != nullptr) part.conditions += first * p.condition_floats;
    const double share = static_cast<double>(part.n) / r.n, before = static_cast<double>(first) / r.n;
    const size_t batch = part.n * each;
    const Crew crew = fitting(choose_crew(part), room > batch ? room - batch : 0);
    run_part(part, crew, first, [&](double done) { progress(before + done * share); });
  }
  return flat_.multiply_adds * r.n;
}

void Engine::run_part(const DeviceRequest& r, const Crew& crew, int64_t first,
                      const std::function<void(double)>& progress) {
  const Program& p = program_;
  const int device = device_.index;
  const auto pixels = static_cast<size_t>(r.n) * p.colours * p.height * p.width;
  Walk walk = walk_of(r, crew);
  Memory images, log_prob, given, conditions;
  walk.images = r.images, walk.log_prob = r.log_prob, walk.given = r.given, walk.conditions = r.conditions;
  if (!r.on_device) {
    images = sent(device, r.images, pixels), log_prob = sent(device, r.log_prob, pixels);
    walk.images = static_cast<int32_t*>(images.get()), walk.log_prob = static_cast<float*>(log_prob.get());
    if (r.given != nullptr) given = sent(device, r.given, pixels), walk.given = as<uint8_t>(given);
    if (r.conditions != nullptr) {
      conditions = sent(device, r.conditions, static_cast<size_t>(r.n * p.condition_floats));
      walk.conditions = as<float>(conditions);
    }
  }
  const size_t threads = static_cast<size_t>(walk.teams) * walk.team_blocks * walk.threads;
  const size_t warps = threads / 32;
  const auto floats = [&](size_t n) { return Memory(device, n * sizeof(float)); };
  Memory arena = floats(static_cast<size_t>(walk.teams) * walk.chunk * std::max<int64_t>(p.arena_floats, 1));
  arena.clear();
  const Memory registers = floats(static_cast<size_t>(flat_.most_instructions) * kElements * threads);
  const Memory scores = floats(warps * flat_.most_keys);
  const Memory levels = floats(warps * 3 * p.levels);
  Memory states(device, walk.teams * sizeof(TeamState));
  states.clear();
  unsigned long long flaw = kNoFlaw;
  Memory flaws = sent(device, &flaw, 1);
  const Memory tables = sent(device, flat_.tables(crew.kept.residents));
  walk.program.tables = as<uint32_t>(tables);
  walk.arena = static_cast<float*>(arena.get()), walk.registers = static_cast<float*>(registers.get());
  walk.scores = static_cast<float*>(scores.get());
  walk.levels = static_cast<int32_t*>(levels.get());
  walk.states = static_cast<TeamState*>(states.get());
  walk.flaw = static_cast<unsigned long long*>(flaws.get());

  const int64_t chunks = (r.n + walk.chunk - 1) / walk.chunk;
  const double all =
      static_cast<double>(chunks) * static_cast<double>(std::max<size_t>(p.step_ends.size(), 1));
  run_walk(device, walk, r.stream,
           [&](unsigned long long done) { progress(std::min(static_cast<double>(done) / all, 1.0)); });
  flaws.download(&flaw, sizeof flaw);
  if (flaw != kNoFlaw) refuse(flaw, p, first);
  if (r.on_device) return;
  images.download(r.images, pixels * sizeof(int32_t));
  log_prob.download(r.log_prob, pixels * sizeof(float));
}

}  // namespace cuda
}  // namespace pixelfast
