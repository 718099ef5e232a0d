// Activations and their gradients. A functor has f(x) and f'(saved), the saved value being x or y; both let NaN
// through, which a comparison alone would lose. The forms of each (alone, with the bias before it, its gradient, the
// gradient with the bias's) are templates, at the end.

template <typename T>
__device__ __forceinline__ T logistic(T x) {
  const T e = exp_of(-size_of(x));  // of a number that is not positive: no overflow
  return x >= T(0) ? T(1) / (T(1) + e) : e / (T(1) + e);
}

template <typename T>
__device__ __forceinline__ T log_one_plus_exp(T x) {
  return (x > T(0) ? x : T(0)) + log1p_of(exp_of(-size_of(x)));
}

template <typename T>
struct Relu {
  static constexpr bool SAVES_X = false;
  __device__ explicit Relu(const double*) {}
  __device__ T value(T x) const { return x < T(0) ? T(0) : x; }
  __device__ T slope(T y) const { return y > T(0) ? T(1) : T(0) * y; }
};

template <typename T>
struct LeakyRelu {
  static constexpr bool SAVES_X = true;
  T negative_slope;
  __device__ explicit LeakyRelu(const double* scalars) : negative_slope(T(scalars[0])) {}
  __device__ T value(T x) const { return x > T(0) ? x : negative_slope * x; }
  __device__ T slope(T x) const { return x > T(0) ? T(1) : (x <= T(0) ? negative_slope : x); }
};

template <typename T>
struct Elu {
  static constexpr bool SAVES_X = true;
  T alpha;
  __device__ explicit Elu(const double* scalars) : alpha(T(scalars[0])) {}
  __device__ T value(T x) const { return x > T(0) ? x : alpha * expm1_of(x); }
  __device__ T slope(T x) const { return x > T(0) ? T(1) : alpha * exp_of(x); }
};

template <typename T>
struct Selu {
  static constexpr bool SAVES_X = true;
  __device__ explicit Selu(const double*) {}
  __device__ T value(T x) const { return T(SELU_SCALE) * (x > T(0) ? x : T(SELU_ALPHA) * expm1_of(x)); }
  __device__ T slope(T x) const { return T(SELU_SCALE) * (x > T(0) ? T(1) : T(SELU_ALPHA) * exp_of(x)); }
};

template <typename T>
struct Gelu {
  static constexpr bool SAVES_X = true;
  __device__ explicit Gelu(const double*) {}
  __device__ T cdf(T x) const { return T(0.5) * (T(1) + erf_of(x * T(0.7071067811865476))); }
  __device__ T value(T x) const { return T(0.5) * x * (T(1) + erf_of(x * T(0.7071067811865476))); }
  __device__ T slope(T x) const {
    return cdf(x) + x * (exp_of(T(-0.5) * x * x) * T(0.3989422804014327));  // 1 / sqrt(2 pi)
  }
};

template <typename T>
struct GeluTanh {
  static constexpr bool SAVES_X = true;
  __device__ explicit GeluTanh(const double*) {}
  __device__ T inner(T x) const { return tanh_of(T(GELU_TANH_SCALE) * (x + T(GELU_TANH_CUBIC) * x * x * x)); }
  __device__ T value(T x) const { return T(0.5) * x * (T(1) + inner(x)); }
  __device__ T slope(T x) const {
    const T t = inner(x), derivative = T(GELU_TANH_SCALE) * (T(1) + T(3) * T(GELU_TANH_CUBIC) * x * x);
    return T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * derivative;
  }
};

template <typename T>
struct Silu {
  static constexpr bool SAVES_X = true;
  __device__ explicit Silu(const double*) {}
  __device__ T value(T x) const { return x * logistic(x); }
  __device__ T slope(T x) const {
    const T s = logistic(x);
    return s * (T(1) + x * (T(1) - s));
  }
};

template <typename T>
struct Mish {
  static constexpr bool SAVES_X = true;
  __device__ explicit Mish(const double*) {}
  __device__ T value(T x) const { return x * tanh_of(log_one_plus_exp(x)); }
  __device__ T slope(T x) const {
    const T t = tanh_of(log_one_plus_exp(x));
    return t + x * (T(1) - t * t) * logistic(x);
  }
};

template <typename T>
struct Softplus {
  static constexpr bool SAVES_X = true;
  T beta;
  __device__ explicit Softplus(const double* scalars) : beta(T(scalars[0])) {}
  __device__ T value(T x) const { return log_one_plus_exp(beta * x) / beta; }
  __device__ T slope(T x) const { return logistic(beta * x); }
};

