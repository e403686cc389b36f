// The device code that samples: a team of blocks walks a chunk of images through all launches of a program.
// Included where simt.h is CUDA's, and where it is the emulation. Results are those of the cpu runtime, to
// the bit.
#pragma once

#include "core/bf16.h"
#include "cuda/flat.h"
#include "cuda/levels.h"
#include "cuda/simt.h"

namespace pixelfast {
namespace cuda {
namespace {

PIXELFAST_DEVICE inline float fma_of(float a, float b, float c) { return Lanes::fma({a}, {b}, {c}).v; }

PIXELFAST_DEVICE inline float apply(Fn fn, Lanes a, Lanes b) {
  switch (fn) {
    case Fn::add:
      return (a + b).v;
    case Fn::sub:
      return (a - b).v;
    case Fn::mul:
      return (a * b).v;
    case Fn::div:
      return (a / b).v;
    case Fn::gate:
      return vgate(a, b).v;
    case Fn::min:
      return Lanes::min(a, b).v;
    case Fn::max:
      return Lanes::max(a, b).v;
    case Fn::neg:
      return vneg(a).v;
    case Fn::abs:
      return vabs(a).v;
    case Fn::sqrt:
      return Lanes::sqrt(a).v;
    case Fn::exp:
      return vexp(a).v;
    case Fn::log:
      return vlog(a).v;
    case Fn::tanh:
      return vtanh(a).v;
    case Fn::sigmoid:
      return vsigmoid(a).v;
    case Fn::relu:
      return vrelu(a).v;
    case Fn::elu:
      return velu(a).v;
    default:
      return a.v;
  }
}

// A row: an image at a position.
struct Row {
  int32_t y, x;
  int64_t image;  // of the chunk
};

// What the instructions of an expression yield, for each row of a tile.
struct Registers {
  float* start;
  int64_t stride;
  PIXELFAST_DEVICE float& at(int32_t index, int r) const {
    return start[(static_cast<int64_t>(index) * kTileRows + r) * stride];
  }
};

class Walker {
 public:
  PIXELFAST_DEVICE explicit Walker(const Walk& walk)
      : w_(walk),
        p_(walk.program),
        team_(simt::block() / walk.team_blocks),
        rank_(simt::block() % walk.team_blocks * walk.threads + simt::thread()),
        size_(walk.team_blocks * walk.threads) {}

  PIXELFAST_DEVICE void run() {
    for (first_ = static_cast<int64_t>(team_) * w_.chunk; first_ < w_.n;
         first_ += static_cast<int64_t>(w_.teams) * w_.chunk) {
      images_ = w_.n - first_ < w_.chunk ? w_.n - first_ : w_.chunk;
      if (barrier()) return;
      turn_ = rank_;
      for (int i = 0; i < p_.n_launches; ++i) {
        const FlatLaunch& launch = p_.launches[i];
        if (launch.waits) {
          if (barrier()) return;
          turn_ = rank_;
        }
        run_launch(launch);
        steps_ += launch.ends_step, rows_ += launch.positions * images_;
      }
    }
    if (rank_ == 0) simt::fetch_add(w_.done, steps_);
  }

 private:
  // Waits for all threads of the team. Whether all stop: now and then, at the same barriers for all, the
  // first thread asks the host, whose memory is far.
  PIXELFAST_DEVICE bool barrier() {
    TeamState& state = w_.states[team_];
    const bool polls = steps_ >= kPollSteps || rows_ >= kPollRows;
    if (polls) {
      if (rank_ == 0) {
        state.stop[n_polls_ % 2] = simt::load_acquire(w_.stop);
        simt::fetch_add(w_.done, steps_);
      }
      steps_ = 0, rows_ = 0, ++n_polls_;
    }
    switch (w_.barrier) {
      case Barrier::block:
        simt::sync_block();
        break;
      case Barrier::cluster:
        simt::sync_cluster();
        break;
      default:
        wait_in_memory(state);
    }
    return polls && simt::load_acquire(&state.stop[(n_polls_ - 1) % 2]) != 0;
  }

  // The last block to arrive lets the others go.
  PIXELFAST_DEVICE void wait_in_memory(TeamState& state) {
    simt::fence();
    simt::sync_block();
    if (simt::thread() == 0) {
      const int generation = simt::load_acquire(&state.generation);
      if (simt::fetch_add(&state.arrived, 1) == w_.team_blocks - 1) {
        state.arrived = 0;
        simt::fence();
        simt::fetch_add(&state.generation, 1);
      } else {
        while (simt::load_acquire(&state.generation) == generation) simt::relax();
      }
      simt::fence();
    }
    simt::sync_block();
  }

