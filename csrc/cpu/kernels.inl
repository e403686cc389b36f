// The hot loops, written once over `Lanes` and compiled once per instruction set, inside an anonymous
// namespace. No std templates and no inline functions of external linkage here: the linker keeps one copy of
// such a symbol for everybody, and it may be the one that uses instructions this machine lacks.

#include "cpu/gather.inl"

// ---- product ---------------------------------------------------------------------------------------------

inline Lanes multiply(Lanes x, Lanes weight, Lanes sum) { return Lanes::fma(x, weight, sum); }

#include "cpu/product.inl"

// At most `kCount` outputs of `kGroups` times as many rows as there are lanes, which the rows are: the same
// chains.
template <int kGroups, int kCount>
void product_columns(const ProductArgs& p, int row) {
  constexpr int kRows = kGroups * Lanes::kLanes;
  const int rows = p.rows - row < kRows ? p.rows - row : kRows;
  Lanes acc[kGroups][kCount];
#pragma GCC unroll 3
  for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 4
    for (int o = 0; o < kCount; ++o) {
      acc[g][o] = Lanes::set(p.bias[o]);
      if (p.start == nullptr || o >= p.start_lanes[0]) continue;
      float column[Lanes::kLanes];
      for (int r = 0; r < Lanes::kLanes; ++r) {
        const int at = g * Lanes::kLanes + r;
        column[r] = p.start[row + (at < rows ? at : rows - 1)][p.start_column[0] + o];
      }
      acc[g][o] = Lanes::load(column);
    }
  }
  const float* w = p.weights;
  for (int t = 0; t < p.n_taps; ++t) {
    const float* const* in = p.inputs + t * kBlockRows + row;
    const float* filled[kRows];
    if (rows < kRows) {  // the last row fills what lanes are left
      for (int r = 0; r < kRows; ++r) filled[r] = in[r < rows ? r : rows - 1];
      in = filled;
    }
    int i = 0;
    for (; i + 4 <= p.tap_channels[t]; i += 4, w += 4 * p.weight_stride) {
#pragma GCC unroll 3
      for (int g = 0; g < kGroups; ++g) {
        Lanes x[4];
        __asm__ volatile("" : : : "memory");  // the pointers stay where they are: too many for registers
        Lanes::transpose(in + g * Lanes::kLanes, i, x);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 4
          for (int o = 0; o < kCount; ++o)
            acc[g][o] = Lanes::fma(x[j], Lanes::set(w[j * p.weight_stride + o]), acc[g][o]);
        }
      }
    }
    for (; i < p.tap_channels[t]; ++i, w += p.weight_stride) {
#pragma GCC unroll 3
      for (int g = 0; g < kGroups; ++g) {
        float column[Lanes::kLanes];
        for (int r = 0; r < Lanes::kLanes; ++r) column[r] = in[g * Lanes::kLanes + r][i];
        const Lanes x = Lanes::load(column);
#pragma GCC unroll 4
        for (int o = 0; o < kCount; ++o) acc[g][o] = Lanes::fma(x, Lanes::set(w[o]), acc[g][o]);
      }
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < kCount; ++o) {
    if (o == p.columns) return;
    float column[kRows];
#pragma GCC unroll 3
    for (int g = 0; g < kGroups; ++g) acc[g][o].store(column + g * Lanes::kLanes);
    for (int r = 0; r < rows; ++r) p.outputs[row + r][p.column + o] = column[r];
  }
}

template <int kCount>
void product_by_columns(const ProductArgs& p) {
  constexpr int kMost = kAccumulators / 8;  // groups
  int row = 0;
  for (; p.rows - row > Lanes::kLanes; row += kMost * Lanes::kLanes) product_columns<kMost, kCount>(p, row);
  if (row < p.rows) product_columns<1, kCount>(p, row);
}

void product(const ProductArgs& p) {
  const bool narrow =
      p.vectors == 1 && 4 * p.columns <= Lanes::kLanes && p.rows >= kNarrowRows && p.n_after == 0;
  if (!narrow) return product_by_rows(p);
  if (p.columns == 1) return product_by_columns<1>(p);
  if (p.columns == 2) return product_by_columns<2>(p);
  product_by_columns<4>(p);
}

