// Sixteen lanes of AVX-512 (F, BW, DQ, VL). Included inside an anonymous namespace.

struct IntLanes {
  __m512i v;
  static IntLanes set(int32_t x) { return {_mm512_set1_epi32(x)}; }
  template <int n>
  IntLanes sra() const {
    return {_mm512_srai_epi32(v, n)};
  }
  template <int n>
  IntLanes shl() const {
    return {_mm512_slli_epi32(v, n)};
  }
  template <int n>
  IntLanes srl() const {
    return {_mm512_srli_epi32(v, n)};
  }
  static IntLanes load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
  void store(int32_t* p) const { _mm512_storeu_si512(p, v); }
  static IntLanes truncate(struct Lanes x);
  IntLanes without(IntLanes mask) const { return {_mm512_andnot_si512(mask.v, v)}; }
  uint32_t sum() const {  // modulo 2^32, which _mm512_reduce_add_epi32 does not promise
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    const __m128i a = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const __m128i b = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4E));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_add_epi32(b, _mm_shuffle_epi32(b, 0xB1))));
  }
  // Truncated products with a double, or of what lies at p with one for each lane.
  IntLanes scaled(double scale) const {
    const __m512d s = _mm512_set1_pd(scale);
    return scaled(_mm512_castsi512_si256(v), s, _mm512_extracti64x4_epi64(v, 1), s);
  }
  static IntLanes scaled(const int32_t* p, const double* scales) {
    const auto* const halves = reinterpret_cast<const __m256i*>(p);
    return scaled(_mm256_loadu_si256(halves), _mm512_loadu_pd(scales), _mm256_loadu_si256(halves + 1),
                  _mm512_loadu_pd(scales + 8));
  }
  static IntLanes scaled(__m256i low, __m512d low_scales, __m256i high, __m512d high_scales) {
    const __m256i near = _mm512_cvttpd_epi32(_mm512_mul_pd(_mm512_cvtepi32_pd(low), low_scales));
    const __m256i far = _mm512_cvttpd_epi32(_mm512_mul_pd(_mm512_cvtepi32_pd(high), high_scales));
    return {_mm512_inserti64x4(_mm512_castsi256_si512(near), far, 1)};
  }
};
inline IntLanes operator+(IntLanes a, IntLanes b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline IntLanes operator-(IntLanes a, IntLanes b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline IntLanes operator&(IntLanes a, IntLanes b) { return {_mm512_and_si512(a.v, b.v)}; }
inline IntLanes operator|(IntLanes a, IntLanes b) { return {_mm512_or_si512(a.v, b.v)}; }
inline IntLanes operator^(IntLanes a, IntLanes b) { return {_mm512_xor_si512(a.v, b.v)}; }

struct Lanes {
  using Int = IntLanes;
  using Mask = __mmask16;
  static constexpr int kLanes = 16;

  __m512 v;

  static __mmask16 lowest(int n) {
    return n >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n > 0 ? n : 0)) - 1);
  }
  static Lanes set(float x) { return {_mm512_set1_ps(x)}; }
  static Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Lanes load(const float* p, int n) { return {_mm512_maskz_loadu_ps(lowest(n), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm512_mask_storeu_ps(p, lowest(n), v); }
  void keep() { __asm__("" : "+v"(v)); }                                   // in a register, as it is now
  static int first(Mask m) { return m != 0 ? __builtin_ctz(m) : kLanes; }  // lane of the mask
  static float largest(Lanes a) { return _mm512_reduce_max_ps(a.v); }
  static Lanes load(const float* p, int n, Lanes others) {
    return {_mm512_mask_loadu_ps(others.v, lowest(n), p)};
  }
  // out[j]: element i + j of each row.
  static void transpose(const float* const* rows, int i, Lanes* out) {
    __m512 q[4];  // in each quarter, the elements of a row
    for (int j = 0; j < 4; ++j) {
      q[j] = _mm512_castps128_ps512(_mm_loadu_ps(rows[j] + i));
      q[j] = _mm512_insertf32x4(q[j], _mm_loadu_ps(rows[4 + j] + i), 1);
      q[j] = _mm512_insertf32x4(q[j], _mm_loadu_ps(rows[8 + j] + i), 2);
      q[j] = _mm512_insertf32x4(q[j], _mm_loadu_ps(rows[12 + j] + i), 3);
    }
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(q[0], q[1]));
    const __m512d b = _mm512_castps_pd(_mm512_unpacklo_ps(q[2], q[3]));
    const __m512d c = _mm512_castps_pd(_mm512_unpackhi_ps(q[0], q[1]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(q[2], q[3]));
    out[0].v = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    out[1].v = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    out[2].v = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
    out[3].v = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
  }
  // The sum of sixteen partial sums, the far half added to the near one.
  static float sum(const Lanes* partial) {
    const __m256 far = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(partial->v), 1));
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(partial->v), far);
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
  }
  // Of as many rows of sixteen as there are lanes, one a lane.
  static Lanes sums(const Lanes* partial) {
    const __m512 a = halved(fours(partial, 0), fours(partial, 1));
    const __m512 b = halved(fours(partial, 2), fours(partial, 3));
    return {_mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD))};
  }
  // Rows i, i + 4, i + 8 and i + 12, of which four sums are left: one row in each quarter.
  static __m512 fours(const Lanes* partial, int i) {
    const __m512 a = eights(partial[i].v, partial[i + 4].v), b = eights(partial[i + 8].v, partial[i + 12].v);
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
  }
  static __m512 eights(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
  }
  static __m512 halved(__m512 a, __m512 b) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  static Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Lanes sqrt(Lanes a) { return {_mm512_sqrt_ps(a.v)}; }
  static Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }  // b where a comparison fails
  static Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Lanes ldexp(Lanes p, Lanes n);
  static Mask lt(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
  static Mask eq(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
  static Lanes select(Mask m, Lanes a, Lanes b) { return {_mm512_mask_blend_ps(m, b.v, a.v)}; }
  static Int bits(Lanes a) { return {_mm512_castps_si512(a.v)}; }
  static Lanes floats(Int a) { return {_mm512_castsi512_ps(a.v)}; }
};
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline IntLanes IntLanes::truncate(Lanes x) { return {_mm512_cvttps_epi32(x.v)}; }
inline Lanes Lanes::ldexp(Lanes p, Lanes n) { return {_mm512_scalef_ps(p.v, n.v)}; }
