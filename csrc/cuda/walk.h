// The device code that samples: a team of blocks walks a chunk of images through all launches of a program.
// Included where simt.h is CUDA's, and where it is the emulation. Results are those of the cpu runtime, to
// the bit.
#pragma once

#include "cuda/chunk.h"
#include "cuda/deal.h"
#include "cuda/flat.h"
#include "cuda/levels.h"
#include "cuda/products.h"
#include "cuda/simt.h"
#include "cuda/tables.h"

namespace pixelfast {
namespace cuda {
namespace {

class Walker {
 public:
  PIXELFAST_DEVICE explicit Walker(const Walk& walk)
      : w_(walk),
        p_(walk.program),
        team_(simt::block() / walk.team_blocks),
        block_(simt::block() % walk.team_blocks),
        products_(walk),
        deal_(block_, walk.team_blocks) {}

  PIXELFAST_DEVICE PIXELFAST_INLINE void run() {
    tables().load();
    if (w_.shared_words > 0) simt::sync_block();
    products_.load();
    simt::sync_block();
    for (int64_t first = static_cast<int64_t>(team_) * w_.chunk; first < w_.n;
         first += static_cast<int64_t>(w_.teams) * w_.chunk) {
      chunk().begin(first);
      arrive();
      if (wait()) return;
      FlatLaunch next = launch_at(0);  // read while others are run, since it is far
      for (int i = 0; i < p_.n_launches; ++i) {
        const FlatLaunch launch = next;
        next = launch_at(i + 1);
        if (launch.waits && wait()) return;
        run_launch(launch);
        steps_ += launch.ends_step, rows_ += launch.positions * chunk().images();
        if (launch.arrives) arrive();
      }
    }
    if (is_first()) simt::fetch_add(w_.done, steps_);
  }

 private:
  PIXELFAST_DEVICE Chunk& chunk() { return products_.chunk(); }
  PIXELFAST_DEVICE const Tables& tables() { return chunk().tables(); }
  PIXELFAST_DEVICE bool is_first() const { return block_ == 0 && simt::thread() == 0; }  // of the team
  PIXELFAST_DEVICE FlatLaunch launch_at(int i) const {
    return i < p_.n_launches ? p_.launches[i] : FlatLaunch{};
  }

  // Tells the team that this thread has come so far. Now and then, at the same barriers for all, the first
  // thread asks the host, whose memory is far, whether to stop.
  PIXELFAST_DEVICE void arrive() {
    TeamState& state = w_.states[team_];
    polls_ = steps_ >= kPollSteps || rows_ >= kPollRows;
    if (polls_) {
      if (is_first()) {
        state.stop[n_polls_ % 2] = simt::load_of_host(w_.stop);
        simt::fetch_add(w_.done, steps_);
      }
      steps_ = 0, rows_ = 0, ++n_polls_;
    }
    if (w_.barrier == Barrier::cluster) simt::arrive_cluster();
    if (w_.barrier != Barrier::memory) return;
    // Counts blocks, all that ever arrived: release and acquire by one thread pass on what its block wrote.
    simt::sync_block();
    awaited_ += static_cast<uint32_t>(w_.team_blocks);
    if (simt::thread() == 0) simt::add_release(&state.arrived, 1);
  }

  // Until all threads of the team have arrived as often as this one. Whether all stop.
  PIXELFAST_DEVICE bool wait() {
    TeamState& state = w_.states[team_];
    if (w_.barrier == Barrier::cluster) {
      simt::wait_cluster();
    } else {
      if (w_.barrier == Barrier::memory && simt::thread() == 0) {
        while (static_cast<int32_t>(simt::load_acquire(&state.arrived) - awaited_) < 0) simt::relax();
      }
      simt::sync_block();
    }
    deal_.restart();
    return polls_ && simt::load_acquire(&state.stop[(n_polls_ - 1) % 2]) != 0;
  }

