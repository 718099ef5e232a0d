// Products, biases, sums of columns and copies.

[[maybe_unused]] constexpr int FEW_ROWS = 4;     // of c, up to which each is summed by itself
[[maybe_unused]] constexpr int SHORT_INNER = 8;  // inner side up to which reading it costs no more than writing c
[[maybe_unused]] constexpr int SPREAD_WARPS = 2048;  // that share many blocks' tiles, about as many as a GPU has at a time

#if defined(GPUMLP_CONSTANT_ROWS)
#define GPUMLP_APART __forceinline__
#else
#define GPUMLP_APART __noinline__  // all forms as one function would want more registers than there are
#endif

// The forms of which each factor can be read four numbers at a time.
template <bool NEAR, typename T>
__device__ __forceinline__ void multiply_wide(const Product<T>& product, Block block) {
  if (product.form == FIRST_TURNED) {
    multiply<TILE, TILE, ALONG_SIDE, ALONG_SIDE, NEAR>(product, block);
  } else if (product.form == SECOND_TURNED) {
    multiply<TILE, TILE, ALONG_INNER, ALONG_INNER, NEAR>(product, block);
  } else {
    multiply<TILE, TILE, ALONG_INNER, ALONG_SIDE, NEAR>(product, block);
  }
}

template <typename T>
__device__ __forceinline__ void multiply_spread(const Product<T>& product, Block block) {
  if (product.form == FIRST_TURNED) {
    multiply_spread<ALONG_SIDE, ALONG_SIDE>(product, block);
  } else if (product.form == SECOND_TURNED) {
    multiply_spread<ALONG_INNER, ALONG_INNER>(product, block);
  } else {
    multiply_spread<ALONG_INNER, ALONG_SIDE>(product, block);
  }
}

// By many blocks, what is read and written by fours, by pairs, as rows of 250 numbers are, or one by one.
template <typename T>
__device__ GPUMLP_APART void multiply_by_pairs(Product<T> product, Block block) {
  multiply_by_warps<false, 2, SPREAD_AHEAD, 2, 2>(product, block, SPREAD_WARPS);
}
template <typename T>
__device__ GPUMLP_APART void multiply_by_ones(Product<T> product, Block block) {
  multiply_by_warps<false, 1, SPREAD_AHEAD, 2, 2>(product, block, SPREAD_WARPS);
}
#undef GPUMLP_APART
template <typename T>
__device__ __forceinline__ void multiply_by_warps(const Product<T>& product, Block block, bool as_fours) {
  if (as_fours)
    multiply_by_warps<false, 4, SPREAD_AHEAD, 2, 2>(product, block, SPREAD_WARPS);
  else if (product.in_pairs())
    multiply_by_pairs(product, block);
  else
    multiply_by_ones(product, block);
}

// c = a^T b with few rows, as the gradient of a first layer with few inputs: lanes share the inner side of a column. The
// sums of the columns of b come with the first row.
template <typename T>
__device__ __forceinline__ void multiply_few(const Product<T>& product, Block block) {
  const int rows = (int)product.c.rows, columns = (int)product.c.columns, depth = product.inner;
  const int total = block.count * blockDim.x, lane = threadIdx.x % WARP;
  int level = 0;
  while (level < 5 && columns << (level + 1) <= total && 4 << level <= depth) level++;
  const int part = lane & ((1 << level) - 1);
  for (int first = block.index * blockDim.x + threadIdx.x - lane; first >> level < columns; first += total) {
    const int mine = (first + lane) >> level;
    const bool here = mine < columns;  // others come along for the shuffles
    const T* from = product.b.at(here ? mine : columns - 1, 0);
    for (int i = 0; i < rows; i++) {
      const T* by = product.a.at(i, 0);
      T v[1][1] = {}, sum = T(0);
#pragma unroll 4
      for (int p = part; p < depth; p += 1 << level) {
        const T x = from[p * product.b.inner];
        v[0][0] = add_product(v[0][0], by[p * product.a.inner], x), sum += x;
      }
      v[0][0] = row_sum(v[0][0], 1 << level);
      const bool summed = i == 0 && product.sums();
      if (summed) sum = row_sum(sum, 1 << level);
      if (!here || part > 0) continue;
      product.put(v, i, mine);
      if (summed) product.put_sum(mine, sum);
    }
  }
}

// c = a b with a short inner side, as in a first layer with few inputs; rows of b and c in fours.
template <typename T>
__device__ __forceinline__ void multiply_short(const Product<T>& product, Block block) {
  for_each_place(product.c.rows, product.c.columns / 4, block, [&](Index i, Index four) {
    const T *x = product.a.at(i, 0), *from = product.b.at(4 * four, 0);
    T v[1][4] = {};
#pragma unroll 1
    for (int p = 0; p < product.inner; p++) {
      T y[4];
      load<4>(y, from + p * product.b.inner);
#pragma unroll
      for (int n = 0; n < 4; n++) v[0][n] = add_product(v[0][n], x[p], y[n]);
    }
    product.put(v, (int)i, (int)(4 * four));
  });
}

// db = sums of the columns of dy; control: see `flag_unless_finite`.
template <typename T>
__device__ __forceinline__ void sum_columns_of(const Matrix<T>& dy, const Matrix<T>& db, Block block,
                                               long long* control) {
  const Matrix<T> operands[] = {dy};
  sum_columns<1, 0>(operands, db, block, [](T(&v)[1], Index) { return v[0]; }, control);
}


