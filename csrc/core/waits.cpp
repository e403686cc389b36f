// Which launches must wait for the other threads of a team.
#include "core/waits.h"

#include <algorithm>
#include <numeric>

namespace pixelfast {
namespace {

// Channels of a buffer that an op reads or writes, and the arena's floats among which they lie. The levels of
// an image count as buffers, too: each colour is a float before the arena.
struct Use {
  int64_t begin, end;
  int32_t buffer, channel, channels;
  bool own;  // at the op's own position only
};

struct Uses {
  std::vector<Use> reads, writes;
};

Uses uses_of(const Program& program, const OpRecord& op) {
  Uses found;
  const auto add = [&](std::vector<Use>& uses, int32_t buffer, int32_t channel, int32_t channels, bool own) {
    const Buffer& b = program.buffers[buffer];
    if (b.space != Space::arena) return;
    const int64_t row = (std::min(b.rows, b.height) - 1) * b.row_stride;
    const int64_t column = (std::min(b.columns, b.width) - 1) * b.col_stride;
    uses.push_back({b.offset + std::min<int64_t>(row, 0) + std::min<int64_t>(column, 0),
                    b.offset + std::max<int64_t>(row, 0) + std::max<int64_t>(column, 0) + b.channels, buffer,
                    channel, channels, own});
  };
  const Use level = {-1 - op.colour, -op.colour, -1 - op.colour, 0, 1, true};
  if (op.op == Op::categorical || op.op == Op::bernoulli) {
    add(found.reads, op.buffer, op.channel, op.channels, true);
    found.writes.push_back(level);
    return found;
  }
  if (op.op == Op::input) found.reads.push_back(level);
  if (op.op == Op::attend) {
    const Attention& a = op.attention;
    add(found.reads, a.query.buffer, a.query.channel, a.heads * a.key_channels, true);
    add(found.reads, a.key.buffer, a.key.channel, a.heads * a.key_channels, false);
    add(found.reads, a.value.buffer, a.value.channel, a.heads * a.value_channels, false);
  }
  for (const Tap& t : op.taps) {
    const bool own = op.stride_y == 1 && op.stride_x == 1 && t.dy == 0 && t.dx == 0;
    add(found.reads, t.buffer, t.channel, t.channels, own);
  }
  if (op.op == Op::conv && op.start.buffer >= 0) {
    add(found.reads, op.start.buffer, op.start.channel, op.product_channels, true);
  }
  for (const Instruction& i : op.instructions) {
    if (i.fn == Fn::load) add(found.reads, i.a, i.b, op.channels, i.c == 0 && i.d == 0);
    if (i.fn == Fn::store) add(found.writes, i.b, i.c, op.channels, true);
    if (i.fn == Fn::splat) add(found.reads, i.a, i.b, 1, i.c == 0 && i.d == 0);
  }
  add(found.writes, op.buffer, op.channel, op.channels, true);
  return found;
}

// Whether some of `a` and some of `b` may be the same memory, in the hands of different threads.
bool meet(const std::vector<Use>& a, const std::vector<Use>& b, bool same_rows) {
  for (const Use& u : a) {
    for (const Use& v : b) {
      if (u.begin >= v.end || v.begin >= u.end) continue;
      const bool same = u.buffer == v.buffer;
      const bool apart = u.channel >= v.channel + v.channels || v.channel >= u.channel + u.channels;
      if (same && (apart || (same_rows && u.own && v.own))) continue;
      return true;
    }
  }
  return false;
}

bool conflict(const Uses& a, const Uses& b, bool same_rows) {
  return meet(a.writes, b.reads, same_rows) || meet(a.writes, b.writes, same_rows) ||
         meet(a.reads, b.writes, same_rows);
}

class Launches {
 public:
  explicit Launches(const Program& program) : program_(program) {
    for (const OpRecord& op : program.ops) uses_.push_back(uses_of(program, op));
  }

  // Whether all threads must be done with one before any begins with another.
  bool must_part(int32_t a, int32_t b, bool by_rows = false) const {
    const Launch &before = program_.launches[a], &after = program_.launches[b];
    return conflict(uses_[before.op], uses_[after.op], by_rows && same_positions(program_, before, after));
  }

