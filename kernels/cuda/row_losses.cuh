// Losses of whole rows: cross-entropy and divergence on logits, and what else takes a softmax.

// --- long rows, one for a whole block ----------------------------------------------------------------------------

// C neighbours in each of PACKS places of a row, `apart` from each other; `absent` beyond its last column. `wide`: the
// row is one of whole packs, which can be taken at once.
template <int PACKS, int C, typename T>
__device__ __forceinline__ void load_packs(T (&v)[PACKS][C], const T* x, Index j, Index apart, Index columns, bool wide,
                                           T absent) {
#pragma unroll
  for (int p = 0; p < PACKS; p++)
#pragma unroll
    for (int c = 0; c < C; c++) v[p][c] = absent;
  if (wide) {
#pragma unroll
    for (int p = 0; p < PACKS; p++)
      if (j + p * apart < columns) load<C>(v[p], x + (j + p * apart));
  } else {
#pragma unroll
    for (int p = 0; p < PACKS; p++)
#pragma unroll
      for (int c = 0; c < C; c++)
        if (j + p * apart + c < columns) v[p][c] = x[j + p * apart + c];
  }
}

// Bring row i near, by all threads of a block.
template <typename T>
__device__ __forceinline__ void bring_row(const Matrix<T>& m, Index i) {
  constexpr int LINE = 128 / sizeof(T);
#pragma unroll 1
  for (Index j = (Index)threadIdx.x * LINE; j < m.columns; j += (Index)blockDim.x * LINE) bring_near(m.at(i, j));
}

// The sum over the threads of a block; all get it. One barrier: `turn`, 0 or 1, alternates from call to call, and so
// does the memory, of which all have read what was there two calls before.
template <typename T>
__device__ __forceinline__ T sum_over_block(T v, int turn) {
  T* shared = shared_scratch<T>() + (2 + turn) * 2 * WARP;
  v = row_sum(v, WARP);
  if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = v;
  __syncthreads();
  return row_sum(threadIdx.x % WARP < blockDim.x / WARP ? shared[threadIdx.x % WARP] : T(0), WARP);
}

// The sum of exp(x - largest), added up as numbers come. NaN has no part in `largest`: it makes the sum NaN.
template <typename T>
struct ExponentialSum {
  T largest = T(-INFINITE), sum = T(0);

  // What is subtracted from x: numbers of which all are -infinity have the sum 0 and not NaN, since others may come.
  __device__ __forceinline__ T shift() const { return largest == T(-INFINITE) ? T(0) : largest; }

  // Adds v, and leaves its exponentials there.
  template <int P>
  __device__ __forceinline__ void add(T (&v)[P][4]) {
    const T before = largest;
#pragma unroll
    for (int p = 0; p < P; p++)
#pragma unroll
      for (int c = 0; c < 4; c++) largest = largest_number(largest, v[p][c]);
    const T from = shift();
    sum *= exp_below(before - from);
#pragma unroll
    for (int p = 0; p < P; p++) {
#pragma unroll
      for (int c = 0; c < 4; c++) v[p][c] = exp_below(v[p][c] - from);
      sum += (v[p][0] + v[p][1]) + (v[p][2] + v[p][3]);
    }
  }

  __device__ __forceinline__ ExponentialSum over_warp() const {
    ExponentialSum all = *this;
    for (int step = WARP / 2; step > 0; step /= 2)
      all.largest = largest_number(all.largest, __shfl_xor_sync(0xffffffffu, all.largest, step));
    all.sum = row_sum(sum * exp_below(largest - all.shift()), WARP);
    return all;
  }

  // The sum is NaN where all of the row is -infinity. For `turn` see `sum_over_block`.
  __device__ __forceinline__ ExponentialSum over_block(int turn) const {
    ExponentialSum* shared = shared_scratch<ExponentialSum>() + turn * WARP;
    const ExponentialSum of_warp = over_warp();
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = of_warp;
    __syncthreads();
    ExponentialSum all;
    if (threadIdx.x % WARP < blockDim.x / WARP) all = shared[threadIdx.x % WARP];
    all = all.over_warp();
    if (all.largest == T(-INFINITE)) all.sum = all.largest - all.largest;
    return all;
  }
};

