// The programs of a network as rows in shared memory, one program behind the other.

// The place in shared memory of what lies in a staged range, else where it is.
__device__ inline long long redirected(long long address, const Stage* stages, int n_stages, char* shared) {
  for (int k = 0; k < n_stages && address; ++k) {
    const long long inside = address - stages[k].address;
    if (inside >= 0 && inside < stages[k].bytes) return (long long)(shared + stages[k].offset + inside);
  }
  return address;
}

struct Programs {
  Row* rows[PROGRAMS];
  int counts[PROGRAMS];

  // Brings the rows; all threads must have come to a barrier before `place`.
  __device__ Programs(const Network& network, char* shared) {
    Row* next = (Row*)shared;
    for (int p = 0; p < PROGRAMS; ++p) {
      rows[p] = next, counts[p] = (int)network.programs[p].count;
      copy_bytes((char*)next, (const char*)network.programs[p].address, counts[p] * (long long)sizeof(Row));
      next += counts[p];
    }
  }

  // Points rows at what lies in shared memory: their operands, scalars and scratch.
  __device__ void place(const Stage* stages, int n_stages, char* shared) {
    const int count = counts[0] + counts[1] + counts[2];
    for (int i = threadIdx.x; i < count * (MAX_OPERANDS + 1); i += blockDim.x) {
      Row& row = rows[0][i / (MAX_OPERANDS + 1)];
      const int k = i % (MAX_OPERANDS + 1);
      if (k < MAX_OPERANDS) {
        row.operands[k].address = redirected(row.operands[k].address, stages, n_stages, shared);
      } else {
        row.scalars = (const double*)redirected((long long)row.scalars, stages, n_stages, shared);
        row.scratch = (char*)redirected((long long)row.scratch, stages, n_stages, shared);
      }
    }
    __syncthreads();
  }

  __device__ bool has(int p) const { return counts[p] > 0; }
  __device__ void run(int p) const { walk(rows[p], counts[p]); }
};
