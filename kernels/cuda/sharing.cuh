// What a block does of an operation: its share of the elements, rows or columns of a matrix, and sums over them that
// give the same bits every time.

// --- a block's share of elements ---------------------------------------------------------------------------------

// Quotient and remainder; 64-bit division costs four times as much as 32-bit, which is taken where it does.
__device__ __forceinline__ void divide(Index a, Index b, Index& quotient, Index& remainder) {
  if (sizeof(Index) == 4 || ((long long)(a | b) >> 32) == 0) {
    quotient = (unsigned)a / (unsigned)b;
    remainder = (unsigned)a % (unsigned)b;
  } else {
    quotient = a / b;
    remainder = a % b;
  }
}

// Calls body(i, j) for this thread's share of the places of a (rows, width) grid; neighbours take neighbours.
template <typename Body>
__device__ __forceinline__ void for_each_place(Index rows, Index width, Block block, Body body) {
  const Index start = (Index)block.index * blockDim.x + threadIdx.x;
  const Index step = (Index)block.count * blockDim.x;
  if (start >= rows * width) return;
  // one loop for a single row too: the body, which is inlined, would stand there twice
  Index i = 0, j = start, down = 0, across = step;
  if (rows > 1) {
    divide(start, width, i, j);
    divide(step, width, down, across);
  }
  while (i < rows) {
    body(i, j);
    i += down;
    j += across;
    if (j >= width) j -= width, i++;
  }
}

// Applies f to WIDTH neighbours in each of AT_ONCE places, `apart` columns from each other and below `last`: see
// `elementwise`. All are loaded before the first is stored; a place that is missing is one of zeros. The first PRESENT
// operands are there. It is no lambda, since NVRTC before CUDA 13 takes one that is generic for a function of the host.
template <int WIDTH, int AT_ONCE, int PRESENT, unsigned READ, unsigned WRITTEN, typename T, int COUNT, typename F>
__device__ __forceinline__ void apply(const Matrix<T> (&operands)[COUNT], F& f, Index i, Index j, Index apart,
                                      Index last) {
  T v[AT_ONCE][COUNT][WIDTH] = {};
#pragma unroll
  for (int u = 0; u < AT_ONCE; u++)
#pragma unroll
    for (int k = 0; k < COUNT; k++)
      if ((READ >> k & 1) && (k < PRESENT || operands[k]) && (u == 0 || j + u * apart < last))
        load_words<WIDTH>(v[u][k], operands[k], i, j + u * apart);
#pragma unroll
  for (int u = 0; u < AT_ONCE; u++) {
#pragma unroll
    for (int k = 0; k < COUNT; k++)
      if ((READ >> k & 1) && (k < PRESENT || operands[k])) as_numbers<WIDTH>(v[u][k], operands[k]);
#pragma unroll
    for (int w = 0; w < WIDTH; w++) {
      T entry[COUNT];
#pragma unroll
      for (int k = 0; k < COUNT; k++) entry[k] = v[u][k][w];
      f(entry);
#pragma unroll
      for (int k = 0; k < COUNT; k++) v[u][k][w] = entry[k];
    }
#pragma unroll
    for (int k = 0; k < COUNT; k++)
      if ((WRITTEN >> k & 1) && (k < PRESENT || operands[k]) && (u == 0 || j + u * apart < last))
        store<WIDTH>(operands[k], i, j + u * apart, v[u][k]);
  }
}

// Applies f to all packs of WIDTH if every operand allows it; returns how many columns of each row that were.
template <int WIDTH, unsigned READ, unsigned WRITTEN, typename T, int COUNT, typename F>
__device__ __forceinline__ Index apply_packs(const Matrix<T> (&operands)[COUNT], Block block, F& f, bool flat,
                                             Index rows, Index columns) {
  bool wide = true;
#pragma unroll
  for (int k = 0; k < COUNT; k++) wide = wide && (!operands[k] || aligned<WIDTH>(operands[k], flat));
  if (!wide) return 0;
  for_each_place(rows, columns / WIDTH, block,
                 [&](Index i, Index j) { apply<WIDTH, 1, 0, READ, WRITTEN>(operands, f, i, j * WIDTH, 0, 0); });
  return columns / WIDTH * WIDTH;
}

// Changes operands of one shape entry by entry: f takes an array of one entry of each, and may change those that
// bit k of WRITTEN names; those that bit k of READ names are loaded, and others are 0, as absent ones are.
template <unsigned READ, unsigned WRITTEN, typename T, int COUNT, typename F>
__device__ __forceinline__ void elementwise(const Matrix<T> (&operands)[COUNT], Block block, F f) {
  bool flat = true;
#pragma unroll
  for (int k = 0; k < COUNT; k++)
    flat = flat && (!operands[k] || operands[k].rows == 1 || operands[k].stride == operands[k].columns);
  // as one long row no row ends in the middle of a pack
  const Index rows = flat ? 1 : operands[0].rows;
  const Index columns = flat ? operands[0].rows * operands[0].columns : operands[0].columns;
  Index done = apply_packs<PACK, READ, WRITTEN>(operands, block, f, flat, rows, columns);
  if constexpr (PACK > 4)  // rows of bfloat16 often begin at 8 bytes only
    if (done == 0) done = apply_packs<4, READ, WRITTEN>(operands, block, f, flat, rows, columns);
  for_each_place(rows, columns - done, block,
                 [&](Index i, Index j) { apply<1, 1, 0, READ, WRITTEN>(operands, f, i, done + j, 0, 0); });
}