 private:
  const Program& program_;
  std::vector<Uses> uses_;
};

}  // namespace

Waits find_waits(const Program& program, const std::vector<int32_t>& order) {
  const Launches launches(program);
  const size_t n = order.size();
  const auto find = [&](bool by_rows) {
    std::vector<bool> found(n);
    size_t since = 0;  // the first launch since the last wait
    for (size_t b = 0; b < n; ++b) {
      for (size_t a = since; a < b && !found[b]; ++a) {
        found[b] = launches.must_part(order[a], order[b], by_rows);
      }
      if (found[b]) since = b;
    }
    return found;
  };
  Waits waits{find(true), find(false), std::vector<bool>(n)};
  waits.n_by_rows = std::count(waits.by_rows.begin(), waits.by_rows.end(), true);
  waits.n_any = std::count(waits.any.begin(), waits.any.end(), true);
  // For a wait all arrive after the last launch since the wait before that any up to the wait after it must
  // be parted from. What ran earlier is covered, too, and what runs later is by the wait after it.
  size_t since = 0, last = 0;
  for (size_t b = 0; b < n; ++b) {
    if (waits.any[b]) {
      if (since > 0) waits.arrives[last] = true;
      last = since, since = b;
    }
    for (size_t a = since; a-- > last + 1;) {
      if (launches.must_part(order[a], order[b])) last = a;
    }
  }
  if (since > 0) waits.arrives[last] = true;
  return waits;
}

Waits find_waits(const Program& program) {
  std::vector<int32_t> order(program.launches.size());
  std::iota(order.begin(), order.end(), 0);
  return find_waits(program, order);
}

namespace {

// What moves within a step, whose launches that wait are `at`.
struct Mover {
  int32_t launch;
  double work;
  int64_t last;  // the last of `at` before which it may run
};

// Of the launches from `first` up to the second wait of a step that ends at `end`: those that neither others
// of these nor those since the wait before the step meet. The first to be needed come first.
std::vector<Mover> movers(const Program& program, const Launches& launches, int32_t since, int32_t first,
                          int32_t end, const std::vector<int32_t>& at) {
  std::vector<Mover> found;
  for (int32_t i = first; i < at[1]; ++i) {
    const OpRecord& op = program.ops[program.launches[i].op];
    const double work = static_cast<double>(program.launches[i].positions) * op.depth * op.product_channels;
    bool free = work > 0;
    for (int32_t j = since; j < at[1] && free; ++j) free = j == i || !launches.must_part(i, j);
    if (!free) continue;
    int32_t user = at[1];
    while (user < end && !launches.must_part(i, user)) ++user;
    const int64_t passed = std::upper_bound(at.begin(), at.end(), user) - at.begin();
    found.push_back({i, work, user < end ? passed - 2 : passed - 1});  // a wait must follow, before the user
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const Mover& a, const Mover& b) { return a.last < b.last; });
  return found;
}

}  // namespace

std::vector<int32_t> reorder(const Program& program, const Waits& waits, bool spread) {
  const Launches launches(program);
  std::vector<int32_t> order;
  int32_t since = 0, begin = 0;  // the last wait before the step, and its first launch
  for (const int32_t end : program.step_ends) {
    std::vector<int32_t> at;
    for (int32_t i = begin; i < end; ++i) {
      if (waits.any[i]) at.push_back(i);
    }
    std::vector<Mover> moving;
    if (at.size() > 1 && at[0] == begin) moving = movers(program, launches, since, begin + 1, end, at);
    std::vector<bool> moves(end - begin);
    double total = 0, placed = 0;
    for (const Mover& m : moving) moves[m.launch - begin] = true, total += m.work;
    size_t next = 0;
    int64_t wait = -1;  // number of the last one
    for (int32_t i = begin; i < end; ++i) {
      wait += waits.any[i];
      const double share = total * static_cast<double>(wait + 1) / static_cast<double>(at.size());
      for (; next < moving.size() && waits.any[i]; ++next) {
        if (spread && moving[next].last > wait && placed >= share) break;
        order.push_back(moving[next].launch), placed += moving[next].work;
      }
      if (!moves[i - begin]) order.push_back(i);
    }
    if (!at.empty()) since = at.back();
    begin = end;
  }
  return order;
}

}  // namespace pixelfast