// ONE_BLOCK: it is done by one block, whose threads have registers for large tiles.
template <typename T, bool ONE_BLOCK = false>
__device__ void matmul(const Row& row, Block block) {
  constexpr bool BY_WARPS = HAS_TENSOR_CORES && sizeof(T) == 4;
  Product<T> p(row);
  if constexpr (!ONE_BLOCK) p.control = control_of(row);
  const bool wide = steps_aligned(p.a.data, p.a.stride()) && steps_aligned(p.b.data, p.b.stride());
  // four neighbours along a side are read at once or not at all; the plain tiles read what is left of an inner side
  const bool whole = p.c.columns % TILE == 0 && (p.form != FIRST_TURNED || p.c.rows % TILE == 0);
  const bool fours = !BY_WARPS || ((p.form == FIRST_TURNED || p.inner % 4 == 0) && p.in_fours());
  const bool as_fours = wide && fours && (p.form == SECOND_TURNED || whole);
  bool sums = p.sums() != nullptr;  // to be made by a pass of their own
  if (p.form == FIRST_TURNED && p.c.rows <= FEW_ROWS) {
    multiply_few(p, block);
    sums = false;
  } else if (p.c.rows == 1) {
    multiply<1, TILE, APART, APART, false>(p, block);
  } else if (p.c.columns == 1 && p.form != FIRST_TURNED) {
    if (p.b.inner == 1 && steps_aligned(p.a.data, p.a.stride()) && steps_aligned(p.b.data, Index(4)))
      multiply<1, 1, ALONG_INNER, ALONG_INNER, false>(p, block);
    else
      multiply<1, 1, APART, APART, false>(p, block);
  } else if (p.c.columns == 1) {
    multiply<TILE, 1, APART, APART, false>(p, block);
  } else if (p.form == PLAIN && p.inner <= SHORT_INNER && whole && steps_aligned(p.b.data, p.b.stride())) {
    multiply_short(p, block);
  } else if (!as_fours && !(BY_WARPS && !ONE_BLOCK)) {
    // where factors lie is asked in each branch: known from above on, it cost large products a tenth more instructions
    if constexpr (!ONE_BLOCK) {
      multiply_spread<APART, APART>(p, block);
    } else if (is_shared(p.a.data) && is_shared(p.b.data)) {
      multiply<TILE, TILE, APART, APART, true>(p, block);
    } else {
      multiply<TILE, TILE, APART, APART, false>(p, block);
    }
  } else if constexpr (BY_WARPS) {
    if constexpr (ONE_BLOCK)  // which has registers for wide tiles
      multiply_by_warps<true, 4, 1, 4, 4>(p, block, blockDim.x / WARP);
    else
      multiply_by_warps(p, block, as_fours);
    sums = false;
  } else if constexpr (!ONE_BLOCK) {
    multiply_spread(p, block);
  } else if (is_shared(p.a.data) && is_shared(p.b.data)) {
    multiply_wide<true>(p, block);
  } else {
    multiply_wide<false>(p, block);
  }
  if (sums) sum_columns_of(matrix<T>(row, 1), p.other, block, p.control);
}

// One of two products of a row: the operands of the second are behind those of the first, and its flags too.
__device__ __forceinline__ Row product_of(const Row& row, bool second) {
  Row one;
  one.flags = (second ? row.flags >> SECOND_BITS : row.flags) & (3 << FORM_BIT | 3 << ENDING_BIT);
#pragma unroll
  for (int k = 0; k < 4; k++) one.operands[k] = second ? row.operands[4 + k] : row.operands[k];
  one.scratch = row.flags >> (second ? WATCHED_BIT + 1 : WATCHED_BIT) & 1 ? row.scratch : nullptr;
  return one;
}

// Two products of which neither needs the other, in one launch; scalar: how many of the blocks take the first.
template <typename T>
__device__ void matmul_pair(const Row& row, Block block) {
  const int firsts = (int)whole_number(row.scalars[0]);
  const bool second = block.index >= firsts;
  matmul<T>(product_of(row, second), second ? Block{block.index - firsts, block.count - firsts} : Block{block.index, firsts});
}

// A product that is little work, with the registers that a chain has.
template <typename T>
__device__ void small_matmul(const Row& row, Block block) {
  Product<T> p(row);
  p.control = control_of(row);
  multiply<1, 1, APART, APART, false>(p, block);
  if (p.sums()) sum_columns_of(matrix<T>(row, 1), p.other, block, p.control);
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
  sum_columns_of(matrix<T>(row, 0), matrix<T>(row, 1), block, control_of(row));
}

// whole = sums of the columns of part, for up to three pairs side by side: operands part, whole, part, ...; scalars: how
// many of the blocks take each pair.
template <typename T>
__device__ void sums_of_shares(const Row& row, Block block) {
  int first = 0;
#pragma unroll
  for (int k = 0; k < 3; k++) {
    const int count = (int)row.scalars[k], index = block.index - first;
    if (index >= 0 && index < count)
      sum_columns_of(matrix<T>(row, 2 * k), matrix<T>(row, 2 * k + 1), Block{index, count}, control_of(row));
    first += count;
  }
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
  const Index rows = flat ? 1 : x.rows, columns = flat ? x.rows * x.columns : x.columns;
  const bool wide = aligned(x, flat) && aligned(y, flat);
  const Index packs = wide ? columns / PACK : 0, done = packs * PACK;
  for_each_place(rows, packs, block, [&](Index i, Index j) {
    T v[PACK];
    load<PACK>(v, x.at(i, j * PACK));
    store_halves<PACK>(y.at(i, j * PACK), v);
  });
  for_each_place(rows, columns - done, block,
                 [&](Index i, Index j) { *y.at(i, done + j) = bfloat16(*x.at(i, done + j)); });
}
