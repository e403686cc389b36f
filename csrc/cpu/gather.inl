// Pointers to all that a block of rows reads and writes. Included inside an anonymous namespace.

// Where the first image of a segment is read, and how far it is from image to image.
inline const float* first_of(const GatherArgs& a, const Read& read, int s, int64_t* step) {
  const Segments& segments = *a.segments;
  const auto y = static_cast<uint32_t>(segments.y[s] * read.stride_y + read.dy);
  const auto x = static_cast<uint32_t>(segments.x[s] * read.stride_x + read.dx);
  if (y >= static_cast<uint32_t>(read.height) || x >= static_cast<uint32_t>(read.width)) {
    *step = 0;
    return a.zeros;
  }
  const Base& base = a.bases[read.space];
  *step = base.image_stride;
  return base.start + (read.rows[y] + read.columns[x] + read.channel + segments.image[s] * base.image_stride);
}

void gather_each(const GatherArgs& a) {
  const int count = a.segments->count;
  const bool single = count == a.n_rows;  // image by segment
  for (int k = 0; k < a.n_reads; ++k) {
    const float** out = a.pointers + k * kBlockRows;
    int64_t step = 0;
    if (single) {
      for (int s = 0; s < count; ++s) out[s] = first_of(a, a.reads[k], s, &step);
      continue;
    }
    for (int s = 0; s < count; ++s) {
      const float* p = first_of(a, a.reads[k], s, &step);
      for (int i = 0; i < a.segments->n[s]; ++i, p += step) *out++ = p;
    }
  }
}

void shift(const ShiftArgs& a) {
  const auto zeros = reinterpret_cast<intptr_t>(a.zeros);
  const int n_rows = a.n_rows;
  for (int k = 0; k < a.n_reads; ++k) {
    const intptr_t bytes = a.shifts[k] * static_cast<intptr_t>(sizeof(float));
    auto* const pointers = reinterpret_cast<intptr_t*>(a.pointers + k * kBlockRows);
    for (int r = 0; r < n_rows; ++r) pointers[r] += pointers[r] == zeros ? 0 : bytes;
  }
}

#ifdef __AVX512DQ__

constexpr int kFewSegments = 4;  // for which it does not pay

inline __m256i eight(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256i place(const int32_t* p, int32_t stride, int32_t offset) {
  const __m256i scaled = _mm256_mullo_epi32(eight(p), _mm256_set1_epi32(stride));
  return _mm256_add_epi32(scaled, _mm256_set1_epi32(offset));
}

// Eight segments of an image each, from `s` on.
inline void gather_eight(const GatherArgs& a, const Read& read, int s, const float** out) {
  const Segments& segments = *a.segments;
  const int left = segments.count - s;
  const auto live = static_cast<__mmask8>(left < 8 ? (1u << left) - 1 : 0xFF);
  const __m256i y = place(segments.y + s, read.stride_y, read.dy);
  const __m256i x = place(segments.x + s, read.stride_x, read.dx);
  const __mmask8 rows = _mm256_mask_cmplt_epu32_mask(live, y, _mm256_set1_epi32(read.height));
  const __mmask8 inside = _mm256_mask_cmplt_epu32_mask(rows, x, _mm256_set1_epi32(read.width));
  const Base& base = a.bases[read.space];
  const __m512i none = _mm512_setzero_si512();
  const __m512i row = _mm512_mask_i32gather_epi64(none, inside, y, read.rows, 8);
  const __m512i column = _mm512_mask_i32gather_epi64(none, inside, x, read.columns, 8);
  const __m512i image = _mm512_mullo_epi64(_mm512_cvtepi32_epi64(eight(segments.image + s)),
                                           _mm512_set1_epi64(base.image_stride));
  const __m512i floats = _mm512_add_epi64(_mm512_add_epi64(row, column), image);
  const __m512i start = _mm512_set1_epi64(reinterpret_cast<int64_t>(base.start + read.channel));
  const __m512i zeros = _mm512_set1_epi64(reinterpret_cast<int64_t>(a.zeros));
  _mm512_storeu_si512(out + s, _mm512_mask_add_epi64(zeros, inside, start, _mm512_slli_epi64(floats, 2)));
}

// `n` addresses, `step` floats apart; up to seven more are written.
inline void ramp(const float* p, int64_t step, int n, const float** out) {
  const __m512i numbers = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i from = _mm512_mullo_epi64(numbers, _mm512_set1_epi64(step * 4));
  __m512i at = _mm512_add_epi64(_mm512_set1_epi64(reinterpret_cast<int64_t>(p)), from);
  for (int i = 0; i < n; i += 8, at = _mm512_add_epi64(at, _mm512_set1_epi64(step * 32)))
    _mm512_storeu_si512(out + i, at);
}

void gather(const GatherArgs& a) {
  const int count = a.segments->count;
  const bool single = count == a.n_rows;
  if (single && count < kFewSegments) return gather_each(a);
  for (int k = 0; k < a.n_reads; ++k) {
    const float** out = a.pointers + k * kBlockRows;
    if (single) {
      for (int s = 0; s < count; s += 8) gather_eight(a, a.reads[k], s, out);
      continue;
    }
    for (int s = 0; s < count; ++s) {
      int64_t step = 0;
      const float* p = first_of(a, a.reads[k], s, &step);
      ramp(p, step, a.segments->n[s], out);
      out += a.segments->n[s];
    }
  }
}

#else

void gather(const GatherArgs& a) { gather_each(a); }

#endif
