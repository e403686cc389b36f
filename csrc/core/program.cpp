#include "core/program.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace pixelfast {
namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr int64_t kMinInt = std::numeric_limits<int32_t>::min();

constexpr int kArity[] = {
#define PIXELFAST_FN(name, arity) arity,
#include "core/ops.def"
#undef PIXELFAST_FN
};

// Takes words one by one, each with the range it must lie in.
class Reader {
 public:
  Reader(const int32_t* words, int64_t n_words) : words_(words), n_words_(n_words) {}

  std::string part;  // what is being read, for messages: "op 3: tap 2"

  int64_t position() const { return position_; }
  bool done() const { return position_ == n_words_; }

  int32_t take(const char* name, int64_t low = kMinInt, int64_t high = kMaxInt) {
    if (position_ >= n_words_) {
      fail(std::string(name) + " is missing: the program ends at word " + std::to_string(n_words_));
    }
    const int32_t value = words_[position_++];
    if (value < low || value > high) {
      fail(std::string(name) + " (=" + std::to_string(value) + ", word " + std::to_string(position_ - 1) +
           ") must be in [" + std::to_string(low) + ", " + std::to_string(high) + "]");
    }
    return value;
  }

  // For what can be judged only after later words.
  void require(bool good, const std::string& message) const {
    if (!good) fail(message + " (words up to " + std::to_string(position_ - 1) + ")");
  }

  [[noreturn]] void fail(const std::string& message) const {
    throw std::invalid_argument("[program] " + (part.empty() ? "" : part + ": ") + message);
  }

 private:
  const int32_t* words_;
  int64_t n_words_;
  int64_t position_ = 0;
};

Buffer read_buffer(Reader& in, const Program& program, int64_t n_data) {
  Buffer b;
  b.space = static_cast<Space>(in.take("space", 0, 2));
  b.offset = in.take("offset", 0);
  b.height = in.take("height", 1, kMaxSide);
  b.width = in.take("width", 1, kMaxSide);
  b.channels = in.take("channels", 1, kMaxSide);
  b.rows = in.take("rows", 1, kMaxSide);
  b.columns = in.take("columns", 1, kMaxSide);
  b.row_stride = in.take("row_stride");
  b.col_stride = in.take("col_stride");
  // Sides of 20 bits times strides of 32: no overflow.
  const int64_t last_row = (std::min(b.rows, b.height) - 1) * b.row_stride;
  const int64_t last_col = (std::min(b.columns, b.width) - 1) * b.col_stride;
  const int64_t low = b.offset + std::min<int64_t>(last_row, 0) + std::min<int64_t>(last_col, 0);
  const int64_t high =
      b.offset + std::max<int64_t>(last_row, 0) + std::max<int64_t>(last_col, 0) + b.channels;
  const int64_t limit = b.space == Space::arena  ? program.arena_floats
                        : b.space == Space::data ? n_data
                                                 : program.condition_floats;
  in.require(low >= 0 && high <= limit, "elements [" + std::to_string(low) + ", " + std::to_string(high) +
                                            ") must lie in the space's " + std::to_string(limit) + " floats");
  return b;
}

// A channel range of a buffer.
struct Slice {
  int32_t buffer, channel, channels;
};

Slice take_slice(Reader& in, const Program& program, const char* buffer, const char* channel,
                 const char* channels) {
  Slice s;
  s.buffer = in.take(buffer, 0, static_cast<int64_t>(program.buffers.size()) - 1);
  const int32_t limit = program.buffers[s.buffer].channels;
  s.channel = in.take(channel, 0, limit - 1);
  s.channels = in.take(channels, 1, limit - s.channel);
  return s;
}

void require_data(const Reader& in, const char* name, int64_t offset, int64_t size, int64_t n_data) {
  in.require(offset >= 0 && offset <= n_data - size,
             std::string(name) + " (=" + std::to_string(offset) + ") and its " + std::to_string(size) +
                 " floats must lie in the " + std::to_string(n_data) + " of data");
}

