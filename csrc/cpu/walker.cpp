#include "cpu/walker.h"

#include <algorithm>
#include <cstring>

namespace pixelfast {

Walker::Walker(const Engine& engine, const CpuRequest& request, Workspace& workspace, float* arena,
               Team& team, int rank, int images)
    : engine_(engine),
      program_(engine.program()),
      request_(request),
      work_(workspace),
      team_(team),
      rank_(rank),
      first_image_(team.first_image),
      images_(images) {
  // Only the arena is ever written to: the program has been checked for that.
  float* data = const_cast<float*>(engine.data_.data());
  float* conditions = const_cast<float*>(request.conditions);
  if (conditions != nullptr) conditions += first_image_ * program_.condition_floats;
  bases_[static_cast<int>(Space::arena)] = {arena, engine.arena_stride_};
  bases_[static_cast<int>(Space::data)] = {data, 0};
  bases_[static_cast<int>(Space::condition)] = {conditions, program_.condition_floats};
  if (request.profile != nullptr) profile_.ops.resize(program_.ops.size());
}

Walker::~Walker() {
  if (engine_.bf16_ != nullptr && engine_.bf16_->leave != nullptr) engine_.bf16_->leave();
}

Failure Walker::walk(const std::atomic<bool>& stop, std::atomic<int64_t>& done) {
  const uint64_t start = now();
  const bool alone = team_.size() == 1;
  bool goes_on = true, was_by_rows = false;
  int32_t launch = 0;
  for (const int32_t end : program_.step_ends) {
    for (; launch < end; ++launch) {
      const Launch& next = program_.launches[launch];
      const bool rows = alone || by_rows(next);
      if (!alone) {
        if (rows != was_by_rows || (rows ? engine_.waits_.by_rows : engine_.waits_.any)[launch]) {
          if (wait(!goes_on)) return failure_;
        }
        was_by_rows = rows;
      }
      look_ahead(launch);
      if (goes_on) goes_on = run_launch(next, share_of(next, rows), stop);
      if (alone && !goes_on) return failure_;
    }
    if (rank_ == 0) done.fetch_add(images_, std::memory_order_relaxed);
  }
  if (!alone) wait(!goes_on);
  profile_.total += now() - start;
  return failure_;
}

// Finds what the next product after a launch reads first.
void Walker::look_ahead(int32_t launch) {
  if (launch < ahead_at_) return;
  const auto end = static_cast<int32_t>(program_.launches.size());
  ahead_ = nullptr;
  for (ahead_at_ = launch + 1; ahead_at_ < end; ++ahead_at_) {
    const PackedOp& packed = engine_.ops_[program_.launches[ahead_at_].op];
    if (packed.panels.empty()) continue;
    ahead_ = &packed.panels[0];
    return;
  }
}

bool Walker::wait(bool stop) {
  const uint64_t arrival = now();
  const bool stopped = team_.wait(rank_, stop);
  profile_.waiting += now() - arrival;
  return stopped;
}

bool Walker::by_rows(const Launch& launch) const {
  return engine_.shares_rows(launch.op, launch.positions * images_, team_.size());
}

Share Walker::share_of(const Launch& launch, bool by_rows) const {
  const int64_t rows = launch.positions * images_;
  const int parts = engine_.parts_of(launch.op), size = team_.size();
  if (by_rows) return {rows * rank_ / size, rows * (rank_ + 1) / size, 0, parts};
  return {0, rows, parts * rank_ / size, parts * (rank_ + 1) / size};
}

// Cuts the rows of a launch, images within positions, into blocks: of nearly equal size for products, and
// full ones for heads, whose rows are lanes.
bool Walker::run_launch(const Launch& launch, const Share& share, const std::atomic<bool>& stop) {
  int64_t left = share.end_row - share.first_row;
  if (left == 0 || share.first == share.end) return true;
  if (in_block_ != nullptr && share.first_row == share_.first_row && share.end_row == share_.end_row &&
      same_positions(program_, *in_block_, launch)) {
    run_block(launch.op, share);
    return failure_.flaw == Flaw::none && !stop.load(std::memory_order_relaxed);
  }
  in_block_ = left <= kBlockRows ? &launch : nullptr;
  share_ = share;
  const int64_t blocks = (left + kBlockRows - 1) / kBlockRows;
  const int equal = static_cast<int>(((left + blocks - 1) / blocks + 5) / 6 * 6);
  const int size = engine_.ops_[launch.op].vectors > 0 ? std::min(kBlockRows, equal) : kBlockRows;
  int64_t skip = share.first_row / images_;  // positions
  int image = static_cast<int>(share.first_row % images_);
  rows_ = segments_.count = 0;
  for (const Run* run = &program_.runs[launch.first_run]; left > 0; ++run) {
    if (skip >= run->n) {
      skip -= run->n;
      continue;
    }
    int32_t y = run->y + static_cast<int32_t>(skip) * run->dy,
            x = run->x + static_cast<int32_t>(skip) * run->dx;
    for (int64_t k = skip; k < run->n && left > 0; ++k, y += run->dy, x += run->dx) {
      while (image < images_ && left > 0) {
        const int n = static_cast<int>(std::min<int64_t>(std::min(images_ - image, size - rows_), left));
        const int s = segments_.count++;
        segments_.y[s] = y, segments_.x[s] = x, segments_.image[s] = image, segments_.n[s] = n;
        rows_ += n;
        image += n;
        left -= n;
        if (rows_ == size || left == 0) {
          gathered_ = -1;
          run_block(launch.op, share);
          if (left > 0) rows_ = segments_.count = 0;
          if (failure_.flaw != Flaw::none || stop.load(std::memory_order_relaxed)) return false;
        }
      }
      image = 0;
    }
    skip = 0;
  }
  return true;
}

void Walker::run_block(int32_t index, const Share& share) {
  const OpRecord& op = program_.ops[index];
  const PackedOp& packed = engine_.ops_[index];
  const uint64_t start = now();
  const int64_t before = multiply_adds_;
  uint64_t gathered = start;
  switch (op.op) {
    case Op::input:
      run_input(index);
      break;
    case Op::conv:
    case Op::map:
      gather(index);
      if (engine_.bf16_ != nullptr && !op.taps.empty()) round_inputs(op, packed);
      gathered = now();
      run_tasks(op, packed, share.first, share.end);
      break;
    case Op::attend:
      run_attention(op, share.first, share.end);
      break;
    default:
      run_head(index);
      break;
  }
  if (request_.profile == nullptr) return;
  OpProfile& p = profile_.ops[index];
  p.calls += 1;
  if (share.first == 0) p.rows += rows_;  // once, where threads share the channels
  p.multiply_adds += multiply_adds_ - before;
  p.weights_nbytes += packed.weights_nbytes * (share.end - share.first) / std::max(packed.vectors, 1);
  p.gather += gathered - start;
  p.product += product_ticks_;
  p.total += now() - start;
  product_ticks_ = 0;
}

// Pointers to all that the rows of the block read and write.
void Walker::gather(int32_t op) {
  const PackedOp& packed = engine_.ops_[op];
  const auto n = static_cast<int>(packed.reads.size());
  const float* const zeros = engine_.zeros_.get();
  if (gathered_ >= 0 && gathered_ == packed.alike) {
    engine_.kernels_.shift({packed.shifts.data(), rows_, n, zeros, work_.rows.data()});
  } else {
    engine_.kernels_.gather({&segments_, rows_, packed.reads.data(), n, bases_, zeros, work_.rows.data()});
  }
  gathered_ = op;
}

// Lays the inputs of each row side by side, in place of which they are then read.
void Walker::round_inputs(const OpRecord& op, const PackedOp& packed) {
  const float** rows = work_.rows.data();
  gathered_ = -1;
  for (int r = 0; r < rows_; ++r) {
    float* const pairs = work_.rounded.get() + r * packed.depth;
    float* end = pairs;
    for (size_t t = 0; t < op.taps.size(); ++t) {
      engine_.bf16_->round(rows[t * kBlockRows + r], op.taps[t].channels, end);
      end += (op.taps[t].channels + 1) / 2;
    }
    std::fill(end, pairs + packed.depth, 0.0f);
    rows[r] = pairs;
  }
}

// The output vectors `first` to `end` of an op, task by task.
void Walker::run_tasks(const OpRecord& op, const PackedOp& packed, int first, int end) {
  const int lanes = engine_.kernels_.lanes;
  ExpressionArgs args;
  args.steps = packed.steps.data();
  args.n_steps = static_cast<int>(packed.steps.size());
  args.rows = rows_;
  args.leaves = leaves(op);
  args.product = work_.product.get();
  args.outputs = outputs(packed);
  args.slots = work_.slots.get();
  for (const Task& task : packed.tasks) {
    const int from = std::max(first, 0), to = std::min(end, task.vectors);
    if (from < to) {
      args.channel = task.channel + from * lanes;
      args.channels = std::min(task.channel + to * lanes, task.channel + task.channels) - args.channel;
      if (task.n_panels > 0) {
        const uint64_t start = now();
        run_product(op, packed, task, from, to);
        product_ticks_ += now() - start;
        multiply_adds_ += rows_ * op.depth * args.channels * static_cast<int64_t>(packed.parts.size());
      }
      if (args.n_steps > 0) engine_.kernels_.expression(args);
    }
    first -= task.vectors;
    end -= task.vectors;
    if (end <= 0) break;
  }
}

// The vectors `from` to `to` of each part of a task's product; into the outputs if there is no expression.
void Walker::run_product(const OpRecord& op, const PackedOp& packed, const Task& task, int from, int to) {
  const int lanes = engine_.kernels_.lanes;
  const bool whole = to - from == task.vectors;
  ProductArgs args;
  args.inputs = work_.rows.data();
  args.tap_channels = packed.tap_channels.data();
  args.n_taps = static_cast<int>(packed.tap_channels.size());
  args.input_stride = packed.depth;
  args.rows = rows_;
  args.start = op.start.buffer >= 0 ? starts(op) : nullptr;
  work_.after.clear();
  for (const Step& step : packed.after) {
    const int leaf = step.fn == Fn::store ? step.leaf : step.row;
    work_.after.push_back({step.fn, leaves(op) + (leaf < 0 ? 0 : leaf * kBlockRows)});
  }
  args.after = work_.after.data(), args.n_after = static_cast<int>(packed.after.size());
  const auto multiply = engine_.bf16_ != nullptr ? engine_.bf16_->product : engine_.kernels_.product;
  args.outputs = packed.steps.empty() ? outputs(packed) : work_.product_rows.data();
  args.row_stride = packed.steps.empty() ? 0 : lanes;
  args.vector_stride = static_cast<int64_t>(packed.steps.empty() ? 1 : rows_) * lanes;
  for (int p = task.first_panel; p < task.first_panel + task.n_panels; ++p) {
    const Panel& panel = packed.panels[p];
    args.weight_stride = static_cast<int64_t>(panel.parts) * task.vectors * lanes;
    args.vectors = whole ? panel.parts * task.vectors : to - from;
    args.columns = args.vectors > 1 ? args.vectors * lanes : std::min(lanes, task.channels - from * lanes);
    for (int part = 0; part < (whole ? 1 : panel.parts); ++part) {
      const int64_t at = (static_cast<int64_t>(part) * task.vectors + from) * lanes;
      args.weights = engine_.packed_.get() + panel.weights + at;
      args.bias = engine_.packed_.get() + panel.bias + at;
      for (int v = 0; v < args.vectors && args.start != nullptr; ++v) {
        const int vector = from + v % (to - from);
        args.start_column[v] = packed.parts[panel.first_part + part + v / (to - from)] + task.channel +
                               static_cast<int64_t>(vector) * lanes;
        args.start_lanes[v] = std::min(lanes, task.channels - vector * lanes);
      }
      args.column = static_cast<int64_t>(panel.first_part + part) * (to - from) * args.vector_stride;
      if (packed.steps.empty()) {
        args.column = task.channel + from * lanes;
        args.columns = std::min(args.columns, task.channels - from * lanes);
      }
      const Panel* next = p + 1 < static_cast<int>(packed.panels.size()) ? &packed.panels[p + 1] : ahead_;
      args.ahead = engine_.packed_.get() + (next != nullptr ? next->weights : 0);
      args.ahead_end = engine_.packed_.get() + (next != nullptr ? next->bias : 0);
      multiply(args);
    }
  }
}

void Walker::run_attention(const OpRecord& op, int first_head, int end_head) {
  const Attention& attention = op.attention;
  const Buffer& queries = program_.buffers[attention.query.buffer];
  const Buffer& keys = program_.buffers[attention.key.buffer];
  const Buffer& values = program_.buffers[attention.value.buffer];
  AttendArgs args;
  args.key_stride = keys.col_stride, args.value_stride = values.col_stride;
  args.first_head = first_head, args.end_head = end_head;
  args.key_channels = attention.key_channels, args.value_channels = attention.value_channels;
  args.scores = work_.scores.get();
  args.score_stride = (static_cast<int64_t>(keys.width) + 15) / 16 * 16;
  args.bias_stride = attention.bias_heads > 1 ? static_cast<int64_t>(queries.width) * keys.width : 0;
  const auto at = [&](int32_t buffer, int channel, int32_t x, int64_t image) {
    const Places& places = engine_.places_[buffer];
    const Base base = bases_[static_cast<int>(program_.buffers[buffer].space)];
    return base.start + places.rows[0] + places.columns[x] + channel + image * base.image_stride;
  };
  for (int s = 0; s < segments_.count; ++s) {
    const int32_t x = segments_.x[s], first = attention.first[x];
    args.runs = attention.runs.data() + 2 * first;
    args.n_runs = attention.first[x + 1] - first;
    args.bias = nullptr;
    if (attention.bias_heads > 0) {
      args.bias = engine_.data_.data() + attention.bias + static_cast<int64_t>(x) * keys.width;
    }
    for (int64_t image = segments_.image[s]; image < segments_.image[s] + segments_.n[s]; ++image) {
      args.query = at(attention.query.buffer, attention.query.channel, x, image);
      args.keys = at(attention.key.buffer, attention.key.channel, 0, image);
      args.values = at(attention.value.buffer, attention.value.channel, 0, image);
      args.out = at(op.buffer, op.channel, x, image);
      multiply_adds_ += engine_.kernels_.attend(args) * (end_head - first_head) *
                        (attention.key_channels + attention.value_channels);
    }
  }
}

int64_t Walker::pixel(int segment, int i, int colour) const {
  const int64_t plane = (first_image_ + segments_.image[segment] + i) * program_.colours + colour;
  return (plane * program_.height + segments_.y[segment]) * program_.width + segments_.x[segment];
}

void Walker::run_input(int32_t index) {
  const OpRecord& op = program_.ops[index];
  gather(index);
  const float* table = engine_.data_.data() + op.table;
  float* const* out = outputs(engine_.ops_[index]);
  for (int s = 0; s < segments_.count; ++s) {
    for (int i = 0; i < segments_.n[s]; ++i) {
      // The images are the caller's: another thread of theirs might change them under our hands.
      const int32_t level = request_.images[pixel(s, i, op.colour)];
      const int64_t row = level >= 0 && level < program_.levels ? level : 0;
      std::memcpy(*out++, table + row * op.channels, op.channels * sizeof(float));
    }
  }
}

void Walker::run_head(int32_t index) {
  const OpRecord& op = program_.ops[index];
  const float** logits = work_.rows.data();
  gather(index);
  float pairs[kBlockRows][2];  // of a bernoulli head, whose level 0 has logit 0
  if (op.op == Op::bernoulli) {
    for (int r = 0; r < rows_; ++r) {
      pairs[r][0] = 0.0f, pairs[r][1] = *logits[r];
      logits[r] = pairs[r];
    }
    gathered_ = -1;
  }
  int64_t pixels[kBlockRows];
  uint64_t images[kBlockRows], counters[kBlockRows];
  int32_t level[kBlockRows];
  bool given[kBlockRows];
  int row = 0;
  for (int s = 0; s < segments_.count; ++s) {
    const int64_t position = static_cast<int64_t>(segments_.y[s]) * program_.width + segments_.x[s];
    for (int i = 0; i < segments_.n[s]; ++i, ++row) {
      const int64_t p = pixels[row] = pixel(s, i, op.colour);
      images[row] = request_.first_index + static_cast<uint64_t>(first_image_ + segments_.image[s] + i);
      counters[row] = static_cast<uint64_t>(position * program_.colours + op.colour);
      given[row] = request_.given != nullptr ? request_.given[p] != 0 : request_.all_given;
      const int32_t found = request_.images[p];  // the caller's memory: anything may be there
      level[row] = !given[row] ? -1 : found >= 0 && found < program_.levels ? found : 0;
    }
  }
  uint32_t bits[kBlockRows], frequency[kBlockRows];
  engine_.kernels_.draw(request_.seed, images, counters, rows_, bits);
  const Flaw flaw = work_.table.draw_rows(logits, rows_, request_.sampling, bits, level, frequency, &row);
  if (flaw != Flaw::none) {
    const auto image = static_cast<int64_t>(images[row] - request_.first_index);
    const int64_t y = pixels[row] / program_.width % program_.height, x = pixels[row] % program_.width;
    failure_ = {flaw, image, static_cast<int32_t>(y), static_cast<int32_t>(x), op.colour};
    return;
  }
  float probability[kBlockRows];
  for (int r = 0; r < rows_; ++r) {
    if (!given[r]) request_.images[pixels[r]] = level[r];
    probability[r] = static_cast<float>(frequency[r]) * 0x1p-31f;
  }
  engine_.kernels_.unary(Fn::log, probability, probability, rows_);
  for (int r = 0; r < rows_; ++r) request_.log_prob[pixels[r]] = probability[r];
}

}  // namespace pixelfast
