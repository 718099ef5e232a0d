// Products of float matrices by the tensor cores, for one block on shared memory and for many. A warp has a tile of 8 M x 8 N
// numbers of c. Tensor cores take 11 bits of a number: each is taken in two parts, and of their four products the three
// larger ones are made. What is left out and what rounding takes is, for each, about three times what rounding a float takes.
//
// The order of an inner side does not matter as long as both factors have the same one, and which rows and columns a lane
// has may be chosen. So a lane reads neighbours: with a group, lane / 4, and a member, lane % 4, as in tensor.cuh, it has
// rows M group to M group + M - 1, columns N group to N group + N - 1, and of 16 places of the inner side those from
// 4 member on; where rows are no fours but pairs, as those of 250 numbers are, two from 2 member on, and two 8 further on;
// else every fourth. Of the result it has the same rows, and 2 N columns from 2 N member on.

[[maybe_unused]] constexpr int INNER_STEP = 16;  // places of the inner side at once

// Steps of an inner side that a warp has under way where many blocks share a product, as many as there are registers for,
// which are more where the row is a constant; and how many turns of a loop, over these and over parts of sums, are one.
#if defined(GPUMLP_CONSTANT_ROWS)
[[maybe_unused]] constexpr int SPREAD_AHEAD = 4, SPREAD_UNROLLED = 2, SUMS_UNROLLED = 4;
#else
[[maybe_unused]] constexpr int SPREAD_AHEAD = 2, SPREAD_UNROLLED = 1, SUMS_UNROLLED = 1;
#endif

// COUNT places of a factor's side, which are a lane's, and four of the inner side, read WIDTH at a time.
template <bool NEAR, int COUNT, int WIDTH>
struct LanePart {
  static constexpr bool APART = WIDTH == 1;  // else places that lie side by side are read at once
  static_assert(NEAR || APART || COUNT <= WIDTH, "as many as can be");
  Place<NEAR> at[COUNT];  // of each place; of the first alone, where they are read at once
  bool along_inner;
  int inner, depth;

  // The places from `first` on, to be read from `start` on; beyond the last place they are the last ones once more, whole
  // groups where they are read so.
  __device__ __forceinline__ LanePart(const Factor<float>& f, int first, int sides, int depth, int start)
      : along_inner(f.inner == 1), inner((int)f.inner), depth(depth) {
    const int member = threadIdx.x % 4, from = ((NEAR ? start : 0) + WIDTH * member) * inner;
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      // rows lie a multiple of all banks apart, mostly: members take neighbours in turn
      const int turn = NEAR ? n ^ member & (COUNT - 1) : 0;
      at[n] = Place<NEAR>(f.data + ((along_inner || APART ? min(first + n, sides - 1) * f.side
                                                          : min(first, sides - COUNT) + turn) + from));
    }
  }

  // How far from the lane's first place of 16 the one of number s is.
  static __device__ __forceinline__ constexpr int apart(int s) { return s / WIDTH * (4 * WIDTH) + s % WIDTH; }

  // v[n][s] = the factor at (place n, p + WIDTH member + apart(s)), where p is what comes next; WHOLE: all of these are
  // there. Addresses in shared memory move on, with numbers that instructions hold; others would take two registers each.
  template <bool WHOLE>
  __device__ __forceinline__ void read(float (&v)[COUNT][4], int p) const {
    const int member = threadIdx.x % 4, left = depth - p - WIDTH * member, passed = NEAR ? 0 : p;
    if (along_inner) {  // WIDTH neighbours are all there, or none
#pragma unroll
      for (int n = 0; n < COUNT; n++)
#pragma unroll
        for (int s = 0; s < 4; s += WIDTH) {
          float q[WIDTH] = {};
          if (WHOLE || apart(s) < left) load<WIDTH>(q, at[n] + (passed + apart(s)));
#pragma unroll
          for (int w = 0; w < WIDTH; w++) v[n][s + w] = q[w];
        }
      return;
    }
#pragma unroll
    for (int s = 0; s < 4; s++) {
      const int from = (passed + apart(s)) * inner;
      float q[COUNT] = {};
      if (WHOLE || apart(s) < left) {
        if constexpr (NEAR || APART) {
#pragma unroll
          for (int n = 0; n < COUNT; n++) q[n] = *(at[n] + from);
        } else {
          load<COUNT>(q, at[0] + from);
        }
      }
      if constexpr (NEAR) {
#pragma unroll
        for (int bit = 1; bit < COUNT; bit *= 2)
#pragma unroll
          for (int n = 0; n < COUNT; n++)
            if (!(n & bit)) {
              const float one = q[n], other = q[n | bit];
              q[n] = member & bit ? other : one, q[n | bit] = member & bit ? one : other;
            }
      }
#pragma unroll
      for (int n = 0; n < COUNT; n++) v[n][s] = q[n];
    }
  }

  __device__ __forceinline__ void move_on(int step) {
    if constexpr (NEAR)
#pragma unroll
      for (int n = 0; n < COUNT; n++) at[n] += step * inner;
  }
};

