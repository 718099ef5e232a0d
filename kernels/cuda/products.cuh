// Products, biases, sums of columns and copies. The product is the one inside the resident kernel, for sides of 1 to
// some hundred, mostly on shared memory; large ones are a library's.

// A factor of a product: elements from one place to the next along the side that c has too, and along the inner side.
template <typename T>
struct Factor {
  const T* data;
  long long side, inner;

  __device__ __forceinline__ const T* at(long long i, long long p) const { return data + i * side + p * inner; }
};

// How four neighbours are loaded at once: along the inner side, along the other one, or not at all.
enum { ALONG_INNER, ALONG_SIDE, APART };

// Whether `data` and steps of `stride` elements allow accesses of 16 bytes.
template <typename T>
__device__ __forceinline__ bool steps_aligned(const T* data, long long stride) {
  return ((reinterpret_cast<long long>(data) | stride * (long long)sizeof(T)) & 15) == 0;
}

// What a thread reads of a factor: N neighbours of its side from `first` on, four places of the inner side at once.
// Addresses are found once for each tile, since 64-bit products in the loop would cost more than the sums.
template <int KIND, typename T, int N>
struct Reader {
  const T* at[N];  // of each neighbour, at the first place of the inner side; of the last where there are no more
  long long inner;
  bool whole;

  __device__ __forceinline__ Reader(const Factor<T>& f, int first, int sides) : inner(f.inner), whole(first + N <= sides) {
#pragma unroll
    for (int n = 0; n < N; n++) at[n] = f.at(first + n < sides ? first + n : sides - 1, 0);
  }

  // v[n][s] = the factor at (first + n, p + s)
  __device__ __forceinline__ void read(T (&v)[N][4], int p) const {
    if constexpr (KIND == ALONG_INNER) {
#pragma unroll
      for (int n = 0; n < N; n++) load<4>(v[n], at[n] + p);
      return;
    }
    const long long offset = p * inner;
    if (KIND == ALONG_SIDE && whole) {
#pragma unroll
      for (int s = 0; s < 4; s++) {
        T q[4];
        load<4>(q, at[0] + offset + s * inner);
#pragma unroll
        for (int n = 0; n < N; n++) v[n][s] = q[n];
      }
    } else {
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int s = 0; s < 4; s++) v[n][s] = at[n][offset + s * inner];
    }
  }

  __device__ __forceinline__ T one(int n, int p) const { return at[n][p * inner]; }
};

// Adds to a tile of sums the products of four places of the inner side, then of those `step` on, and so forth; `turn` of
// these fours later than at the first, and those left out at the end.
template <typename A, typename B, typename T, int M, int N>
__device__ __forceinline__ void accumulate(T (&sums)[M][N], const A& a, const B& b, int first, int inner, int step,
                                           int turn) {
  const int fours = inner - first >= 4 ? (inner - first - 4) / step + 1 : 0, end = first + fours * step;
  int p = fours ? first + turn % fours * step : end;
  for (int n = 0; n < fours; n++) {
    T x[M][4], y[N][4];
    a.read(x, p);
    b.read(y, p);
#pragma unroll
    for (int s = 0; s < 4; s++)
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++) sums[m][n] += x[m][s] * y[n][s];
    p += step;
    if (p == end) p = first;
  }
  for (p = end; p < inner; p++) {  // fewer than four are left, and this thread's turn it is
    T x[M], y[N];
#pragma unroll
    for (int m = 0; m < M; m++) x[m] = a.one(m, p);
#pragma unroll
    for (int n = 0; n < N; n++) y[n] = b.one(n, p);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < N; n++) sums[m][n] += x[m] * y[n];
  }
}

// c in tiles of M x N, each by one thread; where there are more threads than tiles, 2 to 32 lanes of a warp share the
// inner side of one.
template <int M, int N, int A_KIND, int B_KIND, typename T>
__device__ __forceinline__ void multiply(const Factor<T>& a, const Factor<T>& b, const Matrix<T>& c, long long inner,
                                         Block block) {
  const int rows = (int)c.rows, columns = (int)c.columns, depth = (int)inner;
  const int tiles_down = (rows + M - 1) / M, tiles_across = (columns + N - 1) / N;
  const int tiles = tiles_down * tiles_across, total = block.count * blockDim.x;
  int split = 1;
  while (split < WARP && tiles * split * 2 <= total && split * 8 <= depth) split *= 2;
  // a warp on 4 x 8 tiles reads 16 rows of a and 32 columns of b, and not 4 rows and 128 columns
  const bool square = split == 1 && tiles_down % 4 == 0 && tiles_across % 8 == 0;
  const bool wide = N == 4 && steps_aligned(c.data, c.stride);
  const int lane = threadIdx.x % WARP, part = lane % split;
  for (int first = block.index * blockDim.x + threadIdx.x - lane; first / split < tiles; first += total) {
    const int mine = (first + lane) / split;
    const bool here = mine < tiles;  // others come along for the shuffles, on a tile that exists
    const int tile = here ? mine : tiles - 1;
    int down = tile / tiles_across, across = tile % tiles_across;
    if (square) {
      const int group = tile / 32, groups_across = tiles_across / 8;
      down = group / groups_across * 4 + tile % 32 / 8;
      across = group % groups_across * 8 + tile % 8;
    }
    const int i = down * M, j = across * N;
    // rows of b lie a multiple of all banks apart: neighbours begin at different places of theirs
    const int turn = B_KIND == ALONG_INNER ? across % 8 : 0;
    T sums[M][N] = {};
    accumulate(sums, Reader<A_KIND, T, M>(a, i, rows), Reader<B_KIND, T, N>(b, j, columns), 4 * part, depth,
               4 * split, turn);
    if (split > 1) {
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++) sums[m][n] = row_sum(sums[m][n], split);
    }
    if (!here || part != 0) continue;
#pragma unroll
    for (int m = 0; m < M; m++) {
      if (i + m >= rows) continue;
      if constexpr (N == 4) {
        if (wide && j + N <= columns) {
          store<4>(c.at(i + m, j), sums[m]);
          continue;
        }
      }
#pragma unroll
      for (int n = 0; n < N; n++)
        if (j + n < columns) *c.at(i + m, j + n) = sums[m][n];
    }
  }
}