Instruction read_instruction(Reader& in, const Program& program, const OpRecord& op, int index,
                             int64_t n_data) {
  Instruction i;
  i.fn = static_cast<Fn>(in.take("fn", 0, static_cast<int64_t>(Fn::count) - 1));
  i.a = in.take("a");
  i.b = in.take("b");
  i.c = in.take("c");
  i.d = in.take("d");
  const int arity = kArity[static_cast<int>(i.fn)];
  const int32_t operands[] = {i.a, i.b};
  for (int k = 0; k < arity; ++k) {
    in.require(operands[k] >= 0 && operands[k] < index,
               "register (=" + std::to_string(operands[k]) + ") must be of an earlier instruction");
  }
  if (i.fn == Fn::product) {
    in.require(i.a >= 0 && i.a <= op.product_channels - op.channels,
               "product channels from " + std::to_string(i.a) + " on must lie in the op's " +
                   std::to_string(op.product_channels));
  } else if (i.fn == Fn::load || i.fn == Fn::splat) {
    const int64_t n_buffers = static_cast<int64_t>(program.buffers.size());
    in.require(i.a >= 0 && i.a < n_buffers,
               "buffer (=" + std::to_string(i.a) + ") must be in [0, " + std::to_string(n_buffers - 1) + "]");
    const int32_t width = i.fn == Fn::load ? op.channels : 1;
    in.require(i.b >= 0 && i.b <= program.buffers[i.a].channels - width,
               "channels from " + std::to_string(i.b) + " on must lie in the buffer's " +
                   std::to_string(program.buffers[i.a].channels));
    in.require(i.c >= -kMaxSide && i.c <= kMaxSide && i.d >= -kMaxSide && i.d <= kMaxSide,
               "dy and dx are too large");
  } else if (i.fn == Fn::store) {
    const int64_t n_buffers = static_cast<int64_t>(program.buffers.size());
    in.require(i.b >= 0 && i.b < n_buffers,
               "buffer (=" + std::to_string(i.b) + ") must be in [0, " + std::to_string(n_buffers - 1) + "]");
    const Buffer &b = program.buffers[i.b], &out = program.buffers[op.buffer];
    in.require(b.space == Space::arena && b.height == out.height && b.width == out.width,
               "a store is to the arena, on the grid of the op's output");
    in.require(i.c >= 0 && i.c <= b.channels - op.channels, "channels from " + std::to_string(i.c) +
                                                                " on must lie in the buffer's " +
                                                                std::to_string(b.channels));
  } else if (i.fn == Fn::vector) {
    require_data(in, "vector", i.a, op.channels, n_data);
  }
  return i;
}

// The record of a conv or a map.
void read_product(Reader& in, Program& program, OpRecord& op, int64_t n_data) {
  const std::string part = in.part;
  const Slice out = take_slice(in, program, "out_buffer", "out_channel", "out_channels");
  in.require(program.buffers[out.buffer].space == Space::arena, "an op writes to the arena only");
  op.buffer = out.buffer, op.channel = out.channel, op.channels = out.channels;
  op.stride_y = in.take("stride_y", 0, kMaxStride);
  op.stride_x = in.take("stride_x", 0, kMaxStride);
  const bool conv = op.op == Op::conv;
  op.product_channels = in.take("product_channels", conv ? 1 : 0, conv ? kMaxSide : 0);
  op.weight = in.take("weight");
  op.bias = in.take("bias");
  op.start.buffer = in.take("start_buffer", -1, conv ? static_cast<int64_t>(program.buffers.size()) - 1 : -1);
  op.start.channel = in.take("start_channel", 0, kMaxSide);
  if (op.start.buffer >= 0) {
    const int32_t limit = program.buffers[op.start.buffer].channels;
    in.require(op.start.channel <= limit - op.product_channels,
               "start channels from " + std::to_string(op.start.channel) + " on must lie in the buffer's " +
                   std::to_string(limit));
  }
  const int32_t n_taps = in.take("n_taps", 0, conv ? kMaxSide : 0);
  const int32_t n_instructions = in.take("n_instructions", conv ? 0 : 1, kMaxSide);
  for (int t = 0; t < n_taps; ++t) {
    in.part = part + ": tap " + std::to_string(t);
    const Slice s = take_slice(in, program, "buffer", "channel", "channels");
    const int32_t dy = in.take("dy", -kMaxSide, kMaxSide);
    const int32_t dx = in.take("dx", -kMaxSide, kMaxSide);
    op.taps.push_back({s.buffer, s.channel, s.channels, dy, dx});
    op.depth += s.channels;
  }
  for (int i = 0; i < n_instructions; ++i) {
    in.part = part + ": instruction " + std::to_string(i);
    op.instructions.push_back(read_instruction(in, program, op, i, n_data));
  }
  in.part = part;
  in.require(op.instructions.empty() || op.instructions.back().fn != Fn::store,
             "its last instruction is a store");
  // 31 bits times 20: no overflow.
  in.require(op.depth <= n_data, "its taps have more channels than data has floats");
  if (op.depth > 0) require_data(in, "weight", op.weight, op.depth * op.product_channels, n_data);
  if (conv && op.bias >= 0) require_data(in, "bias", op.bias, op.product_channels, n_data);
  in.require(n_instructions > 0 || op.product_channels == op.channels,
             "product_channels must equal out_channels where there is no expression");
}

