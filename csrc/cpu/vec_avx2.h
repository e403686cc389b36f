// Eight lanes of AVX2 with FMA. Included inside an anonymous namespace.

struct IntLanes {
  __m256i v;
  static IntLanes set(int32_t x) { return {_mm256_set1_epi32(x)}; }
  template <int n>
  IntLanes sra() const {
    return {_mm256_srai_epi32(v, n)};
  }
  template <int n>
  IntLanes shl() const {
    return {_mm256_slli_epi32(v, n)};
  }
  template <int n>
  IntLanes srl() const {
    return {_mm256_srli_epi32(v, n)};
  }
  static IntLanes load(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  void store(int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static IntLanes truncate(struct Lanes x);
  IntLanes without(IntLanes mask) const { return {_mm256_andnot_si256(mask.v, v)}; }
  uint32_t sum() const {
    const __m128i a = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i b = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4E));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_add_epi32(b, _mm_shuffle_epi32(b, 0xB1))));
  }
  // Truncated products with a double, or of what lies at p with one for each lane.
  IntLanes scaled(double scale) const {
    const __m256d s = _mm256_set1_pd(scale);
    return scaled(_mm256_castsi256_si128(v), s, _mm256_extracti128_si256(v, 1), s);
  }
  static IntLanes scaled(const int32_t* p, const double* scales) {
    const auto* const halves = reinterpret_cast<const __m128i*>(p);
    return scaled(_mm_loadu_si128(halves), _mm256_loadu_pd(scales), _mm_loadu_si128(halves + 1),
                  _mm256_loadu_pd(scales + 4));
  }
  static IntLanes scaled(__m128i low, __m256d low_scales, __m128i high, __m256d high_scales) {
    return {_mm256_set_m128i(_mm256_cvttpd_epi32(_mm256_mul_pd(_mm256_cvtepi32_pd(high), high_scales)),
                             _mm256_cvttpd_epi32(_mm256_mul_pd(_mm256_cvtepi32_pd(low), low_scales)))};
  }
};
inline IntLanes operator+(IntLanes a, IntLanes b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline IntLanes operator-(IntLanes a, IntLanes b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline IntLanes operator&(IntLanes a, IntLanes b) { return {_mm256_and_si256(a.v, b.v)}; }
inline IntLanes operator|(IntLanes a, IntLanes b) { return {_mm256_or_si256(a.v, b.v)}; }
inline IntLanes operator^(IntLanes a, IntLanes b) { return {_mm256_xor_si256(a.v, b.v)}; }

struct Lanes {
  using Int = IntLanes;
  using Mask = __m256;
  static constexpr int kLanes = 8;

  __m256 v;

  static __m256i lowest(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Lanes set(float x) { return {_mm256_set1_ps(x)}; }
  static Lanes load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Lanes load(const float* p, int n) { return {_mm256_maskload_ps(p, lowest(n))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm256_maskstore_ps(p, lowest(n), v); }
  void keep() { __asm__("" : "+x"(v)); }  // in a register, as it is now
  static int first(Mask m) {              // lane of the mask
    const int bits = _mm256_movemask_ps(m);
    return bits != 0 ? __builtin_ctz(bits) : kLanes;
  }
  static float largest(Lanes a) {
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
  }
  static Lanes load(const float* p, int n, Lanes others) {
    return select(_mm256_castsi256_ps(lowest(n)), load(p, n), others);
  }
  // out[j]: element i + j of each row.
  static void transpose(const float* const* rows, int i, Lanes* out) {
    __m256 q[4];  // in each half, the elements of a row
    for (int j = 0; j < 4; ++j) q[j] = _mm256_loadu2_m128(rows[4 + j] + i, rows[j] + i);
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(q[0], q[1]));
    const __m256d b = _mm256_castps_pd(_mm256_unpacklo_ps(q[2], q[3]));
    const __m256d c = _mm256_castps_pd(_mm256_unpackhi_ps(q[0], q[1]));
    const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(q[2], q[3]));
    out[0].v = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
    out[1].v = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    out[2].v = _mm256_castpd_ps(_mm256_unpacklo_pd(c, d));
    out[3].v = _mm256_castpd_ps(_mm256_unpackhi_pd(c, d));
  }
  // The sum of sixteen partial sums, the far half added to the near one.
  static float sum(const Lanes* partial) {
    const __m256 a = _mm256_add_ps(partial[0].v, partial[1].v);
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
  }
  // Of as many rows of sixteen as there are lanes, one a lane.
  static Lanes sums(const Lanes* partial) {
    return {quarters(pairs(partial, 0), pairs(partial, 1), pairs(partial, 2), pairs(partial, 3))};
  }
  // Rows i and i + 4, of which four sums are left.
  static __m256 pairs(const Lanes* partial, int i) {
    const __m256 a = _mm256_add_ps(partial[2 * i].v, partial[2 * i + 1].v);
    const __m256 b = _mm256_add_ps(partial[2 * i + 8].v, partial[2 * i + 9].v);
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  }
  // Four rows in each half, of which four sums are left.
  static __m256 quarters(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 e = halved(a, b), f = halved(c, d);
    return _mm256_add_ps(_mm256_shuffle_ps(e, f, 0x88), _mm256_shuffle_ps(e, f, 0xDD));
  }
  static __m256 halved(__m256 a, __m256 b) {
    const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
    return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)),
                         _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  }
  static Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Lanes sqrt(Lanes a) { return {_mm256_sqrt_ps(a.v)}; }
  static Lanes min(Lanes a, Lanes b) { return {_mm256_min_ps(a.v, b.v)}; }  // b where a comparison fails
  static Lanes max(Lanes a, Lanes b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Lanes ldexp(Lanes p, Lanes n);
  static Mask lt(Lanes a, Lanes b) { return _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ); }
  static Mask eq(Lanes a, Lanes b) { return _mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ); }
  static Lanes select(Mask m, Lanes a, Lanes b) { return {_mm256_blendv_ps(b.v, a.v, m)}; }
  static Int bits(Lanes a) { return {_mm256_castps_si256(a.v)}; }
  static Lanes floats(Int a) { return {_mm256_castsi256_ps(a.v)}; }
};
inline Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm256_div_ps(a.v, b.v)}; }
inline IntLanes IntLanes::truncate(Lanes x) { return {_mm256_cvttps_epi32(x.v)}; }
inline Lanes Lanes::ldexp(Lanes p, Lanes n) { return ldexp_by_halves(p, IntLanes{_mm256_cvtps_epi32(n.v)}); }