// The same for operands of one row each, as the arenas are, of which the first PRESENT are there: a loop has fewer
// instructions, and two packs are under way at a time. They are of four where some are bfloat16 too: with packs of
// eight floats a thread, each store of a warp would be of every other 16 bytes, half of each sector of memory.
template <int PRESENT, unsigned READ, unsigned WRITTEN, typename T, int COUNT, typename F>
__device__ __forceinline__ void elementwise_flat(const Matrix<T> (&operands)[COUNT], Block block, F f) {
  constexpr int WIDTH = 4, AT_ONCE = 2;
  bool wide = true;
#pragma unroll
  for (int k = 0; k < COUNT; k++) wide = wide && ((k >= PRESENT && !operands[k]) || aligned<WIDTH>(operands[k], true));
  const Index columns = operands[0].columns, done = wide ? columns / WIDTH * WIDTH : 0;
  const Index start = (Index)block.index * blockDim.x + threadIdx.x, step = (Index)block.count * blockDim.x;
#pragma unroll 1
  for (Index j = start * WIDTH; j < done; j += AT_ONCE * WIDTH * step)
    apply<WIDTH, AT_ONCE, PRESENT, READ, WRITTEN>(operands, f, 0, j, WIDTH * step, done);
#pragma unroll 1
  for (Index j = done + start; j < columns; j += step) apply<1, 1, PRESENT, READ, WRITTEN>(operands, f, 0, j, 0, 0);
}

// --- a block's share of rows -------------------------------------------------------------------------------------

// How often 1 is doubled until it is at least `n`; 5 times at most, for the lanes of a warp. Shifts by it cost a tenth of
// the quotients that a number of lanes would want.
__device__ __forceinline__ int doublings_for(Index n) { return n < WARP ? 32 - __clz((int)n - 1) : 5; }

// The sum over the lanes of a row, in an order that does not depend on anything else; each of them gets it.
template <typename T>
__device__ __forceinline__ T row_sum(T v, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}
template <typename T>
__device__ __forceinline__ T row_maximum(T v, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) v = larger(v, __shfl_xor_sync(0xffffffffu, v, step));
  return v;
}

// Calls body(i, lane, lanes, columns) for rows of a matrix. A warp takes a row, or several narrow ones: a power of two of
// its lanes to each, with up to ROW_EACH columns a lane, whose loads are under way together. Lanes whose row does not exist come along with 0 columns and a row that does, since a shuffle wants
// all of the warp; they must not write what belongs to the row.
template <typename Body>
__device__ __forceinline__ void for_each_row(Index rows, Index columns, Block block, Body body) {
  const int level = doublings_for((columns + ROW_EACH - 1) / ROW_EACH), lanes = 1 << level, at_once = WARP >> level;
  const int in_warp = threadIdx.x % WARP;
  const Index warp = (Index)block.index * (blockDim.x / WARP) + threadIdx.x / WARP;
  const Index warps = (Index)block.count * (blockDim.x / WARP);
  for (Index first = warp * at_once; first < rows; first += warps * at_once) {
    const Index i = first + (in_warp >> level);
    const bool here = i < rows;
    body(here ? i : rows - 1, in_warp & (lanes - 1), lanes, here ? columns : 0);
  }
}

// Calls body(j, load(j)) for a lane's columns of a row, in order; AT_ONCE loads are under way at a time.
template <int AT_ONCE = ROW_EACH, typename Load, typename Body>
__device__ __forceinline__ void along_row(int lane, int lanes, Index columns, Load load, Body body) {
  for (Index j = lane; j < columns; j += AT_ONCE * lanes) {
    decltype(load(j)) loaded[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++)
      if (j + u * lanes < columns) loaded[u] = load(j + u * lanes);
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++)
      if (j + u * lanes < columns) body(j + u * lanes, loaded[u]);
  }
}

// --- a block's share of columns ----------------------------------------------------------------------------------

// A block takes up to 32 columns at once, and more where it is the only one, since each time costs a few barriers; its
// threads stand in rows of that width, each with a part of the rows.
struct Columns {
  int level, width, place, first, step;  // columns at once, 1 << level; this thread's among them; its rows

  __device__ __forceinline__ Columns(Index columns, Block block) : level(doublings_for(columns)) {
    while (block.count == 1 && 1 << level < columns && blockDim.x >> (level + 1)) level++;
    width = 1 << level;
    place = threadIdx.x & (width - 1), first = threadIdx.x >> level, step = blockDim.x >> level;
  }
};

