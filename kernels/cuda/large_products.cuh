// Products of large float matrices by the tensor cores, each number in two parts as in warp_tiles.cuh: what floats have, at
// more than the speed of their multiply-adds. A block makes tiles of LARGE_TILE x LARGE_TILE numbers, of which each of eight
// warps has 64 x 32; of the inner side 16 places at a time come into shared memory, two steps ahead.
//
// Lanes have a group, lane / 4, and a member, lane % 4, as in tensor.cuh, and of 16 places of the inner side those from
// 4 member on. Of a factor whose rows run along the inner side they read these four at once, of every eighth row; of one
// whose rows run along the other side four neighbours at a time. There members take rows that lie a multiple of all banks
// apart: fours of a row change places by twice the member, so that eight lanes meet all banks.

[[maybe_unused]] constexpr int LARGE_STEP = 16;   // places of the inner side at once: INNER_STEP
[[maybe_unused]] constexpr int LARGE_STAGES = 3;  // of them in shared memory; two on their way
[[maybe_unused]] constexpr int LARGE_FOURS = LARGE_TILE * LARGE_STEP / 4;  // of one factor
static_assert(LARGE_STEP == INNER_STEP, "what lanes have of it");

// Four neighbours from global to shared memory, without a register on the way; zeros beyond the first `count` of them.
// WIDE: both are at 16 bytes.
template <bool WIDE>
__device__ __forceinline__ void copy_four(float* to, const float* from, int count) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned place = (unsigned)__cvta_generic_to_shared(to);
  if constexpr (WIDE) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(4 * count) : "memory");
  } else {
#pragma unroll
    for (int k = 0; k < 4; k++)
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(place + 4 * k), "l"(k < count ? from + k : from),
                   "r"(k < count ? 4 : 0)
                   : "memory");
  }
#else
#pragma unroll
  for (int k = 0; k < 4; k++) to[k] = k < count ? from[k] : 0.f;
#endif
}

// The same of four that are all there, both at 16 bytes.
__device__ __forceinline__ void copy_whole_four(float* to, const float* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned place = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(from) : "memory");
#else
  copy_four<true>(to, from, 4);
#endif
}

// What `copy_four` was asked for since the last call is one group; `wait_for_copies`: all groups but the last are there, for
// the thread that asked.
__device__ __forceinline__ void group_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(LARGE_STAGES - 2) : "memory");
#endif
}

