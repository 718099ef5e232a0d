// Sums over the columns of a matrix, with what is done on the way.

// Where each thread has totals of C neighbouring columns: their sums over the lanes of a warp that stand in the same
// columns, then over the warps, to row `share` of db from column `left` on, 1 << level times C of them. Every thread of
// the block must come.
template <int C, typename T>
__device__ __forceinline__ void put_totals(T (&totals)[C], int level, const Matrix<T>& db, int share, int left,
                                           int columns, long long* control) {
  T* shared = shared_scratch<T>();
  const int width = 1 << level, place = threadIdx.x & (width - 1), parts = blockDim.x / WARP;
  for (int step = WARP / 2; step >= width; step /= 2)
#pragma unroll
    for (int c = 0; c < C; c++) totals[c] += __shfl_xor_sync(0xffffffffu, totals[c], step);
  __syncthreads();  // what lay there may still be read
  if (threadIdx.x % WARP < width)
#pragma unroll
    for (int c = 0; c < C; c++) shared[((threadIdx.x / WARP << level) + place) * C + c] = totals[c];
  __syncthreads();
  for (int e = threadIdx.x; e < width * C && left + e < columns; e += blockDim.x) {
    const T sum = sum_of_parts(shared + e, parts, width * C);
    *db.at(share, left + e) = sum;
    flag_unless_finite(sum * T(0), control);
  }
}

// `sum_columns` of operands that all are bfloat16, in accesses of 16 bytes: a thread takes eight neighbouring columns,
// a block HALVES_WIDTH, whose rows are whole lines of memory, and all that a thread reads of some rows is under way at
// once. False, and nothing done, where one block does it all or the operands do not allow it.
template <unsigned READ, unsigned WRITTEN, typename T, int COUNT, typename F>
__device__ __forceinline__ bool sum_halves(const Matrix<T> (&given)[COUNT], const Matrix<T>& db, Block block, F& f,
                                           long long* control) {
  constexpr int C = 8, ROWS = READ & (READ - 1) ? 2 : 4;
  const int rows = (int)given[0].rows, columns = (int)given[0].columns;
  bool all = block.count > 1 && columns % C == 0;
  Matrix<T> operands[COUNT];
#pragma unroll
  for (int k = 0; k < COUNT; k++) {
    all = all && given[k].half && aligned<C>(given[k]);
    operands[k] = given[k], operands[k].half = true;  // known from here on
  }
  if (!all) return false;
  const int packs = columns / C, level = doublings_for(min(packs, HALVES_WIDTH / C)), width = 1 << level;
  const int deep = blockDim.x >> level, tiles = (packs + width - 1) >> level;
  const int shares = (int)db.rows, each = shares > 1 ? (rows + shares - 1) / shares : rows;
  for (int unit = block.index; unit < tiles * shares; unit += block.count) {
    const int share = shares > 1 ? unit / tiles : 0, left = (unit - share * tiles) * width * C;
    const int j = left + (threadIdx.x & (width - 1)) * C, last = min((share + 1) * each, rows);
    T totals[C] = {};
    for (int i = share * each + (threadIdx.x >> level); i < last && j < columns;) {
      T part[C] = {};
#pragma unroll 1
      for (int n = 0; n < 64 / ROWS && i < last; n++, i += ROWS * deep) {
        T v[COUNT][ROWS][C] = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
          for (int k = 0; k < COUNT; k++)
            if ((READ >> k & 1) && i + r * deep < last) load_words<C>(v[k][r], operands[k], i + r * deep, j);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          if (i + r * deep >= last) break;
#pragma unroll
          for (int k = 0; k < COUNT; k++)
            if (READ >> k & 1) as_numbers<C>(v[k][r], operands[k]);
#pragma unroll
          for (int c = 0; c < C; c++) {
            T entry[COUNT];
#pragma unroll
            for (int k = 0; k < COUNT; k++) entry[k] = v[k][r][c];
            part[c] += f(entry, i + r * deep);
#pragma unroll
            for (int k = 0; k < COUNT; k++) v[k][r][c] = entry[k];
          }
#pragma unroll
          for (int k = 0; k < COUNT; k++)
            if (WRITTEN >> k & 1) store<C>(operands[k], i + r * deep, j, v[k][r]);
        }
      }
#pragma unroll
      for (int c = 0; c < C; c++) totals[c] += part[c];
    }
    put_totals(totals, level, db, share, left, columns, control);
  }
  return true;
}

