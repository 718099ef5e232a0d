// What all operations build on: rows of the program, operands, numbers. Each operation is called by all threads of every
// block that shares it; a caller puts a barrier between one operation and the next.

struct Operand {
  long long address, rows, columns, stride;  // stride: elements from row to row; a vector is one row; address 0: absent
};

struct Row {  // kernels/layout.py; 36 words
  long long op, flags;
  const double* scalars;
  char* scratch;
  Operand operands[MAX_OPERANDS];
};

struct Block {
  int index, count;  // which block of how many share this row
};

#ifndef GPUMLP_DYNAMIC_SHARED
#define GPUMLP_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

// One piece of shared memory for all operations: the resident kernel holds many, and theirs would add up. It is not in
// a template, of which each type would have its own.
static __device__ double* scratch_doubles() {
  __align__(16) __shared__ double scratch[SCRATCH_BYTES / sizeof(double)];
  return scratch;
}

template <typename T>
__device__ __forceinline__ T* shared_scratch() {
  return reinterpret_cast<T*>(scratch_doubles());
}

// --- operands ----------------------------------------------------------------------------------------------------

template <typename T>
struct Matrix {
  T* data;  // null where the operand is absent
  Index rows, columns, stride;
  bool half = false;  // its elements are bfloat16: `load` and `store` must be taken, since `at` is of T

  __device__ __forceinline__ T* at(Index i, Index j) const { return data + (i * stride + j); }
  __device__ __forceinline__ explicit operator bool() const { return data != nullptr; }
};

// Where some operands are bfloat16, bit k of the row's flags says that operand k is.
template <typename T>
__device__ __forceinline__ Matrix<T> matrix(const Row& row, int k) {
  const Operand& o = row.operands[k];
  return {reinterpret_cast<T*>(o.address), Index(o.rows), Index(o.columns), Index(o.stride),
          MIXED && (row.flags >> k & 1)};
}

// Of an operand that is never bfloat16: nothing asks for its flag.
template <typename T>
__device__ __forceinline__ Matrix<T> float_matrix(const Row& row, int k) {
  Matrix<T> m = matrix<T>(row, k);
  m.half = false;
  return m;
}

// A vector as a matrix of which every row is that vector.
template <typename T>
__device__ __forceinline__ Matrix<T> on_every_row(const Row& row, int k, Index rows) {
  const Operand& o = row.operands[k];
  return {reinterpret_cast<T*>(o.address), rows, Index(o.columns), 0};
}

template <typename T>
__device__ __forceinline__ T* vector(const Row& row, int k) {
  return reinterpret_cast<T*>(row.operands[k].address);
}

// --- numbers -----------------------------------------------------------------------------------------------------

// The library has a name for each type; these have one for both, and none that an operation has.
__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float expm1_of(float x) { return expm1f(x); }
__device__ __forceinline__ double expm1_of(double x) { return expm1(x); }
__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return log(x); }
__device__ __forceinline__ float log1p_of(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_of(double x) { return log1p(x); }
__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return ::tanh(x); }
__device__ __forceinline__ float erf_of(float x) { return erff(x); }
__device__ __forceinline__ double erf_of(double x) { return erf(x); }
__device__ __forceinline__ float root(float x) { return sqrtf(x); }
__device__ __forceinline__ double root(double x) { return sqrt(x); }
__device__ __forceinline__ float size_of(float x) { return fabsf(x); }
__device__ __forceinline__ double size_of(double x) { return fabs(x); }

// A number that is whole, not negative and below 2^51: by its bits, which a compiler makes of a constant; a conversion
// it does not.
__device__ __forceinline__ long long whole_number(double x) {
  return __double_as_longlong(x + 4503599627370496.0) & 0xfffffffffffffll;  // 2^52
}

// c + a b in one instruction, rounded once. The text says where: a compiler that chose by itself could choose otherwise
// in a tailored kernel. The CPU of a test may not have it.
#if defined(__CUDA_ARCH__)
__device__ __forceinline__ float add_product(float c, float a, float b) { return fmaf(a, b, c); }
__device__ __forceinline__ double add_product(double c, double a, double b) { return fma(a, b, c); }
#else
template <typename T>
__device__ __forceinline__ T add_product(T c, T a, T b) {
  return c + a * b;
}
#endif

// 2^x and 1 / x in one instruction each, to 2^-22 of themselves; 0 for a result below 2^-126, and for its inverse.
#if defined(__CUDA_ARCH__)
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#else
__device__ __forceinline__ float power_of_two(float x) { return exp2f(x); }
__device__ __forceinline__ float reciprocal(float x) { return 1.0f / x; }
#endif

// exp of a number that is not above 0 in two instructions, to 2^-22 of 1: of itself to 2^-21 at -10, to 2^-18 at -85.
__device__ __forceinline__ float exp_below(float x) { return power_of_two(x * 1.442695041f); }  // 1 / ln 2
__device__ __forceinline__ double exp_below(double x) { return exp(x); }

// a / b for b within 2^126 of 1, to two units in the last place and without the branch of an exact quotient.
__device__ __forceinline__ float quotient(float a, float b) { return __fdividef(a, b); }
__device__ __forceinline__ double quotient(double a, double b) { return a / b; }

#define INFINITE __longlong_as_double(0x7ff0000000000000ll)

// NaN wins: fmax and fmin lose it.
template <typename T>
__device__ __forceinline__ T larger(T a, T b) {
  return a >= b || a != a ? a : b;
}
template <typename T>
__device__ __forceinline__ T smaller(T a, T b) {
  return a <= b || a != a ? a : b;
}

// The largest of two; a number where one of them is NaN.
__device__ __forceinline__ float largest_number(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double largest_number(double a, double b) { return fmax(a, b); }

// Neither NaN nor infinite: such a number times 0 is NaN.
template <typename T>
__device__ __forceinline__ bool is_finite(T x) {
  return x * T(0) == T(0);
}

// Of an operation that may write gradients: the control block, where it is to flag one that is not finite; else null.
__device__ __forceinline__ long long* control_of(const Row& row) { return reinterpret_cast<long long*>(row.scratch); }

// BAD_STEP = STEP where numbers times 0 were added up, and one of them was not finite. All threads that see one write the
// same. A `control` that is null is that of numbers that no one asks about.
template <typename T>
__device__ __forceinline__ void flag_unless_finite(T zero, long long* control) {
  if (control && zero != zero && control[BAD_STEP] < 0) control[BAD_STEP] = control[STEP];
}
