// What sanitizers watch. Programs, as tests/native_programs.py writes them, give the same bits on every
// instruction set, for every number of threads and for several callers at a time; launches that meet wait for
// each other; a run can be stopped. With a second argument, short programs are damaged on purpose, word by
// word: each is refused, or runs within its buffers.
//
//     native_tests FOLDER [damage]
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/runtime.h"
#include "cuda/device_emulated.h"
#include "cuda/runtime.h"
#include "tests/replay.h"

extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  // A damaged program may ask for any amount of memory: that it does not get it is no error.
  return "allocator_may_return_null=1:max_allocation_size_mb=256";
}

namespace pixelfast {
namespace {

constexpr size_t kShort = 2000;                    // words of a program that is damaged
constexpr int64_t kMostFloats = int64_t{1} << 24;  // of images or conditions of a damaged program
constexpr int kDamagedImages = 2;
constexpr int64_t kOnDevice = 100;        // one of so many damaged programs runs by the device code, too,
constexpr int64_t kMostPositions = 2000;  // if it has no more positions
constexpr size_t kMostLaunches = 300;     // and launches
constexpr size_t kShared = 200'000;       // bytes of shared memory of a device
constexpr int kPairs = 4;                 // random damage to two words, per word of the program

struct File {
  std::string name;
  std::vector<int32_t> words;
  std::vector<float> data;
};

struct Result {
  std::vector<int32_t> images;
  std::vector<float> log_prob;

