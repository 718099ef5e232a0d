// Losses: the value of a batch and its gradient in one pass, and `sum_weights` before it where rows have weights, since
// blocks cannot wait for each other. Both have one scratch of doubles: [0] the sum of the weights; [1] a ticket, see
// `comes_last`; [2 + b] what the rows of block b add to the value, for the last block to add up.
//
// Operands of a loss: control, output, target, weight?, ring, grad?; scalars mean, then its own. With `mean` the value
// is sum(w l) / sum(w), without it sum(w l). Of these grad may be bfloat16.

// What the sum is divided by. A batch whose rows all weigh nothing has the value 0 and no gradient, not 0 / 0.
__device__ __forceinline__ double loss_divisor(bool mean, double total) {
  return mean ? (total < 1e-300 ? 1e-300 : total) : 1.0;
}

__device__ __forceinline__ void flag_loss(long long* control, double value) {
  if (control[BAD_STEP] < 0 && !is_finite(value)) control[BAD_STEP] = control[STEP];
}

// ring[SLOT] = (value, sum of weights), then what check_loss does.
__device__ __forceinline__ void put_loss(long long* control, double* ring, double sum, bool mean, double total) {
  double* slot = ring + 2 * control[SLOT];
  slot[0] = sum / loss_divisor(mean, total);
  slot[1] = total;
  flag_loss(control, slot[0]);
}

// The rows of a loss: calls body(i, lane, lanes, columns, scale) -> the row's loss, a part of it in each lane; `scale`
// is what a gradient is multiplied by. Rows of LONG_ROW columns and more go to whole blocks, where a loss knows how:
// long_body(i, next, scale) -> the same, a part in each thread; `next` is the block's next row, which may not exist.
template <typename T, typename Body, typename LongBody>
__device__ __forceinline__ void for_each_loss(const Row& row, Block block, Body body, LongBody long_body) {
  const Index rows = (Index)row.operands[1].rows, columns = (Index)row.operands[1].columns;
  const T* weight = vector<T>(row, 3);
  double* scratch = reinterpret_cast<double*>(row.scratch);
  const double divisor = loss_divisor(row.scalars[0] != 0, weight ? scratch[0] : (double)rows);
  const T even = T(1) / T(divisor);  // a quotient of doubles is long
  double part = 0;
  if (LongBody::LONG && columns >= LONG_ROW) {
    for (Index i = block.index; i < rows; i += block.count) {
      const double w = weight ? (double)weight[i] : 1.0;
      part += w * long_body(i, i + block.count, weight ? T(w / divisor) : even);
    }
  } else {
    for_each_row(rows, columns, block, [&](Index i, int lane, int lanes, Index here) {
      const double w = weight ? (double)weight[i] : 1.0;
      const double loss = row_sum(body(i, lane, lanes, here, weight ? T(w / divisor) : even), lanes);
      if (lane == 0 && here) part += w * loss;
    });
  }
  part = block_total(part);
  if (block.count > 1) {
    if (threadIdx.x == 0) scratch[2 + block.index] = part;
    if (!comes_last(scratch + 1, block.count)) return;
    part = 0;
    for (int b = threadIdx.x; b < block.count; b += blockDim.x) part += of_another_block(scratch + 2 + b);
    part = block_total(part);
  }
  if (threadIdx.x == 0)
    put_loss(vector<long long>(row, 0), vector<double>(row, 4), part, row.scalars[0] != 0,
             weight ? scratch[0] : (double)row.operands[1].rows);
}

struct NoLongRows {
  static constexpr bool LONG = false;
  template <typename T>
  __device__ double operator()(Index, Index, T) const {
    return 0;
  }
};
template <typename T, typename Body>
__device__ __forceinline__ void for_each_loss(const Row& row, Block block, Body body) {
  for_each_loss<T>(row, block, body, NoLongRows());
}

// scratch[0] = the sum of the weights: operand weight.
template <typename T>
__device__ void sum_weights(const Row& row, Block block) {
  const T* weight = vector<T>(row, 0);
  double sum = 0;
  if (block.index == 0)
    for (Index i = threadIdx.x; i < row.operands[0].columns; i += blockDim.x) sum += (double)weight[i];
  sum = block_total(sum);
  if (block.index == 0 && threadIdx.x == 0) *reinterpret_cast<double*>(row.scratch) = sum;
}

