// The operations of narrow.cuh where all matrices are bfloat16 and a layer's width is a multiple of 8: products by the
// tensor cores, so that nothing but reading and writing the wide matrix takes time. Numbers of a tile are dealt to the
// lanes so that each loads eight neighbours: the order of an inner side does not matter as long as both factors have the
// same one. A group is lane / 4, a member lane % 4, as in tensor.cuh.

// Eight neighbours of bfloat16 as they lie in memory; zeros where they are not `here`.
__device__ __forceinline__ uint4 eight_halves(const unsigned short* p, bool here) {
  return here ? *reinterpret_cast<const uint4*>(p) : make_uint4(0, 0, 0, 0);
}
__device__ __forceinline__ void put_eight(unsigned short* p, const unsigned (&words)[4], bool here) {
  if (here) *reinterpret_cast<uint4*>(p) = make_uint4(words[0], words[1], words[2], words[3]);
}

template <typename T>
__device__ __forceinline__ unsigned short* halves_of(const Matrix<T>& m) {
  return reinterpret_cast<unsigned short*>(m.data);
}

// Columns `first`, which is even, and the next of row i of a matrix with few columns; zeros beyond its sides. One load
// and no more: of two the second would wait for the first, where registers are few.
template <typename T>
__device__ __forceinline__ unsigned pair_of(const Matrix<T>& m, int i, int first) {
  const bool here = i < m.rows && first < m.columns;
  return here ? *reinterpret_cast<const unsigned*>(halves_of(m) + (i * m.stride + first)) : 0;
}

// Whether a matrix consists of such pairs.
template <typename T>
__device__ __forceinline__ bool has_pairs(const Matrix<T>& m) {
  return m.half && m.columns % 2 == 0 && aligned<2>(m);
}

// Whether the matrices are such that `activate_halves` or `gradient_of_halves` may be taken.
template <typename T>
__device__ __forceinline__ bool are_halves(const Matrix<T>& wide, const Matrix<T>& also, const Matrix<T>& few,
                                           const Matrix<T>& fewer) {
  const bool same = wide.half && (!also || also.half) && has_pairs(few) && has_pairs(fewer);
  return same && wide.columns % 8 == 0 && aligned<8>(wide) && (!also || aligned<8>(also));
}

// An activation whose result will be rounded to bfloat16; a functor may have an overload with fewer instructions.
template <typename F, typename T>
__device__ __forceinline__ T short_value(const F& f, T x) {
  return f.value(x);
}

// Columns of a block of b that lies in shared memory, turned; and what lies between its rows: half of all banks.
[[maybe_unused]] constexpr int FACTOR_COLUMNS = 1024, FACTOR_STRIDE = FACTOR_COLUMNS + 32;

// bias_activate_narrow: a warp takes 16 rows, rows `group` and `group + 8` of them in a lane, and of 32 columns eight
// from 8 member on. c is made turned, b^T y^T. What is multiplied is y before it is rounded, in two parts: the second
// is what rounding took from the first. What comes next is under way all the time: numbers are asked for as soon as there
// is room for them, those of the next rows too. b is shared out once, where its columns are not more than find room.
template <typename T, typename F>
__device__ __forceinline__ void activate_halves(const Row& row, Block block, F f) {
  constexpr int ROWS = 2, GROUPS = F::SAVES_X ? 2 : 4, COLUMNS = 32 * GROUPS;  // as there are registers
  constexpr int PAIRS = FACTOR_COLUMNS * NARROW / 2, AT_ONCE = 8;  // of two outputs
  static_assert(NARROW == 16 && NARROW_ROWS == 16 && FACTOR_COLUMNS % COLUMNS == 0, "whole tiles");
  __align__(16) __shared__ unsigned short factor[NARROW * FACTOR_STRIDE];
  const Matrix<T> b = matrix<T>(row, 1), added = matrix<T>(row, 2), x = matrix<T>(row, 3), y = matrix<T>(row, 4);
  const Matrix<T> c = matrix<T>(row, 5);
  const Matrix<T> bias = matrix<T>(row, 0);
  const bool wide_bias = aligned<8>(bias);
  const int lane = threadIdx.x % WARP, group = lane / 4, member = lane % 4;
  const int rows = (int)x.rows, columns = (int)x.columns, outputs = (int)c.columns;
  const int tiles = (rows + NARROW_ROWS - 1) / NARROW_ROWS, turn = blockDim.x / WARP * block.count;
  const int own = block.index + threadIdx.x / WARP * block.count;  // the first tile of this warp

  int next_tile = own, next_left = 8 * member;  // what is asked for next
  const unsigned short* next[ROWS];
  int limit[ROWS];  // columns of a row that is there
  const auto go_to = [&](int tile) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const int i = tile * NARROW_ROWS + group + 8 * r;
      const bool here = tile < tiles && i < rows;
      next[r] = halves_of(x) + (here ? i : 0) * x.stride, limit[r] = here ? columns : 0;
    }
  };
  uint4 v[GROUPS][ROWS];
  const auto ask = [&](int g) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const int j = next_left + 32 * g;
      v[g][r] = eight_halves(next[r] + j, j < limit[r]);
    }
  };
  const auto move_on = [&]() {
    next_left += COLUMNS;
    if (next_left < columns + 8 * member) return;
    next_left = 8 * member, next_tile += turn;
    go_to(next_tile);
  };
  go_to(own);