  bool operator==(const Result& other) const {
    return images == other.images &&
           std::memcmp(log_prob.data(), other.log_prob.data(), log_prob.size() * sizeof(float)) == 0;
  }
};

struct Stopped : std::runtime_error {
  Stopped() : std::runtime_error("stopped") {}
};

// Words, data: each a count, then as many numbers of four bytes.
File read(const std::filesystem::path& path) {
  File file{path.filename().string(), {}, {}};
  std::ifstream in(path, std::ios::binary);
  const auto fill = [&in](auto& numbers) {
    int32_t n = 0;
    in.read(reinterpret_cast<char*>(&n), sizeof n);
    numbers.resize(n);
    in.read(reinterpret_cast<char*>(numbers.data()), n * static_cast<std::streamsize>(sizeof numbers[0]));
  };
  fill(file.words);
  fill(file.data);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return file;
}

Engine load(const File& file, const Kernels& kernels, const Bf16Kernels* bf16 = nullptr) {
  return Engine(file.words.data(), static_cast<int64_t>(file.words.size()), file.data.data(),
                static_cast<int64_t>(file.data.size()), kernels, bf16);
}

// Those of the bf16 mode, where the machine has it.
const Bf16Kernels* bf16_kernels(const Kernels& kernels) {
  try {
    return &find_bf16_kernels(kernels);
  } catch (const std::invalid_argument&) {
    return nullptr;
  }
}

constexpr int kForever = std::numeric_limits<int>::max();

// How a run is shared; it is stopped when `progress` is called for the `patience`-th time.
struct How {
  int threads = 1, team = 0, chunk = 0, patience = kForever;
  int64_t resident_nbytes = -1;  // on a device,
  int spread = -1;               // likewise
};

// A third of the pixels are given.
template <class AnyRequest, class AnyEngine>
Result run_as(AnyEngine& engine, int n, How how) {
  const Program& p = engine.program();
  const int64_t size = int64_t{n} * p.colours * p.height * p.width;
  Result result{std::vector<int32_t>(size), std::vector<float>(size)};
  std::vector<uint8_t> given(size);
  std::vector<float> conditions(n * p.condition_floats);
  for (int64_t i = 0; i < size; ++i)
    result.images[i] = static_cast<int32_t>(i % p.levels), given[i] = i % 3 == 0;
  for (size_t i = 0; i < conditions.size(); ++i) conditions[i] = static_cast<float>(i % 17) * 0.25f - 2.0f;
  AnyRequest request{};
  request.n = n;
  request.images = result.images.data();
  request.log_prob = result.log_prob.data();
  request.given = given.data();
  request.conditions = conditions.empty() ? nullptr : conditions.data();
  request.seed = 5;
  if constexpr (std::is_same_v<AnyRequest, CpuRequest>) {
    request.threads = how.threads;
  } else {
    request.resident_nbytes = how.resident_nbytes, request.spread = how.spread;
  }
  request.team = how.team;
  request.chunk = how.chunk;
  engine.run(request, [&how](double) {
    if (--how.patience == 0) throw Stopped();
  });
  return result;
}

Result run(const Engine& engine, int n, How how) { return run_as<CpuRequest>(engine, n, how); }

void require(bool good, const File& file, const std::string& what) {
  if (!good) throw std::runtime_error(file.name + ": " + what);
}

void check_bits(const File& file) {
  constexpr int kImages = 5;
  const Result want = run(load(file, *usable_kernels()[0]), kImages, {1, 1, 1});
  for (const Kernels* kernels : usable_kernels()) {
    const Engine engine = load(file, *kernels);
    for (const How how :
         {How{1, 1, 5}, How{1}, How{3}, How{3, 1, 2}, How{2, 2, 1}, How{3, 3, 2}, How{4, 2, 3}}) {
      require(run(engine, kImages, how) == want, file,
              std::string("other bits on ") + kernels->name + ", threads " + std::to_string(how.threads) +
                  ", team " + std::to_string(how.team) + ", chunk " + std::to_string(how.chunk));
    }
  }
}

void check_bf16(const File& file) {
  const Kernels& kernels = *usable_kernels().back();
  const Bf16Kernels* bf16 = bf16_kernels(kernels);
  if (bf16 == nullptr) return;
  const Engine engine = load(file, kernels, bf16);
  const Result want = run(engine, 5, {1, 1, 1});
  for (const How how : {How{1}, How{3, 1, 2}, How{4, 2, 3}}) {
    require(run(engine, 5, how) == want, file, "other bits in the bf16 mode");
  }
}

// As the cuda runtime, by its device code on fibers, of which the thread sanitizer knows nothing.
[[maybe_unused]] cuda::Engine load_on_device(const File& file, bool bf16, bool matrices,
                                             size_t shared_nbytes) {
  cuda::emulated.capability = matrices ? 80 : 75;
  cuda::emulated.shared_nbytes = shared_nbytes;
  return cuda::Engine(file.words.data(), static_cast<int64_t>(file.words.size()), file.data.data(),
                      static_cast<int64_t>(file.data.size()), 0, bf16);
}

void check_device(const File& file) {
#ifndef __SANITIZE_THREAD__
  // By every barrier, with weights in shared memory and without, in both orders.
  const auto check = [&](cuda::Engine engine, const Result& want, const char* what) {
    int spread = 0;
    for (const How how : {How{1, 1, 3}, How{1, 2, 2}, How{1, 1, 1}, How{1, 3, 2}}) {
      for (const int64_t resident_nbytes : {0, 3000, 200'000}) {
        How near = how;
        near.resident_nbytes = resident_nbytes, near.spread = spread = 1 - spread;
        require(run_as<cuda::DeviceRequest>(engine, 3, near) == want, file, what);
      }
    }
  };
  check(load_on_device(file, false, false, kShared), run(load(file, *usable_kernels().back()), 3, {1, 1, 1}),
        "other bits in the device code");
  for (const bool matrices : {false, true}) {
    cuda::Engine engine = load_on_device(file, true, matrices, kShared);
    const Result want = run_as<cuda::DeviceRequest>(engine, 3, {1, 3, 1});
    check(std::move(engine), want, "other bits in the bf16 mode of the device code");
  }
#else
  (void)file;
#endif
}

// In every order: as they are, and as if none were split; and that the replay would find that they are
// missing.
void check_waits(const File& file) {
  const Program program =
      decode_program(file.words.data(), static_cast<int64_t>(file.words.size()), file.data.size());
  const Waits as_is = find_waits(program);
  std::vector<int32_t> order(program.launches.size());
  std::iota(order.begin(), order.end(), 0);
  for (const auto& each : {order, reorder(program, as_is, false), reorder(program, as_is, true)}) {
    require(std::is_permutation(order.begin(), order.end(), each.begin(), each.end()), file,
            "other launches");
    Waits waits = find_waits(program, each);
    require(waits.n_any == as_is.n_any, file, "there are more waits, or fewer");
    Replay(program, each, waits).check();
    for (size_t i = 0; i + 1 < waits.any.size(); ++i) waits.arrives[i] = waits.any[i + 1];
    Replay(program, each, waits).check();
    waits.any.assign(waits.any.size(), false), waits.arrives = waits.any;
    bool missed = false;
    try {
      Replay(program, each, waits).check();
    } catch (const std::runtime_error&) {
      missed = true;
    }
    require(missed, file, "nobody misses the waits");
  }
}

void check_callers(const File& file) {
  const Engine engine = load(file, *usable_kernels().back());
  const Result want = run(engine, 4, {});
  std::atomic<int> good{0};
  std::vector<std::thread> callers;
  for (int team = 1; team <= 4; ++team) {
    callers.emplace_back([&, team] {
      for (int k = 0; k < 3; ++k) good += run(engine, 4, {2, team, 1}) == want;
    });
  }
  for (std::thread& caller : callers) caller.join();
  require(good == 12, file, "callers at the same time get other bits");
}

void check_stopping(const File& file) {
  const Engine engine = load(file, *usable_kernels()[0]);
  for (int n = 64; n <= 1 << 20; n *= 2) {
    try {
      run(engine, n, {4, 2, 2, 1});
    } catch (const Stopped&) {
      return;
    }
  }
  require(false, file, "a run was not stopped");
}

struct Tally {
  int64_t refused = 0, large = 0, ran = 0, stopped = 0;
};

// A short damaged program, by the device code, shared in another way each `turn`.
void run_damaged_on_device(const File& file, const Program& p, int64_t turn) {
#ifndef __SANITIZE_THREAD__
  int64_t positions = 0;
  for (const Launch& launch : p.launches) positions += launch.positions;
  if (positions > kMostPositions || p.launches.size() > kMostLaunches) return;
  for (const bool bf16 : {false, true}) {
    cuda::Engine engine = load_on_device(file, bf16, turn / 2 % 2 == 0, turn % 2 == 0 ? 0 : kShared);
    How how{1, 1 + static_cast<int>(turn % 3)};
    how.resident_nbytes = kShared;
    run_as<cuda::DeviceRequest>(engine, 1, how);
  }
#else
  (void)file, (void)p, (void)turn;
#endif
}

// On every instruction set, where it is not refused.
void run_damaged(const File& file, Tally& tally) {
  for (const Kernels* kernels : usable_kernels()) {
    try {
      const Engine engine = load(file, *kernels);
      const Program& p = engine.program();
      const double pixels = 1.0 * p.colours * p.height * p.width;
      if (kDamagedImages * std::max<double>(pixels, p.condition_floats) > kMostFloats) {
        ++tally.large;
        return;
      }
      const int team = 1 + static_cast<int>(tally.ran % 2);
      run(engine, kDamagedImages, {team, team, 0, 10});
      ++tally.ran;
      if (tally.ran % kOnDevice == 0) run_damaged_on_device(file, p, tally.ran / kOnDevice);
    } catch (const Stopped&) {
      ++tally.stopped;
    } catch (const std::bad_alloc&) {
      ++tally.large;
    } catch (const std::invalid_argument&) {  // where logits are flawed, too
      ++tally.refused;
    }
  }
}

void damage(const File& file) {
  Tally tally;
  std::mt19937 random(1);
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max(), kLeast = std::numeric_limits<int32_t>::min();
  const auto values = [&](int32_t word) {
    const auto wrapped = [](int64_t x) { return static_cast<int32_t>(static_cast<uint32_t>(x)); };
    return std::vector<int32_t>{0,
                                1,
                                -1,
                                2,
                                wrapped(int64_t{word} + 1),
                                wrapped(int64_t{word} - 1),
                                wrapped(-int64_t{word}),
                                wrapped(2 * int64_t{word}),
                                kMost,
                                kLeast,
                                static_cast<int32_t>(kMaxSide),
                                static_cast<int32_t>(random()),
                                static_cast<int32_t>(random() % 64),
                                file.words[random() % file.words.size()]};
  };
  File damaged = file;
  for (size_t i = 0; i < file.words.size(); ++i) {
    for (const int32_t value : values(file.words[i])) {
      if (value == file.words[i]) continue;
      damaged.words[i] = value;
      run_damaged(damaged, tally);
    }
    damaged.words[i] = file.words[i];
    for (int k = 0; k < kPairs; ++k) {
      const size_t j = random() % file.words.size();
      for (const size_t at : {i, j}) {
        const std::vector<int32_t> choice = values(file.words[at]);
        damaged.words[at] = choice[random() % choice.size()];
      }
      run_damaged(damaged, tally);
      damaged.words[i] = file.words[i], damaged.words[j] = file.words[j];
    }
  }
  std::printf("%s: damaged, %lld refused, %lld ran, %lld stopped, %lld too large to run\n", file.name.c_str(),
              static_cast<long long>(tally.refused), static_cast<long long>(tally.ran),
              static_cast<long long>(tally.stopped), static_cast<long long>(tally.large));
  require(tally.refused > 0 && tally.ran > 0, file, "damage was always refused, or never");
}

int check_folder(const char* folder, bool damages) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  if (paths.empty()) throw std::runtime_error(std::string("no programs in ") + folder);
  for (const std::filesystem::path& path : paths) {
    const File file = read(path);
    check_waits(file);
    check_bits(file);
    check_bf16(file);
    check_device(file);
    check_callers(file);
    check_stopping(file);
    if (damages && file.words.size() <= kShort) damage(file);
    std::printf("%s: good, %zu words\n", file.name.c_str(), file.words.size());
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace pixelfast

int main(int argc, char** argv) {
  const bool damages = argc == 3 && std::string(argv[2]) == "damage";
  if (argc != 2 && !damages) {
    std::fprintf(stderr, "native_tests FOLDER [damage]\n");
    return 2;
  }
  try {
    return pixelfast::check_folder(argv[1], damages);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
