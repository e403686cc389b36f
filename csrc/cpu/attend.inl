// Attention: scores, softmax, weighted values. A part of kernels.inl, which includes it in its namespace.

constexpr int kSixteen = 16 / Lanes::kLanes;            // vectors that hold sixteen partial sums
constexpr int kKeys = kSixteen > 8 ? 1 : 8 / kSixteen;  // keys that are multiplied at once

// Scores of as many keys as there are lanes, which lie at `places`: dot products of sixteen partial sums.
// Those that lie `ahead` of them are fetched, into the second level cache.
inline Lanes scores_of(const float* query, const float* keys, const int64_t* places, int channels,
                       int64_t ahead) {
  Lanes partial[Lanes::kLanes * kSixteen];
#pragma GCC unroll 2
  for (int first = 0; first < Lanes::kLanes; first += kKeys) {
    Lanes acc[kKeys][kSixteen];
    const float* key[kKeys];
#pragma GCC unroll 8
    for (int k = 0; k < kKeys; ++k) {
      key[k] = keys + places[first + k];
#pragma GCC unroll 16
      for (int g = 0; g < kSixteen; ++g) acc[k][g] = Lanes::set(0.0f);
    }
    int i = 0;
    for (; i + 16 <= channels; i += 16) {
#pragma GCC unroll 8
      for (int k = 0; k < kKeys; ++k) __builtin_prefetch(key[k] + i + ahead, 0, 2);
#pragma GCC unroll 16
      for (int g = 0; g < kSixteen; ++g) {
        const int at = i + g * Lanes::kLanes;
        const Lanes q = Lanes::load(query + at);
#pragma GCC unroll 8
        for (int k = 0; k < kKeys; ++k) acc[k][g] = Lanes::fma(q, Lanes::load(key[k] + at), acc[k][g]);
      }
    }
    if (i < channels) {
#pragma GCC unroll 16
      for (int g = 0; g < kSixteen; ++g) {
        const int at = i + g * Lanes::kLanes, rest = channels - at;
        const Lanes q = Lanes::load(query + at, rest);
#pragma GCC unroll 8
        for (int k = 0; k < kKeys; ++k) acc[k][g] = Lanes::fma(q, Lanes::load(key[k] + at, rest), acc[k][g]);
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < kKeys; ++k) {
#pragma GCC unroll 16
      for (int g = 0; g < kSixteen; ++g) partial[(first + k) * kSixteen + g] = acc[k][g];
    }
  }
  return Lanes::sums(partial);
}

// The scores of all heads, by blocks of keys, so that these are read about as they lie in memory. Returns how
// many there are.
int find_scores(const AttendArgs& a) {
  int n = 0;
  for (int r = 0; r < a.n_runs; ++r) {
    const int32_t end = a.runs[2 * r + 1];
    for (int32_t at = a.runs[2 * r]; at < end;) {
      const int count = end - at < Lanes::kLanes ? end - at : Lanes::kLanes;
      int64_t places[Lanes::kLanes];  // the last key fills what lanes are left
      for (int k = 0; k < Lanes::kLanes; ++k) places[k] = (at + (k < count ? k : count - 1)) * a.key_stride;
      for (int h = a.first_head; h < a.end_head; ++h) {
        const int64_t channel = static_cast<int64_t>(h) * a.key_channels;
        Lanes scores = scores_of(a.query + channel, a.keys + channel, places, a.key_channels,
                                 Lanes::kLanes * a.key_stride);
        if (a.bias != nullptr) scores = scores + Lanes::load(a.bias + h * a.bias_stride + at, count);
        scores.store(a.scores + (h - a.first_head) * a.score_stride + n, count);
      }
      at += count, n += count;
    }
  }
  return n;
}

// Scores to weights, in place; returns their total. `scores` has room for a multiple of 16.
float softmax(float* scores, int n) {
  for (int i = n; i % 16 != 0; ++i) scores[i] = -__builtin_inff();
  Lanes most = Lanes::set(-__builtin_inff());
  for (int i = 0; i < n; i += Lanes::kLanes) most = Lanes::max(most, Lanes::load(scores + i));
  const float largest = Lanes::largest(most);
  Lanes partial[kSixteen];
  for (int g = 0; g < kSixteen; ++g) partial[g] = Lanes::set(0.0f);
  for (int i = 0; i < n; i += 16) {
    for (int g = 0; g < kSixteen; ++g) {
      float* p = scores + i + g * Lanes::kLanes;
      const Lanes weight = vexp_within(from_below(Lanes::load(p) - Lanes::set(largest)));
      weight.store(p);
      partial[g] = partial[g] + weight;
    }
  }
  return Lanes::sum(partial);
}

// `kCount` vectors, of which the last may be filled in part, of each of `kHeads` heads from `head` on, from
// channel `at` of it: each output is one chain over the positions.
template <int kHeads, int kCount>
void weigh_values(const AttendArgs& a, int head, int at, const float* totals) {
  const int last = (kCount - 1) * Lanes::kLanes;
  const int left = a.value_channels - at - last, rest = left < Lanes::kLanes ? left : Lanes::kLanes;
  const int64_t first = static_cast<int64_t>(head) * a.value_channels + at;
  const float* weight = a.scores + (head - a.first_head) * a.score_stride;
  Lanes acc[kHeads][kCount];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
    for (int v = 0; v < kCount; ++v) acc[h][v] = Lanes::set(0.0f);
  }
  for (int r = 0; r < a.n_runs; ++r) {
    const float* p = a.values + a.runs[2 * r] * a.value_stride + first;
    for (int32_t k = a.runs[2 * r]; k < a.runs[2 * r + 1]; ++k, p += a.value_stride, ++weight) {
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h) {
        const float* value = p + static_cast<int64_t>(h) * a.value_channels;
        const Lanes w = Lanes::set(weight[h * a.score_stride]);
#pragma GCC unroll 8
        for (int v = 0; v < kCount - 1; ++v) {
          acc[h][v] = Lanes::fma(w, Lanes::load(value + v * Lanes::kLanes), acc[h][v]);
        }
        acc[h][kCount - 1] = Lanes::fma(w, Lanes::load(value + last, rest), acc[h][kCount - 1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    float* out = a.out + first + static_cast<int64_t>(h) * a.value_channels;
    const Lanes total = Lanes::set(totals[h]);
#pragma GCC unroll 8
    for (int v = 0; v < kCount - 1; ++v) (acc[h][v] / total).store(out + v * Lanes::kLanes);
    (acc[h][kCount - 1] / total).store(out + last, rest);
  }
}

// Of all heads, `kHeads` at a time: as many chains as hide the time that a multiply-add takes. Returns the
// channel that follows.
template <int kHeads, int kCount>
int weigh_heads(const AttendArgs& a, int at, const float* totals) {
  int head = a.first_head;
  for (; head + kHeads <= a.end_head; head += kHeads) {
    weigh_values<kHeads, kCount>(a, head, at, totals + head - a.first_head);
  }
  for (; head < a.end_head; ++head) weigh_values<1, kCount>(a, head, at, totals + head - a.first_head);
  return at + kCount * Lanes::kLanes;
}

int64_t attend(const AttendArgs& a) {
  const int n = find_scores(a), heads = a.end_head - a.first_head;
  if (n == 0) {
    float* out = a.out + static_cast<int64_t>(a.first_head) * a.value_channels;
    for (int j = 0; j < heads * a.value_channels; ++j) out[j] = 0.0f;
    return 0;
  }
  float* totals = a.scores + heads * a.score_stride;
  for (int h = 0; h < heads; ++h) totals[h] = softmax(a.scores + h * a.score_stride, n);
  for (int at = 0; at < a.value_channels;) {
    const int vectors = (a.value_channels - at + Lanes::kLanes - 1) / Lanes::kLanes;
    if (vectors >= 8) {
      at = weigh_heads<1, 8>(a, at, totals);
    } else if (vectors >= 4) {
      at = weigh_heads<2, 4>(a, at, totals);
    } else if (vectors >= 2) {
      at = weigh_heads<4, 2>(a, at, totals);
    } else {
      at = weigh_heads<8, 1>(a, at, totals);
    }
  }
  return n;
}
