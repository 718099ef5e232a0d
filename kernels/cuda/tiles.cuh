// Products of small matrices, of sides of 1 to some hundred, in tiles of the result that a thread has in registers: by one
// block, mostly on shared memory, as in the resident kernel, or by many. Large ones are a library's.

// A factor of a product: elements from one place to the next along the side that c has too, and along the inner side.
template <typename T>
struct Factor {
  const T* data;
  Index side, inner;

  __device__ __forceinline__ const T* at(Index i, Index p) const { return data + i * side + p * inner; }
  __device__ __forceinline__ Index stride() const { return inner == 1 ? side : inner; }
};

// How four neighbours are loaded at once: along the inner side, along the other one, or not at all.
enum { ALONG_INNER, ALONG_SIDE, APART };

// Whether `data` and steps of `stride` elements allow accesses of so many bytes.
template <int BYTES = 16, typename T>
__device__ __forceinline__ bool steps_aligned(const T* data, Index stride) {
  return (((int)reinterpret_cast<long long>(data) | (int)stride * (int)sizeof(T)) & (BYTES - 1)) == 0;
}

// What a thread reads of a factor: N places of its side, four places of the inner side at once. Addresses are found once for
// each tile, since 64-bit products in the loop would cost more than the sums.
template <int KIND, bool NEAR, typename T, int N>
struct Reader {
  static constexpr int POINTERS = KIND != ALONG_SIDE ? N : 1;
  const T* at[POINTERS];  // of each place, or of the first, at the first place of the inner side
  long long inner;

  __device__ __forceinline__ Reader(const Factor<T>& f, Index first, Index sides) : inner(f.inner) {
    // places beyond the last side are the last ones once more; along the side fours are whole
    constexpr int EACH = KIND != ALONG_SIDE ? 1 : N;
#pragma unroll
    for (int n = 0; n < POINTERS; n++) {
      at[n] = f.at(first + n + EACH <= sides ? first + n : sides - EACH, 0);
      if (NEAR) at[n] = in_shared(at[n]);
    }
  }

  // v[n][s] = the factor at (place n, p + s)
  __device__ __forceinline__ void read(T (&v)[N][4], int p) const {
    if constexpr (KIND == ALONG_INNER) {
#pragma unroll
      for (int n = 0; n < N; n++) load<4>(v[n], at[n] + p);
    } else {
#pragma unroll
      for (int s = 0; s < 4; s++) {
        T q[N];
        one(q, p + s);
#pragma unroll
        for (int n = 0; n < N; n++) v[n][s] = q[n];
      }
    }
  }

  // v[n] = the factor at (place n, p)
  __device__ __forceinline__ void one(T (&v)[N], int p) const {
    if constexpr (KIND == ALONG_SIDE) {
      load<N>(v, at[0] + p * inner);
    } else {
#pragma unroll
      for (int n = 0; n < N; n++) v[n] = at[n][KIND == ALONG_INNER ? p : p * inner];
    }
  }
};

// sums += x y^T, for each of S places of the inner side.
template <int M, int N, int S, typename T>
__device__ __forceinline__ void add_products(T (&sums)[M][N], const T (&x)[M][S], const T (&y)[N][S]) {
#pragma unroll
  for (int s = 0; s < S; s++)
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < N; n++) sums[m][n] = add_product(sums[m][n], x[m][s], y[n][s]);
}

// Adds to a tile of sums the products of four places of the inner side, then of those a step of 4 << halvings on, and so
// forth; `turn` of these fours later than at the first, and those left out at the end. In float the next four are on their
// way meanwhile.
template <bool TURNED, typename A, typename B, typename T, int M, int N>
__device__ __forceinline__ void accumulate(T (&sums)[M][N], const A& a, const B& b, int first, int inner,
                                           int halvings, int turn) {
  const int step = 4 << halvings, fours = inner - first >= 4 ? ((inner - first - 4) >> (2 + halvings)) + 1 : 0;
  const int end = first + fours * step;
  if (fours) {
    int p = first + (TURNED ? (turn < fours ? turn : fours - 1) * step : 0);
    const auto next = [&](int from) {  // the last has none: it stays where memory is
      const int to = from + step;
      return to < end ? to : TURNED ? first : from;
    };
    T x[2][M][4], y[2][N][4];
    const auto read = [&](int k) { a.read(x[k], p), b.read(y[k], p), p = next(p); };
    if constexpr (sizeof(T) == 4) {
      read(0);
      for (int n = fours; n > 0; n -= 2) {
        read(1);
        add_products(sums, x[0], y[0]);
        if (n == 1) break;
        read(0);
        add_products(sums, x[1], y[1]);
      }
    } else {  // there would be too few registers
#pragma unroll 1
      for (int n = 0; n < fours; n++) {
        read(0);
        add_products(sums, x[0], y[0]);
      }
    }
  }
#pragma unroll 1
  for (int p = end; p < inner; p++) {  // fewer than four are left, and this thread's turn it is
    T x[M], y[N];
    a.one(x, p);
    b.one(y, p);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < N; n++) sums[m][n] = add_product(sums[m][n], x[m], y[n]);
  }
}

