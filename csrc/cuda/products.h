// Convolutions and maps: products, and the expression that makes outputs of them. Part of walk.h.
#pragma once

#include <type_traits>

#include "core/bf16.h"
#include "cuda/chunk.h"
#include "cuda/deal.h"
#include "cuda/flat.h"
#include "cuda/lane.h"
#include "cuda/simt.h"

namespace pixelfast {
namespace cuda {
namespace {

// What a thread computes together: kElements outputs, of some rows and as many neighbouring channels.
template <int kRows>
struct Tile {
  static constexpr int kColumns = kElements / kRows;
  Row rows[kRows];
  bool live[kRows];
  int32_t first, end;  // channels: its first, and the end of those that there are
  int32_t column;      // whose weights this thread reads

  PIXELFAST_DEVICE int row(int e) const { return e / kColumns; }
  PIXELFAST_DEVICE int32_t channel(int e) const { return first + e % kColumns; }
  PIXELFAST_DEVICE bool has(int e) const { return live[row(e)] && channel(e) < end; }
};
using Scalars = Tile<kElements>;  // one channel
using Matrix = Tile<2>;           // as a lane holds them of a product by tensor cores (simt.h)

PIXELFAST_DEVICE inline uint32_t word_of(float x) { return float_bits(x); }
PIXELFAST_DEVICE inline uint32_t word_of(uint32_t x) { return x; }

// A column of weights, in memory of the device or in the block's: a word for each step of a sum.
template <bool kHalves>
struct Far {
  static constexpr bool kBf16 = kHalves;
  const std::conditional_t<kHalves, uint32_t, float>* first;
  int32_t stride;  // kGroup, of halves
  PIXELFAST_DEVICE uint32_t at(int32_t step) const {
    return word_of(first[static_cast<int64_t>(step) * (kHalves ? kGroup : stride)]);
  }
};
template <bool kHalves>
struct Near {
  static constexpr bool kBf16 = kHalves;
  int32_t first, stride;
  PIXELFAST_DEVICE uint32_t at(int32_t step) const {
    return simt::dynamic_memory().get(first + step * (kHalves ? kGroup : stride));
  }
};

// Where column c of a part begins among weights in groups of columns (flat.h), of which a part has `width`.
PIXELFAST_DEVICE inline int64_t grouped(int32_t part, int32_t c, int32_t width, int32_t group,
                                        int32_t steps) {
  return (static_cast<int64_t>(part) * width + c / group * group) * steps + c % group;
}

class Products {
 public:
  PIXELFAST_DEVICE explicit Products(const Walk& walk)
      : w_(walk),
        p_(walk.program),
        chunk_(walk, simt::block() / walk.team_blocks),
        block_(simt::block() % walk.team_blocks) {}

  PIXELFAST_DEVICE Chunk& chunk() { return chunk_; }

  // Copies weights to the block's memory, to be read after its next barrier.
  PIXELFAST_DEVICE void load() const {
    for (int i = 0; i < p_.n_ops; ++i) {
      const FlatOp& op = tables().op(i);
      const Resident& resident = op.resident;
      const int32_t first = first_resident(resident), group = group_of(resident);
      if (resident.place < 0 || first >= op.columns) continue;
      const int32_t tall = group * op.steps, part = resident.width * op.steps;  // words of a group, of a part
      for (int32_t k = simt::thread(); k < part * op.n_parts; k += simt::threads()) {
        const int32_t c = first + k % part / tall * group + k % group;
        if (c >= op.columns) continue;
        const int32_t step = k % tall / group;
        simt::dynamic_memory().set(resident.place + k, p_.halves == nullptr
                                                           ? far_column<false>(op, k / part, c).at(step)
                                                           : far_column<true>(op, k / part, c).at(step));
      }
    }
  }

