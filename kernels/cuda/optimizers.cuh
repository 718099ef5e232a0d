// Checks, clipping and update rules over flat ranges of the arenas, one pass over each; nothing on a flagged step.

__device__ __forceinline__ bool flagged(const long long* control) { return control[BAD_STEP] >= 0; }

// Of the arenas; they are never bfloat16, and a copy of the parameters always is where anything may be.
template <typename T>
__device__ __forceinline__ Matrix<T> range(const Row& row, int k) {
  return float_matrix<T>(row, k);
}
template <typename T>
__device__ __forceinline__ Matrix<T> copy_of(const Row& row, int k) {
  Matrix<T> m = matrix<T>(row, k);
  m.half = MIXED;
  return m;
}

// BAD_STEP = STEP if a gradient, or its square, is not finite: operands gradients, control; scalar squared.
template <typename T>
__device__ void check_gradients(const Row& row, Block block) {
  const bool squared = row.scalars[0] != 0;
  const Matrix<T> operands[] = {range<T>(row, 0)};
  T zero = T(0);  // or NaN, as 0 times a number is that is not finite
  elementwise_flat<1, 1, 0>(operands, block, [&](T(&v)[1]) { zero += (squared ? v[0] * v[0] : v[0]) * T(0); });
  flag_unless_finite(zero, vector<long long>(row, 1));
}

// gradients = clip(gradients, -limit, limit): operand gradients; scalar limit.
template <typename T>
__device__ void clip_by_value(const Row& row, Block block) {
  const T limit = T(row.scalars[0]);
  const Matrix<T> operands[] = {range<T>(row, 0)};
  elementwise_flat<1, 1, 1>(operands, block,
                            [&](T(&v)[1]) { v[0] = v[0] > limit ? limit : (v[0] < -limit ? -limit : v[0]); });
}

// scratch[block] = this block's part of the sum of squares: operand gradients.
template <typename T>
__device__ void sum_squares(const Row& row, Block block) {
  const Matrix<T> operands[] = {range<T>(row, 0)};
  double sum = 0;
  elementwise_flat<1, 1, 0>(operands, block, [&](T(&v)[1]) { sum += (double)v[0] * (double)v[0]; });
  sum = block_total(sum);
  if (threadIdx.x == 0) reinterpret_cast<double*>(row.scratch)[block.index] = sum;
}

// gradients *= min(1, limit / (||gradients|| + 1e-6)): operand gradients; scalars limit, parts of the sum. Every block
// adds up the parts, in the same order.
template <typename T>
__device__ void clip_by_norm(const Row& row, Block block) {
  const double* parts = reinterpret_cast<const double*>(row.scratch);
  const int count = (int)whole_number(row.scalars[1]);
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += parts[i];
  const double scale = row.scalars[0] / (sqrt(block_total(sum)) + 1e-6);
  if (scale >= 1.0) return;  // NaN goes on, and makes all NaN
  const T factor = T(scale);
  const Matrix<T> operands[] = {range<T>(row, 0)};
  elementwise_flat<1, 1, 1>(operands, block, [&](T(&v)[1]) { v[0] *= factor; });
}

// --- update rules: operands control, rates, gradients, parameters, slots; scalars weight_decay, the rule's own -----
// Each has a form with one more operand, a copy of the parameters in bfloat16 for the products to read. The last block of
// many may move the counters on, which saves a launch: see `advance_at_last`.

__device__ __forceinline__ double rate_of(const Row& row) {
  return vector<double>(row, 1)[vector<long long>(row, 0)[SLOT]];
}

template <typename T>
__device__ __forceinline__ void update_sgd(const Row& row, Block block, Matrix<T> copy) {
  if (flagged(vector<long long>(row, 0))) return;
  const T lr = T(rate_of(row)), decay = T(row.scalars[0]);
  const Matrix<T> operands[] = {range<T>(row, 2), range<T>(row, 3), copy};
  elementwise_flat<2, 3, 6>(operands, block, [&](T(&v)[3]) {
    v[1] -= lr * (v[0] + decay * v[1]);
    v[2] = v[1];
  });
}

// Scalars weight_decay, momentum, dampening, nesterov; slot velocity. The first velocity is the gradient itself.
template <typename T>
__device__ __forceinline__ void update_momentum(const Row& row, Block block, Matrix<T> copy) {
  const long long* control = vector<long long>(row, 0);
  if (flagged(control)) return;
  const T lr = T(rate_of(row)), decay = T(row.scalars[0]), mu = T(row.scalars[1]);
  const T taken = control[UPDATE] == 0 ? T(1) : T(1.0 - row.scalars[2]);
  const bool nesterov = row.scalars[3] != 0;
  const Matrix<T> operands[] = {range<T>(row, 2), range<T>(row, 3), range<T>(row, 4), copy};
  elementwise_flat<3, 7, 14>(operands, block, [&](T(&v)[4]) {
    const T g = v[0] + decay * v[1];
    v[2] = mu * v[2] + taken * g;
    v[1] -= lr * (nesterov ? g + mu * v[2] : v[2]);
    v[3] = v[1];
  });
}

// Scalars weight_decay, momentum, nesterov; slot velocity, which holds the rate.
template <typename T>
__device__ __forceinline__ void update_momentum_keras(const Row& row, Block block, Matrix<T> copy) {
  if (flagged(vector<long long>(row, 0))) return;
  const T lr = T(rate_of(row)), decay = T(row.scalars[0]), mu = T(row.scalars[1]);
  const bool nesterov = row.scalars[2] != 0;
  const Matrix<T> operands[] = {range<T>(row, 2), range<T>(row, 3), range<T>(row, 4), copy};
  elementwise_flat<3, 7, 14>(operands, block, [&](T(&v)[4]) {
    const T step = lr * (v[0] + decay * v[1]);
    v[2] = mu * v[2] - step;
    v[1] += nesterov ? mu * v[2] - step : v[2];
    v[3] = v[1];
  });
}

