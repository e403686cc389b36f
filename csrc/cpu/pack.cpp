// What the engine prepares once: weights in the order that the kernels read them, expressions with registers
// assigned, and the sizes of everything that a walk needs.
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <tuple>
#include <utility>

#include "core/bf16.h"
#include "cpu/walker.h"

namespace pixelfast {
namespace {

constexpr int64_t kAlign = 16;             // floats to a cache line
constexpr int64_t kHugePage = 512 * 1024;  // floats to one of two megabytes

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

constexpr int64_t kPairs = 8;  // that Bf16Kernels::round writes at a time

float pair_of(float first, float second) {
  const uint32_t bits = bf16_of(first) | static_cast<uint32_t>(bf16_of(second)) << 16;
  float pair;
  std::memcpy(&pair, &bits, sizeof pair);
  return pair;
}

bool is_binary(const Instruction& i) { return i.fn > Fn::scalar && i.fn <= Fn::max; }

// Rows that one binary function reads, beside a result, are read where they lie, if nothing is stored
// meanwhile. `value`: of each instruction, whose value it has; `uses`: of that.
std::vector<bool> rows_read_there(const std::vector<Instruction>& code, const std::vector<int>& value,
                                  const std::vector<int>& uses) {
  std::vector<bool> found(code.size(), false);
  for (size_t i = 0; i < code.size(); ++i) {
    if (!is_binary(code[i])) continue;
    const int a = value[code[i].a], b = value[code[i].b];
    for (const auto& [mine, other] : {std::pair{a, b}, std::pair{b, a}}) {
      const bool row = code[mine].fn == Fn::load || code[mine].fn == Fn::vector;
      if (!row || uses[mine] > 1 || code[other].fn == Fn::scalar || found[other]) continue;
      found[mine] = std::none_of(code.begin() + mine, code.begin() + i,
                                 [](const Instruction& between) { return between.fn == Fn::store; });
    }
  }
  return found;
}

// Assigns slots to results: one is free again after its last use.
void pack_expression(const OpRecord& op, PackedOp& packed) {
  const std::vector<Instruction>& code = op.instructions;
  const int n = static_cast<int>(code.size());
  std::vector<int> value(n);           // the instruction whose value it has: a store has that of its operand
  std::vector<int> last_use(n, -1);    // of that value
  std::vector<int> uses(n, 0);         // of that value
  std::vector<bool> as_row(n, false);  // a scalar that is needed as a row, not only as an operand beside one
  const auto is_scalar = [&](int i) { return code[i].fn == Fn::scalar; };
  for (int i = 0; i < n; ++i) {
    value[i] = code[i].fn == Fn::store ? value[code[i].a] : i;
    if (code[i].fn <= Fn::scalar) continue;
    const int a = value[code[i].a], b = is_binary(code[i]) ? value[code[i].b] : a;
    last_use[a] = last_use[b] = i;
    ++uses[a], ++uses[b];
    if (is_scalar(a) && is_scalar(b)) as_row[a] = true;
  }
  if (n > 0) last_use[n - 1] = n, as_row[n - 1] = true;  // the output
  const std::vector<bool> read_there = rows_read_there(code, value, uses);
  std::vector<int> free_slots;
  const auto release = [&](int operand, int i) {
    const int slot = packed.steps[operand].slot;
    if (slot >= 0 && last_use[operand] == i) free_slots.push_back(slot), last_use[operand] = -1;
  };
  for (int i = 0; i < n; ++i) {
    const Instruction& instruction = code[i];
    Step step{instruction.fn, -1, -1, -1, -1, -1, -1, false, 0.0f};
    bool stored = true;
    if (instruction.fn == Fn::product) {
      const auto found = std::find(packed.parts.begin(), packed.parts.end(), instruction.a);
      step.part = static_cast<int>(found - packed.parts.begin());
      stored = false;
    } else if (instruction.fn < Fn::scalar || instruction.fn == Fn::store) {
      step.leaf = static_cast<int>(packed.leaves.size());
      packed.leaves.push_back(instruction);
      stored = instruction.fn != Fn::store && !read_there[i];
    } else if (instruction.fn == Fn::scalar) {
      std::memcpy(&step.scalar, &instruction.a, sizeof step.scalar);
      stored = as_row[i];
    }
    if (instruction.fn > Fn::scalar) {
      const auto operand = [&](int j) {
        if (read_there[j]) return step.row = packed.steps[j].leaf, -1;
        if (!is_scalar(j) || as_row[j]) return j;
        step.scalar = packed.steps[j].scalar;
        return -1;
      };
      step.a = operand(value[instruction.a]);
      if (is_binary(instruction)) step.b = operand(value[instruction.b]);
      if (step.a >= 0) release(step.a, i);
      if (step.b >= 0) release(step.b, i);
    }
    step.output = i + 1 == n && instruction.fn > Fn::scalar && instruction.fn != Fn::store;
    if (stored && !step.output) {
      if (free_slots.empty()) free_slots.push_back(packed.n_slots++);
      step.slot = free_slots.back();
      free_slots.pop_back();
      if (last_use[i] < 0) free_slots.push_back(step.slot);  // nobody reads it
    }
    packed.steps.push_back(step);
  }
}

// Whether an expression is a product, and what can happen to it in registers: then that is `after`, in place
// of the steps.
void follow_product(PackedOp& packed) {
  if (packed.parts.size() != 1) return;
  int value = -1;  // the step that has it
  std::vector<Step> after;
  for (int i = 0; i < static_cast<int>(packed.steps.size()); ++i) {
    const Step& step = packed.steps[i];
    const bool a = step.a == value, b = step.b == value;
    if (step.fn == Fn::product && value < 0) {
      value = i;
    } else if ((step.fn == Fn::load || step.fn == Fn::vector) && step.slot < 0) {
      continue;  // read where it is added
    } else if (value >= 0 && (step.fn == Fn::add && step.row >= 0 ? a || b : step.fn == Fn::relu && a)) {
      after.push_back(step), value = i;
    } else if (value >= 0 && step.fn == Fn::store && a) {
      after.push_back(step);
    } else {
      return;
    }
  }
  if (value + 1 != static_cast<int>(packed.steps.size())) return;
  packed.after = std::move(after);
  packed.steps.clear();
  packed.n_slots = 0;
}

// The parts of an op's product, and its output channels as tasks: those whose parts together fill the vectors
// that are computed at once. Returns the floats of its weights and biases, which begin at `at`.
int64_t pack_tasks(const OpRecord& op, int lanes, int64_t at, PackedOp& packed) {
  if (op.op == Op::conv && op.instructions.empty()) packed.parts.push_back(0);
  for (const Instruction& i : op.instructions) {
    const auto end = packed.parts.end();
    if (i.fn == Fn::product && std::find(packed.parts.begin(), end, i.a) == end) packed.parts.push_back(i.a);
  }
  const int parts = static_cast<int>(packed.parts.size());
  const int most = parts > 0 ? std::max(kVectors / parts, 1) : (op.channels + lanes - 1) / lanes;
  const int64_t start = at;
  for (int channel = 0; channel < op.channels; channel += most * lanes) {
    const int channels = std::min(op.channels - channel, most * lanes);
    Task task{channel, channels, (channels + lanes - 1) / lanes, static_cast<int>(packed.panels.size()), 0};
    for (int part = 0; part < parts; part += kVectors) {
      const Panel panel{at, 0, part, std::min(parts - part, kVectors)};
      const int64_t width = static_cast<int64_t>(panel.parts) * task.vectors * lanes;
      packed.panels.push_back({at, at + packed.depth * width, panel.first_part, panel.parts});
      packed.weights_nbytes += packed.depth * width * static_cast<int64_t>(sizeof(float));
      at = round_up(at + (packed.depth + 1) * width, kAlign);
      ++task.n_panels;
    }
    packed.vectors += task.vectors;
    packed.tasks.push_back(task);
  }
  return at - start;
}

}  // namespace

AlignedFloats::AlignedFloats(int64_t n) : size_(n) {
  if (n == 0) return;
  const int64_t align = n < 2 * kHugePage ? kAlign : kHugePage;
  // calloc, since it hands out zero pages that cost nothing until they are touched.
  memory_.reset(std::calloc(static_cast<size_t>(n + align), sizeof(float)));
  if (!memory_) throw std::bad_alloc();
  const auto address = reinterpret_cast<uintptr_t>(memory_.get());
  const uintptr_t step = align * sizeof(float);
  aligned_ = reinterpret_cast<float*>((address + step - 1) / step * step);
#ifdef __linux__
  // Walks through large memory miss the buffers of small pages; where there are no others it stays as it is.
  if (align == kHugePage) madvise(aligned_, n / kHugePage * step, MADV_HUGEPAGE);
#endif
#ifdef __SANITIZE_ADDRESS__
  const char* end = static_cast<char*>(memory_.get()) + (n + align) * sizeof(float);
  ASAN_POISON_MEMORY_REGION(aligned_ + n, end - reinterpret_cast<char*>(aligned_ + n));
#endif
}

void AlignedFloats::Free::operator()(void* p) const { std::free(p); }

Engine::Engine(const int32_t* words, int64_t n_words, const float* data, int64_t n_data,
               const Kernels& kernels, const Bf16Kernels* bf16)
    : kernels_(kernels),
      bf16_(bf16),
      program_(decode_program(words, n_words, n_data)),
      data_(keep_data(program_, data)) {
  ops_.resize(program_.ops.size());
  int64_t size = 0, widest = program_.levels;
  for (size_t i = 0; i < ops_.size(); ++i) {
    const OpRecord& op = program_.ops[i];
    PackedOp& packed = ops_[i];
    for (const Tap& tap : op.taps) {
      packed.tap_channels.push_back(tap.channels);
      packed.depth += bf16 != nullptr ? (tap.channels + 1) / 2 : tap.channels;
      widest = std::max<int64_t>(widest, tap.channels);
    }
    if (bf16 != nullptr && !op.taps.empty()) {  // as one tap
      packed.depth = round_up(packed.depth, bf16->deep);
      packed.tap_channels.assign(1, static_cast<int32_t>(packed.depth));
      most_rounded_ = std::max(most_rounded_, packed.depth + kPairs);
    }
    if (op.op == Op::conv || op.op == Op::map) size += pack_tasks(op, kernels.lanes, size, packed);
    pack_expression(op, packed);
    follow_product(packed);
    if (op.op == Op::attend) {
      attends_ = true;
      const int64_t keys = program_.buffers[op.attention.key.buffer].width;
      most_scores_ = std::max(most_scores_, op.attention.heads * (round_up(keys, 16) + 1));
    }
    widest = std::max<int64_t>(widest, std::max(op.channels, op.product_channels));
    most_slots_ = std::max(most_slots_, packed.n_slots);
    most_products_ =
        std::max<int64_t>(most_products_, std::max<int64_t>(packed.parts.size(), kVectors) * kernels.lanes);
  }
  packed_ = AlignedFloats(size);
  zeros_ = AlignedFloats(widest);
  for (size_t i = 0; i < ops_.size(); ++i) pack(i, data);
  for (const Buffer& b : program_.buffers) {
    Places places;
    for (int32_t y = 0; y < b.height; ++y) places.rows.push_back(b.offset + y % b.rows * b.row_stride);
    for (int32_t x = 0; x < b.width; ++x) places.columns.push_back(x % b.columns * b.col_stride);
    places_.push_back(std::move(places));
  }
  for (size_t i = 0; i < ops_.size(); ++i) {
    find_reads(program_.ops[i], ops_[i]);
    most_reads_ = std::max(most_reads_, ops_[i].reads.size());
  }
  // An odd number of cache lines, so that the images' rows do not all fall into the same sets of the cache.
  arena_stride_ = round_up(program_.arena_floats, kAlign);
  if (arena_stride_ / kAlign % 2 == 0) arena_stride_ += kAlign;
  int64_t read = 0;
  std::vector<int64_t> positions;
  loads_.resize(ops_.size());
  std::vector<int64_t> before(ops_.size());
  const Launch* last = nullptr;
  for (const Launch& launch : program_.launches) {
    PackedOp& packed = ops_[launch.op];
    if (last != nullptr && packed.alike < 0 && same_positions(program_, *last, launch)) {
      find_shifts(last->op, packed);
    }
    last = &launch;
    positions.push_back(launch.positions);
    read += packed.weights_nbytes;
    Load& load = loads_[launch.op];
    load.launches += 1, load.positions += launch.positions;
    load.since_nbytes += read - before[launch.op];
    before[launch.op] = read;
  }
  for (size_t i = 0; i < ops_.size(); ++i) {
    const Attention& a = program_.ops[i].attention;
    if (program_.ops[i].op != Op::attend) continue;
    int64_t keys = 0;
    for (size_t r = 0; r < a.runs.size(); r += 2) keys += a.runs[r + 1] - a.runs[r];
    loads_[i].head_work = static_cast<double>(keys) * (a.key_channels + a.value_channels) /
                          program_.buffers[program_.ops[i].buffer].width;
  }
  for (Load& load : loads_) load.since_nbytes /= std::max<int64_t>(load.launches, 1);
  if (positions.empty()) return;
  std::nth_element(positions.begin(), positions.begin() + positions.size() / 2, positions.end());
  typical_positions_ = positions[positions.size() / 2];
}

Engine::~Engine() = default;

void Engine::find_reads(const OpRecord& op, PackedOp& packed) const {
  static const int64_t origin = 0;
  const auto read = [&](int32_t buffer, int channel, int stride_y, int stride_x, int dy, int dx) {
    const Buffer& b = program_.buffers[buffer];
    const Places& places = places_[buffer];
    packed.reads.push_back({places.rows.data(), places.columns.data(), b.height, b.width, stride_y, stride_x,
                            dy, dx, static_cast<int>(b.space), channel});
  };
  if (op.op == Op::attend) return;
  for (const Tap& tap : op.taps) read(tap.buffer, tap.channel, op.stride_y, op.stride_x, tap.dy, tap.dx);
  if (op.start.buffer >= 0) read(op.start.buffer, op.start.channel, 1, 1, 0, 0);
  for (const Instruction& leaf : packed.leaves) {
    if (leaf.fn == Fn::vector) {  // the same for all rows
      packed.reads.push_back({&origin, &origin, 1, 1, 0, 0, 0, 0, static_cast<int>(Space::data), leaf.a});
    } else if (leaf.fn == Fn::store) {
      read(leaf.b, leaf.c, 1, 1, 0, 0);
    } else {
      read(leaf.a, leaf.b, 1, 1, leaf.c, leaf.d);
    }
  }
  read(op.buffer, op.channel, 1, 1, 0, 0);
}

// Where each of the reads of an op is that of another, so many floats on.
void Engine::find_shifts(int32_t before, PackedOp& packed) const {
  const std::vector<Read>&a = ops_[before].reads, &b = packed.reads;
  if (a.size() != b.size() || b.empty()) return;
  std::vector<int64_t> shifts;
  for (size_t k = 0; k < b.size(); ++k) {
    const auto sizes = [](const Read& r) {
      return std::tuple{r.height, r.width, r.stride_y, r.stride_x, r.dy, r.dx, r.space};
    };
    if (sizes(a[k]) != sizes(b[k])) return;
    const int64_t row = b[k].rows[0] - a[k].rows[0], column = b[k].columns[0] - a[k].columns[0];
    for (int y = 0; y < b[k].height; ++y) {
      if (b[k].rows[y] - a[k].rows[y] != row) return;
    }
    for (int x = 0; x < b[k].width; ++x) {
      if (b[k].columns[x] - a[k].columns[x] != column) return;
    }
    shifts.push_back(row + column + b[k].channel - a[k].channel);
  }
  packed.alike = before;
  packed.shifts = std::move(shifts);
}

void Engine::pack(size_t index, const float* data) {
  const OpRecord& op = program_.ops[index];
  const PackedOp& packed = ops_[index];
  for (const Task& task : packed.tasks) {
    const int64_t width = static_cast<int64_t>(task.vectors) * kernels_.lanes;
    for (int p = task.first_panel; p < task.first_panel + task.n_panels; ++p) {
      const Panel& panel = packed.panels[p];
      for (int part = 0; part < panel.parts; ++part) {
        const int64_t column = packed.parts[panel.first_part + part] + task.channel;
        float* weights = packed_.get() + panel.weights + part * width;
        const auto row = [&](int64_t k) { return data + op.weight + k * op.product_channels + column; };
        const int64_t stride = panel.parts * width;
        int64_t k = 0;
        for (const Tap& tap : op.taps) {
          for (int32_t i = 0; i < tap.channels; weights += stride) {
            if (bf16_ == nullptr) {
              std::copy_n(row(k + i++), task.channels, weights);
              continue;
            }
            const float* second = i + 1 < tap.channels ? row(k + i + 1) : nullptr;
            for (int c = 0; c < task.channels; ++c) {
              weights[c] = pair_of(row(k + i)[c], second != nullptr ? second[c] : 0.0f);
            }
            i += 2;
          }
          k += tap.channels;
        }
        if (op.bias < 0) continue;
        std::copy_n(data_.data() + op.bias + column, task.channels,
                    packed_.get() + panel.bias + part * width);
      }
    }
  }
}

}  // namespace pixelfast
