// Layer and batch normalisation (Ba et al. 2016; Ioffe & Szegedy 2015), forward and backward.

// y = v gamma + beta, where they are given.
template <typename T>
__device__ __forceinline__ T scale_shift(T v, const T* gamma, const T* beta, Index j) {
  if (gamma) v *= gamma[j];
  if (beta) v += beta[j];
  return v;
}

// Each row to mean 0 and variance 1: operands x, gamma?, beta?, y, mean, rstd; scalar eps.
template <typename T>
__device__ void layer_norm(const Row& row, Block block) {
  const Matrix<T> x = matrix<T>(row, 0), y = matrix<T>(row, 3);
  const T *gamma = vector<T>(row, 1), *beta = vector<T>(row, 2);
  T *means = vector<T>(row, 4), *rstds = vector<T>(row, 5);
  const T count = T(x.columns), eps = T(row.scalars[0]);
  for_each_row(x.rows, x.columns, block, [&](Index i, int lane, int lanes, Index columns) {
    T sum = T(0), square = T(0);
    for (Index j = lane; j < columns; j += lanes) sum += *x.at(i, j);
    const T mean = row_sum(sum, lanes) / count;
    for (Index j = lane; j < columns; j += lanes) {
      const T centred = *x.at(i, j) - mean;
      square += centred * centred;
    }
    const T rstd = T(1) / root(row_sum(square, lanes) / count + eps);
    for (Index j = lane; j < columns; j += lanes)
      *y.at(i, j) = scale_shift((*x.at(i, j) - mean) * rstd, gamma, beta, j);
    if (lane == 0 && columns) means[i] = mean, rstds[i] = rstd;
  });
}

// Gradients of layer_norm: operands x, gamma?, mean, rstd, dy, dx?, dgamma?, dbeta?. Blocks share the rows of dx, then
// the columns of the others.
template <typename T>
__device__ void layer_norm_grad(const Row& row, Block block) {
  const Matrix<T> x = matrix<T>(row, 0), dy = matrix<T>(row, 4), dx = matrix<T>(row, 5);
  const Matrix<T> dgamma = matrix<T>(row, 6), dbeta = matrix<T>(row, 7);
  const T *gamma = vector<T>(row, 1), *means = vector<T>(row, 2), *rstds = vector<T>(row, 3);
  const T count = T(x.columns);
  if (dx)
    for_each_row(x.rows, x.columns, block, [&](Index i, int lane, int lanes, Index columns) {
      const T mean = means[i], rstd = rstds[i];
      T sum = T(0), sum_normalised = T(0);
      for (Index j = lane; j < columns; j += lanes) {
        const T g = gamma ? *dy.at(i, j) * gamma[j] : *dy.at(i, j);
        sum += g;
        sum_normalised += g * ((*x.at(i, j) - mean) * rstd);
      }
      const T mean_g = row_sum(sum, lanes) / count, mean_gn = row_sum(sum_normalised, lanes) / count;
      for (Index j = lane; j < columns; j += lanes) {
        const T g = gamma ? *dy.at(i, j) * gamma[j] : *dy.at(i, j);
        *dx.at(i, j) = rstd * (g - mean_g - (*x.at(i, j) - mean) * rstd * mean_gn);
      }
    });
  const Matrix<T> operands[] = {dy, x};
  if (dgamma)
    sum_columns<3, 0, false>(operands, dgamma, block,
                             [&](T(&v)[2], Index i) { return v[0] * ((v[1] - means[i]) * rstds[i]); });
  if (dbeta) sum_columns<1, 0, false>(operands, dbeta, block, [](T(&v)[2], Index) { return v[0]; });
}

// Each column to mean 0 and variance 1 of the batch: operands x, gamma?, beta?, y, mean, var, rstd; scalar eps.
template <typename T>
__device__ void batch_norm(const Row& row, Block block) {
  const Matrix<T> x = matrix<T>(row, 0), y = matrix<T>(row, 3);
  const T *gamma = vector<T>(row, 1), *beta = vector<T>(row, 2);
  T *means = vector<T>(row, 4), *variances = vector<T>(row, 5), *rstds = vector<T>(row, 6);
  const T count = T(x.rows), eps = T(row.scalars[0]);
  for_each_column(x.columns, block, [&](Index j, bool here, const Columns& c) {
    const auto entry = [&](Index i) { return *x.at(i, j); };
    const T sum = sum_over<T>(c.first, x.rows, c.step, entry, [](T v, Index) { return v; });
    const T mean = column_total(sum, c) / count;
    const T square =
        sum_over<T>(c.first, x.rows, c.step, entry, [&](T v, Index) { return (v - mean) * (v - mean); });
    const T variance = column_total(square, c) / count, rstd = T(1) / root(variance + eps);
    if (!here) return;
    for (Index i = c.first; i < x.rows; i += c.step)
      *y.at(i, j) = scale_shift((*x.at(i, j) - mean) * rstd, gamma, beta, j);
    if (c.first == 0) means[j] = mean, variances[j] = variance, rstds[j] = rstd;
  });
}