// db = sums over the columns of what f gives for the entries of operands of one shape, as in `elementwise`: f(entry, i)
// may change those that WRITTEN names. With one row in db over all rows; with more, each over its share of the rows.
// A thread takes four neighbouring columns; sums of up to 64 terms are added up apart, as in `sum_over`.
// control: see `flag_unless_finite`. HALVES: where many blocks share operands that all are bfloat16, it is done as in `sum_halves`.
template <unsigned READ, unsigned WRITTEN, bool HALVES = true, typename T, int COUNT, typename F>
__device__ __forceinline__ void sum_columns(const Matrix<T> (&operands)[COUNT], Matrix<T> db, Block block, F f,
                                            long long* control = nullptr) {
  if constexpr (MIXED && HALVES)
    if (sum_halves<READ, WRITTEN>(operands, db, block, f, control)) return;
  // what the warps have lies in the scratch memory together
  constexpr int C = 4, ROWS = 2, WIDEST = SCRATCH_BYTES / (C * (int)sizeof(T)) * WARP / CHAIN_THREADS;
  static_assert(RESIDENT_THREADS <= CHAIN_THREADS && THREADS <= CHAIN_THREADS, "the most threads of a block");
  const int rows = (int)operands[0].rows, columns = (int)operands[0].columns, packs = (columns + C - 1) / C;
  bool wide = true;
#pragma unroll
  for (int k = 0; k < COUNT; k++) wide = wide && aligned<C>(operands[k]);
  // threads abreast: a block takes 32 columns at once, and up to 128 where it is the only one
  const int level = doublings_for(min(packs, block.count == 1 ? WIDEST : WARP / C)), width = 1 << level;
  const int place = threadIdx.x & (width - 1), deep = blockDim.x >> level, tiles = (packs + width - 1) >> level;
  const int shares = (int)db.rows, each = shares > 1 ? (rows + shares - 1) / shares : rows;
  for (int unit = block.index; unit < tiles * shares; unit += block.count) {
    const int share = shares > 1 ? unit / tiles : 0, left = (unit - share * tiles) * width * C, j = left + place * C;
    const int last = (share + 1) * each < rows ? (share + 1) * each : rows;
    T totals[C] = {};
    for (int i = share * each + (threadIdx.x >> level); i < last && j < columns;) {
      T part[C] = {};
#pragma unroll 1
      for (int n = 0; n < 64 / ROWS && i < last; n++, i += ROWS * deep) {
        const bool all = wide && j + C <= columns && i + (ROWS - 1) * deep < last;
        T v[COUNT][ROWS][C];
        if (all) {  // what one operand has is not converted before the loads of the next are under way
#pragma unroll
          for (int k = 0; k < COUNT; k++)
#pragma unroll
            for (int r = 0; r < ROWS; r++)
              if (READ >> k & 1) load_words<C>(v[k][r], operands[k], i + r * deep, j);
#pragma unroll
          for (int k = 0; k < COUNT; k++)
#pragma unroll
            for (int r = 0; r < ROWS; r++)
              if (READ >> k & 1) as_numbers<C>(v[k][r], operands[k]);
        } else {
#pragma unroll
          for (int k = 0; k < COUNT; k++)
            if (READ >> k & 1) load_rows(v[k], operands[k], i, deep, last, j, false);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const bool here = all || i + r * deep < last;
#pragma unroll
          for (int c = 0; c < C; c++) {
            T entry[COUNT];
#pragma unroll
            for (int k = 0; k < COUNT; k++) entry[k] = READ >> k & 1 ? v[k][r][c] : T(0);
            const T term = f(entry, here ? i + r * deep : i);
            if (here) part[c] += term;
#pragma unroll
            for (int k = 0; k < COUNT; k++) v[k][r][c] = entry[k];
          }
        }
#pragma unroll
        for (int k = 0; k < COUNT; k++)
          if (WRITTEN >> k & 1) store_rows(operands[k], i, deep, last, j, v[k], all);
      }
#pragma unroll
      for (int c = 0; c < C; c++) totals[c] += part[c];
    }
    put_totals(totals, level, db, share, left, columns, control);
  }
}
