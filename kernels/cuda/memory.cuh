// Loads and stores: several neighbours at once, in float, double or bfloat16.

// --- bfloat16 ----------------------------------------------------------------------------------------------------

// The upper half of a float, rounded to nearest, ties to even. NaN stays NaN: rounding could carry into its sign.
__device__ __forceinline__ unsigned short bfloat16(float x) {
  const unsigned bits = __float_as_uint(x);
  if (x != x) return (unsigned short)(bits >> 16 | 0x40);
  return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A double goes through float, rounded to odd, so that it is not rounded to a tie first: the last bit of an inexact
// float towards 0 is set.
__device__ __forceinline__ unsigned short bfloat16(double x) {
  float near = (float)x;
  if ((double)near != x && x == x) {
    unsigned bits = __float_as_uint(near);
    if (fabs((double)near) > fabs(x)) bits -= 1;
    near = __uint_as_float(bits | 1);
  }
  return bfloat16(near);
}

// Two of them in a word; GPUs from compute capability 8.0 on have an instruction for it.
__device__ __forceinline__ unsigned two_bfloat16(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#else
  return bfloat16(low) | (unsigned)bfloat16(high) << 16;
#endif
}
__device__ __forceinline__ unsigned two_bfloat16(double low, double high) {
  return bfloat16(low) | (unsigned)bfloat16(high) << 16;
}

__device__ __forceinline__ float from_bfloat16(unsigned half) { return __uint_as_float(half << 16); }

// --- shared memory -----------------------------------------------------------------------------------------------

// Whether an address is one of shared memory.
__device__ __forceinline__ bool is_shared(const void* p) { return __isShared(p); }

// An address that is, so that the compiler knows it: such accesses take 32-bit addresses, and no descriptor.
template <typename T>
__device__ __forceinline__ const T* in_shared(const T* p) {
  return static_cast<const T*>(__cvta_shared_to_generic(__cvta_generic_to_shared(p)));
}

// Where floats lie; NEAR: in shared memory, as a number that is made an address where it is read. Of an address that is
// carried through a loop a compiler forgets what memory it is of.
template <bool NEAR>
struct Place {
#if defined(__CUDA_ARCH__)
  typedef unsigned Shared;
#else
  typedef size_t Shared;
#endif
  const float* anywhere;
  Shared shared;

  __device__ __forceinline__ explicit Place(const float* p = nullptr)
      : anywhere(p), shared(NEAR ? (Shared)__cvta_generic_to_shared(p) : 0) {}
  __device__ __forceinline__ const float* operator+(int n) const {
    if constexpr (NEAR)
      return static_cast<const float*>(__cvta_shared_to_generic(shared + n * (int)sizeof(float)));
    else
      return anywhere + n;
  }
  __device__ __forceinline__ void operator+=(int n) {
    if constexpr (NEAR)
      shared += n * (int)sizeof(float);
    else
      anywhere += n;
  }
};

// A row there.
__device__ __forceinline__ const Row& row_at(size_t place) {
  return *static_cast<const Row*>(__cvta_shared_to_generic(place));
}

// Bring what lies there into the second cache, for a load later on; for shared memory nothing is done.
__device__ __forceinline__ void bring_near(const void* p) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.L2 [%0];" ::"l"(p));
#endif
}

// --- loads and stores --------------------------------------------------------------------------------------------