// ---- expressions -----------------------------------------------------------------------------------------

template <class F>
inline void map1(const float* a, float* y, int64_t n, F f) {
  int64_t k = 0;
  for (; k + Lanes::kLanes <= n; k += Lanes::kLanes) f(Lanes::load(a + k)).store(y + k);
  if (k < n) f(Lanes::load(a + k, static_cast<int>(n - k))).store(y + k, static_cast<int>(n - k));
}

template <class F>
inline void map2(const float* a, const float* b, float* y, int64_t n, F f) {
  int64_t k = 0;
  for (; k + Lanes::kLanes <= n; k += Lanes::kLanes) f(Lanes::load(a + k), Lanes::load(b + k)).store(y + k);
  const int rest = static_cast<int>(n - k);
  if (rest > 0) f(Lanes::load(a + k, rest), Lanes::load(b + k, rest)).store(y + k, rest);
}

// Calls use(f) with the function on lanes that `fn` names. This switch is all that dispatches at run time.
template <class Use>
inline void with_function(Fn fn, const Use& use) {
  switch (fn) {
    case Fn::add:
      return use.two([](Lanes a, Lanes b) { return a + b; });
    case Fn::sub:
      return use.two([](Lanes a, Lanes b) { return a - b; });
    case Fn::mul:
      return use.two([](Lanes a, Lanes b) { return a * b; });
    case Fn::div:
      return use.two([](Lanes a, Lanes b) { return a / b; });
    case Fn::gate:
      return use.two([](Lanes a, Lanes b) { return vgate(a, b); });
    case Fn::min:
      return use.two([](Lanes a, Lanes b) { return Lanes::min(a, b); });
    case Fn::max:
      return use.two([](Lanes a, Lanes b) { return Lanes::max(a, b); });
    case Fn::neg:
      return use.one([](Lanes a) { return vneg(a); });
    case Fn::abs:
      return use.one([](Lanes a) { return vabs(a); });
    case Fn::sqrt:
      return use.one([](Lanes a) { return Lanes::sqrt(a); });
    case Fn::exp:
      return use.one([](Lanes a) { return vexp(a); });
    case Fn::log:
      return use.one([](Lanes a) { return vlog(a); });
    case Fn::tanh:
      return use.one([](Lanes a) { return vtanh(a); });
    case Fn::sigmoid:
      return use.one([](Lanes a) { return vsigmoid(a); });
    case Fn::relu:
      return use.one([](Lanes a) { return vrelu(a); });
    case Fn::elu:
      return use.one([](Lanes a) { return velu(a); });
    default:
      return use.one([](Lanes a) { return a; });
  }
}

// All lanes of a vector.
struct Whole {};
inline Lanes load(const float* p, Whole) { return Lanes::load(p); }
inline Lanes load(const float* p, int lanes) { return Lanes::load(p, lanes); }
inline void store(Lanes x, float* p, Whole) { x.store(p); }
inline void store(Lanes x, float* p, int lanes) { x.store(p, lanes); }

#define PIXELFAST_INLINE __attribute__((always_inline))

// One step over `n` vectors: those from `first` on of the task, all rows of each.
struct StepRunner {
  const ExpressionArgs& e;
  const Step& step;
  int first, vectors, all;  // `all` vectors of the task