template <typename T>
struct Pair {
  T first, second;
};

// Gradients of batch_norm: operands x, gamma?, mean, rstd, dy, dx?, dgamma?, dbeta?.
template <typename T>
__device__ void batch_norm_grad(const Row& row, Block block) {
  const Matrix<T> x = matrix<T>(row, 0), dy = matrix<T>(row, 4), dx = matrix<T>(row, 5);
  const T *gamma = vector<T>(row, 1), *means = vector<T>(row, 2), *rstds = vector<T>(row, 3);
  T *dgamma = vector<T>(row, 6), *dbeta = vector<T>(row, 7);
  const T share = T(1) / T(x.rows);
  for_each_column(x.columns, block, [&](Index j, bool here, const Columns& c) {
    const T mean = means[j], rstd = rstds[j];
    const auto entries = [&](Index i) { return Pair<T>{*x.at(i, j), *dy.at(i, j)}; };
    const T sum = column_total(
        sum_over<T>(c.first, x.rows, c.step, entries, [](const Pair<T>& v, Index) { return v.second; }), c);
    const T sum_normalised = column_total(
        sum_over<T>(c.first, x.rows, c.step, entries,
                    [&](const Pair<T>& v, Index) { return v.second * ((v.first - mean) * rstd); }),
        c);
    if (!here) return;
    if (c.first == 0 && dgamma) dgamma[j] = sum_normalised;
    if (c.first == 0 && dbeta) dbeta[j] = sum;
    if (!dx) return;
    for (Index i = c.first; i < x.rows; i += c.step) {
      const T normalised = (*x.at(i, j) - mean) * rstd;
      const T g = rstd * (*dy.at(i, j) - share * (sum + normalised * sum_normalised));
      *dx.at(i, j) = gamma ? g * gamma[j] : g;
    }
  });
}

// batch_norm with given statistics: operands x, gamma?, beta?, mean, var, y; scalar eps.
template <typename T>
__device__ void batch_norm_fixed(const Row& row, Block block) {
  const Matrix<T> x = matrix<T>(row, 0);
  const Matrix<T> operands[] = {x,
                                matrix<T>(row, 5),
                                on_every_row<T>(row, 1, x.rows),
                                on_every_row<T>(row, 2, x.rows),
                                on_every_row<T>(row, 3, x.rows),
                                on_every_row<T>(row, 4, x.rows)};
  const bool scaled = (bool)operands[2];  // an absent shift is 0, as it should be
  const T eps = T(row.scalars[0]);
  elementwise<61, 2>(operands, block, [&](T(&v)[6]) {
    const T normalised = (v[0] - v[4]) / root(v[5] + eps);
    v[1] = (scaled ? normalised * v[2] : normalised) + v[3];
  });
}

// Gradient of batch_norm_fixed: operands gamma?, var, dy, dx; scalar eps.
template <typename T>
__device__ void batch_norm_fixed_grad(const Row& row, Block block) {
  const Matrix<T> dy = matrix<T>(row, 2);
  const Matrix<T> operands[] = {dy, matrix<T>(row, 3), on_every_row<T>(row, 0, dy.rows),
                                on_every_row<T>(row, 1, dy.rows)};
  const bool scaled = (bool)operands[2];
  const T eps = T(row.scalars[0]);
  elementwise<13, 2>(operands, block, [&](T(&v)[4]) {
    const T g = v[0] / root(v[3] + eps);
    v[1] = scaled ? g * v[2] : g;
  });
}

// running += momentum (batch - running), the variance unbiased: operands control, mean, var, running_mean, running_var;
// scalars momentum, rows. Nothing on a flagged step.
template <typename T>
__device__ void running_average(const Row& row, Block block) {
  if (vector<long long>(row, 0)[BAD_STEP] >= 0) return;
  const double rows = row.scalars[1];
  const T momentum = T(row.scalars[0]), unbiased = T(rows / (rows > 2.0 ? rows - 1.0 : 1.0));
  const Matrix<T> operands[] = {matrix<T>(row, 1), matrix<T>(row, 2), matrix<T>(row, 3), matrix<T>(row, 4)};
  elementwise<15, 12>(operands, block, [&](T(&v)[4]) {
    v[2] += momentum * (v[0] - v[2]);
    v[3] += momentum * (v[1] * unbiased - v[3]);
  });
}