  PIXELFAST_DEVICE Row row_of(const FlatLaunch& launch, int64_t row) const {
    const auto position = static_cast<uint32_t>(row) / static_cast<uint32_t>(images_);
    const Position& at = p_.positions[launch.first_position + position];
    return {at.y, at.x, row - static_cast<int64_t>(position) * images_};
  }

  PIXELFAST_DEVICE const float* base(const FlatBuffer& b, int64_t image) const {
    switch (static_cast<Space>(b.space)) {
      case Space::arena:
        return arena() + image * p_.arena_floats;
      case Space::data:
        return p_.data;
      default:
        return w_.conditions + (first_ + image) * p_.condition_floats;
    }
  }
  PIXELFAST_DEVICE float* arena() const {
    return w_.arena + static_cast<int64_t>(team_) * w_.chunk * p_.arena_floats;
  }

  // One channel of a buffer; null outside the grid.
  PIXELFAST_DEVICE const float* place(int32_t buffer, int32_t channel, const Row& r, int32_t y,
                                      int32_t x) const {
    const FlatBuffer& b = p_.buffers[buffer];
    if (y < 0 || y >= b.height || x < 0 || x >= b.width) return nullptr;
    return base(b, r.image) + p_.places[b.rows + y] + p_.places[b.columns + x] + channel;
  }
  PIXELFAST_DEVICE float* here(int32_t buffer, int32_t channel, const Row& r) const {
    return const_cast<float*>(place(buffer, channel, r, r.y, r.x));
  }

  // Units of work are dealt to the threads in turn, on from launch to launch until they wait for each other.
  PIXELFAST_DEVICE void run_launch(const FlatLaunch& launch) {
    const FlatOp& op = p_.ops[launch.op];
    const int64_t rows = launch.positions * images_;
    int64_t threads = 0;  // that have a unit
    switch (static_cast<Op>(op.op)) {
      case Op::input:
        threads = rows * op.channels;
        for (int64_t k = turn_; k < threads; k += size_) {
          run_input(op, row_of(launch, k / op.channels), static_cast<int32_t>(k % op.channels));
        }
        break;
      case Op::conv:
      case Op::map: {
        threads = (rows + kTileRows - 1) / kTileRows * op.channels;
        for (int64_t k = turn_; k < threads; k += size_) {
          run_tile(op, launch, k / op.channels * kTileRows, rows, static_cast<int32_t>(k % op.channels));
        }
        break;
      }
      case Op::attend:
        threads = rows * op.heads * simt::kWarp;
        for (int64_t k = turn_ / simt::kWarp; k < rows * op.heads; k += size_ / simt::kWarp) {
          run_attention(op, row_of(launch, k / op.heads), static_cast<int32_t>(k % op.heads));
        }
        break;
      default:
        threads = rows * simt::kWarp;
        for (int64_t k = turn_ / simt::kWarp; k < rows; k += size_ / simt::kWarp) {
          run_head(op, row_of(launch, k));
        }
    }
    // By whole warps, which stay together.
    const auto dealt = static_cast<int>((threads + simt::kWarp - 1) / simt::kWarp * simt::kWarp % size_);
    turn_ = turn_ >= dealt ? turn_ - dealt : turn_ - dealt + size_;
  }

  PIXELFAST_DEVICE int64_t pixel(const Row& r, int32_t colour) const {
    return (((first_ + r.image) * p_.colours + colour) * p_.height + r.y) * p_.width + r.x;
  }

  PIXELFAST_DEVICE void run_input(const FlatOp& op, const Row& r, int32_t c) {
    const int32_t found = w_.images[pixel(r, op.colour)];  // the caller's, where nothing was drawn yet
    const int32_t level = found >= 0 && found < p_.levels ? found : 0;
    here(op.buffer, op.channel, r)[c] = p_.data[op.table + static_cast<int64_t>(level) * op.channels + c];
  }

  // Up to kTileRows rows of one output channel.
  PIXELFAST_DEVICE void run_tile(const FlatOp& op, const FlatLaunch& launch, int64_t first, int64_t rows,
                                 int32_t c) {
    const int n = rows - first < kTileRows ? static_cast<int>(rows - first) : kTileRows;
    Row row[kTileRows];
    for (int r = 0; r < kTileRows; ++r) row[r] = row_of(launch, first + (r < n ? r : n - 1));
    float value[kTileRows];
    float own[kOwnRegisters * kTileRows];
    const int64_t all = static_cast<int64_t>(w_.teams) * size_;
    const Registers registers =
        op.n_instructions <= kOwnRegisters
            ? Registers{own, 1}
            : Registers{w_.registers + static_cast<int64_t>(team_) * size_ + rank_, all};
    if (op.n_instructions == 0) {
      product(op, row, c, value);
    } else {
      for (int i = 0; i < op.n_instructions; ++i) {
        const Instruction& ins = p_.instructions[op.first_instruction + i];
        for (int r = 0; r < kTileRows; ++r) value[r] = 0.0f;
        if (ins.fn == Fn::product) {
          product(op, row, ins.a + c, value);
        } else {
          for (int r = 0; r < n; ++r) value[r] = evaluate(ins, registers, row[r], r, c);
        }
        for (int r = 0; r < n; ++r) registers.at(i, r) = value[r];
      }
    }
    for (int r = 0; r < n; ++r) here(op.buffer, op.channel, row[r])[c] = value[r];
  }