// A tile's part of a factor. ALONG: its rows run along the inner side.
template <bool ALONG>
struct LargePart {
  static constexpr int EACH = LARGE_FOURS / THREADS, IN_ROW = (ALONG ? LARGE_STEP : LARGE_TILE) / 4;  // fours
  const float* from[EACH];  // what this thread brings next
  int to[EACH], there[EACH];  // where, in a stage; how many of the four there are as far as the side goes
  int inner[EACH];            // of a step's places the first, if rows run along them, or the only one
  long long on;               // elements from step to step
  bool wide, whole;           // rows at 16 bytes; and all places of the tile there
  __device__ __forceinline__ LargePart(const Factor<float>& f, int first, int sides, int start)
      : on((long long)LARGE_STEP * f.inner), wide(steps_aligned(f.data, f.stride())),
        whole(wide && first + LARGE_TILE <= sides) {
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      const int four = threadIdx.x + k * THREADS, row = four / IN_ROW, column = four % IN_ROW * 4;
      const int place = first + (ALONG ? row : column), left = sides - place;
      inner[k] = ALONG ? column : row;
      there[k] = ALONG ? (left > 0 ? 4 : 0) : max(0, min(left, 4));
      from[k] = f.at(there[k] ? place : 0, start + inner[k]);
      to[k] = row * (4 * IN_ROW) + (ALONG ? column : column ^ row / 4 * 2 * 4);
    }
  }

  // Asks for the next step, of whose places `left` are there; or for a whole one of a whole tile.
  __device__ __forceinline__ void bring(float* stage, int left) {
    if (wide)
      bring<true>(stage, left);
    else
      bring<false>(stage, left);
    move_on();
  }
  __device__ __forceinline__ void bring_whole(float* stage) {
#pragma unroll
    for (int k = 0; k < EACH; k++) copy_whole_four(stage + to[k], from[k]);
    move_on();
  }
  __device__ __forceinline__ void move_on() {
#pragma unroll
    for (int k = 0; k < EACH; k++) from[k] += on;
  }
  template <bool WIDE>
  __device__ __forceinline__ void bring(float* stage, int left) const {
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      const int count = ALONG ? min(left - inner[k], there[k]) : left > inner[k] ? there[k] : 0;
      copy_four<WIDE>(stage + to[k], from[k], max(count, 0));
    }
  }

  // v[k][s] = the factor at (place `k` of COUNT that a lane has, inner place 4 member + s), of a warp's places from
  // `start` on; see `place_of`.
  template <int COUNT>
  static __device__ __forceinline__ void read(float (&v)[COUNT][4], const float* stage, int start, int which = 0) {
    const int group = threadIdx.x % WARP / 4, member = threadIdx.x % 4;
    if constexpr (ALONG) {
#pragma unroll
      for (int k = 0; k < COUNT; k++)
        load<4>(v[k], stage + (start + group + 8 * (which + k)) * LARGE_STEP + 4 * member);
    } else {
      static_assert(COUNT == 4, "neighbours");
#pragma unroll
      for (int s = 0; s < 4; s++) {
        float q[4];
        load<4>(q, stage + (4 * member + s) * LARGE_TILE + start + 8 * which + 4 * (group ^ 2 * member));
#pragma unroll
        for (int k = 0; k < 4; k++) v[k][s] = q[k];
      }
    }
  }

  // Where place k of group `group` is among the warp's.
  static __device__ __forceinline__ int place_of(int group, int k) {
    return ALONG ? group + 8 * k : 4 * group + k % 4 + k / 4 * 32;
  }
};