  PIXELFAST_DEVICE PIXELFAST_INLINE void run_launch(const FlatLaunch& launch) {
    const FlatOp& op = tables().op(launch.op);
    const int64_t rows = launch.positions * chunk().images();
    const auto row = [&](int64_t k) { return chunk().row_of(launch, k); };
    switch (static_cast<Op>(op.op)) {
      case Op::input:
        deal_.each<1>(Among::team, rows * op.channels, [&](int64_t k) {
          run_input(op, row(k / op.channels), static_cast<int32_t>(k % op.channels));
        });
        break;
      case Op::conv:
      case Op::map:
        products_.run(op, launch, deal_);
        break;
      case Op::attend:
        deal_.each<simt::kWarp>(Among::team, rows * op.heads, [&](int64_t k) {
          run_attention(op, row(k / op.heads), static_cast<int32_t>(k % op.heads));
        });
        break;
      default:
        deal_.each<simt::kWarp>(Among::team, rows, [&](int64_t k) { run_head(op, row(k)); });
    }
  }

  PIXELFAST_DEVICE int warp_of_grid() const {
    return (simt::block() * w_.threads + simt::thread()) / simt::kWarp;
  }

  PIXELFAST_DEVICE void run_input(const FlatOp& op, const Row& r, int32_t c) {
    const int32_t found =
        w_.images[chunk().pixel(r, op.colour)];  // the caller's, where nothing was drawn yet
    const int32_t level = found >= 0 && found < p_.levels ? found : 0;
    chunk().here(op.buffer, op.channel, r)[c] =
        p_.data[op.table + static_cast<int64_t>(level) * op.channels + c];
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
    const FlatBuffer& keys = tables().buffer(op.key_buffer);
    const FlatBuffer& values = tables().buffer(op.value_buffer);
    const int lane = simt::lane();
    const float* query = chunk().here(op.query_buffer, op.query_channel, r) + head * op.key_channels;
    const float* key = chunk().base(keys, r.image) + keys.offset + op.key_channel + head * op.key_channels;
    const float* value =
        chunk().base(values, r.image) + values.offset + op.value_channel + head * op.value_channels;
    const int32_t* runs = p_.attention + op.runs + 2 * p_.attention[op.first_runs + r.x];
    const int32_t n_runs = p_.attention[op.first_runs + r.x + 1] - p_.attention[op.first_runs + r.x];
    const int warp = warp_of_grid();
    float* scores = w_.scores + static_cast<int64_t>(warp) * w_.n_scores;
    const float* bias = nullptr;
    if (op.bias_heads > 0) {
      const int64_t width = tables().buffer(op.query_buffer).width;
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
    float* out = chunk().here(op.buffer, op.channel, r) + head * op.value_channels;
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
    const float* row = chunk().here(op.buffer, op.channel, r);
    const bool bernoulli = static_cast<Op>(op.op) == Op::bernoulli;
    const auto logit = [&](int k) { return bernoulli ? (k == 0 ? 0.0f : *row) : row[k]; };
    const int64_t sub_pixel = chunk().pixel(r, op.colour);
    float largest = 0.0f;
    if (!levels.find_largest(logit, sub_pixel, &largest)) return;
    const int warp = warp_of_grid();
    int32_t* table = w_.levels + static_cast<int64_t>(warp) * 3 * p_.levels;
    const int argmax = levels.fill_weights(logit, largest, table);
    if (w_.top_k > 0 || w_.top_p < 1.0) levels.filter(logit, table);
    levels.fill_frequencies(argmax, table);
    const bool given = w_.given != nullptr ? w_.given[sub_pixel] != 0 : w_.all_given != 0;
    const uint64_t image = w_.first_index + static_cast<uint64_t>(chunk().image(r));
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
  const int team_, block_;  // block: of the team
  Products products_;
  Deal deal_;
  int steps_ = 0, n_polls_ = 0;  // steps since the last poll
  int64_t rows_ = 0;             // and rows
  bool polls_ = false;           // at the barrier at which this thread arrived last
  uint32_t awaited_ = 0;         // blocks of the team, at all barriers in memory so far
};

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
