// What all operations build on: rows of the program, operands, loops over a block's share, sums that give the same
// bits every time. Each operation is called by all threads of every block that shares it; a caller puts a barrier
// between one operation and the next.

struct Operand {
  long long address, rows, columns, stride;  // stride: elements from row to row; a vector is one row; address 0: absent
};

struct Row {  // kernels/layout.py; 36 words
  long long op, flags;
  const double* scalars;
  char* scratch;
  Operand operands[MAX_OPERANDS];
};

struct Block {
  int index, count;  // which block of how many share this row
};

#ifndef GPUMLP_DYNAMIC_SHARED
#define GPUMLP_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

// One piece of shared memory for all operations: the resident kernel holds many, and theirs would add up. It is not in
// a template, of which each type would have its own.
static __device__ double* scratch_doubles() {
  __align__(16) __shared__ double scratch[SCRATCH_BYTES / sizeof(double)];
  return scratch;
}

template <typename T>
__device__ __forceinline__ T* shared_scratch() {
  return reinterpret_cast<T*>(scratch_doubles());
}

// --- operands ----------------------------------------------------------------------------------------------------

template <typename T>
struct Matrix {
  T* data;  // null where the operand is absent
  long long rows, columns, stride;
  bool half = false;  // its elements are bfloat16: `load` and `store` must be taken, since `at` is of T

  __device__ __forceinline__ T* at(long long i, long long j) const { return data + i * stride + j; }
  __device__ __forceinline__ explicit operator bool() const { return data != nullptr; }
};

// Where some operands are bfloat16, bit k of the row's flags says that operand k is.
template <typename T>
__device__ __forceinline__ Matrix<T> matrix(const Row& row, int k) {
  const Operand& o = row.operands[k];
  return {reinterpret_cast<T*>(o.address), o.rows, o.columns, o.stride, MIXED && (row.flags >> k & 1)};
}

// A vector as a matrix of which every row is that vector.
template <typename T>
__device__ __forceinline__ Matrix<T> on_every_row(const Row& row, int k, long long rows) {
  const Operand& o = row.operands[k];
  return {reinterpret_cast<T*>(o.address), rows, o.columns, 0};
}

template <typename T>
__device__ __forceinline__ T* vector(const Row& row, int k) {
  return reinterpret_cast<T*>(row.operands[k].address);
}

// --- numbers -----------------------------------------------------------------------------------------------------

// The library has a name for each type; these have one for both, and none that an operation has.
__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float expm1_of(float x) { return expm1f(x); }
__device__ __forceinline__ double expm1_of(double x) { return expm1(x); }
__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return log(x); }
__device__ __forceinline__ float log1p_of(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_of(double x) { return log1p(x); }
__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return ::tanh(x); }
__device__ __forceinline__ float erf_of(float x) { return erff(x); }
__device__ __forceinline__ double erf_of(double x) { return erf(x); }
__device__ __forceinline__ float root(float x) { return sqrtf(x); }
__device__ __forceinline__ double root(double x) { return sqrt(x); }
__device__ __forceinline__ float size_of(float x) { return fabsf(x); }
__device__ __forceinline__ double size_of(double x) { return fabs(x); }

// NaN wins: fmax and fmin lose it.
template <typename T>
__device__ __forceinline__ T larger(T a, T b) {
  return a >= b || a != a ? a : b;
}
template <typename T>
__device__ __forceinline__ T smaller(T a, T b) {
  return a <= b || a != a ? a : b;
}

// Neither NaN nor infinite: such a number times 0 is NaN.
template <typename T>
__device__ __forceinline__ bool is_finite(T x) {
  return x * T(0) == T(0);
}

// --- bfloat16 ----------------------------------------------------------------------------------------------------