  float* slot(const Step& s) const {
    return s.slot < 0 ? nullptr : e.slots + static_cast<int64_t>(s.slot) * kBlockRows * Lanes::kLanes;
  }
  const float* const* leaf(int index) const { return index < 0 ? nullptr : e.leaves + index * kBlockRows; }
  const float* value(int index) const {
    const Step& s = e.steps[index];
    if (s.part < 0) return slot(s);
    return e.product + static_cast<int64_t>(s.part * all + first) * e.rows * Lanes::kLanes;
  }
  // Calls use(row, channel, which lanes, where they are) for each vector of each row.
  template <class Use>
  PIXELFAST_INLINE void each(const Use& use) const {
    const int rows = e.rows, end = e.channel + e.channels;
    int channel = e.channel + first * Lanes::kLanes;
    int64_t at = 0;
    for (int v = 0; v < vectors; ++v, channel += Lanes::kLanes) {
      if (channel + Lanes::kLanes <= end) {
        for (int r = 0; r < rows; ++r, at += Lanes::kLanes) use(r, channel, Whole{}, at);
      } else {
        for (int r = 0; r < rows; ++r, at += Lanes::kLanes) use(r, channel, end - channel, at);
      }
    }
  }
  // Keeps get(row, channel, which lanes, where) in the slot or, if this is the output, there.
  template <class Get>
  PIXELFAST_INLINE void keep(const Get& get) const {
    if (step.output) {
      float* const* const outputs = e.outputs;
      each([=](int r, int channel, auto lanes, int64_t at)
               PIXELFAST_INLINE { store(get(r, channel, lanes, at), outputs[r] + channel, lanes); });
    } else {
      float* const y = slot(step);
      each([=](int r, int channel, auto lanes, int64_t at)
               PIXELFAST_INLINE { get(r, channel, lanes, at).store(y + at); });
    }
  }
  template <class F>
  PIXELFAST_INLINE void one(const F& f) const {
    const float* const a = value(step.a);
    keep([=](int, int, auto, int64_t at) PIXELFAST_INLINE { return f(Lanes::load(a + at)); });
  }
  template <class F>
  PIXELFAST_INLINE void two(const F& f) const {
    const float* const a = step.a < 0 ? nullptr : value(step.a);
    const float* const b = step.b < 0 ? nullptr : value(step.b);
    const float* const* const rows = leaf(step.row);
    const Lanes x = Lanes::set(step.scalar);
    if (a != nullptr && b != nullptr) {
      keep([=](int, int, auto, int64_t at)
               PIXELFAST_INLINE { return f(Lanes::load(a + at), Lanes::load(b + at)); });
    } else if (step.row >= 0 && a != nullptr) {
      keep([=](int r, int channel, auto lanes, int64_t at)
               PIXELFAST_INLINE { return f(Lanes::load(a + at), load(rows[r] + channel, lanes)); });
    } else if (step.row >= 0) {
      keep([=](int r, int channel, auto lanes, int64_t at)
               PIXELFAST_INLINE { return f(load(rows[r] + channel, lanes), Lanes::load(b + at)); });
    } else if (a != nullptr) {
      keep([=](int, int, auto, int64_t at) PIXELFAST_INLINE { return f(Lanes::load(a + at), x); });
    } else {
      keep([=](int, int, auto, int64_t at) PIXELFAST_INLINE { return f(x, Lanes::load(b + at)); });
    }
  }
  void save(const float* values, float* const* rows) const {
    each([=](int r, int channel, auto lanes, int64_t at)
             PIXELFAST_INLINE { store(Lanes::load(values + at), rows[r] + channel, lanes); });
  }
  void run() const {
    const float* const* const rows = leaf(step.leaf);
    float* const y = slot(step);
    switch (step.fn) {
      case Fn::product:
        return;
      case Fn::load:
      case Fn::vector:
        if (step.slot < 0) return;
        return each([=](int r, int channel, auto lanes, int64_t at)
                        PIXELFAST_INLINE { load(rows[r] + channel, lanes).store(y + at); });
      case Fn::splat:
        return each([=](int r, int, auto, int64_t at)
                        PIXELFAST_INLINE { Lanes::set(*rows[r]).store(y + at); });
      case Fn::scalar: {
        if (step.slot < 0) return;
        const Lanes x = Lanes::set(step.scalar);
        return each([=](int, int, auto, int64_t at) PIXELFAST_INLINE { x.store(y + at); });
      }
      case Fn::store:  // in the arena, where its users read it
        return save(value(step.a), const_cast<float* const*>(rows));
      default:
        return with_function(step.fn, *this);
    }
  }
};