// --- losses of a row ----------------------------------------------------------------------------------------------

// t log p, with 0 log 0 = 0; NaN on either side stays NaN.
template <typename T>
__device__ __forceinline__ T product_with_log(T t, T log_p) {
  return t == T(0) && log_p < T(0) && !is_finite(log_p) ? T(0) : t * log_p;
}

// t log t, with 0 log 0 = 0.
template <typename T>
__device__ __forceinline__ T entropy_term(T t) {
  return t == T(0) ? T(0) : t * log_of(t);
}

// The target of row i; `only` is the class that has all of it, or -1.
template <typename T>
struct LabelTarget {  // a label that is no class has none
  long long only;
  __device__ LabelTarget(const Row& row, Index i) : only(vector<long long>(row, 2)[i]) {}
  __device__ T at(Index j) const { return only == j ? T(1) : T(0); }
};

template <typename T>
struct SoftTarget {
  const T* shares;
  static constexpr long long only = -1;
  __device__ SoftTarget(const Row& row, Index i) : shares(matrix<T>(row, 2).at(i, 0)) {}
  __device__ T at(Index j) const { return shares[j]; }
};

// Four neighbours of the target of a long row of `columns`; `wide` as in `load_packs`.
template <typename T>
struct LabelPacks {
  long long only = -1;
  Index label = -1;  // -1: none
  __device__ __forceinline__ void read(const Row& row, Index i, Index columns, bool) {
    only = vector<long long>(row, 2)[i];
    label = only >= 0 && only < columns ? (Index)only : -1;
  }
  __device__ __forceinline__ void load(T (&t)[1][4], Index j) const {
#pragma unroll
    for (int c = 0; c < 4; c++) t[0][c] = label - j == c ? T(1) : T(0);
  }
  // v -= scale t; few threads have a part in it.
  __device__ __forceinline__ void subtract(T (&v)[4], Index j, T scale) const {
    if (label < j || label >= j + 4) return;
#pragma unroll
    for (int c = 0; c < 4; c++) v[c] -= label - j == c ? scale : T(0);
  }
  static __device__ bool in_packs(const Row&) { return true; }
  static __device__ void bring(const Row&, Index) {}
};

template <typename T>
struct SoftPacks {
  const T* shares = nullptr;
  Index columns = 0;
  bool wide = false;
  static constexpr long long only = -1;
  static constexpr Index label = -1;
  __device__ __forceinline__ void read(const Row& row, Index i, Index of_row, bool in_packs) {
    shares = float_matrix<T>(row, 2).at(i, 0), columns = of_row, wide = in_packs;
  }
  __device__ __forceinline__ void load(T (&t)[1][4], Index j) const {
    load_packs(t, shares, j, 0, columns, wide, T(0));
  }
  __device__ __forceinline__ void subtract(T (&v)[4], Index j, T scale) const {
    T t[1][4];
    load(t, j);
#pragma unroll
    for (int c = 0; c < 4; c++) v[c] -= scale * t[0][c];
  }
  static __device__ bool in_packs(const Row& row) { return aligned<4>(float_matrix<T>(row, 2)); }
  static __device__ void bring(const Row& row, Index i) { bring_row(float_matrix<T>(row, 2), i); }
};

// Cross-entropy and divergence on logits; scalars mean, smoothing, log(clip) or -infinity, whether t log t is added.
template <typename T>
struct SoftmaxLoss {
  const Row& row;
  const Matrix<T> output, grad;
  const T smoothing, floor, spread;
  const bool with_entropy;

  __device__ __forceinline__ explicit SoftmaxLoss(const Row& row)
      : row(row), output(float_matrix<T>(row, 1)), grad(matrix<T>(row, 5)), smoothing(T(row.scalars[1])),
        floor(T(row.scalars[2])), spread(smoothing / T(output.columns)), with_entropy(row.scalars[3] != 0) {}

  __device__ __forceinline__ double term(T share, T log_p) const {
    const double loss = -(double)product_with_log(share, log_p);
    return with_entropy ? loss + (double)entropy_term(share) : loss;
  }