// A tile of c: adds up all of the inner side from `start` to `end`, and stores it.
template <bool A_ALONG, bool B_ALONG>
__device__ __forceinline__ void multiply_large_tile(const Product<float>& product, const Matrix<float>& c, int i, int j,
                                                    int start, int end, float* stages) {
  constexpr int ROWS = 8, COLUMNS = 4;  // that a lane has
  const int lane = threadIdx.x % WARP, group = lane / 4, member = lane % 4, warp = threadIdx.x / WARP;
  const int down = warp / 4 * 64, across = warp % 4 * 32;  // of the warp, in the tile
  LargePart<A_ALONG> a(product.a, i, (int)c.rows, start);
  LargePart<B_ALONG> b(product.b, j, (int)c.columns, start);
  const bool idle = i + down >= c.rows || j + across >= c.columns;  // the tile has nothing for this warp
  const int whole_until = a.whole && b.whole ? end - LARGE_STEP : start - 1;
  const auto bring = [&](int stage, int p) {
    float* to = stages + stage * (8 * LARGE_FOURS);
    if (p <= whole_until)
      a.bring_whole(to), b.bring_whole(to + 4 * LARGE_FOURS);
    else if (p < end)
      a.bring(to, end - p), b.bring(to + 4 * LARGE_FOURS, end - p);
    group_copies();
  };
#pragma unroll
  for (int n = 0; n < LARGE_STAGES - 1; n++) bring(n, start + n * LARGE_STEP);
  float sums[ROWS / 2][COLUMNS][4] = {};
  int stage = 0, next = LARGE_STAGES - 1;
#pragma unroll 1
  for (int p = start; p < end; p += LARGE_STEP) {
    wait_for_copies();
    __syncthreads();  // all threads' copies are there, and the stage before this one is read
    bring(next, p + (LARGE_STAGES - 1) * LARGE_STEP);
    const float* at = stages + stage * (8 * LARGE_FOURS);
    stage = stage + 1 < LARGE_STAGES ? stage + 1 : 0, next = next + 1 < LARGE_STAGES ? next + 1 : 0;
    if (idle) continue;
    float y[COLUMNS][4];
    b.read(y, at + 4 * LARGE_FOURS, across);
    const Parts<COLUMNS> of_b(y);
#pragma unroll
    for (int four = 0; four < ROWS; four += 4) {
      float x[4][4];
      a.read(x, at, down, four);
      const Parts<4> of_a(x);
      float total[2][COLUMNS][4] = {};
#pragma unroll
      for (int s = 0; s < 4; s += 2) {
        add_tiles<4, COLUMNS>(total, of_a.small, of_b.large, s);
        add_tiles<4, COLUMNS>(total, of_a.large, of_b.small, s);
        add_tiles<4, COLUMNS>(total, of_a.large, of_b.large, s);
      }
      // rounded, where tensor cores would cut off
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
          for (int k = 0; k < 4; k++) sums[four / 2 + m][n][k] += total[m][n][k];
    }
  }
  __syncthreads();  // the stages are free for the next tile
  const bool fours = !B_ALONG && c.columns % 4 == 0 && steps_aligned(c.data, c.stride);
#pragma unroll
  for (int m = 0; m < ROWS; m++) {
    const int row = i + down + a.place_of(group, m);
    if (row >= c.rows) continue;
#pragma unroll
    for (int e = 0; e < 2; e++) {  // what a lane has of tiles' columns is that of groups 2 member and the next
      float v[COLUMNS];
#pragma unroll
      for (int n = 0; n < COLUMNS; n++) v[n] = sums[m / 2][n][m % 2 * 2 + e];
      const int column = j + across + b.place_of(2 * member + e, 0);
      if (fours) {
        if (column < c.columns) store<4>(c.at(row, column), v);
      } else {
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
          const int one = j + across + b.place_of(2 * member + e, n);
          if (one < c.columns) *c.at(row, one) = v[n];
        }
      }
    }
  }
}

// c = a b: operands a, b, c; flags form. c may be several matrices below each other: of the inner side, cut into as many
// parts, each has what its part gives, for `column_sums` to add up.
template <typename T>
__device__ void large_matmul(const Row& row, Block block) {
  if constexpr (sizeof(T) == 4) {
    __align__(16) __shared__ float stages[LARGE_STAGES * 8 * LARGE_FOURS];
    const Product<T> product(row);
    const int rows = (int)(product.form == FIRST_TURNED ? row.operands[0].columns : row.operands[0].rows);
    const int parts = (int)product.c.rows / rows, columns = (int)product.c.columns;
    const int down = (rows + LARGE_TILE - 1) / LARGE_TILE, across = (columns + LARGE_TILE - 1) / LARGE_TILE;
    const int steps = (product.inner + LARGE_STEP - 1) / LARGE_STEP, each = (steps + parts - 1) / parts * LARGE_STEP;
#pragma unroll 1
    for (int unit = block.index; unit < down * across * parts; unit += block.count) {
      const int part = unit / (down * across), tile = unit % (down * across);
      const int i = tile / across * LARGE_TILE, j = tile % across * LARGE_TILE;
      const int start = part * each, end = min(start + each, product.inner);
      Matrix<T> c = product.c;
      c.data = c.at(0, 0) + (long long)part * rows * c.stride, c.rows = rows;
      if (product.form == FIRST_TURNED)
        multiply_large_tile<false, false>(product, c, i, j, start, end, stages);
      else if (product.form == SECOND_TURNED)
        multiply_large_tile<true, true>(product, c, i, j, start, end, stages);
      else
        multiply_large_tile<true, false>(product, c, i, j, start, end, stages);
    }
  }
}