// What tensor cores are given of numbers: what they see of each, rounded, and the rest.
template <int COUNT>
struct Parts {
  float large[COUNT][4], small[COUNT][4];

  __device__ __forceinline__ explicit Parts(const float (&v)[COUNT][4]) {
#pragma unroll
    for (int n = 0; n < COUNT; n++)
#pragma unroll
      for (int s = 0; s < 4; s++) {
        large[n][s] = __uint_as_float((__float_as_uint(v[n][s]) + 0x1000u) & 0xffffe000u);
        small[n][s] = v[n][s] - large[n][s];
      }
  }
};

// total += a b of some parts, for places s and s + 1 of each lane's four.
template <int M, int N>
__device__ __forceinline__ void add_tiles(float (&total)[M / 2][N][4], const float (&a)[M][4], const float (&b)[N][4],
                                          int s) {
#pragma unroll
  for (int m = 0; m < M / 2; m++) {
    const float tile[4] = {a[2 * m][s], a[2 * m + 1][s], a[2 * m][s + 1], a[2 * m + 1][s + 1]};
#pragma unroll
    for (int n = 0; n < N; n++) multiply_tiles(total[m][n], tile, b[n][s], b[n][s + 1]);
  }
}

// Adds to a tile of sums, and to those of b's columns where they are wanted, what every `step` places of the inner side
// give from `start`, below `step`, on. The next ones are on their way meanwhile. Where these are several, all warps that
// share a tile go as many steps, and add 0 where there is nothing: a compiler knows how many, where the row is a constant.
template <bool NEAR, int WIDTH, int AHEAD, int M, int N>
__device__ __forceinline__ void accumulate_tile(float (&sums)[M / 2][N][4], float (&own)[N], bool summed,
                                                const Product<float>& product, int i, int j, int start, int step) {
  const int depth = product.inner, group = threadIdx.x % WARP / 4;
  LanePart<NEAR, M, WIDTH> a(product.a, i + M * group, (int)product.c.rows, depth, start);
  LanePart<NEAR, N, WIDTH> b(product.b, j + N * group, (int)product.c.columns, depth, start);
  float x[AHEAD][M][4], y[AHEAD][N][4];
  constexpr bool ALIKE = AHEAD > 1;
  const int first = ALIKE ? 0 : start, shift = start - first;
  const bool whole = depth % (ALIKE ? step : INNER_STEP) == 0;  // known of a constant row: no part is read
  const auto read = [&](int u, int p) {
    if (p < depth && (whole || p + shift + INNER_STEP <= depth)) {
      a.template read<true>(x[u], p + shift), b.template read<true>(y[u], p + shift);
    } else if (!whole && p < depth) {
      a.template read<false>(x[u], p + shift), b.template read<false>(y[u], p + shift);
    }
    a.move_on(step), b.move_on(step);
  };
#pragma unroll
  for (int u = 0; u < AHEAD; u++) read(u, first + u * step);
#pragma unroll(ALIKE ? SPREAD_UNROLLED : 1)
  for (int p = first; p < depth; p += AHEAD * step) {
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
      if (u > 0 && p + u * step >= depth) break;
      const Parts<M> of_a(x[u]);
      const Parts<N> of_b(y[u]);
      if (summed)
#pragma unroll
        for (int n = 0; n < N; n++) own[n] += (y[u][n][0] + y[u][n][1]) + (y[u][n][2] + y[u][n][3]);
      // added up by themselves first: tensor cores cut off what exceeds a float, where an addition rounds
      float total[M / 2][N][4] = {};
#pragma unroll
      for (int s = 0; s < 4; s += 2) {
        add_tiles<M, N>(total, of_a.small, of_b.large, s);
        add_tiles<M, N>(total, of_a.large, of_b.small, s);
        add_tiles<M, N>(total, of_a.large, of_b.large, s);
      }
      read(u, p + (u + AHEAD) * step);
#pragma unroll
      for (int m = 0; m < M / 2; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
          for (int k = 0; k < 4; k++) sums[m][n][k] += total[m][n][k];
    }
  }
}

