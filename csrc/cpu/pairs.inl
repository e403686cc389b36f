// Floats to pairs of bf16, by AVX-512 with BF16. Included inside an anonymous namespace.

// Rounds to the nearest even, and makes denormals zero.
void round_to_pairs(const float* x, int n, float* pairs) {
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i));
    _mm512_storeu_ps(pairs + i / 2, reinterpret_cast<__m512>(rounded));
  }
  for (; i < n; i += 16) {
    const __mmask16 mask = n - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
    _mm256_storeu_ps(pairs + i / 2, reinterpret_cast<__m256>(rounded));
  }
}