#pragma unroll
  for (int g = 0; g < GROUPS; g++) ask(g);
  move_on();

  for (int first = 0; first < tiles; first += turn) {
    const int top = (first + own) * NARROW_ROWS;
    float sums[ROWS][4] = {};
    for (int left = 0; left < columns; left += COLUMNS) {
      const int at = left % FACTOR_COLUMNS;
      if (at == 0 && (first == 0 || columns > FACTOR_COLUMNS)) {
        __syncthreads();  // what lay there may still be read
        for (int first_pair = threadIdx.x; first_pair < PAIRS; first_pair += AT_ONCE * blockDim.x) {
          unsigned pair[AT_ONCE];
#pragma unroll
          for (int u = 0; u < AT_ONCE; u++) {
            const int e = first_pair + u * blockDim.x;
            pair[u] = pair_of(b, left + e % FACTOR_COLUMNS, e / FACTOR_COLUMNS * 2);
          }
#pragma unroll
          for (int u = 0; u < AT_ONCE; u++) {
            const int e = first_pair + u * blockDim.x;
            unsigned short* to = factor + e / FACTOR_COLUMNS * 2 * FACTOR_STRIDE + e % FACTOR_COLUMNS;
            if (e < PAIRS) to[0] = (unsigned short)pair[u], to[FACTOR_STRIDE] = (unsigned short)(pair[u] >> 16);
          }
        }
        __syncthreads();
      }
#pragma unroll
      for (int g = 0; g < GROUPS; g++) {
        T number[ROWS][8];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const unsigned words[4] = {v[g][r].x, v[g][r].y, v[g][r].z, v[g][r].w};
#pragma unroll
          for (int w = 0; w < 4; w++) number[r][w] = __uint_as_float(words[w]);
          unpack_halves<8>(number[r]);
        }
        ask(g);
        if (left + 32 * g >= columns || top >= rows) continue;
        const int place = 32 * g + 8 * member, j = left + place;
        const uint4 low = *reinterpret_cast<const uint4*>(factor + group * FACTOR_STRIDE + at + place);
        const uint4 high = *reinterpret_cast<const uint4*>(factor + (group + 8) * FACTOR_STRIDE + at + place);
        const unsigned near[2][4] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
        T offset[8] = {};
        if (bias && j < columns) {
          if (wide_bias) {
            load<8>(offset, bias.at(0, j));
          } else {
#pragma unroll
            for (int k = 0; k < 8; k++) offset[k] = *bias.at(0, j + k);
          }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const int i = top + group + 8 * r;
          const bool here = i < rows && j < columns;
          unsigned rounded[4], rest[4];
#pragma unroll
          for (int k = 0; k < 8; k++) number[r][k] += offset[k];
          if constexpr (F::SAVES_X) {
            if (bias && y && here) store_halves<8>(halves_of(x) + i * x.stride + j, number[r]);
          }
#pragma unroll
          for (int w = 0; w < 4; w++) {
            const T one = short_value(f, number[r][2 * w]), other = short_value(f, number[r][2 * w + 1]);
            const unsigned both = two_bfloat16(one, other);
            rounded[w] = both;
            rest[w] = two_bfloat16(one - from_bfloat16(both & 0xffff), other - __uint_as_float(both & 0xffff0000u));
          }
          if (y) put_eight(halves_of(y) + i * y.stride + j, rounded, here);
#pragma unroll
          for (int s = 0; s < 2; s++) {
            multiply_tiles(sums[r], near[s], rounded[2 * s], rounded[2 * s + 1]);
            multiply_tiles(sums[r], near[s], rest[2 * s], rest[2 * s + 1]);
          }
        }
      }
      move_on();
    }
    if (top >= rows) continue;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const int i = top + 8 * r + 2 * member + k % 2, p = group + k / 2 * 8;
        if (i < rows && p < outputs) set_element(c, i, p, added ? sums[r][k] + element(added, 0, p) : sums[r][k]);
      }
  }
}