template <typename T>
struct Sigmoid {
  static constexpr bool SAVES_X = false;
  __device__ explicit Sigmoid(const double*) {}
  __device__ T value(T x) const { return logistic(x); }
  __device__ T slope(T y) const { return y * (T(1) - y); }
};

template <typename T>
struct Tanh {
  static constexpr bool SAVES_X = false;
  __device__ explicit Tanh(const double*) {}
  __device__ T value(T x) const { return tanh_of(x); }
  __device__ T slope(T y) const { return T(1) - y * y; }
};

// --- forms -------------------------------------------------------------------------------------------------------

// y = f(x): operands x, y.
template <typename T, typename F>
__device__ void activate(const Row& row, Block block, F f) {
  const Matrix<T> operands[] = {matrix<T>(row, 0), matrix<T>(row, 1)};
  elementwise<1, 2>(operands, block, [&](T(&v)[2]) { v[1] = f.value(v[0]); });
}

// dx = dy f'(saved): operands saved, dy, dx.
template <typename T, typename F>
__device__ void activate_grad(const Row& row, Block block, F f) {
  const Matrix<T> operands[] = {matrix<T>(row, 0), matrix<T>(row, 1), matrix<T>(row, 2)};
  elementwise<3, 4>(operands, block, [&](T(&v)[3]) { v[2] = v[1] * f.slope(v[0]); });
}

// y = f(x + bias): operands bias, x, y. Where the gradient reads x, the bias stays in x; y may lie there all the same.
template <typename T, typename F>
__device__ void bias_activate(const Row& row, Block block, F f) {
  const Matrix<T> x = matrix<T>(row, 1);
  const Matrix<T> operands[] = {x, matrix<T>(row, 2), on_every_row<T>(row, 0, x.rows)};
  elementwise<5, F::SAVES_X ? 3 : 2>(operands, block, [&](T(&v)[3]) {
    v[0] += v[2];
    v[1] = f.value(v[0]);
  });
}

template <typename T>
struct Pair {
  T first, second;
};

// dx = dy f'(saved), db = sums of the columns of dx: operands saved, dy, dx, db.
template <typename T, typename F>
__device__ void activate_grad_bias(const Row& row, Block block, F f) {
  const Matrix<T> saved = matrix<T>(row, 0), dy = matrix<T>(row, 1), dx = matrix<T>(row, 2);
  sum_columns(
      saved.rows, saved.columns, matrix<T>(row, 3), block,
      [&](long long i, long long j) { return Pair<T>{element(saved, i, j), element(dy, i, j)}; },
      [&](const Pair<T>& v, long long i, long long j) {
        const T gradient = v.second * f.slope(v.first);
        set_element(dx, i, j, gradient);
        return gradient;
      });
}

// dx = (a b^T) f'(saved), where rows of a and of b are short: operands a, b, saved, dx. The product is never written
// down. A block has the part of b for its columns in shared memory; a lane takes a few columns of four rows at a time.
template <typename T, typename F>
__device__ void narrow_activate_grad(const Row& row, Block block, F f) {
  constexpr int ROWS = 4, C = SCRATCH_BYTES / (NARROW * WARP * (int)sizeof(T)), TILE_COLUMNS = C * WARP;
  const Matrix<T> a = matrix<T>(row, 0), b = matrix<T>(row, 1), saved = matrix<T>(row, 2), dx = matrix<T>(row, 3);
  T* factor = shared_scratch<T>();  // [inner][TILE_COLUMNS]
  const int inner = (int)a.columns, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
  const long long tiles = (dx.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
  const long long shares = block.count > tiles ? block.count / tiles : 1, step = warps * shares;
  const bool wide = C == 4 && aligned<4>(saved) && aligned<4>(dx);
  for (long long unit = block.index; unit < tiles * shares; unit += block.count) {
    const long long left = unit % tiles * TILE_COLUMNS, j = left + lane * C;
    __syncthreads();  // what lay there may still be read
    for (int e = threadIdx.x; e < inner * TILE_COLUMNS; e += blockDim.x) {
      const long long column = left + e % TILE_COLUMNS;
      factor[e] = column < dx.columns ? element(b, column, e / TILE_COLUMNS) : T(0);
    }
    __syncthreads();
    const bool whole = wide && j + C <= dx.columns;
    for (long long i = unit / tiles * warps + threadIdx.x / WARP; i < dx.rows; i += ROWS * step) {
      T kept[ROWS][C] = {}, sums[ROWS][C] = {};
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        if (i + r * step >= dx.rows) continue;
        if constexpr (C == 4) {
          if (whole) {
            load<C>(kept[r], saved, i + r * step, j);
            continue;
          }
        }
#pragma unroll
        for (int c = 0; c < C; c++)
          if (j + c < dx.columns) kept[r][c] = element(saved, i + r * step, j + c);
      }
      for (int p = 0; p < inner; p++) {
        T near[C];
#pragma unroll
        for (int c = 0; c < C; c++) near[c] = factor[p * TILE_COLUMNS + lane * C + c];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const T v = element(a, i + r * step < dx.rows ? i + r * step : i, p);
#pragma unroll
          for (int c = 0; c < C; c++) sums[r][c] += v * near[c];
        }
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        if (i + r * step >= dx.rows) continue;
#pragma unroll
        for (int c = 0; c < C; c++) sums[r][c] *= f.slope(kept[r][c]);
        if constexpr (C == 4) {
          if (whole) {
            store<C>(dx, i + r * step, j, sums[r]);
            continue;
          }
        }
#pragma unroll
        for (int c = 0; c < C; c++)
          if (j + c < dx.columns) set_element(dx, i + r * step, j + c, sums[r][c]);
      }
    }
  }
}

