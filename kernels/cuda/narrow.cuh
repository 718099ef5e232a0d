// An activation, or its gradient, in one pass with the products of a layer that has few outputs: they cost less than
// writing the matrix between them down and reading it again. A thread has sums for all of the few columns in registers;
// what they are multiplied by lies in shared memory. F is a functor of activations.cuh. On bfloat16 alone narrow_halves.cuh
// does most of it.

// factor[p * COLUMNS + e] = element (first + e, p) of a matrix with few columns, or 0 below its last row; every thread
// must come.
template <int COLUMNS, typename T>
__device__ __forceinline__ void share_factor(T* factor, const Matrix<T>& b, Index first) {
  constexpr int AT_ONCE = 4;
  const int size = (int)b.columns * COLUMNS;
  __syncthreads();  // what lay there may still be read
#pragma unroll 1
  for (int start = threadIdx.x; start < size; start += AT_ONCE * blockDim.x) {
    T v[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      const int e = start + u * blockDim.x;
      v[u] = e < size && first + e % COLUMNS < b.rows ? word(b, first + e % COLUMNS, e / COLUMNS) : T(0);
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++)
      if (start + u * blockDim.x < size) factor[start + u * blockDim.x] = number(v[u], b);
  }
  __syncthreads();
}

template <int C, typename T>
__device__ __forceinline__ void load_near(T (&v)[C], const T* factor) {
  if constexpr (C % 4 == 0) {
    load<C>(v, factor);
  } else {
#pragma unroll
    for (int c = 0; c < C; c++) v[c] = factor[c];
  }
}

// y = f(x + bias), c = y b + added, where c has few columns: operands bias, b, added, x, y, c; bias and added may be
// absent, and y, where no gradient will read it or x. Else the bias stays in x where the gradient reads that. A group of
// 8 lanes takes 4 rows, which are read once.
template <typename T, typename F>
__device__ void bias_activate_narrow(const Row& row, Block block, F f) {
  constexpr int ROWS = 4, LANES = 8, C = 4, COLUMNS = SCRATCH_BYTES / (NARROW * (int)sizeof(T));
  static_assert(ROWS * WARP / LANES == NARROW_ROWS, "the rows of a warp, for which grids are made");
  const Matrix<T> bias = matrix<T>(row, 0), b = matrix<T>(row, 1), added = matrix<T>(row, 2);
  const Matrix<T> x = matrix<T>(row, 3), y = matrix<T>(row, 4), c = matrix<T>(row, 5);
  if constexpr (MIXED && HAS_TENSOR_CORES) {
    if (are_halves(x, y, b, b)) {
      activate_halves<T>(row, block, f);
      return;
    }
  }
  T* factor = shared_scratch<T>();  // [outputs][COLUMNS]
  const int outputs = (int)c.columns, lane = threadIdx.x % LANES;
  const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  // numbers of rows and of columns by themselves fit 32 bits, which saves registers
  const int rows = (int)x.rows, columns = (int)x.columns, groups = (rows + NARROW_ROWS - 1) / NARROW_ROWS;
  const bool wide = aligned<C>(x) && (!y || aligned<C>(y)) && aligned<C>(bias);
  // neighbouring groups of rows go to different blocks: where there are few, each has a multiprocessor of its own
  for (int first = block.index; first < groups; first += warps * block.count) {
    const int i = (first + warp * block.count) * NARROW_ROWS + threadIdx.x % WARP / LANES * ROWS;
    T sums[ROWS][NARROW] = {};
    for (int left = 0; left < columns; left += COLUMNS) {
      share_factor<COLUMNS>(factor, b, left);
      for (int e = lane * C; e < COLUMNS && left + e < columns; e += LANES * C) {
        const int j = left + e;
        const bool whole = wide && j + C <= columns;
        const bool all = whole && i + ROWS <= rows;
        T v[ROWS][C], offset[C] = {};
        if (bias) load_part<C>(offset, bias, 0, j, whole);
        load_rows(v, x, i, 1, rows, j, all);
        if constexpr (!MIXED) {
#pragma unroll
          for (int r = 0; r < ROWS; r++)
            if (all && j + 2 * LANES * C < columns) bring_near(x.at(i + r, j + 2 * LANES * C));
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
          for (int k = 0; k < C; k++) v[r][k] += offset[k];
          if constexpr (F::SAVES_X) {
            if (bias && y && (all || i + r < rows)) store_part<C>(x, i + r, j, v[r], all);
          }
#pragma unroll
          for (int k = 0; k < C; k++) v[r][k] = f.value(v[r][k]);
        }
        if (!all) {  // what stands for missing columns has no part in the sums
#pragma unroll
          for (int k = 0; k < C; k++)
            if (j + k >= columns)
#pragma unroll
              for (int r = 0; r < ROWS; r++) v[r][k] = T(0);
        }
        if (y) store_rows(y, i, 1, rows, j, v, all);
#pragma unroll
        for (int p = 0; p < NARROW; p++) {
          if (p >= outputs) break;
          T near[C];
          load_near<C>(near, factor + p * COLUMNS + e);
#pragma unroll
          for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int k = 0; k < C; k++) sums[r][p] = add_product(sums[r][p], v[r][k], near[k]);
        }
      }
    }
#pragma unroll
    for (int p = 0; p < NARROW; p++) {
      if (p >= outputs) break;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const T sum = row_sum(sums[r][p], LANES);
        if (lane == p % LANES && i + r < rows) set_element(c, i + r, p, added ? sum + element(added, 0, p) : sum);
      }
    }
  }
}