// The sum of `count` numbers `apart` from each other. Four loads are under way at once.
template <typename T>
__device__ __forceinline__ T sum_of_parts(const T* parts, int count, int apart) {
  T total = T(0);
  for (int part = 0; part < count; part += 4) {
    T v[4];
#pragma unroll
    for (int u = 0; u < 4; u++) v[u] = part + u < count ? parts[(part + u) * apart] : T(0);
    total += (v[0] + v[1]) + (v[2] + v[3]);
  }
  return total;
}

// The sums over the threads of each column; all of them get it. Every thread of the block must come.
template <typename T>
__device__ __forceinline__ T column_total(T v, const Columns& c) {
  T* shared = shared_scratch<T>();
  // first over the lanes of a warp that stand in the same column, then over what then are rows of parts
  for (int step = WARP / 2; step >= c.width; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  const int abreast = c.width > WARP ? c.width : WARP, parts = blockDim.x / abreast;
  __syncthreads();  // what lay there may still be read
  if (threadIdx.x % abreast < c.width) shared[threadIdx.x / abreast * c.width + c.place] = v;
  __syncthreads();
  return sum_of_parts(shared + c.place, parts, c.width);
}

// The sum of v over the threads of the block, whole warps; all of them get it. Every thread must come.
__device__ __forceinline__ double block_total(double v) {
  double* shared = shared_scratch<double>();
  v = row_sum(v, WARP);
  __syncthreads();  // what lay there may still be read
  if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = v;
  __syncthreads();
  return row_sum(threadIdx.x % WARP < blockDim.x / WARP ? shared[threadIdx.x % WARP] : 0.0, WARP);
}

// Whether this block is the last of `count` that come here, and so sees what the others have written before, by
// `of_another_block`. `ticket` is eight bytes of zeros, before and afterwards. Every thread must come.
__device__ __forceinline__ bool comes_last(void* ticket, int count) {
  int* shared = shared_scratch<int>();
  __syncthreads();  // what lay there may still be read, and what the threads write is written
  if (threadIdx.x == 0) {
    __threadfence();
    shared[0] = atomicAdd((unsigned*)ticket, 1u) == count - 1u;
    if (shared[0]) *(unsigned*)ticket = 0;
    __threadfence();
  }
  __syncthreads();
  return shared[0];
}

// Past the first cache, which does not learn of what other blocks write.
__device__ __forceinline__ double of_another_block(const double* p) { return *(const volatile double*)p; }

// Calls body(p, c, lane, sum) with the sums over the warps of a block of what each lane has as v[p][c], for P values of
// p from `first` on; one thread does so for each. Every thread must come.
template <int P, int ROWS, int C, typename T, typename Body>
__device__ __forceinline__ void add_up_warps(const T (&v)[ROWS][C], int first, Body body) {
  static_assert(P * C * THREADS * sizeof(T) <= SCRATCH_BYTES && RESIDENT_THREADS <= THREADS,
                "room for the numbers of all threads of a block");
  T* shared = shared_scratch<T>();
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
  __syncthreads();  // what lay there may still be read
#pragma unroll
  for (int p = 0; p < P; p++)
#pragma unroll
    for (int c = 0; c < C; c++) shared[((warp * P + p) * C + c) * WARP + lane] = v[first + p][c];
  __syncthreads();
  for (int e = threadIdx.x; e < P * C * WARP; e += blockDim.x)
    body(first + e / (C * WARP), e / WARP % C, e % WARP, sum_of_parts(shared + e, warps, P * C * WARP));
}

// Adds term(load(i)) over i = first, first + step, ... below last. Four loads are under way at once; sums of up to 64
// terms are added up apart, so that the rounding error does not grow with the number of rows.
template <typename T, typename Load, typename Term>
__device__ __forceinline__ T sum_over(Index first, Index last, Index step, Load load, Term term) {
  T total = T(0);
  Index i = first;
  while (i < last) {
    T part[4] = {T(0), T(0), T(0), T(0)};
    for (int n = 0; n < 16 && i < last; n++, i += 4 * step) {
      decltype(load(i)) loaded[4];
#pragma unroll
      for (int u = 0; u < 4; u++)
        if (i + u * step < last) loaded[u] = load(i + u * step);
#pragma unroll
      for (int u = 0; u < 4; u++)
        if (i + u * step < last) part[u] += term(loaded[u], i + u * step);
    }
    total += (part[0] + part[1]) + (part[2] + part[3]);
  }
  return total;
}

// Calls body(j, here, tile's columns) for each tile of columns of this block; `here` is false for threads beyond the
// last column, which come along for the barriers with a column that exists.
template <typename Body>
__device__ __forceinline__ void for_each_column(Index columns, Block block, Body body) {
  const Columns c(columns, block);
  for (Index first = (Index)block.index * c.width; first < columns; first += (Index)block.count * c.width) {
    const Index j = first + c.place;
    body(j < columns ? j : columns - 1, j < columns, c);
  }
}