// How often the warps that share a tile's inner side are doubled from one: where there are fewer tiles than `all_warps`.
template <int M, int N>
__device__ __forceinline__ int shared_by(int tiles, int depth, int all_warps) {
  constexpr int ROOM = SCRATCH_BYTES / (64 * M * N * (int)sizeof(float));  // for the sums of warps
  const int warps = blockDim.x / WARP;
  int level = 0;
#pragma unroll
  for (int next = 1; next <= 5; next++)  // up to 32; a count that a compiler knows
    if (level == next - 1 && 1 << next <= warps && tiles << next <= all_warps && INNER_STEP << next <= depth &&
        min(tiles, warps >> next) * ((1 << next) - 1) <= ROOM)
      level = next;
  return level;
}

// v of the first of the warps that share a tile += v of the others, which are numbered from 1. Every thread must come.
template <int COUNT>
__device__ __forceinline__ void add_up_parts(float (&v)[COUNT], bool here, int slot, int part, int parts) {
  float* shared = shared_scratch<float>() + slot * (parts - 1) * COUNT * WARP + threadIdx.x % WARP;
  __syncthreads();  // what lay there may still be read
  if (here && part > 0)
#pragma unroll
    for (int k = 0; k < COUNT; k++) shared[((part - 1) * COUNT + k) * WARP] = v[k];
  __syncthreads();
  if (here && part == 0)
#pragma unroll(COUNT <= 8 ? SUMS_UNROLLED : 1)
    for (int other = 0; other < parts - 1; other++)
#pragma unroll
      for (int k = 0; k < COUNT; k++) v[k] += shared[(other * COUNT + k) * WARP];
}

// c = a b by tiles of 8 M x 8 N, what is read and written WIDTH neighbours at a time; SHARED: both factors may lie in
// shared memory. Where there are few tiles, several warps of a block share the inner side of one; `all_warps` is how many
// there are for tiles to be few.
template <bool SHARED, int WIDTH, int AHEAD, int M, int N>
__device__ __forceinline__ void multiply_by_warps(const Product<float>& product, Block block, int all_warps) {
  constexpr int DOWN = 8 * M, ACROSS = 8 * N;
  const int tiles_across = ((int)product.c.columns + ACROSS - 1) / ACROSS;
  const int tiles = ((int)product.c.rows + DOWN - 1) / DOWN * tiles_across;
  const int level = shared_by<M, N>(tiles, product.inner, all_warps), slots = blockDim.x / WARP >> level;
  const int lane = threadIdx.x % WARP, group = lane / 4, member = lane % 4, warp = threadIdx.x / WARP;
  const int slot = warp >> level, part = warp & ((1 << level) - 1);
  const int each = (tiles + block.count - 1) / block.count, step = INNER_STEP << level;
  // known of a constant row, as is what it decides
  const bool all_rows = (int)product.c.rows % DOWN == 0, all_columns = (int)product.c.columns % ACROSS == 0;
  const bool near = SHARED && is_shared(product.a.data) && is_shared(product.b.data);
  const bool sums_columns = product.sums() != nullptr;
#pragma unroll 1
  for (int first = 0; first < each; first += slots) {
    const int tile = block.index * each + first + slot;
    const bool here = slot < slots && first + slot < each && tile < tiles;
    const int down = tile / tiles_across, i = down * DOWN, j = (tile - down * tiles_across) * ACROSS;
    const bool summed = sums_columns && i == 0;
    float sums[M / 2][N][4] = {}, own[N] = {};
    if (!here) {
    } else if (near) {
      accumulate_tile<SHARED, WIDTH, AHEAD, M, N>(sums, own, summed, product, i, j, INNER_STEP * part, step);
    } else {
      accumulate_tile<false, WIDTH, AHEAD, M, N>(sums, own, summed, product, i, j, INNER_STEP * part, step);
    }
    if (level > 0) {
      add_up_parts(reinterpret_cast<float(&)[2 * M * N]>(sums), here, slot, part, 1 << level);
      if (sums_columns) add_up_parts(own, here, slot, part, 1 << level);
    }
    if (!here || part > 0) continue;
#pragma unroll
    for (int some = 0; some < 2 * N; some += WIDTH) {
      const int column = j + 2 * N * member + some;
      float v[M][WIDTH];
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[m][k] = sums[m / 2][(some + k) % N][m % 2 * 2 + (some + k) / N];
      if (all_columns || column < product.c.columns)
        product.template put<M, WIDTH, true>(v, i + M * group, column, all_rows);
    }
    if (summed)
#pragma unroll
      for (int n = 0; n < N; n++) {
        const float sum = row_sum(own[n], 4);
        if (member == 0 && j + N * group + n < product.c.columns) product.put_sum(j + N * group + n, sum);
      }
  }
}