// narrow_gradient with its sums, by one block for a few rows: a thread takes whole columns, so that no sum wants others'
// parts. ROWS of a column at once: what they are is told by pointers, which go on from row to row.
template <int ROWS, typename T, typename F>
__device__ __forceinline__ void gradient_of_rows(const Matrix<T>& a, const T*& of_a, const T*& kept_at, T*& to, Index apart,
                                                 Index apart_to, const T (&near)[NARROW], T (&weight)[NARROW], T& bias, F f) {
  T kept[ROWS], sums[ROWS] = {};
#pragma unroll
  for (int r = 0; r < ROWS; r++) kept[r] = kept_at[r * apart];
#pragma unroll
  for (int p = 0; p < NARROW; p++) {
    if (p >= a.columns) break;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const T v = of_a[r * a.stride + p];
      sums[r] = add_product(sums[r], v, near[p]), weight[p] = add_product(weight[p], v, kept[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    sums[r] *= f.slope(kept[r]);
    bias += sums[r], to[r * apart_to] = sums[r];
  }
  of_a += ROWS * a.stride, kept_at += ROWS * apart, to += ROWS * apart_to;
}

template <typename T, typename F>
__device__ __forceinline__ void gradient_by_columns(const Row& row, F f) {
  constexpr int ROWS = 4;
  const Matrix<T> a = matrix<T>(row, 0), b = matrix<T>(row, 1), saved = matrix<T>(row, 2), dx = matrix<T>(row, 3);
  T *dw = vector<T>(row, 4), *db = vector<T>(row, 5), *da = vector<T>(row, 6);
  const int rows = (int)dx.rows, columns = (int)dx.columns, inner = (int)a.columns;
#pragma unroll 1
  for (int j = threadIdx.x; j < columns; j += blockDim.x) {
    T near[NARROW], weight[NARROW] = {}, bias = T(0);
#pragma unroll
    for (int p = 0; p < NARROW; p++) {
      if (p >= inner) break;
      near[p] = *b.at(j, p);
    }
    const T *of_a = a.data, *kept_at = saved.at(0, j);
    T* to = dx.at(0, j);
    int left = rows;
#pragma unroll 1
    for (; left >= ROWS; left -= ROWS)
      gradient_of_rows<ROWS>(a, of_a, kept_at, to, saved.stride, dx.stride, near, weight, bias, f);
#pragma unroll 1
    for (; left > 0; left--) gradient_of_rows<1>(a, of_a, kept_at, to, saved.stride, dx.stride, near, weight, bias, f);
#pragma unroll
    for (int p = 0; p < NARROW; p++) {
      if (p >= inner) break;
      dw[j * inner + p] = weight[p];
    }
    if (db) db[j] = bias;
  }
  const int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
  for (int p = threadIdx.x / WARP; da && p < inner; p += warps) {
    T sum = T(0);
    for (int i = lane; i < rows; i += WARP) sum += *a.at(i, p);
    sum = row_sum(sum, WARP);
    if (lane == 0) da[p] = sum;
  }
}

// dx = (a b^T) f'(saved), where rows of a and of b are short: operands a, b, saved, dx. With SUMS also dw = saved^T a,
// and db and da, sums of the columns of dx and of a, which may be absent: operands dw, db, da. The product is never written down. A block
// has the part of b for its columns in shared memory; a lane takes a few columns of four rows at a time. dw, db and da have
// a row for each share of the rows of dx, dw with the entries of the matrix one behind the other; several are to be
// summed by `column_sums` once more.
template <bool SUMS, typename T, typename F>
__device__ __forceinline__ void narrow_gradient(const Row& row, Block block, F f) {
  constexpr int ROWS = SUMS ? 2 : 4, C = SCRATCH_BYTES / (NARROW * WARP * (int)sizeof(T)), COLUMNS = C * WARP;
  const Matrix<T> a = matrix<T>(row, 0), b = matrix<T>(row, 1), saved = matrix<T>(row, 2), dx = matrix<T>(row, 3);
  if constexpr (SUMS && MIXED && HAS_TENSOR_CORES) {
    if (are_halves(saved, dx, a, b)) {
      gradient_of_halves<T>(row, block, f);
      return;
    }
  }
  if constexpr (SUMS && !MIXED) {
    // with more rows warps had better share them; with fewer columns half of the threads would have none
    if (block.count == 1 && dx.rows <= 256 && 2 * dx.columns >= (int)blockDim.x) {
      gradient_by_columns<T>(row, f);
      return;
    }
  }
  T* factor = shared_scratch<T>();  // [inner][COLUMNS]
  const int inner = (int)a.columns, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
  const int rows = (int)dx.rows, tiles = ((int)dx.columns + COLUMNS - 1) / COLUMNS;
  const int shares = SUMS ? (int)row.operands[4].rows : block.count > tiles ? block.count / tiles : 1;
  const int step = warps * shares;
  const bool wide = aligned<C>(saved) && aligned<C>(dx);
  for (int unit = block.index; unit < tiles * shares; unit += block.count) {
    const int left = unit % tiles * COLUMNS, j = left + lane * C;
    const bool whole = wide && j + C <= dx.columns;
    T weight[SUMS ? NARROW : 1][C] = {}, bias[1][C] = {}, own[1][1] = {};
    share_factor<COLUMNS>(factor, b, left);
    for (int i = unit / tiles * warps + threadIdx.x / WARP; i < rows; i += ROWS * step) {
      const bool all = whole && i + (ROWS - 1) * step < rows;
      T kept[ROWS][C], sums[ROWS][C] = {};
      // the short rows of a by one load, a lane for each number: one by one each would be waited for
      T short_row[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; r++)
        short_row[r] = lane < inner && (all || i + r * step < rows) ? word(a, i + r * step, lane) : T(0);
      load_rows(kept, saved, i, step, rows, j, all);
      if constexpr (!MIXED) {  // registers for more of them there are not
#pragma unroll
        for (int r = 0; r < ROWS; r++)
          if (all && i + (ROWS + r) * step < rows) bring_near(saved.at(i + (ROWS + r) * step, j));
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) short_row[r] = number(short_row[r], a), own[0][0] += short_row[r];
      const auto multiply = [&](int p) {
        T near[C];
        load_near<C>(near, factor + p * COLUMNS + lane * C);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const T v = __shfl_sync(0xffffffffu, short_row[r], p);
#pragma unroll
          for (int c = 0; c < C; c++) {
            sums[r][c] = add_product(sums[r][c], v, near[c]);
            if constexpr (SUMS) weight[p][c] = add_product(weight[p][c], v, kept[r][c]);
          }
        }
      };
      if constexpr (SUMS) {  // sums in registers want places that the compiler knows
#pragma unroll
        for (int p = 0; p < NARROW; p++) {
          if (p >= inner) break;
          multiply(p);
        }
      } else {
        for (int p = 0; p < inner; p++) multiply(p);
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++)  // of a row that is missing they are 0
#pragma unroll
        for (int c = 0; c < C; c++) {
          sums[r][c] *= f.slope(kept[r][c]);
          bias[0][c] += sums[r][c];
        }
      store_rows(dx, i, step, rows, j, sums, all);
    }
    if constexpr (SUMS) {
      const Matrix<T> dw = matrix<T>(row, 4), db = matrix<T>(row, 5), da = matrix<T>(row, 6);
      const Index share = unit / tiles;
#pragma unroll
      for (int p = 0; p < NARROW; p += 2) {
        if (p >= inner) break;
        add_up_warps<2>(weight, p, [&](int place, int c, int of_lane, T sum) {
          const Index column = left + of_lane * C + c;
          if (place < inner && column < dx.columns)
            dw.data[((long long)share * dx.columns + column) * inner + place] = sum;
        });
      }
      if (db)
        add_up_warps<1>(bias, 0, [&](int, int c, int of_lane, T sum) {
          const Index column = left + of_lane * C + c;
          if (column < dx.columns) db.data[(long long)share * dx.columns + column] = sum;
        });
      if (da && left == 0)  // once for all columns of dx
        add_up_warps<1>(own, 0, [&](int, int, int of_lane, T sum) {
          if (of_lane < inner) da.data[(long long)share * inner + of_lane] = sum;
        });
    }
  }
}

template <typename T, typename F>
__device__ void narrow_activate_grad(const Row& row, Block block, F f) {
  narrow_gradient<false, T>(row, block, f);
}
template <typename T, typename F>
__device__ void narrow_activate_grad_sums(const Row& row, Block block, F f) {
  narrow_gradient<true, T>(row, block, f);
}