// The grid of an op of the image is the image's.
void require_image_grid(const Reader& in, const Program& program, const Buffer& b) {
  in.require(b.height == program.height && b.width == program.width,
             "the buffer's grid must be the image's, " + std::to_string(program.height) + " x " +
                 std::to_string(program.width));
}

// Where heads * channels of a sequence lie; `whole`: of all its positions at once.
Place take_place(Reader& in, const Program& program, const char* name, int64_t channels, bool whole) {
  Place place;
  place.buffer = in.take(name, 0, static_cast<int64_t>(program.buffers.size()) - 1);
  const Buffer& b = program.buffers[place.buffer];
  in.require(b.height == 1, std::string(name) + " must have one row");
  in.require(!whole || b.columns >= b.width, std::string(name) + " must have all of its columns");
  in.require(channels <= b.channels,
             std::string(name) + " must have at least " + std::to_string(channels) + " channels");
  place.channel = in.take("channel", 0, b.channels - channels);
  return place;
}

void read_attention(Reader& in, const Program& program, OpRecord& op, int64_t n_data) {
  Attention& a = op.attention;
  const int64_t n_buffers = static_cast<int64_t>(program.buffers.size());
  op.buffer = in.take("out_buffer", 0, n_buffers - 1);
  const Buffer& out = program.buffers[op.buffer];
  op.channel = in.take("out_channel", 0, out.channels - 1);
  in.require(out.space == Space::arena && out.height == 1, "attention writes to a sequence in the arena");
  a.heads = in.take("heads", 1, kMaxSide);
  a.key_channels = in.take("key_channels", 1, kMaxSide);
  a.value_channels = in.take("value_channels", 1, kMaxSide);
  const int64_t channels = static_cast<int64_t>(a.heads) * a.value_channels;
  in.require(channels <= out.channels - op.channel,
             "its channels must lie in the buffer's " + std::to_string(out.channels));
  op.channels = static_cast<int32_t>(channels);
  a.query = take_place(in, program, "query_buffer", static_cast<int64_t>(a.heads) * a.key_channels, false);
  a.key = take_place(in, program, "key_buffer", static_cast<int64_t>(a.heads) * a.key_channels, true);
  a.value = take_place(in, program, "value_buffer", channels, true);
  const int64_t positions = program.buffers[a.key.buffer].width;
  in.require(program.buffers[a.query.buffer].width == out.width, "there must be as many queries as outputs");
  in.require(program.buffers[a.value.buffer].width == positions, "there must be as many values as keys");
  a.bias = in.take("bias");
  a.bias_heads = in.take("bias_heads", 0, a.heads);
  in.require(a.bias_heads <= 1 || a.bias_heads == a.heads, "bias_heads must be 0, 1 or heads");
  if (a.bias_heads > 0) {  // 60 bits
    const int64_t row = out.width * positions;
    in.require(row <= n_data, "bias has more entries than data has floats");
    require_data(in, "bias", a.bias, row * a.bias_heads, n_data);
  }
  const int32_t n_runs = in.take("n_runs", 0);
  for (int32_t q = 0; q <= out.width; ++q) {
    a.first.push_back(in.take("first", q == 0 ? 0 : a.first.back(), q == 0 ? 0 : n_runs));
  }
  in.require(a.first.back() == n_runs, "the last query's runs must be the last");
  for (size_t q = 0; q + 1 < a.first.size(); ++q) {
    int32_t end = 0;  // runs that overlapped could be more positions than there is room for scores
    for (int32_t r = a.first[q]; r < a.first[q + 1]; ++r) {
      a.runs.push_back(in.take("start", end, positions - 1));
      end = in.take("end", a.runs.back() + 1, positions);
      a.runs.push_back(end);
    }
  }
}