  // A row by lanes of a warp.
  template <typename Target>
  __device__ __forceinline__ double by_lanes(Index i, int lane, int lanes, Index columns, T scale) const {
    const Target target(row, i);
    const auto share = [&](Index j) { return (T(1) - smoothing) * target.at(j) + spread; };
    const T* x = output.at(i, 0);
    T largest;
    const T sum = sum_of_exponentials(x, columns, lane, lanes, largest), log_sum = log_of(sum);
    const auto log_p = [&](Index j) { return larger((x[j] - largest) - log_sum, floor); };
    double loss = 0;
    T mass = T(0);  // targets may sum to something other than 1: the derivative then scales softmax by that sum
    if (target.only >= 0 && smoothing == T(0)) {  // the other classes have no part in it
      if (target.only < columns && lane == 0) mass = T(1), loss = -(double)log_p((Index)target.only);
    } else {
      for (Index j = lane; j < columns; j += lanes) {
        const T t = share(j);
        mass += t;
        loss += term(t, log_p(j));
      }
    }
    mass = row_sum(mass, lanes);
    if (grad)
      along_row<2>(lane, lanes, columns, [&](Index j) { return x[j]; }, [&](Index j, T v) {
        set_element(grad, i, j, (exp_of((v - largest) - log_sum) * mass - share(j)) * scale);
      });
    return loss;
  }

  // A row by all threads of a block, in packs of which several are under way at once. The exponentials of the last ones
  // stay where they are; of a longer row the others are made again. `next` is the block's next row, if there is one;
  // `turn` alternates from row to row.
  template <typename Target>
  __device__ __forceinline__ double by_block(Index i, Index next, bool wide, int turn, T scale) const {
    constexpr int PACKS = 4;
    const Index columns = output.columns, apart = 4 * (Index)blockDim.x, first = 4 * (Index)threadIdx.x;
    Target target;
    const T* x = output.at(i, 0);
    T v[PACKS][4];
    ExponentialSum<T> own;
    Index begun = 0;  // columns of the block
    do {
      load_packs(v, x, begun + first, apart, columns, wide, T(-INFINITE));
      if (begun == 0) {  // nothing waits for the label before the row is under way
        if (next < output.rows) bring_row(output, next), Target::bring(row, next);
        target.read(row, i, columns, wide);
      }
      own.add(v);
      begun += PACKS * apart;
    } while (begun < columns);
    const T at_label = x[target.label < 0 ? 0 : target.label];
    const ExponentialSum<T> all = own.over_block(turn);
    double loss = 0;
    T mass = T(0);
    if (target.only >= 0 && smoothing == T(0)) {  // the other classes have no part in it
      mass = target.label < 0 ? T(0) : T(1);
      if (target.label >= 0 && threadIdx.x == 0)
        loss = -(double)larger((at_label - all.largest) - log_of(all.sum), floor);
    } else {
      const T log_sum = log_of(all.sum);
#pragma unroll 1
      for (Index j = first; j < columns; j += apart) {
        T t[1][4], near[1][4];
        load_packs(near, x, j, 0, columns, wide, T(0));
        target.load(t, j);
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const T share = (T(1) - smoothing) * t[0][c] + spread;
          if (j + c < columns) mass += share, loss += term(share, larger((near[0][c] - all.largest) - log_sum, floor));
        }
      }
      mass = sum_over_block(mass, turn);
    }
    if (!grad) return loss;
    const T factor = quotient(exp_below(own.largest - all.largest), all.sum) * mass * scale;
    const T even = spread * scale, rest = (T(1) - smoothing) * scale;
    for (;;) {
      begun -= PACKS * apart;
      store_gradient(v, target, i, begun + first, apart, wide, factor, even, rest);
      if (begun == 0) return loss;
      load_packs(v, x, begun - PACKS * apart + first, apart, columns, wide, T(0));
#pragma unroll
      for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int c = 0; c < 4; c++) v[p][c] = exp_below(v[p][c] - own.shift());
    }
  }

  template <int PACKS, typename Target>
  __device__ __forceinline__ void store_gradient(const T (&v)[PACKS][4], const Target& target, Index i, Index j,
                                                 Index apart, bool wide, T factor, T even, T rest) const {
#pragma unroll
    for (int p = 0; p < PACKS; p++, j += apart) {
      if (j >= output.columns) return;
      T slope[4];
#pragma unroll
      for (int c = 0; c < 4; c++) slope[c] = v[p][c] * factor - even;
      target.subtract(slope, j, rest);
      store_part<4>(grad, i, j, slope, wide);
    }
  }
};