void expression(const ExpressionArgs& e) {
  const int all = (e.channels + Lanes::kLanes - 1) / Lanes::kLanes, most = kBlockRows / e.rows;
  for (int first = 0; first < all; first += most) {
    const int vectors = all - first < most ? all - first : most;
    for (int i = 0; i < e.n_steps; ++i) StepRunner{e, e.steps[i], first, vectors, all}.run();
    const StepRunner last{e, e.steps[e.n_steps - 1], first, vectors, all};
    if (!last.step.output) last.save(last.value(e.n_steps - 1), e.outputs);
  }
}

struct ArrayRunner {
  const float* a;
  const float* b;
  float* y;
  int64_t n;
  template <class F>
  void one(F f) const {
    map1(a, y, n, f);
  }
  template <class F>
  void two(F f) const {
    map2(a, b, y, n, f);
  }
};

void unary(Fn fn, const float* x, float* y, int64_t n) { with_function(fn, ArrayRunner{x, x, y, n}); }

void binary(Fn fn, const float* a, const float* b, float* y, int64_t n) {
  with_function(fn, ArrayRunner{a, b, y, n});
}

void multiply_add(const float* a, const float* b, const float* c, float* y, int64_t n) {
  for (int64_t k = 0; k < n; k += Lanes::kLanes) {
    const int rest = n - k < Lanes::kLanes ? static_cast<int>(n - k) : Lanes::kLanes;
    Lanes::fma(Lanes::load(a + k, rest), Lanes::load(b + k, rest), Lanes::load(c + k, rest))
        .store(y + k, rest);
  }
}

#include "cpu/attend.inl"

// ---- heads -----------------------------------------------------------------------------------------------

Weights weights(const float* logits, int n, float inverse_temperature, int32_t* weight) {
  Weights w{0, 0, 0, 0.0f, false};
  w.largest = largest_logit<Lanes>(logits, n, &w.nan);
  if (w.nan || !(w.largest - w.largest == 0.0f)) return w;
  const WeightTotals found = level_weights<Lanes>(logits, n, w.largest, inverse_temperature, weight);
  w.total = found.total, w.allowed = found.allowed, w.argmax = found.argmax;
  return w;
}

int64_t frequencies(const int32_t* weight, int n, double scale, int32_t* frequency, int64_t* block_sums) {
  return level_frequencies<Lanes>(weight, n, scale, frequency, block_sums);
}

bool levels(const LevelArgs& a, int n) {
  for (int row = 0; row < n; row += Lanes::kLanes) {
    const int rows = n - row < Lanes::kLanes ? n - row : Lanes::kLanes;
    const float* logits[Lanes::kLanes];
    uint32_t bits[Lanes::kLanes], frequency[Lanes::kLanes];
    int32_t level[Lanes::kLanes];
    for (int i = 0; i < Lanes::kLanes; ++i) {  // the last row fills what lanes are left
      const int r = row + (i < rows ? i : rows - 1);
      logits[i] = a.logits[r], bits[i] = a.bits[r], level[i] = a.level[r];
    }
    if (!draw_levels<Lanes>(logits, a.levels, a.inverse_temperature, bits, a.table, level, frequency))
      return false;
    for (int i = 0; i < rows; ++i) a.level[row + i] = level[i], a.frequency[row + i] = frequency[i];
  }
  return true;
}

void draw(uint64_t seed, const uint64_t* image, const uint64_t* counter, int n, uint32_t* bits) {
  for (int k = 0; k < n; ++k) bits[k] = draw_bits(seed, image[k], counter[k]);
}

// ---- the machine's peak ----------------------------------------------------------------------------------

int64_t peak(int64_t n, float* sink) {
  constexpr int kChains = kAccumulators < 12 ? kAccumulators : 12;
  Lanes acc[kChains];
  const Lanes x = Lanes::set(sink[0]), y = Lanes::set(sink[1]);
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) acc[i] = Lanes::set(static_cast<float>(i));
  for (int64_t k = 0; k < n; ++k) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = Lanes::fma(acc[i], x, y);
  }
  Lanes sum = Lanes::set(0.0f);
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) sum = sum + acc[i];
  sum.store(sink + 2);
  return n * kChains * Lanes::kLanes;
}