  PIXELFAST_DEVICE float evaluate(const Instruction& ins, const Registers& registers, const Row& row, int r,
                                  int32_t c) const {
    switch (ins.fn) {
      case Fn::load:
      case Fn::splat: {
        const float* p = place(ins.a, ins.b, row, row.y + ins.c, row.x + ins.d);
        return p == nullptr ? 0.0f : p[ins.fn == Fn::load ? c : 0];
      }
      case Fn::vector:
        return p_.data[ins.a + c];
      case Fn::scalar:
        return Lanes::floats({ins.a}).v;
      case Fn::store: {
        const float value = registers.at(ins.a, r);
        here(ins.b, ins.c, row)[c] = value;
        return value;
      }
      default: {
        const Lanes a = {registers.at(ins.a, r)};
        return apply(ins.fn, a, ins.fn <= Fn::max ? Lanes{registers.at(ins.b, r)} : a);
      }
    }
  }

  // Product channel j of a tile: each row is one chain of multiply-adds.
  PIXELFAST_DEVICE void product(const FlatOp& op, const Row* row, int32_t j, float* value) const {
    const float bias = op.bias < 0 ? 0.0f : p_.data[op.bias + j];
    for (int r = 0; r < kTileRows; ++r) {
      value[r] = bias;
      if (op.start_buffer < 0) continue;
      const float* start = place(op.start_buffer, op.start_channel, row[r], row[r].y, row[r].x);
      value[r] = start == nullptr ? 0.0f : start[j];
    }
    if (p_.halves == nullptr) {
      add_products(
          op, row, p_.data + op.weight + j, value, [](float x) { return x; }, [](float w) { return w; });
    } else {
      add_products(
          op, row, p_.halves + op.weight + j, value, [](float x) { return from_bf16(bf16_of(x)); },
          [](uint16_t w) { return from_bf16(w); });
    }
  }

  template <class Weight, class Input, class Widen>
  PIXELFAST_DEVICE void add_products(const FlatOp& op, const Row* row, const Weight* weight, float* value,
                                     Input input, Widen widen) const {
    float acc[kTileRows];
    for (int r = 0; r < kTileRows; ++r) acc[r] = value[r];
    for (int t = 0; t < op.n_taps; ++t) {
      const Tap& tap = p_.taps[op.first_tap + t];
      const float* in[kTileRows];
      for (int r = 0; r < kTileRows; ++r) {
        in[r] = place(tap.buffer, tap.channel, row[r], row[r].y * op.stride_y + tap.dy,
                      row[r].x * op.stride_x + tap.dx);
      }
      for (int i = 0; i < tap.channels; ++i, weight += op.product_channels) {
        const float w = widen(*weight);
        for (int r = 0; r < kTileRows; ++r) {
          acc[r] = fma_of(in[r] == nullptr ? 0.0f : input(in[r][i]), w, acc[r]);
        }
      }
    }
    for (int r = 0; r < kTileRows; ++r) value[r] = acc[r];
  }

  // The sum of what the first sixteen lanes of a warp hold, the far half added to the near one; in all lanes.
  PIXELFAST_DEVICE static float sum_of_sixteen(float x) {
    for (int half = 8; half > 0; half /= 2) {
      const float far = simt::shuffle(x, (simt::lane() + half) % simt::kWarp);
      x = x + far;
    }
    return simt::shuffle(x, 0);
  }