// WIDTH neighbours at once, where that is a multiple of 4 in accesses of 16 bytes; else two, or one.
template <int WIDTH>
__device__ __forceinline__ void load(float (&v)[WIDTH], const float* p) {
  if constexpr (WIDTH % 4 == 0) {
#pragma unroll
    for (int w = 0; w < WIDTH; w += 4) {
      const float4 q = *reinterpret_cast<const float4*>(p + w);
      v[w] = q.x, v[w + 1] = q.y, v[w + 2] = q.z, v[w + 3] = q.w;
    }
  } else if constexpr (WIDTH == 2) {
    const float2 q = *reinterpret_cast<const float2*>(p);
    v[0] = q.x, v[1] = q.y;
  } else {
    static_assert(WIDTH == 1, "fours, or one");
    v[0] = *p;
  }
}
template <int WIDTH>
__device__ __forceinline__ void load(double (&v)[WIDTH], const double* p) {
  if constexpr (WIDTH % 4 == 0) {
#pragma unroll
    for (int w = 0; w < WIDTH; w += 2) {
      const double2 q = *reinterpret_cast<const double2*>(p + w);
      v[w] = q.x, v[w + 1] = q.y;
    }
  } else {
    static_assert(WIDTH == 1, "fours, or one");
    v[0] = *p;
  }
}
template <int WIDTH>
__device__ __forceinline__ void store(float* p, const float (&v)[WIDTH]) {
  if constexpr (WIDTH % 4 == 0) {
#pragma unroll
    for (int w = 0; w < WIDTH; w += 4)
      *reinterpret_cast<float4*>(p + w) = make_float4(v[w], v[w + 1], v[w + 2], v[w + 3]);
  } else if constexpr (WIDTH == 2) {
    *reinterpret_cast<float2*>(p) = make_float2(v[0], v[1]);
  } else {
    static_assert(WIDTH == 1, "fours, or one");
    *p = v[0];
  }
}
template <int WIDTH>
__device__ __forceinline__ void store(double* p, const double (&v)[WIDTH]) {
  if constexpr (WIDTH % 4 == 0) {
#pragma unroll
    for (int w = 0; w < WIDTH; w += 2) *reinterpret_cast<double2*>(p + w) = make_double2(v[w], v[w + 1]);
  } else {
    static_assert(WIDTH == 1, "fours, or one");
    *p = v[0];
  }
}

// The same of bfloat16, where WIDTH is a multiple of 4 in accesses of 2 bytes an element. What is loaded are words as they
// lie in memory, of two elements each, in the first half of v.
template <int WIDTH>
__device__ __forceinline__ void load_halves(float (&v)[WIDTH], const unsigned short* p) {
  if constexpr (WIDTH % 8 == 0) {
#pragma unroll
    for (int w = 0; w < WIDTH / 2; w += 4) {
      const uint4 q = *reinterpret_cast<const uint4*>(p + 2 * w);
      v[w] = __uint_as_float(q.x), v[w + 1] = __uint_as_float(q.y);
      v[w + 2] = __uint_as_float(q.z), v[w + 3] = __uint_as_float(q.w);
    }
  } else if constexpr (WIDTH % 4 == 0) {
    const uint2 q = *reinterpret_cast<const uint2*>(p);
    v[0] = __uint_as_float(q.x), v[1] = __uint_as_float(q.y);
  } else {
    v[0] = __uint_as_float(*p);
  }
}
template <int WIDTH>
__device__ __forceinline__ void unpack_halves(float (&v)[WIDTH]) {
  if constexpr (WIDTH % 4 == 0) {
#pragma unroll
    for (int w = WIDTH / 2 - 1; w >= 0; w--) {
      const unsigned both = __float_as_uint(v[w]);
      v[2 * w + 1] = __uint_as_float(both & 0xffff0000u), v[2 * w] = from_bfloat16(both & 0xffff);
    }
  } else {
    v[0] = from_bfloat16(__float_as_uint(v[0]));
  }
}
template <int WIDTH, typename T>
__device__ __forceinline__ void store_halves(unsigned short* p, const T (&v)[WIDTH]) {
  if constexpr (WIDTH % 4 == 0) {
    unsigned words[WIDTH / 2];
#pragma unroll
    for (int w = 0; w < WIDTH / 2; w++) words[w] = two_bfloat16(v[2 * w], v[2 * w + 1]);
    if constexpr (WIDTH % 8 == 0) {
#pragma unroll
      for (int w = 0; w < WIDTH / 2; w += 4)
        *reinterpret_cast<uint4*>(p + 2 * w) = make_uint4(words[w], words[w + 1], words[w + 2], words[w + 3]);
    } else {
      *reinterpret_cast<uint2*>(p) = make_uint2(words[0], words[1]);
    }
  } else {
    *p = bfloat16(v[0]);
  }
}

