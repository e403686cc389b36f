// One lane: the definition that the wide lane types repeat, and a thread of a GPU. Included inside an
// anonymous namespace.

struct IntLanes {
  int32_t v;
  PIXELFAST_BOTH static IntLanes set(int32_t x) { return {x}; }
  template <int n>
  PIXELFAST_BOTH IntLanes sra() const {
    return {v >> n};
  }
  template <int n>
  PIXELFAST_BOTH IntLanes shl() const {
    return {static_cast<int32_t>(static_cast<uint32_t>(v) << n)};
  }
  template <int n>
  PIXELFAST_BOTH IntLanes srl() const {
    return {static_cast<int32_t>(static_cast<uint32_t>(v) >> n)};
  }
  PIXELFAST_BOTH static IntLanes load(const int32_t* p) { return {*p}; }
  PIXELFAST_BOTH void store(int32_t* p) const { *p = v; }
  PIXELFAST_BOTH static IntLanes truncate(struct Lanes x);
  PIXELFAST_BOTH IntLanes without(IntLanes mask) const { return {v & ~mask.v}; }
  PIXELFAST_BOTH uint32_t sum() const { return static_cast<uint32_t>(v); }
  // Truncated products with a double, or of what lies at p with one for each lane.
  PIXELFAST_BOTH IntLanes scaled(double scale) const {
    return {static_cast<int32_t>(static_cast<double>(v) * scale)};
  }
  static IntLanes scaled(const int32_t* p, const double* scales) { return load(p).scaled(*scales); }
};
PIXELFAST_BOTH inline int32_t wrap(uint32_t x) { return static_cast<int32_t>(x); }
PIXELFAST_BOTH inline IntLanes operator+(IntLanes a, IntLanes b) {
  return {wrap(static_cast<uint32_t>(a.v) + static_cast<uint32_t>(b.v))};
}
PIXELFAST_BOTH inline IntLanes operator-(IntLanes a, IntLanes b) {
  return {wrap(static_cast<uint32_t>(a.v) - static_cast<uint32_t>(b.v))};
}
PIXELFAST_BOTH inline IntLanes operator&(IntLanes a, IntLanes b) { return {a.v & b.v}; }
PIXELFAST_BOTH inline IntLanes operator|(IntLanes a, IntLanes b) { return {a.v | b.v}; }
PIXELFAST_BOTH inline IntLanes operator^(IntLanes a, IntLanes b) { return {a.v ^ b.v}; }

struct Lanes {
  using Int = IntLanes;
  using Mask = bool;
  static constexpr int kLanes = 1;

  float v;

  PIXELFAST_BOTH static Lanes set(float x) { return {x}; }
  PIXELFAST_BOTH static Lanes load(const float* p) { return {*p}; }
  PIXELFAST_BOTH static Lanes load(const float* p, int n) { return {n > 0 ? *p : 0.0f}; }
  PIXELFAST_BOTH void store(float* p) const { *p = v; }
  PIXELFAST_BOTH void store(float* p, int n) const {
    if (n > 0) *p = v;
  }
  PIXELFAST_BOTH void keep() {}
  PIXELFAST_BOTH static int first(Mask m) { return m ? 0 : 1; }  // lane of the mask
  PIXELFAST_BOTH static float largest(Lanes a) { return a.v; }
  PIXELFAST_BOTH static Lanes load(const float* p, int n, Lanes others) { return {n > 0 ? *p : others.v}; }
  // out[j]: element i + j of each row.
  PIXELFAST_BOTH static void transpose(const float* const* rows, int i, Lanes* out) {
    for (int j = 0; j < 4; ++j) out[j].v = rows[0][i + j];
  }
  // The sum of sixteen partial sums, the far half added to the near one.
  PIXELFAST_BOTH static float sum(const Lanes* partial) {
    float s[16];
    for (int i = 0; i < 16; ++i) s[i] = partial[i].v;
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) s[i] += s[i + half];
    }
    return s[0];
  }
  // Of as many rows of sixteen as there are lanes, one a lane.
  PIXELFAST_BOTH static Lanes sums(const Lanes* partial) { return {sum(partial)}; }
  PIXELFAST_BOTH static Lanes fma(Lanes a, Lanes b, Lanes c) { return {__builtin_fmaf(a.v, b.v, c.v)}; }
  PIXELFAST_BOTH static Lanes sqrt(Lanes a) { return {__builtin_sqrtf(a.v)}; }
  PIXELFAST_BOTH static Lanes min(Lanes a, Lanes b) { return a.v < b.v ? a : b; }
  PIXELFAST_BOTH static Lanes max(Lanes a, Lanes b) { return b.v < a.v ? a : b; }
  PIXELFAST_BOTH static Lanes ldexp(Lanes p, Lanes n);
  PIXELFAST_BOTH static Mask lt(Lanes a, Lanes b) { return a.v < b.v; }
  PIXELFAST_BOTH static Mask eq(Lanes a, Lanes b) { return a.v == b.v; }
  PIXELFAST_BOTH static Lanes select(Mask m, Lanes a, Lanes b) { return m ? a : b; }
  PIXELFAST_BOTH static Int bits(Lanes a) {
    Int i;
    __builtin_memcpy(&i.v, &a.v, 4);
    return i;
  }
  PIXELFAST_BOTH static Lanes floats(Int a) {
    Lanes f;
    __builtin_memcpy(&f.v, &a.v, 4);
    return f;
  }
};
PIXELFAST_BOTH inline Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
PIXELFAST_BOTH inline Lanes operator-(Lanes a, Lanes b) { return {a.v - b.v}; }
PIXELFAST_BOTH inline Lanes operator*(Lanes a, Lanes b) { return {a.v * b.v}; }
PIXELFAST_BOTH inline Lanes operator/(Lanes a, Lanes b) { return {a.v / b.v}; }
PIXELFAST_BOTH inline IntLanes IntLanes::truncate(Lanes x) { return {static_cast<int32_t>(x.v)}; }
PIXELFAST_BOTH inline Lanes Lanes::ldexp(Lanes p,
                                         Lanes n) {  // with no conversion, which NaN would not survive
  return ldexp_by_halves(p, bits(n + set(kRounding)) - Int::set(kRoundingBits));
}
