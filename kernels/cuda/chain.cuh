// Several operations in one launch: where each has little work, a launch costs more than the work. Rows and scalars are
// brought near at once; each operation would wait for its own.

extern "C" __global__ void __launch_bounds__(CHAIN_THREADS) gpumlp_chain(const Row* rows, long long count) {
  __shared__ Row near[MAX_CHAIN];
  __shared__ double scalars[MAX_CHAIN * MAX_SCALARS];
  const long long* from = (const long long*)rows;
  for (int i = threadIdx.x; i < count * (int)(sizeof(Row) / sizeof(long long)); i += blockDim.x)
    ((long long*)near)[i] = from[i];
  for (int i = threadIdx.x; i < count * MAX_SCALARS; i += blockDim.x)
    scalars[i] = rows[i / MAX_SCALARS].scalars[i % MAX_SCALARS];
  __syncthreads();
  if (threadIdx.x < count) near[threadIdx.x].scalars = scalars + threadIdx.x * MAX_SCALARS;
  __syncthreads();
  walk(near, (int)count);
}
