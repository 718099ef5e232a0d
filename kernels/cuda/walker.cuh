// The resident kernel: one block walks the programs of one network for many steps in a single launch. Weights, activations
// and what else fits lie in shared memory meanwhile; `executors/resident.py` says what goes where. The programs are rows,
// or, in a tailored kernel, functions.

extern "C" __global__ void __launch_bounds__(RESIDENT_THREADS) gpumlp_resident(const Network* networks) {
  GPUMLP_DYNAMIC_SHARED(dynamic);
  char* shared = (char*)dynamic;
  const Network network = networks[blockIdx.x];
  const Stage* stages = (const Stage*)network.stages;
  const int n_stages = (int)network.n_stages;

  Programs programs(network, shared);  // they come first in shared memory
  for (int k = 0; k < n_stages; ++k)
    if (stages[k].flags & COPY_IN)
      copy_bytes(shared + stages[k].offset, (const char*)stages[k].address, stages[k].bytes);
  __syncthreads();
  programs.place(stages, n_stages, shared);

  const long long* control = (const long long*)network.control;
  for (int k = 0; k < n_stages; ++k)
    if (stages[k].address == network.control) control = (const long long*)(shared + stages[k].offset);
  for (long long step = 0; step < network.n_steps && control[BAD_STEP] < 0; ++step) {
    const long long position = control[POSITION];
    if (position == 0) programs.run(0);
    const bool short_batch = position == network.steps - 1 && programs.has(2);
    programs.run(short_batch ? 2 : 1);  // its last row moves the counters on
  }

  for (int k = 0; k < n_stages; ++k)
    if (stages[k].flags & COPY_OUT)
      copy_bytes((char*)stages[k].address, shared + stages[k].offset, stages[k].bytes);
}