// The upper half of a float, rounded to nearest, ties to even. NaN stays NaN: rounding could carry into its sign.
__device__ __forceinline__ unsigned short bfloat16(float x) {
  const unsigned bits = __float_as_uint(x);
  if (x != x) return (unsigned short)(bits >> 16 | 0x40);
  return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A double goes through float, rounded to odd, so that it is not rounded to a tie first: the last bit of an inexact
// float towards 0 is set.
__device__ __forceinline__ unsigned short bfloat16(double x) {
  float near = (float)x;
  if ((double)near != x && x == x) {
    unsigned bits = __float_as_uint(near);
    if (fabs((double)near) > fabs(x)) bits -= 1;
    near = __uint_as_float(bits | 1);
  }
  return bfloat16(near);
}

__device__ __forceinline__ float from_bfloat16(unsigned half) { return __uint_as_float(half << 16); }

// --- loads and stores --------------------------------------------------------------------------------------------

// WIDTH neighbours at once, where that is a multiple of 4 in accesses of 16 bytes; else one.
template <int WIDTH>
__device__ __forceinline__ void load(float (&v)[WIDTH], const float* p) {
  if constexpr (WIDTH % 4 == 0) {
#pragma unroll
    for (int w = 0; w < WIDTH; w += 4) {
      const float4 q = *reinterpret_cast<const float4*>(p + w);
      v[w] = q.x, v[w + 1] = q.y, v[w + 2] = q.z, v[w + 3] = q.w;
    }
  } else {
    v[0] = *p;
  }
}
template <int WIDTH>
__device__ __forceinline__ void load(double (&v)[WIDTH], const double* p) {
  if constexpr (WIDTH % 4 == 0) {
#pragma unroll
    for (int w = 0; w < WIDTH; w += 2) {
      const double2 q = *reinterpret_cast<const double2*>(p + w);
      v[w] = q.x, v[w + 1] = q.y;
    }
  } else {
    v[0] = *p;
  }
}
template <int WIDTH>
__device__ __forceinline__ void store(float* p, const float (&v)[WIDTH]) {
  if constexpr (WIDTH % 4 == 0) {
#pragma unroll
    for (int w = 0; w < WIDTH; w += 4)
      *reinterpret_cast<float4*>(p + w) = make_float4(v[w], v[w + 1], v[w + 2], v[w + 3]);
  } else {
    *p = v[0];
  }
}
template <int WIDTH>
__device__ __forceinline__ void store(double* p, const double (&v)[WIDTH]) {
  if constexpr (WIDTH % 4 == 0) {
#pragma unroll
    for (int w = 0; w < WIDTH; w += 2) *reinterpret_cast<double2*>(p + w) = make_double2(v[w], v[w + 1]);
  } else {
    *p = v[0];
  }
}

// The same of bfloat16, where WIDTH is a multiple of 4 in accesses of 2 bytes an element.
template <int WIDTH>
__device__ __forceinline__ void load_halves(float (&v)[WIDTH], const unsigned short* p) {
  if constexpr (WIDTH % 4 == 0) {
    unsigned words[WIDTH / 2];
    if constexpr (WIDTH % 8 == 0) {
#pragma unroll
      for (int w = 0; w < WIDTH / 2; w += 4) {
        const uint4 q = *reinterpret_cast<const uint4*>(p + 2 * w);
        words[w] = q.x, words[w + 1] = q.y, words[w + 2] = q.z, words[w + 3] = q.w;
      }
    } else {
      const uint2 q = *reinterpret_cast<const uint2*>(p);
      words[0] = q.x, words[1] = q.y;
    }
#pragma unroll
    for (int w = 0; w < WIDTH / 2; w++)
      v[2 * w] = from_bfloat16(words[w] & 0xffff), v[2 * w + 1] = __uint_as_float(words[w] & 0xffff0000u);
  } else {
    v[0] = from_bfloat16(*p);
  }
}
template <int WIDTH, typename T>
__device__ __forceinline__ void store_halves(unsigned short* p, const T (&v)[WIDTH]) {
  if constexpr (WIDTH % 4 == 0) {
    unsigned words[WIDTH / 2];
#pragma unroll
    for (int w = 0; w < WIDTH / 2; w++) words[w] = bfloat16(v[2 * w]) | (unsigned)bfloat16(v[2 * w + 1]) << 16;
    if constexpr (WIDTH % 8 == 0) {
#pragma unroll
      for (int w = 0; w < WIDTH / 2; w += 4)
        *reinterpret_cast<uint4*>(p + 2 * w) = make_uint4(words[w], words[w + 1], words[w + 2], words[w + 3]);
    } else {
      *reinterpret_cast<uint2*>(p) = make_uint2(words[0], words[1]);
    }
  } else {
    *p = bfloat16(v[0]);
  }
}

// WIDTH neighbours of row i from column j on, whatever the matrix is stored in.
template <int WIDTH, typename T>
__device__ __forceinline__ void load(T (&v)[WIDTH], const Matrix<T>& m, long long i, long long j) {
  if constexpr (MIXED) {
    if (m.half) {
      load_halves<WIDTH>(v, reinterpret_cast<const unsigned short*>(m.data) + i * m.stride + j);
      return;
    }
  }
  load<WIDTH>(v, m.at(i, j));
}
template <int WIDTH, typename T>
__device__ __forceinline__ void store(const Matrix<T>& m, long long i, long long j, const T (&v)[WIDTH]) {
  if constexpr (MIXED) {
    if (m.half) {
      store_halves<WIDTH>(reinterpret_cast<unsigned short*>(m.data) + i * m.stride + j, v);
      return;
    }
  }
  store<WIDTH>(m.at(i, j), v);
}
template <typename T>
__device__ __forceinline__ T element(const Matrix<T>& m, long long i, long long j) {
  T v[1];
  load<1>(v, m, i, j);
  return v[0];
}
template <typename T>
__device__ __forceinline__ void set_element(const Matrix<T>& m, long long i, long long j, T value) {
  const T v[1] = {value};
  store<1>(m, i, j, v);
}

// Whether packs can be accessed at once at the start of every row; or at the start alone, where it is one long row.
template <int WIDTH = PACK, typename T>
__device__ __forceinline__ bool aligned(const Matrix<T>& m, bool flat = false) {
  const int size = m.half ? 2 : (int)sizeof(T);
  const long long step = m.rows > 1 && !flat ? m.stride * size : 0;
  return ((reinterpret_cast<long long>(m.data) | step) & (WIDTH * size < 16 ? WIDTH * size - 1 : 15)) == 0;
}

// --- a block's share of elements ---------------------------------------------------------------------------------

// Quotient and remainder; 64-bit division costs four times as much as 32-bit.
__device__ __forceinline__ void divide(long long a, long long b, long long& quotient, long long& remainder) {
  if (((a | b) >> 32) == 0) {
    quotient = (unsigned)a / (unsigned)b;
    remainder = (unsigned)a % (unsigned)b;
  } else {
    quotient = a / b;
    remainder = a % b;
  }
}

// Calls body(i, j) for this thread's share of the places of a (rows, width) grid; neighbours take neighbours.
template <typename Body>
__device__ __forceinline__ void for_each_place(long long rows, long long width, Block block, Body body) {
  const long long start = (long long)block.index * blockDim.x + threadIdx.x;
  const long long step = (long long)block.count * blockDim.x;
  if (start >= rows * width) return;
  if (rows == 1) {
    for (long long j = start; j < width; j += step) body(0, j);
    return;
  }
  long long i, j, down, across;
  divide(start, width, i, j);
  divide(step, width, down, across);
  while (i < rows) {
    body(i, j);
    i += down;
    j += across;
    if (j >= width) j -= width, i++;
  }
}

// Applies f to WIDTH neighbours: see `elementwise`. It is no lambda, since NVRTC before CUDA 13 takes one that is
// generic for a function of the host.
template <int WIDTH, unsigned READ, unsigned WRITTEN, typename T, int COUNT, typename F>
__device__ __forceinline__ void apply(const Matrix<T> (&operands)[COUNT], F& f, long long i, long long j) {
  T v[COUNT][WIDTH];
#pragma unroll
  for (int k = 0; k < COUNT; k++) {
#pragma unroll
    for (int w = 0; w < WIDTH; w++) v[k][w] = T(0);
    if ((READ >> k & 1) && operands[k]) load<WIDTH>(v[k], operands[k], i, j);
  }
#pragma unroll
  for (int w = 0; w < WIDTH; w++) {
    T entry[COUNT];
#pragma unroll
    for (int k = 0; k < COUNT; k++) entry[k] = v[k][w];
    f(entry);
#pragma unroll
    for (int k = 0; k < COUNT; k++) v[k][w] = entry[k];
  }
#pragma unroll
  for (int k = 0; k < COUNT; k++)
    if ((WRITTEN >> k & 1) && operands[k]) store<WIDTH>(operands[k], i, j, v[k]);
}

// Applies f to all packs of WIDTH if every operand allows it; returns how many columns of each row that were.
template <int WIDTH, unsigned READ, unsigned WRITTEN, typename T, int COUNT, typename F>
__device__ __forceinline__ long long apply_packs(const Matrix<T> (&operands)[COUNT], Block block, F& f, bool flat,
                                                 long long rows, long long columns) {
  bool wide = true;
#pragma unroll
  for (int k = 0; k < COUNT; k++) wide = wide && (!operands[k] || aligned<WIDTH>(operands[k], flat));
  if (!wide) return 0;
  for_each_place(rows, columns / WIDTH, block,
                 [&](long long i, long long j) { apply<WIDTH, READ, WRITTEN>(operands, f, i, j * WIDTH); });
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
  const long long rows = flat ? 1 : operands[0].rows;
  const long long columns = flat ? operands[0].rows * operands[0].columns : operands[0].columns;
  long long done = apply_packs<PACK, READ, WRITTEN>(operands, block, f, flat, rows, columns);
  if constexpr (PACK > 4)  // rows of bfloat16 often begin at 8 bytes only
    if (done == 0) done = apply_packs<4, READ, WRITTEN>(operands, block, f, flat, rows, columns);
  for_each_place(rows, columns - done, block,
                 [&](long long i, long long j) { apply<1, READ, WRITTEN>(operands, f, i, done + j); });
}

// --- a block's share of rows -------------------------------------------------------------------------------------

// A warp takes a row, or several narrow ones: a power of two of its lanes to each.
__device__ __forceinline__ int lanes_for(long long columns) {
  int lanes = 1;
  while (lanes < WARP && lanes < columns) lanes *= 2;
  return lanes;
}

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

// Calls body(i, lane, lanes, columns) for rows of a matrix. Lanes whose row does not exist come along with 0 columns
// and a row that does, since a shuffle wants all of the warp; they must not write what belongs to the row.
template <typename Body>
__device__ __forceinline__ void for_each_row(long long rows, long long columns, Block block, Body body) {
  const int lanes = lanes_for(columns), at_once = WARP / lanes, in_warp = threadIdx.x % WARP;
  const long long warp = ((long long)block.index * blockDim.x + threadIdx.x) / WARP;
  const long long warps = (long long)block.count * blockDim.x / WARP;
  for (long long first = warp * at_once; first < rows; first += warps * at_once) {
    const long long i = first + in_warp / lanes;
    const bool here = i < rows;
    body(here ? i : rows - 1, in_warp % lanes, lanes, here ? columns : 0);
  }
}

// --- a block's share of columns ----------------------------------------------------------------------------------

// A block takes up to 32 columns at once; its threads stand in rows of that width, each with a part of the rows.
struct Columns {
  int width, place, first, step;  // columns at once; this thread's column among them; its first row, rows to the next

  __device__ __forceinline__ explicit Columns(long long columns)
      : width(lanes_for(columns)), place(threadIdx.x % width), first(threadIdx.x / width), step(blockDim.x / width) {}
};

// The sums over the threads of each column; all of them get it. Every thread of the block must come.
template <typename T>
__device__ __forceinline__ T column_total(T v, const Columns& c) {
  T* shared = shared_scratch<T>();
  const int thread = threadIdx.x, threads = blockDim.x;
  int half = 1;
  while (2 * half < threads) half *= 2;
  __syncthreads();  // what lay there may still be read
  shared[thread] = v;
  for (; half >= c.width; half /= 2) {
    __syncthreads();
    if (thread < half && thread + half < threads) shared[thread] += shared[thread + half];
  }
  __syncthreads();
  return shared[c.place];
}

// The sum of v over the threads of the block; all of them get it. Every thread must come.
__device__ __forceinline__ double block_total(double v) { return column_total(v, Columns(1)); }

// Adds term(load(i)) over i = first, first + step, ... below last. Four loads are under way at once; sums of up to 64
// terms are added up apart, so that the rounding error does not grow with the number of rows.
template <typename T, typename Load, typename Term>
__device__ __forceinline__ T sum_over(long long first, long long last, long long step, Load load, Term term) {
  T total = T(0);
  long long i = first;
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
__device__ __forceinline__ void for_each_column(long long columns, Block block, Body body) {
  const Columns c(columns);
  for (long long first = (long long)block.index * c.width; first < columns; first += (long long)block.count * c.width) {
    const long long j = first + c.place;
    body(j < columns ? j : columns - 1, j < columns, c);
  }
}

// db = sums of the columns: with one row in db, over all rows; with more, each over its share of the rows.
template <typename T, typename Load, typename Term>
__device__ __forceinline__ void sum_columns(long long rows, long long columns, Matrix<T> db, Block block, Load load,
                                            Term term) {
  using Loaded = decltype(load(rows, columns));
  const Columns c(columns);
  const long long tiles = (columns + c.width - 1) / c.width, each = (rows + db.rows - 1) / db.rows;
  for (long long unit = block.index; unit < tiles * db.rows; unit += block.count) {
    const long long share = unit / tiles, j = unit % tiles * c.width + c.place;
    const long long first = share * each, last = first + each < rows ? first + each : rows;
    const bool here = j < columns;
    const T sum = sum_over<T>(first + c.first, here ? last : first, c.step,
                              [&](long long i) { return load(i, j); },
                              [&](const Loaded& loaded, long long i) { return term(loaded, i, j); });
    const T total = column_total(sum, c);
    if (here && c.first == 0) *db.at(share, j) = total;
  }
}