// A row's product, c = a b, a^T b or a b^T, and what is done on the way: operands a, b, c, other?; flags form and ending,
// which says what the other one is: a bias to be added, and relu behind it; what relu gave, for the gradient through it; or
// the sums of the columns of b, to be written.
template <typename T>
struct Product {
  int form, ending, inner;
  Factor<T> a, b;
  Matrix<T> c, other;
  T least;  // 0 where relu is applied
  long long* control = nullptr;  // where it is flagged that what is written, a gradient, is not finite

  __device__ __forceinline__ explicit Product(const Row& row)
      : form(row.flags >> FORM_BIT & 3), ending(row.flags >> ENDING_BIT & 3), c(matrix<T>(row, 2)),
        other(matrix<T>(row, 3)) {
    const Matrix<T> x = matrix<T>(row, 0), y = matrix<T>(row, 1);
    const bool first = form == FIRST_TURNED, second = form == SECOND_TURNED;
    inner = (int)(first ? x.rows : x.columns);
    a = {x.data, first ? 1 : x.stride, first ? x.stride : 1};
    b = {y.data, second ? y.stride : 1, second ? 1 : y.stride};
    least = ending == ADD_AND_RELU ? T(0) : T(-INFINITE);
  }

  // Where the sums of the columns of b go, or null.
  __device__ __forceinline__ T* sums() const { return ending == SUM_COLUMNS ? other.data : nullptr; }

  __device__ __forceinline__ void put_sum(int j, T sum) const {
    other.data[j] = sum;
    flag_unless_finite(sum * T(0), control);
  }

  // Whether rows of c, and of what goes along, are in fours that can be accessed at once.
  __device__ __forceinline__ bool in_fours() const {
    return c.columns % 4 == 0 && steps_aligned(c.data, c.stride) &&
           (ending != RELU_GRADIENT || steps_aligned(other.data, other.stride));
  }

  // Whether all that is read and written can be accessed by two numbers at a time.
  __device__ __forceinline__ bool in_pairs() const {
    constexpr int PAIR = 2 * sizeof(T);
    return c.columns % 2 == 0 && (form == FIRST_TURNED ? (int)c.rows : inner) % 2 == 0 &&
           steps_aligned<PAIR>(a.data, a.stride()) && steps_aligned<PAIR>(b.data, b.stride()) &&
           steps_aligned<PAIR>(c.data, c.stride) &&
           (ending != RELU_GRADIENT || steps_aligned<PAIR>(other.data, other.stride));
  }

  // Stores M x N numbers of c from (i, j) on, as far as they are there, with what is done on the way; WHOLE: those of a row
  // are, and can be accessed at once; `all_rows`: so are all rows.
  template <int M, int N, bool WHOLE = false>
  __device__ __forceinline__ void put(T (&v)[M][N], int i, int j, bool all_rows = false) const {
    const bool wide = WHOLE || (N == 4 && in_fours());
    if (ending <= ADD_AND_RELU && other) {
      T bias[N] = {};
#pragma unroll
      for (int n = 0; n < N; n++)
        if (WHOLE || j + n < c.columns) bias[n] = other.data[j + n];
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++) {
          v[m][n] += bias[n];
          if (v[m][n] < least) v[m][n] = least;
        }
    }
    if (ending == RELU_GRADIENT) {
      const Relu<T> relu(nullptr);
#pragma unroll
      for (int m = 0; m < M; m++)
        if (all_rows || i + m < c.rows) {
          T y[N];
          if (wide) {
            load<N>(y, other.at(i + m, j));
          } else if constexpr (!WHOLE) {
#pragma unroll
            for (int n = 0; n < N; n++) y[n] = j + n < c.columns ? *other.at(i + m, j + n) : T(0);
          }
#pragma unroll
          for (int n = 0; n < N; n++) v[m][n] *= relu.slope(y[n]);
        }
    }
    if (control) {  // places beyond the last are the last ones once more
      T zero = T(0);
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++) zero = add_product(zero, v[m][n], T(0));
      flag_unless_finite(zero, control);
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
      if (!all_rows && i + m >= c.rows) continue;
      if (wide) {
        store<N>(c.at(i + m, j), v[m]);
      } else if constexpr (!WHOLE) {
#pragma unroll
        for (int n = 0; n < N; n++)
          if (j + n < c.columns) *c.at(i + m, j + n) = v[m][n];
      }
    }
  }
};