// WIDTH neighbours of row i from column j on, whatever the matrix is stored in: first as they lie in memory, then as
// numbers. In one step each load would be waited for, to be converted, before the next one begins.
template <int WIDTH, typename T>
__device__ __forceinline__ void load_words(T (&v)[WIDTH], const Matrix<T>& m, Index i, Index j) {
  if constexpr (MIXED) {
    if (m.half) {
      load_halves<WIDTH>(v, reinterpret_cast<const unsigned short*>(m.data) + (i * m.stride + j));
      return;
    }
  }
  load<WIDTH>(v, m.at(i, j));
}
template <int WIDTH, typename T>
__device__ __forceinline__ void as_numbers(T (&v)[WIDTH], const Matrix<T>& m) {
  if constexpr (MIXED) {
    if (m.half) unpack_halves<WIDTH>(v);
  }
}
template <int WIDTH, typename T>
__device__ __forceinline__ void load(T (&v)[WIDTH], const Matrix<T>& m, Index i, Index j) {
  load_words<WIDTH>(v, m, i, j);
  as_numbers<WIDTH>(v, m);
}
template <int WIDTH, typename T>
__device__ __forceinline__ void store(const Matrix<T>& m, Index i, Index j, const T (&v)[WIDTH]) {
  if constexpr (MIXED) {
    if (m.half) {
      store_halves<WIDTH>(reinterpret_cast<unsigned short*>(m.data) + (i * m.stride + j), v);
      return;
    }
  }
  store<WIDTH>(m.at(i, j), v);
}
// One of them, in the same two steps, or at once.
template <typename T>
__device__ __forceinline__ T word(const Matrix<T>& m, Index i, Index j) {
  T v[1];
  load_words<1>(v, m, i, j);
  return v[0];
}
template <typename T>
__device__ __forceinline__ T number(T word, const Matrix<T>& m) {
  T v[1] = {word};
  as_numbers<1>(v, m);
  return v[0];
}
template <typename T>
__device__ __forceinline__ T element(const Matrix<T>& m, Index i, Index j) {
  return number(word(m, i, j), m);
}
template <typename T>
__device__ __forceinline__ void set_element(const Matrix<T>& m, Index i, Index j, T value) {
  const T v[1] = {value};
  store<1>(m, i, j, v);
}

// Whether packs can be accessed at once at the start of every row; or at the start alone, where it is one long row.
template <int WIDTH = PACK, typename T>
__device__ __forceinline__ bool aligned(const Matrix<T>& m, bool flat = false) {
  const int size = m.half ? 2 : (int)sizeof(T);
  const int step = m.rows > 1 && !flat ? (int)m.stride * size : 0;  // its lowest bits are asked for
  return (((int)reinterpret_cast<long long>(m.data) | step) & (WIDTH * size < 16 ? WIDTH * size - 1 : 15)) == 0;
}

// --- parts of rows ------------------------------------------------------------------------------------------------

// C neighbours of row i from column j on; 0 beyond the last column. `whole`: all are there, and can be taken at once.
template <int C, typename T>
__device__ __forceinline__ void load_part(T (&v)[C], const Matrix<T>& m, Index i, Index j, bool whole) {
  if constexpr (C % 4 == 0) {
    if (whole) {
      load<C>(v, m, i, j);
      return;
    }
  }
#pragma unroll
  for (int c = 0; c < C; c++) v[c] = j + c < m.columns ? element(m, i, j + c) : T(0);
}

// The same of several rows, `apart` from each other, of which those from `rows` on are 0. `all`: every row and column is
// there, and can be taken at once, which is asked once and not for each: the rows are under way together.
template <int ROWS, int C, typename T>
__device__ __forceinline__ void load_rows(T (&v)[ROWS][C], const Matrix<T>& m, int i, int apart, int rows, Index j,
                                          bool all) {
  if constexpr (C % 4 == 0) {
    if (all) {
#pragma unroll
      for (int r = 0; r < ROWS; r++) load_words<C>(v[r], m, i + r * apart, j);
#pragma unroll
      for (int r = 0; r < ROWS; r++) as_numbers<C>(v[r], m);
      return;
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int c = 0; c < C; c++) v[r][c] = T(0);
    if (i + r * apart < rows) load_part<C>(v[r], m, i + r * apart, j, false);
  }
}
template <int C, typename T>
__device__ __forceinline__ void store_part(const Matrix<T>& m, Index i, Index j, const T (&v)[C], bool whole) {
  if constexpr (C % 4 == 0) {
    if (whole) {
      store<C>(m, i, j, v);
      return;
    }
  }
#pragma unroll
  for (int c = 0; c < C; c++)
    if (j + c < m.columns) set_element(m, i, j + c, v[c]);
}

template <int ROWS, int C, typename T>
__device__ __forceinline__ void store_rows(const Matrix<T>& m, int i, int apart, int rows, Index j,
                                           const T (&v)[ROWS][C], bool all) {
#pragma unroll
  for (int r = 0; r < ROWS; r++)
    if (all || i + r * apart < rows) store_part<C>(m, i + r * apart, j, v[r], all);
}