template <typename T, typename Target>
struct SoftmaxLongRows {
  static constexpr bool LONG = true;
  const SoftmaxLoss<T>& loss;
  int turn;

  __device__ __forceinline__ double operator()(Index i, Index next, T scale) {
    const bool wide = loss.output.columns % 4 == 0 && aligned<4>(loss.output) &&
                      (!loss.grad || aligned<4>(loss.grad)) && Target::in_packs(loss.row);
    turn ^= 1;
    return loss.template by_block<Target>(i, next, wide, turn, scale);
  }
};

template <typename T, typename Target, typename Packs>
__device__ void softmax_loss(const Row& row, Block block) {
  const SoftmaxLoss<T> loss(row);
  for_each_loss<T>(
      row, block,
      [&](Index i, int lane, int lanes, Index columns, T scale) {
        return loss.template by_lanes<Target>(i, lane, lanes, columns, scale);
      },
      SoftmaxLongRows<T, Packs>{loss, 0});
}

template <typename T>
__device__ void softmax_cross_entropy_labels(const Row& row, Block block) {
  softmax_loss<T, LabelTarget<T>, LabelPacks<T>>(row, block);
}
template <typename T>
__device__ void softmax_cross_entropy(const Row& row, Block block) {
  softmax_loss<T, SoftTarget<T>, SoftPacks<T>>(row, block);
}
template <typename T>
__device__ void kl_divergence_logits(const Row& row, Block block) {
  softmax_loss<T, SoftTarget<T>, SoftPacks<T>>(row, block);
}

// On probabilities, clipped from below; scalars mean, clip.
template <typename T>
__device__ void kl_divergence(const Row& row, Block block) {
  const Matrix<T> output = matrix<T>(row, 1), target = matrix<T>(row, 2), grad = matrix<T>(row, 5);
  const T clip = T(row.scalars[1]);
  for_each_loss<T>(row, block, [&](Index i, int lane, int lanes, Index columns, T scale) {
    double loss = 0;
    for (Index j = lane; j < columns; j += lanes) {
      const T t = *target.at(i, j), p = larger(*output.at(i, j), clip);
      loss += (double)(entropy_term(t) - product_with_log(t, log_of(p)));
      // where both are 0 the term is 0 whatever p is, and so is its slope
      if (grad) set_element(grad, i, j, t == T(0) && p == T(0) ? T(0) : -t / p * scale);
    }
    return loss;
  });
}

// Squared error between softmax(output) and target, the mean over the outputs.
template <typename T>
__device__ void softmax_mse(const Row& row, Block block) {
  const Matrix<T> output = matrix<T>(row, 1), target = matrix<T>(row, 2), grad = matrix<T>(row, 5);
  const double outputs = (double)output.columns;
  const T share = T(2.0 / outputs);
  for_each_loss<T>(row, block, [&](Index i, int lane, int lanes, Index columns, T scale) {
    const T* x = output.at(i, 0);
    T largest, inner = T(0);
    const T sum = sum_of_exponentials(x, columns, lane, lanes, largest);
    double loss = 0;
    for (Index j = lane; j < columns; j += lanes) {
      const T p = exp_of(x[j] - largest) / sum, e = p - *target.at(i, j);
      loss += (double)(e * e);
      inner += e * p;
    }
    inner = row_sum(inner, lanes);
    if (grad)
      for (Index j = lane; j < columns; j += lanes) {
        const T p = exp_of(x[j] - largest) / sum;
        set_element(grad, i, j, p * (p - *target.at(i, j) - inner) * share * scale);
      }
    return loss / outputs;
  });
}
