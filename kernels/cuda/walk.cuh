// Operations one behind the other in one block, for chains and for the resident kernel.

// It stands there once, and so do its calls: a block waits for instructions that it has not met before.
__device__ __noinline__ void walk(const Row* rows, int count) {
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    perform(__cvta_generic_to_shared(rows + i));
    __syncthreads();
  }
}