// narrow_gradient with its sums: a warp takes 16 rows and 64 columns at a time; a lane has rows 2 member, the next, and
// the two 8 further on, and eight columns from 8 group on. Of dx a tile is the product of two times 8 columns, every
// eighth, and b's rows; it is made turned, b a^T.
template <typename T, typename F>
__device__ __forceinline__ void gradient_of_halves(const Row& row, Block block, F f) {
  constexpr int ROWS = 4, COLUMNS = 64;
  const Matrix<T> a = matrix<T>(row, 0), b = matrix<T>(row, 1), saved = matrix<T>(row, 2), dx = matrix<T>(row, 3);
  const Matrix<T> dw = matrix<T>(row, 4), db = matrix<T>(row, 5), da = matrix<T>(row, 6);
  const int lane = threadIdx.x % WARP, group = lane / 4, member = lane % 4, warps = blockDim.x / WARP;
  const int rows = (int)dx.rows, columns = (int)dx.columns, inner = (int)a.columns;
  const int tiles = (columns + COLUMNS - 1) / COLUMNS, shares = (int)dw.rows;
  uint4* factor = shared_scratch<uint4>();  // [4][WARP], of each two columns the rows of b, as a lane takes them
  for (int unit = block.index; unit < tiles * shares; unit += block.count) {
    const int share = unit / tiles, left = unit % tiles * COLUMNS, j = left + 8 * group;
    const int limit = j < columns ? rows : 0;  // of the rows that this lane has a part of
    const int first = (share * warps + threadIdx.x / WARP) * 16, step = 16 * warps * shares;
    // where this lane's rows begin, and how many there are from each on
    const unsigned short* from = halves_of(saved) + ((first + 2 * member) * saved.stride + j);
    const unsigned short* of_a = halves_of(a) + ((first + group) * a.stride + 2 * member);
    int below = limit - first - 2 * member, below_a = rows - first - group;
    uint4 next[ROWS];         // of saved: the next rows, which are under way during the arithmetic on these
    unsigned next_far[2][2];  // rows of a, eight at a time
    const auto place = [](int r) { return r % 2 + r / 2 * 8; };
    const auto read = [&]() {
#pragma unroll
      for (int e = 0; e < 2; e++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
          const bool here = 8 * e < below_a && 2 * member + 8 * k < inner;
          next_far[e][k] = here ? *reinterpret_cast<const unsigned*>(of_a + (8 * e * a.stride + 8 * k)) : 0;
        }
#pragma unroll
      for (int r = 0; r < ROWS; r++) next[r] = eight_halves(from + place(r) * saved.stride, place(r) < below);
    };
    read();
    __syncthreads();  // what lay there may still be read
    for (int e = threadIdx.x; e < 4 * WARP; e += blockDim.x) {
      const int q = e / WARP, column = left + e % WARP / 4 * 8 + 2 * q, p = e % 4 * 2;
      factor[e] = make_uint4(pair_of(b, column, p), pair_of(b, column + 1, p), pair_of(b, column, p + 8),
                             pair_of(b, column + 1, p + 8));
    }
    __syncthreads();
    float weight[8][4] = {}, bias[1][8] = {};
    for (int top = first; top < rows; top += step) {
      unsigned v[ROWS][4];  // of saved, then of dx
#pragma unroll
      for (int r = 0; r < ROWS; r++)
        v[r][0] = next[r].x, v[r][1] = next[r].y, v[r][2] = next[r].z, v[r][3] = next[r].w;
      unsigned far[2][2], turned[4];  // rows of a, and the same turned
#pragma unroll
      for (int e = 0; e < 2; e++)
#pragma unroll
        for (int k = 0; k < 2; k++) far[e][k] = next_far[e][k], turned[2 * e + k] = turned_tile(far[e][k]);
      const int here = below;
      from += step * saved.stride, of_a += step * a.stride, below -= step, below_a -= step;
      read();
      __syncwarp();  // a compiler, too, is to begin with it
#pragma unroll
      for (int q = 0; q < 4; q++) {  // columns 2 q and 2 q + 1 of the lane's eight
        multiply_tiles(weight[2 * q], turned, lower_halves(v[0][q], v[1][q]), lower_halves(v[2][q], v[3][q]));
        multiply_tiles(weight[2 * q + 1], turned, upper_halves(v[0][q], v[1][q]), upper_halves(v[2][q], v[3][q]));
        const uint4 rows_of_b = factor[q * WARP + lane];
        const unsigned near[4] = {rows_of_b.x, rows_of_b.y, rows_of_b.z, rows_of_b.w};
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float sums[4] = {};
          multiply_tiles(sums, near, far[e][0], far[e][1]);
#pragma unroll
          for (int k = 0; k < 2; k++) {
            const int r = 2 * e + k;
            const float one = sums[k] * f.slope(from_bfloat16(v[r][q] & 0xffff));
            const float other = sums[2 + k] * f.slope(__uint_as_float(v[r][q] & 0xffff0000u));
            bias[0][2 * q] += one, bias[0][2 * q + 1] += other;
            v[r][q] = two_bfloat16(one, other);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++)
        put_eight(halves_of(dx) + ((top + 2 * member + place(r)) * dx.stride + j), v[r], place(r) < here);
    }
#pragma unroll
    for (int q = 0; q < 8; q += 2)
      add_up_warps<2>(weight, q, [&](int place, int k, int of_lane, T sum) {
        const int p = of_lane / 4 + k / 2 * 8, column = left + (of_lane % 4 * 2 + k % 2) * 8 + place;
        if (p < inner && column < columns) dw.data[((long long)share * columns + column) * inner + p] = sum;
      });
    if (db) {
#pragma unroll
      for (int k = 0; k < 8; k++) bias[0][k] = row_sum(bias[0][k], 4);
      add_up_warps<1>(bias, 0, [&](int, int k, int of_lane, T sum) {
        const int column = left + of_lane / 4 * 8 + k;
        if (of_lane % 4 == 0 && column < columns) db.data[(long long)share * columns + column] = sum;
      });
    }
    if (da && left == 0) {  // once for all columns of dx; a is short, and its sums want registers above
      float own[1][4] = {};
      for (int top = first; top < rows; top += step)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const unsigned pair = pair_of(a, top + group + e / 2 * 8, 2 * member + e % 2 * 8);
          own[0][e % 2 * 2] += from_bfloat16(pair & 0xffff), own[0][e % 2 * 2 + 1] += __uint_as_float(pair & 0xffff0000u);
        }
#pragma unroll
      for (int k = 0; k < 4; k++)
#pragma unroll
        for (int apart = 16; apart > 2; apart >>= 1) own[0][k] += __shfl_xor_sync(0xffffffffu, own[0][k], apart);
      add_up_warps<1>(own, 0, [&](int, int k, int of_lane, T sum) {
        const int p = 2 * of_lane + k % 2 + k / 2 * 8;
        if (of_lane < 4 && p < inner) da.data[(long long)share * inner + p] = sum;
      });
    }
  }
}
