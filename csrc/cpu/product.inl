// Products of rows with vectors of packed weights. Included inside an anonymous namespace, after `Lanes`,
// `kAccumulators` and multiply(x, weight, sum), which adds a product of lanes to a sum.

constexpr int kMostRows = 8;   // of a register tile
constexpr int kUnrolled = 4;   // channels at a time
constexpr int kFetching = 12;  // vectors of a tile that hide a fetch; a smaller one waits for its own weights

// Rows of a register tile that leave room for the weights and a broadcast.
constexpr int tile_rows(int vectors) {
  return kAccumulators / vectors < kMostRows ? kAccumulators / vectors : kMostRows;
}

// What follows a product, of a tile.
template <int kRows, int kCount>
__attribute__((always_inline)) inline void go_on(const ProductArgs& p, int row, Lanes (&acc)[kRows][kCount]) {
  for (const After *a = p.after, *end = a + p.n_after; a != end; ++a) {
    const float* const* rows = a->rows + row;
    const auto each = [&](auto use) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v) {
          const int lanes = v < kCount - 1 ? Lanes::kLanes : p.columns - v * Lanes::kLanes;
          use(acc[r][v], rows[r] + p.column + v * Lanes::kLanes, lanes);
        }
      }
    };
    switch (a->fn) {
      case Fn::add:
        each([](Lanes& x, const float* y, int lanes)
                 __attribute__((always_inline)) { x = x + Lanes::load(y, lanes); });
        break;
      case Fn::store:
        each([](const Lanes& x, const float* y, int lanes)
                 __attribute__((always_inline)) { x.store(const_cast<float*>(y), lanes); });
        break;
      default:
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
          for (int v = 0; v < kCount; ++v) acc[r][v] = vrelu(acc[r][v]);
        }
    }
  }
}

// `kRows` rows times `kCount` vectors of outputs: each is one chain of multiply-adds, in the order of the
// taps. Returns how far it has fetched ahead.
template <int kRows, int kCount>
const float* product_tile(const ProductArgs& p, int row, const float* ahead) {
  Lanes acc[kRows][kCount];
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v) {
    const Lanes bias = Lanes::load(p.bias + v * Lanes::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      acc[r][v] =
          p.start == nullptr ? bias : Lanes::load(p.start[row + r] + p.start_column[v], p.start_lanes[v]);
    }
  }
  const float* w = p.weights;
  const int64_t stride = p.weight_stride;
  const float* const end = p.ahead_end;
  for (int t = 0, n = p.n_taps; t < n; ++t) {
    const float* in[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) in[r] = p.inputs[t * kBlockRows + row + r];
    const auto channel = [&](int i) __attribute__((always_inline)) {
      Lanes weight[kCount];
#pragma GCC unroll 4
      for (int v = 0; v < kCount; ++v) {
        weight[v] = Lanes::load(w + v * Lanes::kLanes);
        if (kRows > 1) weight[v].keep();  // one load, not one for each row
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Lanes x = Lanes::set(in[r][i]);
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v) acc[r][v] = multiply(x, weight[v], acc[r][v]);
      }
      w += stride;
    };
    const int channels = p.tap_channels[t];
    int i = 0;
    if (kRows * kCount >= kFetching) {
      for (; i + kUnrolled <= channels && ahead < end; i += kUnrolled, ahead += kUnrolled * kLine) {
#pragma GCC unroll 4
        for (int j = 0; j < kUnrolled; ++j) {
          __builtin_prefetch(ahead + j * kLine, 0, 2);
          channel(i + j);
        }
      }
    }
    for (; i + kUnrolled <= channels; i += kUnrolled) {
#pragma GCC unroll 4
      for (int j = 0; j < kUnrolled; ++j) channel(i + j);
    }
    for (; i < channels; ++i) channel(i);
  }
  if (p.n_after > 0) go_on(p, row, acc);
  // Read before anything is stored, after which all would be read again.
  const int rest = p.columns - (kCount - 1) * Lanes::kLanes;
  const int64_t to_next = p.vector_stride;
  float* out[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) out[r] = p.outputs[row + r] + p.column;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kCount - 1; ++v) acc[r][v].store(out[r] + v * to_next);
    acc[r][kCount - 1].store(out[r] + (kCount - 1) * to_next, rest);
  }
  return ahead;
}

// Tiles of nearly equal height: 9 rows of four vectors are 5 + 4, since 6 + 3 would leave the second starved.
template <int kCount>
void product_rows(const ProductArgs& p) {
  constexpr int kMost = tile_rows(kCount);
  const int tiles = (p.rows + kMost - 1) / kMost;
  int row = 0;
  const float* ahead = p.ahead;
  for (int t = 0; t < tiles; ++t) {
    const int rows = (p.rows - row + tiles - t - 1) / (tiles - t);
    switch (rows) {
#define PIXELFAST_TILE(n)                                              \
  case n:                                                              \
    ahead = product_tile<(kMost >= n ? n : 1), kCount>(p, row, ahead); \
    break;
      PIXELFAST_TILE(1)
      PIXELFAST_TILE(2)
      PIXELFAST_TILE(3)
      PIXELFAST_TILE(4)
      PIXELFAST_TILE(5)
      PIXELFAST_TILE(6)
      PIXELFAST_TILE(7)
      PIXELFAST_TILE(8)
#undef PIXELFAST_TILE
    }
    row += rows;
  }
}

// Two of four vectors, from `first` on. The first ones fetch ahead.
inline ProductArgs half_of(const ProductArgs& p, int first) {
  ProductArgs half = p;
  half.vectors = 2;
  if (first > 0) half.ahead = p.ahead_end;
  half.weights += first * Lanes::kLanes;
  half.bias += first * Lanes::kLanes;
  half.column += first * p.vector_stride;
  half.columns = first > 0 ? p.columns - first * Lanes::kLanes : 2 * Lanes::kLanes;
  for (int v = 0; v < 2; ++v) {
    half.start_column[v] = p.start_column[first + v];
    half.start_lanes[v] = p.start_lanes[first + v];
  }
  return half;
}

void product_by_rows(const ProductArgs& p) {
  switch (p.vectors) {
    case 1:
      product_rows<1>(p);
      break;
    case 2:
      product_rows<2>(p);
      break;
    case 3:
      product_rows<3>(p);
      break;
    default:
      if (p.rows <= tile_rows(kVectors) || p.rows > tile_rows(2)) {
        product_rows<kVectors>(p);
      } else {  // a tile for each half: so all weights are read once
        product_rows<2>(half_of(p, 0));
        product_rows<2>(half_of(p, 2));
      }
  }
}