  // Each block computes the channels whose weights it has; else the team shares all of them.
  PIXELFAST_DEVICE void run(const FlatOp& op, const FlatLaunch& launch, Deal& deal) const {
    const Resident& resident = op.resident;
    const bool near = resident.place >= 0;
    const int32_t begin = near ? smaller(first_resident(resident), op.channels) : 0;
    const int32_t end = near ? smaller(begin + resident.width, op.channels) : op.channels;
    const Among among = near ? Among::block : Among::team;
    const int64_t rows = launch.positions * chunk_.images();
    if (w_.matrices != 0 && op.steps > 0) {
      const int32_t groups = (end - begin + kGroup - 1) / kGroup;
      const int64_t tiles = (rows + kMatrixRows - 1) / kMatrixRows;
      deal.each<simt::kWarp>(among, tiles * groups, [&](int64_t k) {
        const int row = simt::lane() / 4, column = simt::lane() % 4 * 2;
        const int32_t c = begin + static_cast<int32_t>(k % groups) * kGroup;
        Matrix tile{{}, {}, c + column, end, c + row};
        fill_rows(tile, launch, k / groups * kMatrixRows + row, kMatrixRows / 2, rows);
        run_tile(op, tile);
      });
    } else {
      const int64_t tiles = (rows + kElements - 1) / kElements;
      deal.each<1>(among, tiles * (end - begin), [&](int64_t k) {
        const int32_t c = begin + static_cast<int32_t>(k % (end - begin));
        Scalars tile{{}, {}, c, end, c};
        fill_rows(tile, launch, k / (end - begin) * kElements, 1, rows);
        run_tile(op, tile);
      });
    }
  }

 private:
  PIXELFAST_DEVICE const Tables& tables() const { return chunk_.tables(); }
  // The first channel of which this block has weights, where it has any.
  PIXELFAST_DEVICE int32_t first_resident(const Resident& resident) const {
    const int32_t after = block_ - resident.block;
    return (after < 0 ? after + w_.team_blocks : after) * resident.width;
  }
  PIXELFAST_DEVICE static int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }

  template <int kRows>
  PIXELFAST_DEVICE void fill_rows(Tile<kRows>& tile, const FlatLaunch& launch, int64_t first, int apart,
                                  int64_t rows) const {
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first + r * apart;
      tile.live[r] = row < rows;
      tile.rows[r] = chunk_.row_of(launch, tile.live[r] ? row : rows - 1);
    }
  }

  template <bool kBf16>
  PIXELFAST_DEVICE Far<kBf16> far_column(const FlatOp& op, int32_t part, int32_t c) const {
    if constexpr (kBf16) {
      return {p_.halves + op.weight + grouped(part, c, op.columns, kGroup, op.steps), kGroup};
    } else {
      const int32_t channel = tables().part(op.first_part + part).channel + c;
      return {p_.data + op.weight + channel, op.product_channels};
    }
  }
  PIXELFAST_DEVICE int32_t group_of(const Resident& resident) const {
    return p_.halves == nullptr ? resident.width : kGroup;
  }
  template <bool kBf16>
  PIXELFAST_DEVICE Near<kBf16> near_column(const FlatOp& op, int32_t part, int32_t c) const {
    const Resident& resident = op.resident;
    const int32_t group = kBf16 ? kGroup : resident.width, mine = c - first_resident(resident);
    const int64_t place = grouped(part, mine, resident.width, group, op.steps);
    return {resident.place + static_cast<int32_t>(place), group};
  }

  // What the instructions yield, kElements each, lies in `registers`.
  template <int kRows>
  PIXELFAST_DEVICE void run_tile(const FlatOp& op, const Tile<kRows>& tile) const {
    float own[kOwnRegisters * kElements];
    const int64_t thread = static_cast<int64_t>(simt::block()) * w_.threads + simt::thread();
    float* const registers =
        op.n_instructions <= kOwnRegisters ? own : w_.registers + thread * w_.most_instructions * kElements;
    int32_t part = 0;
    for (; part + 1 < op.n_parts; part += 2) multiply<2>(op, tile, part, registers);
    if (part < op.n_parts) multiply<1>(op, tile, part, registers);
    for (int i = 0; i < op.n_instructions; ++i) {
      const Instruction ins = tables().instruction(op.first_instruction + i);
      if (ins.fn != Fn::product) evaluate(ins, tile, registers, registers + i * kElements);
    }
    write(op.buffer, op.channel, tile, registers + (op.n_instructions - 1) * kElements);
  }

  // Where the rows of a tile read a channel; null outside the grid.
  template <int kRows>
  PIXELFAST_DEVICE void find(const Tile<kRows>& tile, int32_t buffer, int32_t channel, int32_t stride_y,
                             int32_t stride_x, int32_t dy, int32_t dx, const float* (&found)[kRows]) const {
    const FlatBuffer b = tables().buffer(buffer);
    for (int r = 0; r < kRows; ++r) {
      const Row& row = tile.rows[r];
      const float* p = chunk_.place(b, channel, row, row.y * stride_y + dy, row.x * stride_x + dx);
      found[r] = tile.live[r] ? p : nullptr;
    }
  }