OpRecord read_op(Reader& in, Program& program, int64_t n_data) {
  OpRecord op{};
  const int64_t start = in.position();
  op.op = static_cast<Op>(in.take("opcode", 0, static_cast<int64_t>(Op::count) - 1));
  const int32_t n_words = in.take("n_words", 2);
  if (op.op == Op::conv || op.op == Op::map) {
    read_product(in, program, op, n_data);
  } else if (op.op == Op::attend) {
    read_attention(in, program, op, n_data);
  } else if (op.op == Op::input) {
    op.colour = in.take("colour", 0, program.colours - 1);
    const Slice out = take_slice(in, program, "out_buffer", "out_channel", "out_channels");
    op.buffer = out.buffer, op.channel = out.channel, op.channels = out.channels;
    op.table = in.take("table");
    in.require(program.buffers[op.buffer].space == Space::arena, "an op writes to the arena only");
    require_image_grid(in, program, program.buffers[op.buffer]);
    require_data(in, "table", op.table, static_cast<int64_t>(program.levels) * op.channels, n_data);
  } else {
    op.colour = in.take("colour", 0, program.colours - 1);
    op.buffer = in.take("buffer", 0, static_cast<int64_t>(program.buffers.size()) - 1);
    op.channels = op.op == Op::categorical ? program.levels : 1;
    op.channel = in.take("channel", 0, program.buffers[op.buffer].channels - op.channels);
    in.require(op.op != Op::bernoulli || program.levels == 2, "a bernoulli head needs 2 levels");
    require_image_grid(in, program, program.buffers[op.buffer]);
  }
  in.require(in.position() - start == n_words,
             "n_words (=" + std::to_string(n_words) + ") must be " + std::to_string(in.position() - start));
  return op;
}

void read_launch(Reader& in, Program& program, int32_t op) {
  const Buffer& grid = program.buffers[program.ops[op].buffer];
  const int32_t n_runs = in.take("n_runs", 1);
  Launch launch{op, static_cast<int32_t>(program.runs.size()), n_runs, 0};
  for (int i = 0; i < n_runs; ++i) {
    Run run;
    run.y = in.take("y", 0, grid.height - 1);
    run.x = in.take("x", 0, grid.width - 1);
    run.n = in.take("n", 1, kMaxSide);
    run.dy = in.take("dy", -kMaxSide, kMaxSide);
    run.dx = in.take("dx", -kMaxSide, kMaxSide);
    const int64_t y = run.y + static_cast<int64_t>(run.n - 1) * run.dy;
    const int64_t x = run.x + static_cast<int64_t>(run.n - 1) * run.dx;
    in.require(y >= 0 && y < grid.height && x >= 0 && x < grid.width,
               "run " + std::to_string(i) + " ends at (" + std::to_string(y) + ", " + std::to_string(x) +
                   "), outside the op's grid");
    in.require(run.n == 1 || run.dy != 0 || run.dx != 0, "run " + std::to_string(i) + " stands still");
    launch.positions += run.n;
    program.runs.push_back(run);
  }
  program.launches.push_back(launch);
}

