// Activations and their gradients. A functor has f(x) and f'(saved), the saved value being x or y; both let NaN
// through, which a comparison alone would lose. The forms of each (alone, with the bias before it, its gradient, the
// gradient with the bias's) are templates, at the end; those with a product are in narrow.cuh.

template <typename T>
__device__ __forceinline__ T logistic(T x) {
  const T e = exp_of(-size_of(x));  // of a number that is not positive: no overflow
  return quotient(x >= T(0) ? T(1) : e, T(1) + e);
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
  T beta, inverse;
  __device__ explicit Softplus(const double* scalars) : beta(T(scalars[0])), inverse(T(1.0 / scalars[0])) {}
  __device__ T value(T x) const { return log_one_plus_exp(beta * x) * inverse; }
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

// To 3e-7 of 1, and not of itself: five instructions, and no branch near 0.
__device__ __forceinline__ float short_value(const Tanh<float>&, float x) {
  return add_product(1.0f, -2.0f, reciprocal(power_of_two(2.885390082f * x) + 1.0f));  // 2 / ln 2
}

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

// dx = dy f'(saved), db = sums of the columns of dx: operands saved, dy, dx, db.
template <typename T, typename F>
__device__ void activate_grad_bias(const Row& row, Block block, F f) {
  const Matrix<T> operands[] = {matrix<T>(row, 0), matrix<T>(row, 1), matrix<T>(row, 2)};
  sum_columns<3, 4>(operands, matrix<T>(row, 3), block,
                    [&](T(&v)[3], Index) { return v[2] = v[1] * f.slope(v[0]); }, control_of(row));
}

#define FORM(name, Functor, form)                    \
  template <typename T>                              \
  __device__ void name(const Row& row, Block block) { \
    form(row, block, Functor<T>(row.scalars));       \
  }
#define ACTIVATION(name, Functor)                                   \
  FORM(name, Functor, activate<T>)                                  \
  FORM(name##_grad, Functor, activate_grad<T>)                      \
  FORM(bias_##name, Functor, bias_activate<T>)                      \
  FORM(name##_grad_bias, Functor, activate_grad_bias<T>)            \
  FORM(bias_##name##_narrow, Functor, bias_activate_narrow<T>)      \
  FORM(narrow_##name##_grad, Functor, narrow_activate_grad<T>)      \
  FORM(narrow_##name##_grad_sums, Functor, narrow_activate_grad_sums<T>)

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
#undef FORM

// The sum of exp(x - largest) over a row of which this lane takes some; `largest` is given back.
template <typename T>
__device__ __forceinline__ T sum_of_exponentials(const T* x, Index columns, int lane, int lanes, T& largest) {
  largest = x[0];  // and not -inf, of which a row may be full
  const auto entry = [&](Index j) { return x[j]; };
  along_row(lane, lanes, columns, entry, [&](Index, T v) { largest = larger(largest, v); });
  largest = row_maximum(largest, lanes);
  T sum = T(0);
  along_row(lane, lanes, columns, entry, [&](Index, T v) { sum += exp_of(v - largest); });
  return row_sum(sum, lanes);
}

// y = exp(x) / sum(exp(x)), row by row: operands x, y.
template <typename T>
__device__ void softmax(const Row& row, Block block) {
  const Matrix<T> x = matrix<T>(row, 0), y = matrix<T>(row, 1);
  for_each_row(x.rows, x.columns, block, [&](Index i, int lane, int lanes, Index columns) {
    T largest;
    const T sum = sum_of_exponentials(x.at(i, 0), columns, lane, lanes, largest);
    for (Index j = lane; j < columns; j += lanes) *y.at(i, j) = exp_of(*x.at(i, j) - largest) / sum;
  });
}

// dx = y (dy - sum(y dy)), row by row: operands y, dy, dx.
template <typename T>
__device__ void softmax_grad(const Row& row, Block block) {
  const Matrix<T> y = matrix<T>(row, 0), dy = matrix<T>(row, 1), dx = matrix<T>(row, 2);
  for_each_row(y.rows, y.columns, block, [&](Index i, int lane, int lanes, Index columns) {
    T inner = T(0);
    for (Index j = lane; j < columns; j += lanes) inner += *y.at(i, j) * *dy.at(i, j);
    inner = row_sum(inner, lanes);
    for (Index j = lane; j < columns; j += lanes) *dx.at(i, j) = *y.at(i, j) * (*dy.at(i, j) - inner);
  });
}
