// Products, biases, sums of columns and copies.

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

template <typename T>
__device__ __forceinline__ void multiply_large(const Product<T>& product) {
  if (product.form == FIRST_TURNED) {
    multiply_large<ALONG_SIDE, ALONG_SIDE>(product);
  } else if (product.form == SECOND_TURNED) {
    multiply_large<ALONG_INNER, ALONG_INNER>(product);
  } else {
    multiply_large<ALONG_INNER, ALONG_SIDE>(product);
  }
}

// ONE_BLOCK: it is done by one block, whose threads have registers for large tiles.
template <typename T, bool ONE_BLOCK = false>
__device__ void matmul(const Row& row, Block block) {
  const Product<T> p(row);
  const bool wide = steps_aligned(p.a.data, p.a.stride()) && steps_aligned(p.b.data, p.b.stride());
  // four neighbours along a side are read at once or not at all
  const bool whole = p.c.columns % TILE == 0 && (p.form != FIRST_TURNED || p.c.rows % TILE == 0);
  if (p.c.rows == 1) {
    multiply<1, TILE, APART, APART, false>(p, block);
  } else if (p.c.columns == 1 && p.form != FIRST_TURNED) {
    if (p.b.inner == 1 && steps_aligned(p.a.data, p.a.stride()) && steps_aligned(p.b.data, Index(4)))
      multiply<1, 1, ALONG_INNER, ALONG_INNER, false>(p, block);
    else
      multiply<1, 1, APART, APART, false>(p, block);
  } else if (p.c.columns == 1) {
    multiply<TILE, 1, APART, APART, false>(p, block);
  } else if (!wide || (p.form != SECOND_TURNED && !whole)) {
    // where factors lie is asked in each branch: known from above on, it cost the large products a tenth more instructions
    if constexpr (!ONE_BLOCK) {
      multiply_spread<APART, APART>(p, block);
    } else if (is_shared(p.a.data) && is_shared(p.b.data)) {
      multiply<TILE, TILE, APART, APART, true>(p, block);
    } else {
      multiply<TILE, TILE, APART, APART, false>(p, block);
    }
  } else if constexpr (!ONE_BLOCK) {
    multiply_spread(p, block);
  } else if (is_shared(p.a.data) && is_shared(p.b.data)) {
    if constexpr (sizeof(T) == 4) {  // with fewer numbers some threads would have no part of a tile
      if (p.c.columns % 4 == 0 && steps_aligned(p.c.data, p.c.stride) &&
          p.c.rows * p.c.columns >= 8 * (int)blockDim.x) {
        multiply_large(p);
        return;
      }
    }
    multiply_wide<true>(p, block);
  } else {
    multiply_wide<false>(p, block);
  }
}

// Two products of which neither needs the other, in one launch: operands and scalars of both, and how many of the blocks
// take the first.
template <typename T>
__device__ void matmul_pair(const Row& row, Block block) {
  const int firsts = (int)row.scalars[4], second = block.index >= firsts;
  Row one;
  one.scalars = row.scalars + 2 * second;
#pragma unroll
  for (int k = 0; k < 4; k++) one.operands[k] = second ? row.operands[4 + k] : row.operands[k];
  matmul<T>(one, second ? Block{block.index - firsts, block.count - firsts} : Block{block.index, firsts});
}

// The same of a product that is little work, with the registers that a chain has.
template <typename T>
__device__ void small_matmul(const Row& row, Block block) {
  multiply<1, 1, APART, APART, false>(Product<T>(row), block);
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
  const Matrix<T> operands[] = {matrix<T>(row, 0)};
  sum_columns<1, 0>(operands, matrix<T>(row, 1), block, [](T(&v)[1], Index) { return v[0]; });
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