void read_launches(Reader& in, Program& program, int32_t n_steps) {
  const int32_t n_ops = static_cast<int32_t>(program.ops.size());
  while (!in.done()) {
    in.part = "launch " + std::to_string(program.launches.size());
    const int32_t op = in.take("op", kStepMark, n_ops - 1);
    if (op == kStepMark) {
      in.take("step mark's second word", 0, 0);
      program.step_ends.push_back(static_cast<int32_t>(program.launches.size()));
    } else {
      read_launch(in, program, op);
    }
  }
  in.part = "launches";
  const int64_t found = static_cast<int64_t>(program.step_ends.size());
  in.require(found == n_steps,
             "the header says " + std::to_string(n_steps) + " steps, there are " + std::to_string(found));
  in.require(found > 0 ? program.step_ends.back() == static_cast<int64_t>(program.launches.size())
                       : program.launches.empty(),
             "the last launch must be followed by a step mark");
}

}  // namespace

Program decode_program(const int32_t* words, int64_t n_words, int64_t n_data) {
  Reader in(words, n_words);
  Program p{};
  in.part = "header";
  in.require(n_data <= kMaxInt, "data has more floats than an int32 can count");
  in.take("magic", kMagic, kMagic);
  in.take("version", kVersion, kVersion);
  in.take("words", n_words, n_words);
  p.colours = in.take("colours", 1, kMaxSide);
  p.height = in.take("height", 1, kMaxSide);
  p.width = in.take("width", 1, kMaxSide);
  p.levels = in.take("levels", 1, kMaxLevels);
  p.arena_floats = in.take("arena_floats", 0);
  p.condition_floats = in.take("condition_floats", 0);
  const int32_t n_buffers = in.take("buffers", 0, n_words / kBufferWords);
  const int32_t n_ops = in.take("ops", 0, n_words / 2);
  const int32_t n_steps = in.take("steps", 0, n_words / 2);
  const int32_t launch_words = in.take("launch_words", 0, n_words);
  for (int i = 0; i < n_buffers; ++i) {
    in.part = "buffer " + std::to_string(i);
    p.buffers.push_back(read_buffer(in, p, n_data));
  }
  for (int i = 0; i < n_ops; ++i) {
    in.part = "op " + std::to_string(i);
    p.ops.push_back(read_op(in, p, n_data));
  }
  in.part = "header";
  in.require(n_words - in.position() == launch_words, "launch_words (=" + std::to_string(launch_words) +
                                                          ") must be " +
                                                          std::to_string(n_words - in.position()));
  read_launches(in, p, n_steps);
  return p;
}

std::vector<float> keep_data(Program& program, const float* data) {
  constexpr size_t kAlign = 16;  // floats to a cache line
  std::vector<float> kept;
  const auto keep = [&](int64_t offset, int64_t size) {
    kept.resize((kept.size() + kAlign - 1) / kAlign * kAlign);
    kept.insert(kept.end(), data + offset, data + offset + size);
    return static_cast<int64_t>(kept.size()) - size;
  };
  const auto move = [&](int32_t& offset, int64_t size) { offset = static_cast<int32_t>(keep(offset, size)); };
  for (Buffer& b : program.buffers) {
    if (b.space != Space::data) continue;
    const int64_t row = (std::min(b.rows, b.height) - 1) * b.row_stride;
    const int64_t column = (std::min(b.columns, b.width) - 1) * b.col_stride;
    const int64_t before = -std::min<int64_t>(row, 0) - std::min<int64_t>(column, 0);
    const int64_t after = std::max<int64_t>(row, 0) + std::max<int64_t>(column, 0) + b.channels;
    b.offset = keep(b.offset - before, before + after) + before;
  }
  for (OpRecord& op : program.ops) {
    if (op.op == Op::input) move(op.table, static_cast<int64_t>(program.levels) * op.channels);
    if (op.op == Op::conv && op.bias >= 0) move(op.bias, op.product_channels);
    for (Instruction& i : op.instructions) {
      if (i.fn == Fn::vector) move(i.a, op.channels);
    }
    Attention& a = op.attention;
    if (a.bias_heads > 0) {
      const int64_t row =
          static_cast<int64_t>(program.buffers[op.buffer].width) * program.buffers[a.key.buffer].width;
      move(a.bias, row * a.bias_heads);
    }
  }
  return kept;
}

}  // namespace pixelfast
