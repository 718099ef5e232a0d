// What a block of the resident kernel works on, and how it comes into shared memory.

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

// A network. The programs are begin (an epoch), batch, last (the short one; may have no rows). Pieces are where its
// memory begins, piece by piece, for a tailored kernel.
struct Network {
  Rows programs[PROGRAMS];
  long long control, stages, n_stages, steps, pieces, n_steps;
};

__device__ inline void copy_bytes(char* to, const char* from, long long bytes) {  // both aligned to 16 bytes
  const int4* source = (const int4*)from;
  int4* target = (int4*)to;
  for (long long i = threadIdx.x; i < bytes / 16; i += blockDim.x) target[i] = source[i];
  for (long long i = bytes / 16 * 16 + threadIdx.x; i < bytes; i += blockDim.x) to[i] = from[i];
}
