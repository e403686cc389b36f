// From product_tile<rows, vectors> to a product of any size. Included inside an anonymous namespace.

// Rows of a register tile that leave room for the weights and a broadcast.
constexpr int tile_rows(int vectors) { return kAccumulators / vectors < 6 ? kAccumulators / vectors : 6; }

template <int kCount>
void product_rows(const ProductArgs& p) {
  constexpr int kMost = tile_rows(kCount);
  // Tiles of nearly equal height: 8 rows are 4 + 4, since 6 + 2 would leave the second tile starved.
  const int tiles = (p.rows + kMost - 1) / kMost;
  int row = 0;
  const float* ahead = p.ahead;
  for (int t = 0; t < tiles; ++t) {
    const int rows = (p.rows - row + tiles - t - 1) / (tiles - t);
    switch (rows) {
      case 1:
        ahead = product_tile<1, kCount>(p, row, ahead);
        break;
      case 2:
        ahead = product_tile<2, kCount>(p, row, ahead);
        break;
      case 3:
        ahead = product_tile<3, kCount>(p, row, ahead);
        break;
      case 4:
        ahead = product_tile<(kMost >= 4 ? 4 : 1), kCount>(p, row, ahead);
        break;
      case 5:
        ahead = product_tile<(kMost >= 5 ? 5 : 1), kCount>(p, row, ahead);
        break;
      case 6:
        ahead = product_tile<(kMost >= 6 ? 6 : 1), kCount>(p, row, ahead);
        break;
    }
    row += rows;
  }
}

void product_by_rows(const ProductArgs& p) {
  switch (p.vectors) {
    case 1:
      return product_rows<1>(p);
    case 2:
      return product_rows<2>(p);
    case 3:
      return product_rows<3>(p);
    default:
      return product_rows<kVectors>(p);
  }
}