  template <int kRows>
  PIXELFAST_DEVICE void write(int32_t buffer, int32_t channel, const Tile<kRows>& tile,
                              const float* value) const {
    const float* at[kRows];
    find(tile, buffer, channel, 1, 1, 0, 0, at);
    for (int e = 0; e < kElements; ++e) {
      if (tile.has(e)) const_cast<float*>(at[tile.row(e)])[tile.channel(e)] = value[e];
    }
  }

  template <int kRows>
  PIXELFAST_DEVICE void evaluate(const Instruction& ins, const Tile<kRows>& tile, const float* registers,
                                 float* out) const {
    float value[kElements];
    const float* const a = registers + static_cast<int64_t>(ins.a) * kElements;  // of some
    switch (ins.fn) {
      case Fn::load:
      case Fn::splat: {
        const float* at[kRows];
        find(tile, ins.a, ins.b, 1, 1, ins.c, ins.d, at);
        for (int e = 0; e < kElements; ++e) {
          const float* const p = tile.has(e) ? at[tile.row(e)] : nullptr;
          value[e] = p == nullptr ? 0.0f : p[ins.fn == Fn::load ? tile.channel(e) : 0];
        }
        break;
      }
      case Fn::vector:
        for (int e = 0; e < kElements; ++e) value[e] = tile.has(e) ? p_.data[ins.a + tile.channel(e)] : 0.0f;
        break;
      case Fn::scalar:
        for (int e = 0; e < kElements; ++e) value[e] = Lanes::floats({ins.a}).v;
        break;
      case Fn::store:
        for (int e = 0; e < kElements; ++e) value[e] = a[e];
        write(ins.b, ins.c, tile, value);
        break;
      default:
        apply(ins.fn, a, ins.fn <= Fn::max ? registers + ins.b * kElements : a, value);
    }
    for (int e = 0; e < kElements; ++e) out[e] = value[e];
  }

  // Some parts of an expression at once: they read the same.
  template <int kParts, int kRows>
  PIXELFAST_DEVICE void multiply(const FlatOp& op, const Tile<kRows>& tile, int32_t part,
                                 float* registers) const {
    Part parts[kParts];
    for (int k = 0; k < kParts; ++k) parts[k] = tables().part(op.first_part + part + k);
    float sums[kParts][kElements];
    begin(op, tile, parts, sums);
    if constexpr (std::is_same_v<Tile<kRows>, Matrix>) {
      add_from<true>(op, tile, part, sums);
    } else if (op.steps > 0) {
      p_.halves != nullptr ? add_from<true>(op, tile, part, sums) : add_from<false>(op, tile, part, sums);
    }
    for (int k = 0; k < kParts; ++k) {
      for (int e = 0; e < kElements; ++e) registers[parts[k].instruction * kElements + e] = sums[k][e];
    }
  }

  // With the bias, or with what was summed before.
  template <int kParts, int kRows>
  PIXELFAST_DEVICE void begin(const FlatOp& op, const Tile<kRows>& tile, const Part (&parts)[kParts],
                              float (&sums)[kParts][kElements]) const {
    const float* start[kRows];
    if (op.start_buffer >= 0) {
      find(tile, op.start_buffer, op.start_channel, 1, 1, 0, 0, start);
    } else {
      for (int r = 0; r < kRows; ++r) start[r] = op.bias < 0 ? nullptr : p_.data + op.bias;
    }
    for (int k = 0; k < kParts; ++k) {
      for (int e = 0; e < kElements; ++e) {
        const float* const p = tile.has(e) ? start[tile.row(e)] : nullptr;
        sums[k][e] = p == nullptr ? 0.0f : p[parts[k].channel + tile.channel(e)];
      }
    }
  }