#define ACTIVATION(name, Functor)                                           \
  template <typename T>                                                     \
  __device__ void name(const Row& row, Block block) {                       \
    activate<T>(row, block, Functor<T>(row.scalars));                       \
  }                                                                         \
  template <typename T>                                                     \
  __device__ void name##_grad(const Row& row, Block block) {                \
    activate_grad<T>(row, block, Functor<T>(row.scalars));                  \
  }                                                                         \
  template <typename T>                                                     \
  __device__ void bias_##name(const Row& row, Block block) {                \
    bias_activate<T>(row, block, Functor<T>(row.scalars));                  \
  }                                                                         \
  template <typename T>                                                     \
  __device__ void name##_grad_bias(const Row& row, Block block) {           \
    activate_grad_bias<T>(row, block, Functor<T>(row.scalars));             \
  }                                                                         \
  template <typename T>                                                     \
  __device__ void narrow_##name##_grad(const Row& row, Block block) {       \
    narrow_activate_grad<T>(row, block, Functor<T>(row.scalars));           \
  }

ACTIVATION(relu, Relu)
ACTIVATION(leaky_relu, LeakyRelu)
ACTIVATION(elu, Elu)
ACTIVATION(selu, Selu)
ACTIVATION(gelu, Gelu)
ACTIVATION(gelu_tanh, GeluTanh)
ACTIVATION(silu, Silu)
ACTIVATION(mish, Mish)
ACTIVATION(softplus, Softplus)
ACTIVATION(sigmoid, Sigmoid)
ACTIVATION(tanh, Tanh)
#undef ACTIVATION

// The sum of exp(x - largest) over a row of which this lane takes some; `largest` is given back.
template <typename T>
__device__ __forceinline__ T sum_of_exponentials(const T* x, long long columns, int lane, int lanes, T& largest) {
  largest = x[0];  // and not -inf, of which a row may be full
  for (long long j = lane; j < columns; j += lanes) largest = larger(largest, x[j]);
  largest = row_maximum(largest, lanes);
  T sum = T(0);
  for (long long j = lane; j < columns; j += lanes) sum += exp_of(x[j] - largest);
  return row_sum(sum, lanes);
}

// y = exp(x) / sum(exp(x)), row by row: operands x, y.
template <typename T>
__device__ void softmax(const Row& row, Block block) {
  const Matrix<T> x = matrix<T>(row, 0), y = matrix<T>(row, 1);
  for_each_row(x.rows, x.columns, block, [&](long long i, int lane, int lanes, long long columns) {
    T largest;
    const T sum = sum_of_exponentials(x.at(i, 0), columns, lane, lanes, largest);
    for (long long j = lane; j < columns; j += lanes) *y.at(i, j) = exp_of(*x.at(i, j) - largest) / sum;
  });
}

// dx = y (dy - sum(y dy)), row by row: operands y, dy, dx.
template <typename T>
__device__ void softmax_grad(const Row& row, Block block) {
  const Matrix<T> y = matrix<T>(row, 0), dy = matrix<T>(row, 1), dx = matrix<T>(row, 2);
  for_each_row(y.rows, y.columns, block, [&](long long i, int lane, int lanes, long long columns) {
    T inner = T(0);
    for (long long j = lane; j < columns; j += lanes) inner += *y.at(i, j) * *dy.at(i, j);
    inner = row_sum(inner, lanes);
    for (long long j = lane; j < columns; j += lanes) *dx.at(i, j) = *y.at(i, j) * (*dy.at(i, j) - inner);
  });
}