// c = a b, a^T b or a b^T: operands a, b, c; scalar form.
template <typename T>
__device__ void matmul(const Row& row, Block block) {
  const Matrix<T> a = matrix<T>(row, 0), b = matrix<T>(row, 1), c = matrix<T>(row, 2);
  const int form = (int)row.scalars[0];
  const long long inner = form == FIRST_TURNED ? a.rows : a.columns;
  const Factor<T> x = {a.data, form == FIRST_TURNED ? 1 : a.stride, form == FIRST_TURNED ? a.stride : 1};
  const Factor<T> y = {b.data, form == SECOND_TURNED ? b.stride : 1, form == SECOND_TURNED ? 1 : b.stride};
  const bool wide = steps_aligned(a.data, a.stride) && steps_aligned(b.data, b.stride);
  if (c.rows == 1) {
    multiply<1, TILE, APART, APART>(x, y, c, inner, block);
  } else if (c.columns == 1) {
    multiply<TILE, 1, APART, APART>(x, y, c, inner, block);
  } else if (!wide) {
    multiply<TILE, TILE, APART, APART>(x, y, c, inner, block);
  } else if (form == FIRST_TURNED) {
    multiply<TILE, TILE, ALONG_SIDE, ALONG_SIDE>(x, y, c, inner, block);
  } else if (form == SECOND_TURNED) {
    multiply<TILE, TILE, ALONG_INNER, ALONG_INNER>(x, y, c, inner, block);
  } else {
    multiply<TILE, TILE, ALONG_INNER, ALONG_SIDE>(x, y, c, inner, block);
  }
}

// x += bias, on every row: operands bias, x.
template <typename T>
__device__ void add_bias(const Row& row, Block block) {
  const Matrix<T> x = matrix<T>(row, 1);
  const Matrix<T> operands[] = {x, on_every_row<T>(row, 0, x.rows)};
  elementwise<3, 1>(operands, block, [&](T(&v)[2]) { v[0] += v[1]; });
}

// db = sums of the columns of dy: operands dy, db.
template <typename T>
__device__ void column_sums(const Row& row, Block block) {
  const Matrix<T> dy = matrix<T>(row, 0);
  sum_columns(
      dy.rows, dy.columns, matrix<T>(row, 1), block, [&](long long i, long long j) { return element(dy, i, j); },
      [](T v, long long, long long) { return v; });
}

// y = x: operands x, y.
template <typename T>
__device__ void copy(const Row& row, Block block) {
  const Matrix<T> operands[] = {matrix<T>(row, 0), matrix<T>(row, 1)};
  elementwise<1, 2>(operands, block, [&](T(&v)[2]) { v[1] = v[0]; });
}

// y = x as bfloat16: operands x, y (unsigned short).
template <typename T>
__device__ void cast_bf16(const Row& row, Block block) {
  const Matrix<T> x = matrix<T>(row, 0);
  const Matrix<unsigned short> y = matrix<unsigned short>(row, 1);
  const bool flat = x.rows == 1 || (x.stride == x.columns && y.stride == y.columns);
  const long long rows = flat ? 1 : x.rows, columns = flat ? x.rows * x.columns : x.columns;
  const bool wide = aligned(x, flat) && aligned(y, flat);
  const long long packs = wide ? columns / PACK : 0, done = packs * PACK;
  for_each_place(rows, packs, block, [&](long long i, long long j) {
    T v[PACK];
    load<PACK>(v, x.at(i, j * PACK));
    store_halves<PACK>(y.at(i, j * PACK), v);
  });
  for_each_place(rows, columns - done, block,
                 [&](long long i, long long j) { *y.at(i, done + j) = bfloat16(*x.at(i, done + j)); });
}
