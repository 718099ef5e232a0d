// Operations one behind the other in one block, for chains and for the resident kernel.

__device__ inline void walk(const Row* rows, int count) {
  for (int i = 0; i < count; ++i) {
    perform(rows[i], Block{0, 1});
    __syncthreads();
  }
}
