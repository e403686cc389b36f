#include "cpu/walker.h"

#include <algorithm>
#include <cstring>

#include "core/philox.h"

namespace pixelfast {

Walker::Walker(const Engine& engine, const Request& request, Workspace& workspace, int64_t first_image,
               int images)
    : engine_(engine),
      program_(engine.program()),
      request_(request),
      work_(workspace),
      first_image_(first_image),
      images_(images) {
  // Only the arena is ever written to: the program has been checked for that.
  float* data = const_cast<float*>(engine.data_.data());
  float* conditions = const_cast<float*>(request.conditions);
  if (conditions != nullptr) conditions += first_image * program_.condition_floats;
  bases_[static_cast<int>(Space::arena)] = {workspace.arena.get(), engine.arena_stride_};
  bases_[static_cast<int>(Space::data)] = {data, 0};
  bases_[static_cast<int>(Space::condition)] = {conditions, program_.condition_floats};
}

Failure Walker::walk(const std::atomic<bool>& stop, std::atomic<int64_t>& done) {
  int32_t launch = 0;
  for (const int32_t end : program_.step_ends) {
    for (; launch < end; ++launch) {
      if (!run_launch(program_.launches[launch], stop)) return failure_;
    }
    done.fetch_add(images_, std::memory_order_relaxed);
  }
  return failure_;
}

// Cuts the rows of a launch, images within positions, into blocks of nearly equal size.
bool Walker::run_launch(const Launch& launch, const std::atomic<bool>& stop) {
  const int64_t rows = launch.positions * images_;
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  const int size = std::min<int>(kBlockRows, static_cast<int>(((rows + blocks - 1) / blocks + 5) / 6 * 6));
  rows_ = n_segments_ = 0;
  for (int32_t i = launch.first_run; i < launch.first_run + launch.n_runs; ++i) {
    const Run& run = program_.runs[i];
    for (int32_t k = 0; k < run.n; ++k) {
      for (int image = 0; image < images_;) {
        const int n = std::min(images_ - image, size - rows_);
        segments_[n_segments_++] = {run.y + k * run.dy, run.x + k * run.dx, image, n};
        rows_ += n;
        image += n;
        if (rows_ == size) {
          run_block(launch.op);
          rows_ = n_segments_ = 0;
          if (failure_.flaw != Flaw::none || stop.load(std::memory_order_relaxed)) return false;
        }
      }
    }
  }
  if (rows_ > 0) run_block(launch.op);
  return failure_.flaw == Flaw::none && !stop.load(std::memory_order_relaxed);
}

void Walker::run_block(int32_t index) {
  const OpRecord& op = program_.ops[index];
  const PackedOp& packed = engine_.ops_[index];
  switch (op.op) {
    case Op::input:
      return run_input(op);
    case Op::conv:
      gather_outputs(op);
      run_product(op, packed);
      if (!packed.steps.empty()) run_expression(op, packed);
      return;
    case Op::map:
      gather_outputs(op);
      return run_expression(op, packed);
    case Op::attend:
      return run_attention(op);
    default:
      return run_head(op);
  }
}

void Walker::gather(const Buffer& buffer, int channel, int stride_y, int stride_x, int dy, int dx,
                    const float** rows) {
  const Base base = bases_[static_cast<int>(buffer.space)];
  for (int s = 0; s < n_segments_; ++s) {
    const Segment& segment = segments_[s];
    const int32_t y = segment.y * stride_y + dy, x = segment.x * stride_x + dx;
    const bool inside = y >= 0 && y < buffer.height && x >= 0 && x < buffer.width;
    if (!inside) {
      for (int i = 0; i < segment.n; ++i) *rows++ = engine_.zeros_.get();
      continue;
    }
    const int64_t row = y < buffer.rows ? y : y % buffer.rows;
    const float* p = base.start + buffer.offset + row * buffer.row_stride + x * buffer.col_stride + channel +
                     segment.image * base.image_stride;
    for (int i = 0; i < segment.n; ++i, p += base.image_stride) *rows++ = p;
  }
}

void Walker::gather_outputs(const OpRecord& op) {
  const Buffer& buffer = program_.buffers[op.buffer];
  gather(buffer, op.channel, 1, 1, 0, 0, const_cast<const float**>(work_.outputs.data()));
}

void Walker::run_product(const OpRecord& op, const PackedOp& packed) {
  const float** inputs = work_.inputs.data();
  for (size_t t = 0; t < op.taps.size(); ++t) {
    const Tap& tap = op.taps[t];
    gather(program_.buffers[tap.buffer], tap.channel, op.stride_y, op.stride_x, tap.dy, tap.dx,
           inputs + t * kBlockRows);
  }
  ProductArgs args;
  args.inputs = inputs;
  args.tap_channels = packed.tap_channels.data();
  args.n_taps = static_cast<int>(op.taps.size());
  args.rows = rows_;
  args.outputs = packed.steps.empty() ? work_.outputs.data() : work_.product_rows.data();
  for (const Panel& panel : packed.panels) {
    args.weights = engine_.packed_.get() + panel.weights;
    args.bias = engine_.packed_.get() + panel.bias;
    args.column = panel.column;
    args.columns = panel.columns;
    engine_.kernels_.product(args);
  }
  multiply_adds_ += rows_ * op.depth * op.product_channels;
}

void Walker::run_expression(const OpRecord& op, const PackedOp& packed) {
  for (size_t l = 0; l < packed.leaves.size(); ++l) {
    const Instruction& leaf = packed.leaves[l];
    const float** rows = work_.leaves.data() + l * kBlockRows;
    if (leaf.fn == Fn::product) {
      for (int r = 0; r < rows_; ++r) rows[r] = work_.product_rows[r] + leaf.a;
    } else if (leaf.fn == Fn::vector) {
      std::fill_n(rows, rows_, engine_.data_.data() + leaf.a);
    } else {
      gather(program_.buffers[leaf.a], leaf.b, 1, 1, leaf.c, leaf.d, rows);
    }
  }
  ExpressionArgs args;
  args.steps = packed.steps.data();
  args.n_steps = static_cast<int>(packed.steps.size());
  args.rows = rows_;
  args.channels = op.channels;
  args.leaves = work_.leaves.data();
  args.outputs = work_.outputs.data();
  args.slots = work_.slots.get();
  engine_.kernels_.expression(args);
}

void Walker::run_attention(const OpRecord& op) {
  const Attention& attention = op.attention;
  const Buffer& queries = program_.buffers[attention.query.buffer];
  const Buffer& keys = program_.buffers[attention.key.buffer];
  const Buffer& values = program_.buffers[attention.value.buffer];
  AttendArgs args;
  args.key_stride = keys.col_stride, args.value_stride = values.col_stride;
  args.heads = attention.heads;
  args.key_channels = attention.key_channels, args.value_channels = attention.value_channels;
  args.scores = work_.scores.get();
  args.bias_stride = attention.bias_heads > 1 ? static_cast<int64_t>(queries.width) * keys.width : 0;
  const auto at = [&](const Buffer& b, int channel, int64_t image) {
    const Base base = bases_[static_cast<int>(b.space)];
    return base.start + b.offset + channel + image * base.image_stride;
  };
  const Buffer& out = program_.buffers[op.buffer];
  for (int s = 0; s < n_segments_; ++s) {
    const Segment& segment = segments_[s];
    const int32_t x = segment.x, first = attention.first[x];
    args.runs = attention.runs.data() + 2 * first;
    args.n_runs = attention.first[x + 1] - first;
    args.bias = nullptr;
    if (attention.bias_heads > 0) {
      args.bias = engine_.data_.data() + attention.bias + static_cast<int64_t>(x) * keys.width;
    }
    for (int64_t image = segment.image; image < segment.image + segment.n; ++image) {
      args.query = at(queries, attention.query.channel, image) + x * queries.col_stride;
      args.keys = at(keys, attention.key.channel, image);
      args.values = at(values, attention.value.channel, image);
      args.out = at(out, op.channel, image) + x * out.col_stride;
      multiply_adds_ += engine_.kernels_.attend(args) * attention.heads *
                        (attention.key_channels + attention.value_channels);
    }
  }
}

int64_t Walker::pixel(const Segment& s, int i, int colour) const {
  const int64_t plane = (first_image_ + s.image + i) * program_.colours + colour;
  return (plane * program_.height + s.y) * program_.width + s.x;
}

void Walker::run_input(const OpRecord& op) {
  gather_outputs(op);
  const float* table = engine_.data_.data() + op.table;
  float* const* out = work_.outputs.data();
  for (int s = 0; s < n_segments_; ++s) {
    for (int i = 0; i < segments_[s].n; ++i) {
      // The images are the caller's: another thread of theirs might change them under our hands.
      const int32_t level = request_.images[pixel(segments_[s], i, op.colour)];
      const int64_t row = level >= 0 && level < program_.levels ? level : 0;
      std::memcpy(*out++, table + row * op.channels, op.channels * sizeof(float));
    }
  }
}

void Walker::run_head(const OpRecord& op) {
  const float** logits = work_.inputs.data();
  gather(program_.buffers[op.buffer], op.channel, 1, 1, 0, 0, logits);
  int64_t pixels[kBlockRows];
  float probability[kBlockRows];
  int row = 0;
  for (int s = 0; s < n_segments_; ++s) {
    for (int i = 0; i < segments_[s].n; ++i, ++row) {
      const Segment& segment = segments_[s];
      const float pair[] = {0.0f, *logits[row]};
      const float* row_logits = op.op == Op::bernoulli ? pair : logits[row];
      const Flaw flaw = work_.table.build(row_logits, request_.sampling);
      if (flaw != Flaw::none) {
        failure_ = {flaw, first_image_ + segment.image + i, segment.y, segment.x, op.colour};
        return;
      }
      pixels[row] = pixel(segment, i, op.colour);
      int32_t& level = request_.images[pixels[row]];
      const bool given = request_.given != nullptr ? request_.given[pixels[row]] != 0 : request_.all_given;
      int drawn = level >= 0 && level < program_.levels ? level : 0;
      if (!given) {
        const int64_t position = static_cast<int64_t>(segment.y) * program_.width + segment.x;
        const uint64_t image = request_.first_index + static_cast<uint64_t>(first_image_ + segment.image + i);
        drawn = work_.table.draw(draw_bits(request_.seed, image, position * program_.colours + op.colour));
        level = drawn;
      }
      probability[row] = static_cast<float>(work_.table.frequency(drawn)) * 0x1p-31f;
    }
  }
  engine_.kernels_.unary(Fn::log, probability, probability, row);
  for (int r = 0; r < row; ++r) request_.log_prob[pixels[r]] = probability[r];
}

}  // namespace pixelfast