  // Products with weights from where they are.
  template <bool kBf16, int kParts, int kRows>
  PIXELFAST_DEVICE void add_from(const FlatOp& op, const Tile<kRows>& tile, int32_t part,
                                 float (&sums)[kParts][kElements]) const {
    if (op.resident.place >= 0) {
      Near<kBf16> columns[kParts];
      for (int k = 0; k < kParts; ++k) columns[k] = near_column<kBf16>(op, part + k, tile.column);
      add(op, tile, columns, sums);
    } else {
      Far<kBf16> columns[kParts];
      for (int k = 0; k < kParts; ++k) columns[k] = far_column<kBf16>(op, part + k, tile.column);
      add(op, tile, columns, sums);
    }
  }

  // Each element is one chain of multiply-adds.
  template <int kParts, class Column>
  PIXELFAST_DEVICE void add(const FlatOp& op, const Scalars& tile, const Column (&columns)[kParts],
                            float (&sums)[kParts][kElements]) const {
    constexpr bool kBf16 = Column::kBf16;
    int32_t step = 0;
    for (int t = 0; t < op.n_taps; ++t) {
      const Tap tap = tables().tap(op.first_tap + t);
      const float* in[kElements];
      find(tile, tap.buffer, tap.channel, op.stride_y, op.stride_x, tap.dy, tap.dx, in);
      PIXELFAST_UNROLL(8)
      for (int i = 0; i < tap.channels; ++i) {
        float x[kElements];
        for (int e = 0; e < kElements; ++e) {
          x[e] = in[e] == nullptr ? 0.0f : in[e][i];
          if (kBf16) x[e] = from_bf16(bf16_of(x[e]));
        }
        for (int k = 0; k < kParts; ++k) {
          const uint32_t word = columns[k].at(step + (kBf16 ? i / 2 : i));
          const IntLanes bits = {wrap(!kBf16 ? word : i % 2 == 0 ? word << 16 : word & 0xFFFF0000u)};
          for (int e = 0; e < kElements; ++e) sums[k][e] = fma_of(x[e], Lanes::floats(bits).v, sums[k][e]);
        }
      }
      step += words_of(tap.channels, kBf16);
    }
  }

  // The elements of a warp, by tensor cores: for all of them the same steps, whatever the rows beside them.
  template <int kParts, class Column>
  PIXELFAST_DEVICE void add(const FlatOp& op, const Matrix& tile, const Column (&columns)[kParts],
                            float (&sums)[kParts][kElements]) const {
    constexpr int kAhead = 4;  // steps whose numbers are under way at the same time
    int32_t word = simt::lane() % 4;
    for (int t = 0; t < op.n_taps; ++t) {
      const Tap tap = tables().tap(op.first_tap + t);
      const float* in[2];
      find(tile, tap.buffer, tap.channel, op.stride_y, op.stride_x, tap.dy, tap.dx, in);
      for (int i = 0; i < tap.channels; i += kAhead * kMatrixDepth) {
        const int steps = (tap.channels - i + kMatrixDepth - 1) / kMatrixDepth;
        uint32_t a[kAhead][4], b[kAhead][kParts][2];
        for (int u = 0; u < kAhead; ++u) {
          const int first = i + u * kMatrixDepth + simt::lane() % 4 * 2;
          const int within = u < steps ? u : steps - 1;  // without a branch, which loads would wait for
          for (int k = 0; k < 4; ++k) a[u][k] = rounded_pair(in[k % 2], first + k / 2 * 8, tap.channels);
          for (int k = 0; k < 2 * kParts; ++k) {
            b[u][k / 2][k % 2] = columns[k / 2].at(word + within * kMatrixDepth / 2 + k % 2 * 4);
          }
        }
        for (int u = 0; u < kAhead; ++u) {
          for (int k = 0; u < steps && k < kParts; ++k) {
            simt::multiply_halves<simt::Half::bfloat16>(a[u], b[u][k], sums[k]);
          }
        }
        word += (steps < kAhead ? steps : kAhead) * kMatrixDepth / 2;
      }
    }
  }
  // Numbers i and i + 1 of n, zeros beyond.
  PIXELFAST_DEVICE static uint32_t rounded_pair(const float* in, int32_t i, int32_t n) {
    const float low = in == nullptr || i >= n ? 0.0f : in[i];
    const float high = in == nullptr || i + 1 >= n ? 0.0f : in[i + 1];
    return simt::pair_of_bf16(low, high);
  }

  const Walk& w_;
  const FlatProgram& p_;
  Chunk chunk_;
  const int block_;  // of the team
};

}  // namespace
}  // namespace cuda
}  // namespace pixelfast