// c in tiles of M x N, each by one thread; where there are more threads than tiles, 2 to 32 lanes of a warp share the
// inner side of one. NEAR: both factors lie in shared memory.
template <int M, int N, int A_KIND, int B_KIND, bool NEAR, typename T>
__device__ __forceinline__ void multiply(const Product<T>& product, Block block) {
  const Matrix<T>& c = product.c;
  const int rows = (int)c.rows, columns = (int)c.columns, depth = product.inner;
  const int tiles_down = (rows + M - 1) / M, tiles_across = (columns + N - 1) / N;
  const int tiles = tiles_down * tiles_across, total = block.count * blockDim.x;
  int halvings = 0;  // of the inner side; a power of two, since a quotient costs as much as some products
  while ((1 << halvings) < WARP && tiles << (halvings + 1) <= total && 8 << halvings <= depth) halvings++;
  // a warp on 4 x 8 tiles reads 16 rows of a and 32 columns of b, and not 4 rows and 128 columns
  const bool square = halvings == 0 && tiles_down % 4 == 0 && tiles_across % 8 == 0;
  const unsigned groups_across = square ? tiles_across / 8 : tiles_across;
  const int lane = threadIdx.x % WARP, part = lane & ((1 << halvings) - 1);
  for (int first = block.index * blockDim.x + threadIdx.x - lane; first >> halvings < tiles; first += total) {
    const int mine = (first + lane) >> halvings;
    const bool here = mine < tiles;  // others come along for the shuffles, on a tile that exists
    const unsigned tile = here ? mine : tiles - 1, group = square ? tile / 32 : tile;
    int down = group / groups_across, across = group % groups_across;
    if (square) down = down * 4 + tile % 32 / 8, across = across * 8 + tile % 8;
    const int i = down * M, j = across * N;
    // rows of b lie a multiple of all banks apart: neighbours begin at different places of theirs
    constexpr bool TURNED = B_KIND == ALONG_INNER && N > 1;
    T sums[M][N] = {};
    accumulate<TURNED>(sums, Reader<A_KIND, NEAR, T, M>(product.a, i, rows),
                       Reader<B_KIND, NEAR, T, N>(product.b, j, columns), 4 * part, depth, halvings, across % 8);
    for (int apart = 1 << halvings >> 1; apart > 0; apart >>= 1)
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++) sums[m][n] += __shfl_xor_sync(0xffffffffu, sums[m][n], apart);
    if (here && part == 0) product.put(sums, i, j);
  }
}

// Two lanes, `apart` from each other, have parts of the sums of COUNT rows: each adds up half of the rows.
template <int COUNT, int M, int N, typename T>
__device__ __forceinline__ void halve(T (&sums)[M][N], bool upper, int apart) {
#pragma unroll
  for (int m = 0; m < COUNT / 2; m++)
#pragma unroll
    for (int n = 0; n < N; n++) {
      const T given = upper ? sums[m][n] : sums[m + COUNT / 2][n];
      sums[m][n] = (upper ? sums[m + COUNT / 2][n] : sums[m][n]) + __shfl_xor_sync(0xffffffffu, given, apart);
    }
}

// c in tiles of 8 x 16 by whole blocks, for products whose factors lie outside: eight threads of a warp have 4 x 4 numbers
// each, and four times the warps of the block share the inner side. So a warp reads whole lines of what lies row by row,
// and each block has few of them; one that shared the inner side alone would read a line for each of its threads.
template <int A_KIND, int B_KIND, typename T>
__device__ __forceinline__ void multiply_spread(const Product<T>& product, Block block) {
  constexpr int DOWN = 2 * TILE, ACROSS = 4 * TILE;
  static_assert(DOWN * ACROSS * THREADS / WARP * sizeof(T) <= SCRATCH_BYTES, "room for the sums of all warps");
  const Matrix<T>& c = product.c;
  const int rows = (int)c.rows, columns = (int)c.columns, depth = product.inner;
  const int tiles_across = (columns + ACROSS - 1) / ACROSS, tiles = (rows + DOWN - 1) / DOWN * tiles_across;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, turn = lane % 4;
  const int down = lane / 16 * TILE, across = lane / 4 % 4 * TILE;
  int level = 0;  // of the warps a power of two has a part
  while (2 << level <= min((int)blockDim.x, (int)THREADS) / WARP) level++;
  T* shared = shared_scratch<T>();
  for (int tile = block.index; tile < tiles; tile += block.count) {
    const int i = tile / tiles_across * DOWN, j = tile % tiles_across * ACROSS;
    T sums[TILE][TILE] = {};
    if (warp >> level == 0)
      accumulate<false>(sums, Reader<A_KIND, false, T, TILE>(product.a, i + down, rows),
                        Reader<B_KIND, false, T, TILE>(product.b, j + across, columns), 4 * (4 * warp + turn), depth,
                        level + 2, 0);
    halve<4>(sums, turn & 1, 1);
    halve<2>(sums, turn & 2, 2);
    __syncthreads();  // what lay there may still be read
    if (warp >> level == 0)
      store<4>(shared + (warp * DOWN + down + (turn & 1) * 2 + turn / 2) * ACROSS + across, sums[0]);
    __syncthreads();
    for (int e = threadIdx.x; e < DOWN * ACROSS; e += blockDim.x) {
      const int row = i + e / ACROSS, column = j + e % ACROSS;
      if (row >= rows || column >= columns) continue;
      T v[1][1] = {{sum_of_parts(shared + e, 1 << level, DOWN * ACROSS)}};
      product.put(v, row, column);
    }
  }
}
