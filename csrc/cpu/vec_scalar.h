// One lane: the definition that the wide lane types repeat. Included inside an anonymous namespace.

struct IntLanes {
  int32_t v;
  static IntLanes set(int32_t x) { return {x}; }
  template <int n>
  IntLanes sra() const {
    return {v >> n};
  }
  template <int n>
  IntLanes shl() const {
    return {static_cast<int32_t>(static_cast<uint32_t>(v) << n)};
  }
  template <int n>
  IntLanes srl() const {
    return {static_cast<int32_t>(static_cast<uint32_t>(v) >> n)};
  }
  static IntLanes load(const int32_t* p) { return {*p}; }
  void store(int32_t* p) const { *p = v; }
  static IntLanes truncate(struct Lanes x);
  IntLanes without(IntLanes mask) const { return {v & ~mask.v}; }
  uint32_t sum() const { return static_cast<uint32_t>(v); }
  // Truncated products with a double, or one for each lane.
  IntLanes scaled(double scale) const { return {static_cast<int32_t>(static_cast<double>(v) * scale)}; }
  IntLanes scaled(const double* scales) const { return scaled(*scales); }
};
inline int32_t wrap(uint32_t x) { return static_cast<int32_t>(x); }
inline IntLanes operator+(IntLanes a, IntLanes b) {
  return {wrap(static_cast<uint32_t>(a.v) + static_cast<uint32_t>(b.v))};
}
inline IntLanes operator-(IntLanes a, IntLanes b) {
  return {wrap(static_cast<uint32_t>(a.v) - static_cast<uint32_t>(b.v))};
}
inline IntLanes operator&(IntLanes a, IntLanes b) { return {a.v & b.v}; }
inline IntLanes operator|(IntLanes a, IntLanes b) { return {a.v | b.v}; }
inline IntLanes operator^(IntLanes a, IntLanes b) { return {a.v ^ b.v}; }

struct Lanes {
  using Int = IntLanes;
  using Mask = bool;
  static constexpr int kLanes = 1;

  float v;

  static Lanes set(float x) { return {x}; }
  static Lanes load(const float* p) { return {*p}; }
  static Lanes load(const float* p, int n) { return {n > 0 ? *p : 0.0f}; }
  void store(float* p) const { *p = v; }
  void store(float* p, int n) const {
    if (n > 0) *p = v;
  }
  void keep() {}
  static int first(Mask m) { return m ? 0 : 1; }  // lane of the mask
  static float largest(Lanes a) { return a.v; }
  static Lanes load(const float* p, int n, Lanes others) { return {n > 0 ? *p : others.v}; }
  // out[j]: element i + j of each row.
  static void transpose(const float* const* rows, int i, Lanes* out) {
    for (int j = 0; j < 4; ++j) out[j].v = rows[0][i + j];
  }
  // The sum of sixteen partial sums, the far half added to the near one.
  static float sum(const Lanes* partial) {
    float s[16];
    for (int i = 0; i < 16; ++i) s[i] = partial[i].v;
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) s[i] += s[i + half];
    }
    return s[0];
  }
  static Lanes fma(Lanes a, Lanes b, Lanes c) { return {__builtin_fmaf(a.v, b.v, c.v)}; }
  static Lanes sqrt(Lanes a) { return {__builtin_sqrtf(a.v)}; }
  static Lanes min(Lanes a, Lanes b) { return a.v < b.v ? a : b; }
  static Lanes max(Lanes a, Lanes b) { return b.v < a.v ? a : b; }
  static Lanes ldexp(Lanes p, Lanes n);
  static Mask lt(Lanes a, Lanes b) { return a.v < b.v; }
  static Mask eq(Lanes a, Lanes b) { return a.v == b.v; }
  static Lanes select(Mask m, Lanes a, Lanes b) { return m ? a : b; }
  static Int bits(Lanes a) {
    Int i;
    __builtin_memcpy(&i.v, &a.v, 4);
    return i;
  }
  static Lanes floats(Int a) {
    Lanes f;
    __builtin_memcpy(&f.v, &a.v, 4);
    return f;
  }
};
inline Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
inline Lanes operator-(Lanes a, Lanes b) { return {a.v - b.v}; }
inline Lanes operator*(Lanes a, Lanes b) { return {a.v * b.v}; }
inline Lanes operator/(Lanes a, Lanes b) { return {a.v / b.v}; }
inline IntLanes IntLanes::truncate(Lanes x) { return {static_cast<int32_t>(x.v)}; }
inline Lanes Lanes::ldexp(Lanes p, Lanes n) {  // with no conversion, which NaN would not survive
  return ldexp_by_halves(p, bits(n + set(kRounding)) - Int::set(kRoundingBits));
}
