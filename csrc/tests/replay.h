// Whether the waits of a program suffice: it is replayed, float by float, without what core/waits.cpp knows
// of buffers and channels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/program.h"
#include "core/waits.h"

namespace pixelfast {

class Replay {
 public:
  // `order`: of the launches, by index; the waits are in that order.
  Replay(const Program& program, const std::vector<int32_t>& order, const Waits& waits)
      : p_(program), order_(order), waits_(waits) {}

  // Throws std::runtime_error for two launches, one of which writes what the other touches, if not all
  // threads arrive after the first, or later, and then wait before the second.
  void check() {
    int64_t arrived = -1;
    for (size_t i = 0; i < order_.size(); ++i) {
      now_ = static_cast<int64_t>(i);
      if (waits_.any[i]) {
        if (arrived < 0) fail("a wait without an arrival", now_, now_);
        covered_ = arrived, arrived = -1;
      }
      const Launch& launch = p_.launches[order_[i]];
      for (int32_t r = launch.first_run; r < launch.first_run + launch.n_runs; ++r) {
        const Run& run = p_.runs[r];
        for (int32_t k = 0; k < run.n; ++k) touch(p_.ops[launch.op], run.y + k * run.dy, run.x + k * run.dx);
      }
      if (waits_.arrives[i]) {
        if (arrived >= 0) fail("two arrivals without a wait", arrived, now_);
        arrived = now_;
      }
    }
    if (arrived >= 0) fail("an arrival without a wait", arrived, now_);
  }

 private:
  // The last launches that wrote and that read a float. What came before them is covered if they are.
  struct Last {
    int64_t write = -1, read = -1;
  };

  [[noreturn]] static void fail(const std::string& what, int64_t a, int64_t b) {
    throw std::runtime_error(what + ": launches " + std::to_string(a) + " and " + std::to_string(b));
  }

  void touch(const OpRecord& op, int32_t y, int32_t x) {
    if (op.op == Op::input) level(op, y, x, false);
    if (op.op == Op::categorical || op.op == Op::bernoulli) {
      channels(op.buffer, op.channel, op.channels, y, x, false);
      return level(op, y, x, true);
    }
    if (op.op == Op::attend) {
      const Attention& a = op.attention;
      const int32_t keys = a.heads * a.key_channels;
      channels(a.query.buffer, a.query.channel, keys, y, x, false);
      for (int32_t r = a.first[x]; r < a.first[x + 1]; ++r) {
        for (int32_t k = a.runs[2 * r]; k < a.runs[2 * r + 1]; ++k) {
          channels(a.key.buffer, a.key.channel, keys, 0, k, false);
          channels(a.value.buffer, a.value.channel, a.heads * a.value_channels, 0, k, false);
        }
      }
    }
    for (const Tap& t : op.taps) {
      channels(t.buffer, t.channel, t.channels, op.stride_y * y + t.dy, op.stride_x * x + t.dx, false);
    }
    if (op.op == Op::conv && op.start.buffer >= 0) {
      channels(op.start.buffer, op.start.channel, op.product_channels, y, x, false);
    }
    for (const Instruction& i : op.instructions) {
      if (i.fn == Fn::load) channels(i.a, i.b, op.channels, y + i.c, x + i.d, false);
      if (i.fn == Fn::splat) channels(i.a, i.b, 1, y + i.c, x + i.d, false);
      if (i.fn == Fn::store) channels(i.b, i.c, op.channels, y, x, true);
    }
    channels(op.buffer, op.channel, op.channels, y, x, true);
  }

  void channels(int32_t buffer, int32_t channel, int32_t n, int32_t y, int32_t x, bool writes) {
    const Buffer& b = p_.buffers[buffer];
    if (b.space != Space::arena || y < 0 || y >= b.height || x < 0 || x >= b.width) return;
    const int64_t first = b.offset + y % b.rows * b.row_stride + x % b.columns * b.col_stride + channel;
    for (int32_t c = 0; c < n; ++c) at(first + c, writes);
  }
  // Levels lie before the arena.
  void level(const OpRecord& op, int32_t y, int32_t x, bool writes) {
    at(-1 - ((int64_t{op.colour} * p_.height + y) * p_.width + x), writes);
  }

  void at(int64_t place, bool writes) {
    Last& last = floats_[place];
    const int64_t before = writes ? std::max(last.write, last.read) : last.write;
    if (before > covered_ && before != now_) fail("no wait between what meets", before, now_);
    (writes ? last.write : last.read) = now_;
  }

  const Program& p_;
  const std::vector<int32_t>& order_;
  const Waits& waits_;
  int64_t now_ = 0, covered_ = -1;  // covered: the last launch that the last wait covers
  std::unordered_map<int64_t, Last> floats_;
};

}  // namespace pixelfast