// BAD_STEP = STEP if the loss is not finite and no step was before: operands ring, control.
template <typename T>
__device__ void check_loss(const Row& row, Block block) {
  long long* control = vector<long long>(row, 1);
  if (block.index == 0 && threadIdx.x == 0) flag_loss(control, vector<double>(row, 0)[2 * control[SLOT]]);
}

// --- means over the outputs of a function of (output, target) -------------------------------------------------------

template <typename T>
struct SquaredError {
  __device__ explicit SquaredError(const double*) {}
  __device__ T loss(T x, T t) const { return (x - t) * (x - t); }
  __device__ T slope(T x, T t) const { return T(2) * (x - t); }
};

template <typename T>
struct AbsoluteError {
  __device__ explicit AbsoluteError(const double*) {}
  __device__ T loss(T x, T t) const { return size_of(x - t); }
  __device__ T slope(T x, T t) const {
    const T e = x - t;
    return e > T(0) ? T(1) : (e < T(0) ? T(-1) : e);
  }
};

template <typename T>
struct Huber {
  T delta;
  __device__ explicit Huber(const double* scalars) : delta(T(scalars[1])) {}
  __device__ T loss(T x, T t) const {
    const T e = size_of(x - t);
    return e <= delta ? T(0.5) * e * e : delta * (e - T(0.5) * delta);
  }
  __device__ T slope(T x, T t) const {
    const T e = x - t;
    return e > delta ? delta : (e < -delta ? -delta : e);
  }
};

template <typename T>
struct LogitsCrossEntropy {
  T bound;  // -log(clip), infinite where nothing is clipped
  __device__ explicit LogitsCrossEntropy(const double* scalars) : bound(T(scalars[1])) {}
  __device__ T loss(T x, T t) const {
    return t * smaller(log_one_plus_exp(-x), bound) + (T(1) - t) * smaller(log_one_plus_exp(x), bound);
  }
  __device__ T slope(T x, T t) const { return logistic(x) - t; }
};

// Both sides are clipped apart: in float 1 - clip would round to 1.
template <typename T>
struct ProbabilityCrossEntropy {
  T clip;
  __device__ explicit ProbabilityCrossEntropy(const double* scalars) : clip(T(scalars[1])) {}
  __device__ T loss(T x, T t) const {
    return -t * log_of(larger(x, clip)) - (T(1) - t) * log_of(larger(T(1) - x, clip));
  }
  __device__ T slope(T x, T t) const { return (T(1) - t) / larger(T(1) - x, clip) - t / larger(x, clip); }
};

template <typename T, typename F>
__device__ void per_output_loss(const Row& row, Block block, F f) {
  const Matrix<T> output = matrix<T>(row, 1), target = matrix<T>(row, 2), grad = matrix<T>(row, 5);
  const double inverse = 1.0 / output.columns;
  const T share = T(inverse);
  for_each_loss<T>(row, block, [&](Index i, int lane, int lanes, Index columns, T scale) {
    double sum = 0;
    for (Index j = lane; j < columns; j += lanes) {
      const T x = *output.at(i, j), t = *target.at(i, j);
      sum += (double)f.loss(x, t);
      if (grad) set_element(grad, i, j, f.slope(x, t) * share * scale);
    }
    return sum * inverse;
  });
}

#define PER_OUTPUT_LOSS(name, Functor)                       \
  template <typename T>                                      \
  __device__ void name(const Row& row, Block block) {        \
    per_output_loss<T>(row, block, Functor<T>(row.scalars)); \
  }
PER_OUTPUT_LOSS(mse, SquaredError)
PER_OUTPUT_LOSS(mae, AbsoluteError)
PER_OUTPUT_LOSS(huber, Huber)
PER_OUTPUT_LOSS(binary_cross_entropy_logits, LogitsCrossEntropy)
PER_OUTPUT_LOSS(binary_cross_entropy, ProbabilityCrossEntropy)
#undef PER_OUTPUT_LOSS
