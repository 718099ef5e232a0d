// Products of small tiles by the tensor cores, which GPUs have from compute capability 8.0 on for bfloat16 and for TF32. A
// warp does one; of each matrix every lane has a few numbers, by its group, lane / 4, and its member, lane % 4.
//
// In bfloat16:
//   a, 16 x 16: row group in words 0 and 2, row group + 8 in words 1 and 3; columns 2 member and the next in words 0 and
//      1, and 8 further on in words 2 and 3; two neighbours in a word, the first in its lower half
//   b, 16 x 8: column group; rows 2 member and the next in word 0, and 8 further on in word 1
//   sums, 16 x 8: row group in 0 and 1, row group + 8 in 2 and 3; columns 2 member and the next
// In TF32, floats whose lower 13 bits are not looked at:
//   a, 16 x 8: row group in 0 and 2, row group + 8 in 1 and 3; column member in 0 and 1, and 4 further on in 2 and 3
//   b, 8 x 8: column group; row member in b0, and 4 further on in b1
//   sums as above
//
// PTX ISA, mma.m16n8k16, mma.m16n8k8 and movmatrix. On the CPU each lane reads what the others have.

#if (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800) || defined(GPUMLP_WITHOUT_TENSOR_CORES)  // the latter in tests
[[maybe_unused]] constexpr bool HAS_TENSOR_CORES = false;
#else
[[maybe_unused]] constexpr bool HAS_TENSOR_CORES = true;
#endif

// sums += a b; every lane of the warp must come.
__device__ __forceinline__ void multiply_tiles(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if defined(__CUDA_ARCH__)
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
#else
  struct Words {
    unsigned a[4], b[2];
  };
  const Words* lanes = fibers::shared_out(Words{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int lane = threadIdx.x % WARP, group = lane / 4, member = lane % 4;
  for (int k = 0; k < 8; k++)  // pairs of the inner side
    for (int down = 0; down < 2; down++)
      for (int across = 0; across < 2; across++) {
        const unsigned x = lanes[group * 4 + k % 4].a[k / 4 * 2 + down];
        const unsigned y = lanes[(2 * member + across) * 4 + k % 4].b[k / 4];
        sums[2 * down + across] += from_bfloat16(x & 0xffff) * from_bfloat16(y & 0xffff) +
                                   from_bfloat16(x >> 16) * from_bfloat16(y >> 16);
      }
#endif
}

// The same in TF32.
__device__ __forceinline__ void multiply_tiles(float (&sums)[4], const float (&a)[4], float b0, float b1) {
#if defined(__CUDA_ARCH__)
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
#endif
#else
  struct Numbers {
    float a[4], b[2];
  };
  const auto seen = [](float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); };
  const Numbers* lanes =
      fibers::shared_out(Numbers{{seen(a[0]), seen(a[1]), seen(a[2]), seen(a[3])}, {seen(b0), seen(b1)}});
  const int lane = threadIdx.x % WARP, group = lane / 4, member = lane % 4;
  for (int k = 0; k < 8; k++)
    for (int down = 0; down < 2; down++)
      for (int across = 0; across < 2; across++)
        sums[2 * down + across] += lanes[group * 4 + k % 4].a[k / 4 * 2 + down] *
                                   lanes[(2 * member + across) * 4 + k % 4].b[k / 4];
#endif
}

// A tile of 8 x 8 turned: of row group a lane has columns 2 member and the next, before and after.
__device__ __forceinline__ unsigned turned_tile(unsigned pair) {
#if defined(__CUDA_ARCH__)
  unsigned turned;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
  return turned;
#else
  const int lane = threadIdx.x % WARP, group = lane / 4, member = lane % 4;
  unsigned found = 0;
  for (int k = 0; k < 2; k++) {
    const unsigned from = __shfl_sync(0xffffffffu, pair, (2 * member + k) * 4 + group / 2);
    found |= (group % 2 ? from >> 16 : from & 0xffff) << 16 * k;
  }
  return found;
#endif
}

// The lower halves of two words in one, or the upper ones.
__device__ __forceinline__ unsigned lower_halves(unsigned first, unsigned second) {
  return (first & 0xffff) | second << 16;
}
__device__ __forceinline__ unsigned upper_halves(unsigned first, unsigned second) {
  return first >> 16 | (second & 0xffff0000u);
}