  // A warp for each head of a position.
  PIXELFAST_DEVICE void run_attention(const FlatOp& op, const Row& r, int32_t head) {
    const FlatBuffer& keys = p_.buffers[op.key_buffer];
    const FlatBuffer& values = p_.buffers[op.value_buffer];
    const int lane = simt::lane();
    const float* query = here(op.query_buffer, op.query_channel, r) + head * op.key_channels;
    const float* key = base(keys, r.image) + keys.offset + op.key_channel + head * op.key_channels;
    const float* value = base(values, r.image) + values.offset + op.value_channel + head * op.value_channels;
    const int32_t* runs = p_.attention + op.runs + 2 * p_.attention[op.first_runs + r.x];
    const int32_t n_runs = p_.attention[op.first_runs + r.x + 1] - p_.attention[op.first_runs + r.x];
    const int warp = (team_ * size_ + rank_) / simt::kWarp;
    float* scores = w_.scores + static_cast<int64_t>(warp) * w_.n_scores;
    const float* bias = nullptr;
    if (op.bias_heads > 0) {
      const int64_t width = p_.buffers[op.query_buffer].width;
      const int64_t table = op.bias_heads > 1 ? head * width : 0;
      bias = p_.data + op.attention_bias + (table + r.x) * keys.width;
    }
    int n = 0;
    float largest = -__builtin_inff();
    for (int32_t run = 0; run < n_runs; ++run) {
      const int32_t start = runs[2 * run], count = runs[2 * run + 1] - start;
      for (int32_t k = lane; k < count; k += simt::kWarp) {
        float score = dot(query, key + (start + k) * keys.col_stride, op.key_channels);
        if (bias != nullptr) score = score + bias[start + k];
        scores[n + k] = score;
        largest = score > largest ? score : largest;
      }
      n += count;
    }
    largest = best_of_warp(largest, [](float a, float b) { return a > b; });
    simt::sync_warp();
    float part = 0.0f;
    for (int k = lane; lane < 16 && k < n; k += 16) {
      const float weight = vexp(Lanes{scores[k]} - Lanes{largest}).v;
      scores[k] = weight;
      part = part + weight;
    }
    const float total = sum_of_sixteen(part);
    simt::sync_warp();
    float* out = here(op.buffer, op.channel, r) + head * op.value_channels;
    for (int32_t j = lane; j < op.value_channels; j += simt::kWarp) {
      float acc = 0.0f;
      int k = 0;
      for (int32_t run = 0; run < n_runs; ++run) {
        for (int32_t at = runs[2 * run]; at < runs[2 * run + 1]; ++at, ++k) {
          acc = fma_of(scores[k], value[at * values.col_stride + j], acc);
        }
      }
      out[j] = n == 0 ? 0.0f : (Lanes{acc} / Lanes{total}).v;
    }
    simt::sync_warp();
  }

  PIXELFAST_DEVICE static float dot(const float* a, const float* b, int n) {
    float partial[16];
    for (int g = 0; g < 16; ++g) partial[g] = 0.0f;
    for (int i = 0; i < n; i += 16) {
      for (int g = 0; g < 16; ++g) {
        const bool inside = i + g < n;
        partial[g] = fma_of(inside ? a[i + g] : 0.0f, inside ? b[i + g] : 0.0f, partial[g]);
      }
    }
    for (int half = 8; half > 0; half /= 2) {
      for (int g = 0; g < half; ++g) partial[g] = partial[g] + partial[g + half];
    }
    return partial[0];
  }

  // A warp for each pixel. Lanes take levels in turn; sums are of integers, so that their order does not
  // matter.
  PIXELFAST_DEVICE void run_head(const FlatOp& op, const Row& r) {
    const Levels levels(w_);
    const float* row = here(op.buffer, op.channel, r);
    const bool bernoulli = static_cast<Op>(op.op) == Op::bernoulli;
    const auto logit = [&](int k) { return bernoulli ? (k == 0 ? 0.0f : *row) : row[k]; };
    const int64_t sub_pixel = pixel(r, op.colour);
    float largest = 0.0f;
    if (!levels.find_largest(logit, sub_pixel, &largest)) return;
    const int warp = (team_ * size_ + rank_) / simt::kWarp;
    int32_t* table = w_.levels + static_cast<int64_t>(warp) * 3 * p_.levels;
    const int argmax = levels.fill_weights(logit, largest, table);
    if (w_.top_k > 0 || w_.top_p < 1.0) levels.filter(logit, table);
    levels.fill_frequencies(argmax, table);
    const bool given = w_.given != nullptr ? w_.given[sub_pixel] != 0 : w_.all_given != 0;
    const uint64_t image = w_.first_index + static_cast<uint64_t>(first_ + r.image);
    const uint64_t place = static_cast<uint64_t>(r.y) * p_.width + r.x;
    const int32_t found = given ? w_.images[sub_pixel] : 0;  // the caller's memory: anything may be there
    const int level = !given ? levels.draw(table, image, place * p_.colours + op.colour)
                      : found >= 0 && found < p_.levels ? found
                                                        : 0;
    if (simt::lane() == 0) {
      if (!given) w_.images[sub_pixel] = level;
      const float probability = static_cast<float>(static_cast<uint32_t>(table[level])) * 0x1p-31f;
      w_.log_prob[sub_pixel] = vlog(Lanes{probability}).v;
    }
    simt::sync_warp();
  }

  const Walk& w_;
  const FlatProgram& p_;
  const int team_, rank_, size_;  // rank: of a thread in its team
  int64_t first_ = 0, images_ = 0;
  int steps_ = 0, n_polls_ = 0;  // steps since the last poll
  int64_t rows_ = 0;             // and rows
  int turn_ = 0;                 // the first unit of a launch that is this thread's
};

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
