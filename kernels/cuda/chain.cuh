// Several operations in one launch: where each has little work, a launch costs more than the work.

extern "C" __global__ void __launch_bounds__(CHAIN_THREADS) gpumlp_chain(const Row* rows, long long count) {
  __shared__ Row near[MAX_CHAIN];
  const long long* from = (const long long*)rows;
  for (int i = threadIdx.x; i < count * (int)(sizeof(Row) / sizeof(long long)); i += blockDim.x)
    ((long long*)near)[i] = from[i];
  __syncthreads();
  walk(near, (int)count);
}