// Scalars weight_decay, momentum; slot velocity, an average.
template <typename T>
__device__ __forceinline__ void update_momentum_average(const Row& row, Block block, Matrix<T> copy) {
  if (flagged(vector<long long>(row, 0))) return;
  const T lr = T(rate_of(row)), decay = T(row.scalars[0]), mu = T(row.scalars[1]), rest = T(1.0 - row.scalars[1]);
  const Matrix<T> operands[] = {range<T>(row, 2), range<T>(row, 3), range<T>(row, 4), copy};
  elementwise_flat<3, 7, 14>(operands, block, [&](T(&v)[4]) {
    v[2] = mu * v[2] + rest * (v[0] + decay * v[1]);
    v[1] -= lr * v[2];
    v[3] = v[1];
  });
}

// Scalars weight_decay, lr_decay, eps; slot accumulator.
template <typename T>
__device__ __forceinline__ void update_adagrad(const Row& row, Block block, Matrix<T> copy) {
  const long long* control = vector<long long>(row, 0);
  if (flagged(control)) return;
  const T lr = T(rate_of(row) / (1.0 + (double)control[UPDATE] * row.scalars[1]));
  const T decay = T(row.scalars[0]), eps = T(row.scalars[2]);
  const Matrix<T> operands[] = {range<T>(row, 2), range<T>(row, 3), range<T>(row, 4), copy};
  elementwise_flat<3, 7, 14>(operands, block, [&](T(&v)[4]) {
    const T g = v[0] + decay * v[1];
    v[2] += g * g;
    v[1] -= lr * (g / (root(v[2]) + eps));
    v[3] = v[1];
  });
}

// Scalars weight_decay, alpha, eps, momentum; slots square, average?, velocity?.
template <typename T>
__device__ __forceinline__ void update_rmsprop(const Row& row, Block block, Matrix<T> copy) {
  if (flagged(vector<long long>(row, 0))) return;
  const T lr = T(rate_of(row)), decay = T(row.scalars[0]), alpha = T(row.scalars[1]), rest = T(1.0 - row.scalars[1]);
  const T eps = T(row.scalars[2]), mu = T(row.scalars[3]);
  const Matrix<T> operands[] = {range<T>(row, 2), range<T>(row, 3), range<T>(row, 4), range<T>(row, 5),
                                range<T>(row, 6), copy};
  const bool centred = (bool)operands[3];
  elementwise_flat<3, 31, 62>(operands, block, [&](T(&v)[6]) {
    const T g = v[0] + decay * v[1];
    v[2] = alpha * v[2] + rest * g * g;
    T spread = v[2];
    if (centred) {
      v[3] += rest * (g - v[3]);
      spread = larger(spread - v[3] * v[3], T(0));  // rounding can take the difference below 0
    }
    v[4] = mu * v[4] + g / (root(spread) + eps);  // an absent velocity is 0
    v[1] -= lr * v[4];
    v[5] = v[1];
  });
}

// Scalars weight_decay, beta1, beta2, eps, decoupled; slots first, second.
template <typename T>
__device__ __forceinline__ void update_adam(const Row& row, Block block, Matrix<T> copy) {
  const long long* control = vector<long long>(row, 0);
  if (flagged(control)) return;
  const double rate = rate_of(row), beta1 = row.scalars[1], beta2 = row.scalars[2];
  const bool decoupled = row.scalars[4] != 0;
  double* corrections = shared_scratch<double>();
  __syncthreads();  // what lay there may still be read
  if (threadIdx.x == 0) {  // one thread: where double precision is slow, all of them would take microseconds
    const double update = (double)(control[UPDATE] + 1);
    corrections[0] = rate / (1.0 - pow(beta1, update));
    corrections[1] = 1.0 / sqrt(1.0 - pow(beta2, update));
  }
  __syncthreads();
  const T scale = T(corrections[0]), correction = T(corrections[1]);
  const T kept = decoupled ? T(1.0 - rate * row.scalars[0]) : T(1), decay = decoupled ? T(0) : T(row.scalars[0]);
  const T square_kept = T(beta2), rest1 = T(1.0 - beta1), rest2 = T(1.0 - beta2), eps = T(row.scalars[3]);
  const Matrix<T> operands[] = {range<T>(row, 2), range<T>(row, 3), range<T>(row, 4), range<T>(row, 5), copy};
  elementwise_flat<4, 15, 30>(operands, block, [&](T(&v)[5]) {
    const T g = v[0] + decay * v[1];
    v[2] += rest1 * (g - v[2]);
    v[3] = square_kept * v[3] + rest2 * g * g;
    v[1] = kept * v[1] - scale * (v[2] / (root(v[3]) * correction + eps));
    v[4] = v[1];
  });
}

#define UPDATE_RULE(name, operands)                                  \
  template <typename T>                                              \
  __device__ void name(const Row& row, Block block) {                \
    update_##name<T>(row, block, Matrix<T>{});                       \
    advance_at_last(row, block);                                     \
  }                                                                  \
  template <typename T>                                              \
  __device__ void name##_cast(const Row& row, Block block) {         \
    update_##name<T>(row, block, copy_of<T>(row, operands));         \
    advance_at_last(row, block);                                     \
  }

UPDATE_RULE(sgd, 4)
UPDATE_RULE(momentum, 5)
UPDATE_RULE(momentum_keras, 5)
UPDATE_RULE(momentum_average, 5)
UPDATE_RULE(adagrad, 5)
UPDATE_RULE(rmsprop, 7)
UPDATE_RULE(adam, 6)
#undef UPDATE_RULE
