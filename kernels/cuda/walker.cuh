// The resident kernel: one block walks the linked programs of one network for many steps in a single launch.
// Weights, activations and what else fits lie in shared memory meanwhile; `executors/resident.py` says what goes where.

// A linked program: its rows in global memory.
struct Rows {
  long long address, count;
};

// A range of global memory that lies in shared memory while the kernel runs.
struct Stage {
  long long address, bytes, offset;  // offset: in the shared memory
  long long flags;                   // COPY_IN: is read before it is written; COPY_OUT: is wanted afterwards
};

enum { PROGRAMS = 3 };

// What a block works on. The programs are begin (an epoch), batch, last (the short one; may have no rows).
struct Network {
  Rows programs[PROGRAMS];
  long long control, stages, n_stages, steps, n_steps;
};

__device__ inline void copy_bytes(char* to, const char* from, long long bytes) {  // both aligned to 16 bytes
  const int4* source = (const int4*)from;
  int4* target = (int4*)to;
  for (long long i = threadIdx.x; i < bytes / 16; i += blockDim.x) target[i] = source[i];
  for (long long i = bytes / 16 * 16 + threadIdx.x; i < bytes; i += blockDim.x) to[i] = from[i];
}

// The place in shared memory of what lies in a staged range, else where it is.
__device__ inline long long redirected(long long address, const Stage* stages, int n_stages, char* shared) {
  for (int k = 0; k < n_stages && address; ++k) {
    const long long inside = address - stages[k].address;
    if (inside >= 0 && inside < stages[k].bytes) return (long long)(shared + stages[k].offset + inside);
  }
  return address;
}

// Point rows at what lies in shared memory: their operands, scalars and scratch.
__device__ inline void redirect(Row* rows, int count, const Stage* stages, int n_stages, char* shared) {
  for (int i = threadIdx.x; i < count * (MAX_OPERANDS + 1); i += blockDim.x) {
    Row& row = rows[i / (MAX_OPERANDS + 1)];
    const int k = i % (MAX_OPERANDS + 1);
    if (k < MAX_OPERANDS) {
      row.operands[k].address = redirected(row.operands[k].address, stages, n_stages, shared);
    } else {
      row.scalars = (const double*)redirected((long long)row.scalars, stages, n_stages, shared);
      row.scratch = (char*)redirected((long long)row.scratch, stages, n_stages, shared);
    }
  }
}

extern "C" __global__ void __launch_bounds__(RESIDENT_THREADS) gpumlp_resident(const Network* networks) {
  GPUMLP_DYNAMIC_SHARED(dynamic);
  char* shared = (char*)dynamic;
  const Network network = networks[blockIdx.x];
  const Stage* stages = (const Stage*)network.stages;
  const int n_stages = (int)network.n_stages;

  // the programs come first in shared memory, one behind the other
  Row* programs[PROGRAMS];
  Row* next = (Row*)shared;
  for (int p = 0; p < PROGRAMS; ++p) {
    programs[p] = next;
    next += network.programs[p].count;
    const long long bytes = network.programs[p].count * (long long)sizeof(Row);
    copy_bytes((char*)programs[p], (const char*)network.programs[p].address, bytes);
  }
  for (int k = 0; k < n_stages; ++k)
    if (stages[k].flags & COPY_IN)
      copy_bytes(shared + stages[k].offset, (const char*)stages[k].address, stages[k].bytes);
  __syncthreads();
  redirect(programs[0], (int)(next - programs[0]), stages, n_stages, shared);
  __syncthreads();

  const long long* control = (const long long*)network.control;
  for (int k = 0; k < n_stages; ++k)
    if (stages[k].address == network.control) control = (const long long*)(shared + stages[k].offset);
  for (long long step = 0; step < network.n_steps && control[BAD_STEP] < 0; ++step) {
    const long long position = control[POSITION];
    if (position == 0) walk(programs[0], (int)network.programs[0].count);
    const bool short_batch = position == network.steps - 1 && network.programs[2].count;
    const int p = short_batch ? 2 : 1;
    walk(programs[p], (int)network.programs[p].count);  // its last row moves the counters on
  }

  for (int k = 0; k < n_stages; ++k)
    if (stages[k].flags & COPY_OUT)
      copy_bytes((char*)stages[k].address, shared + stages[k].offset, stages[k].bytes);
}
