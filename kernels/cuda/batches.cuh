// Which rows make up a batch; random numbers from counters, as kernels/philox.py has them; the counters.

struct Words {
  unsigned lane[4];
};

// Philox-4x32-10 (Salmon et al. 2011).
__device__ __forceinline__ Words philox(unsigned c0, unsigned c1, unsigned c2, unsigned c3, unsigned long long seed) {
  unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const unsigned long long p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
    c0 = (unsigned)(p1 >> 32) ^ c1 ^ k0;
    c1 = (unsigned)p1;
    c2 = (unsigned)(p0 >> 32) ^ c3 ^ k1;
    c3 = (unsigned)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

__device__ __forceinline__ unsigned long long shuffle_key(long long i, const long long* control) {
  const Words w = philox((unsigned)i, (unsigned)(i >> 32), (unsigned)control[EPOCH], (unsigned)SHUFFLE << 16,
                         (unsigned long long)control[SEED]);
  return (unsigned long long)w.lane[0] << 32 | w.lane[1];
}

// index = rows in the order of `keys`, which are made here, by one block: a bitonic network (Batcher 1968) of which every
// comparator puts the smaller key first, so that those beyond the last row, which are missing, count as larger than all.
__device__ inline void sort_rows(const long long* control, const long long* rows, long long* index, int n,
                                 unsigned long long* keys) {
  __syncthreads();  // what lay there may still be read
  for (int i = threadIdx.x; i < n; i += blockDim.x) keys[i] = shuffle_key(i, control), index[i] = i;
  for (int size = 2; size < 2 * n; size *= 2)
    for (int apart = size / 2; apart > 0; apart /= 2) {
      __syncthreads();
      for (int pair = threadIdx.x; pair < n; pair += blockDim.x) {
        const int inside = pair & (apart - 1), low = 2 * pair - inside;
        // the second half of a size is sorted upwards too, and so meets the first half the other way round
        const int high = apart == size / 2 ? low - 2 * inside + size - 1 : low + apart;
        if (high >= n) continue;
        const unsigned long long a = keys[low], b = keys[high];
        const long long place = index[low], other = index[high];
        if (a < b || (a == b && place < other)) continue;
        keys[low] = b, keys[high] = a;
        index[low] = other, index[high] = place;
      }
    }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) index[i] = rows[index[i]];
}

constexpr int PLACED_ROWS = 896;  // a key and a place in its bin for each, and 256 bins, in the scratch memory

// The same for few rows, by the upper halves of their keys: these go into bins by their first eight bits, as many as there
// are rows or so, and each is compared with those of its own bin. Where two are equal, which is rare, false is returned to
// all threads, and the order is not to be used. The loops stay loops: a block waits for instructions that it has not met.
__device__ inline bool place_rows(const long long* control, const long long* rows, long long* index, int n) {
  constexpr int BINS = 256, EACH = BINS / WARP;
  unsigned *keys = shared_scratch<unsigned>(), *list = keys + PLACED_ROWS, *ends = list + PLACED_ROWS;
  static_assert((2 * PLACED_ROWS + BINS) * sizeof(unsigned) <= SCRATCH_BYTES, "room for them");
  __syncthreads();  // what lay there may still be read
  for (int b = threadIdx.x; b < BINS; b += blockDim.x) ends[b] = 0;
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const unsigned key = (unsigned)(shuffle_key(i, control) >> 32);
    keys[i] = key;
    atomicAdd(&ends[key >> 24], 1u);
  }
  __syncthreads();
  if (threadIdx.x < WARP) {  // where each bin begins
    unsigned own[EACH], total = 0;
#pragma unroll
    for (int k = 0; k < EACH; k++) own[k] = ends[threadIdx.x * EACH + k], total += own[k];
    unsigned before = total;
#pragma unroll
    for (int apart = 1; apart < WARP; apart *= 2) {
      const unsigned of_lane = __shfl_sync(0xffffffffu, before, max((int)threadIdx.x - apart, 0));
      if ((int)threadIdx.x >= apart) before += of_lane;
    }
    before -= total;
#pragma unroll
    for (int k = 0; k < EACH; k++) ends[threadIdx.x * EACH + k] = before, before += own[k];
  }
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += blockDim.x) list[atomicAdd(&ends[keys[i] >> 24], 1u)] = keys[i];
  __syncthreads();
  bool equal = false;
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const unsigned key = keys[i], bin = key >> 24, start = bin ? ends[bin - 1] : 0;
    int rank = (int)start, same = 0;
#pragma unroll 1
    for (unsigned at = start; at < ends[bin]; at++) rank += list[at] < key, same += list[at] == key;
    equal = equal || same > 1;
    index[rank] = rows[i];
  }
  return !__syncthreads_or(equal);
}

// The order by many blocks: each has an equal range of keys. It makes all keys, counts those below its range and collects
// those within, which it then compares with each other. Keys are uniform; where more fall into a range than there is room
// for, those are compared with all keys.
__device__ inline void place_rows_of_range(const long long* control, const long long* rows, long long* index, int n,
                                           Block block) {
  constexpr int ROOM = (SCRATCH_BYTES - 16) / 12;
  unsigned* counts = shared_scratch<unsigned>();  // of the range, and below it
  unsigned long long* keys = shared_scratch<unsigned long long>() + 2;
  int* places = reinterpret_cast<int*>(keys + ROOM);
  const auto range_of = [&](unsigned long long key) {
    return (int)((unsigned long long)(unsigned)(key >> 32) * (unsigned)block.count >> 32);
  };
  __syncthreads();  // what lay there may still be read
  if (threadIdx.x < 2) counts[threadIdx.x] = 0;
  __syncthreads();
  unsigned below = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const unsigned long long key = shuffle_key(i, control);
    const int range = range_of(key);
    below += range < block.index;
    if (range != block.index) continue;
    const unsigned slot = atomicAdd(&counts[0], 1u);
    if (slot < ROOM) keys[slot] = key, places[slot] = i;
  }
  atomicAdd(&counts[1], below);
  __syncthreads();
  const int here = (int)counts[0], first = (int)counts[1];
  if (here <= ROOM) {
    for (int e = threadIdx.x; e < here; e += blockDim.x) {
      const unsigned long long key = keys[e];
      const int i = places[e];
      int rank = 0;
      for (int other = 0; other < here; other++)
        rank += keys[other] < key || (keys[other] == key && places[other] < i);
      index[first + rank] = rows[i];
    }
    return;
  }
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const unsigned long long key = shuffle_key(i, control);
    if (range_of(key) != block.index) continue;
    int rank = 0;
    for (int j = 0; j < n; j++) {
      const unsigned long long other = shuffle_key(j, control);
      rank += range_of(other) == block.index && (other < key || (other == key && j < i));
    }
    index[first + rank] = rows[i];
  }
}

// index = rows in the order of their keys: operands control, rows, index; one block wants a scratch of a key for each
// row where they are many. Equal keys go by their places, as a stable sort has them.
template <typename T>
__device__ void shuffle(const Row& row, Block block) {
  const long long *control = vector<long long>(row, 0), *rows = vector<long long>(row, 1);
  long long* index = vector<long long>(row, 2);
  const int n = (int)row.operands[1].columns;
  if (block.count == 1 && n <= PLACED_ROWS && place_rows(control, rows, index, n)) return;
  if (block.count == 1 && (n <= SCRATCH_BYTES / 8 || row.scratch))
    sort_rows(control, rows, index, n,
              n <= SCRATCH_BYTES / 8 ? shared_scratch<unsigned long long>()
                                     : reinterpret_cast<unsigned long long*>(row.scratch));
  else
    place_rows_of_range(control, rows, index, n, block);
}

// index = rows: an epoch in the order of the data.
template <typename T>
__device__ void copy_rows(const Row& row, Block block) {
  const long long* rows = vector<long long>(row, 0);
  long long* index = vector<long long>(row, 1);
  for_each_place(1, (Index)row.operands[1].columns, block, [&](Index, Index j) { index[j] = rows[j]; });
}

// out[i] = source[index[START + i]]: operands control, source, index, out.
template <typename T>
__device__ void gather_rows(const Row& row, Block block) {
  const long long* index = vector<long long>(row, 2) + vector<long long>(row, 0)[START];
  const Matrix<T> source = matrix<T>(row, 1), out = matrix<T>(row, 3);
  const Index packs = aligned(source) && aligned(out) ? out.columns / PACK : 0, done = packs * PACK;
  for_each_place(out.rows, packs, block, [&](Index i, Index j) {
    T v[PACK];
    load<PACK>(v, source, (Index)index[i], j * PACK);
    store<PACK>(out, i, j * PACK, v);
  });
  for_each_place(out.rows, out.columns - done, block,
                 [&](Index i, Index j) { set_element(out, i, done + j, element(source, (Index)index[i], done + j)); });
}

template <typename V>
__device__ __forceinline__ void gather_vector(const Row& row, Block block) {
  const long long* index = vector<long long>(row, 2) + vector<long long>(row, 0)[START];
  const V* source = vector<V>(row, 1);
  V* out = vector<V>(row, 3);
  for_each_place(1, (Index)row.operands[3].columns, block, [&](Index, Index i) { out[i] = source[index[i]]; });
}
template <typename T>
__device__ void gather_labels(const Row& row, Block block) {
  gather_vector<long long>(row, block);
}
template <typename T>
__device__ void gather_weights(const Row& row, Block block) {
  gather_vector<T>(row, block);
}

// Calls body(words, i, j, apart, count) for every block of four words: they belong to the columns j, j + apart, ... of
// row i, of which `count` exist. A quarter of a row is one contiguous run, for neighbouring threads too.
template <typename Body>
__device__ __forceinline__ void for_each_word(const Row& row, Block block, int use, Body body) {
  const long long* control = vector<long long>(row, 0);
  const Index rows = (Index)row.operands[1].rows, columns = (Index)row.operands[1].columns, apart = (columns + 3) / 4;
  const unsigned key = (unsigned)use << 16 | (unsigned)row.scalars[1], step = (unsigned)control[STEP];
  const unsigned long long seed = (unsigned long long)control[SEED];
  for_each_place(rows, apart, block, [&](Index i, Index j) {
    const int count = (int)((columns - j + apart - 1) / apart);
    body(philox((unsigned)i, (unsigned)j, step, key, seed), i, j, apart, count < 4 ? count : 4);
  });
}

// y = x / (1 - rate) where kept, else 0: operands control, x, y; scalars rate, layer.
template <typename T>
__device__ void dropout(const Row& row, Block block) {
  const Matrix<T> x = matrix<T>(row, 1), y = matrix<T>(row, 2);
  const unsigned long long threshold = (unsigned long long)(row.scalars[0] * 4294967296.0);
  const T kept = T(1.0 / (1.0 - row.scalars[0]));
  for_each_word(row, block, DROPOUT, [&](const Words& words, Index i, Index j, Index apart, int count) {
#pragma unroll
    for (int u = 0; u < 4; u++)  // a product and not a selection: NaN stays NaN in a dropped place too
      if (u < count)
        set_element(y, i, j + u * apart, element(x, i, j + u * apart) * (words.lane[u] >= threshold ? kept : T(0)));
  });
}

// The same mask on dy.
template <typename T>
__device__ void dropout_grad(const Row& row, Block block) {
  dropout<T>(row, block);
}

// y = x + std N(0, 1), by Box and Muller (1958): operands control, x, y; scalars std, layer.
template <typename T>
__device__ void gaussian_noise(const Row& row, Block block) {
  const Matrix<T> x = matrix<T>(row, 1), y = matrix<T>(row, 2);
  const double std = row.scalars[0], unit = 1.0 / 4294967296.0;
  for_each_word(row, block, NOISE, [&](const Words& words, Index i, Index j, Index apart, int count) {
#pragma unroll
    for (int u = 0; u < 4; u += 2) {
      const double size = sqrt(-2.0 * log(words.lane[u] * unit + unit)), half_turns = 2.0 * (words.lane[u + 1] * unit);
      // in half turns the angle needs no reduction, of which the general form spills registers
      const double normals[2] = {size * cospi(half_turns), size * sinpi(half_turns)};
#pragma unroll
      for (int v = 0; v < 2; v++)
        if (u + v < count)
          set_element(y, i, j + (u + v) * apart, element(x, i, j + (u + v) * apart) + T(std * normals[v]));
    }
  });
}

// The counters as they are after a good step, where this is one.
struct NextCounters {
  bool good;
  long long step, update, slot, position, epoch, start;

  // All are read at once, whether the step is good or not.
  __device__ __forceinline__ NextCounters(const long long* control, double batch_rows, double steps)
      : good(control[BAD_STEP] < 0), step(control[STEP] + 1), update(control[UPDATE] + 1), slot(control[SLOT] + 1) {
    const long long next = control[POSITION] + 1, rows = control[START] + whole_number(batch_rows);
    position = next < whole_number(steps) ? next : 0;
    epoch = control[EPOCH] + (position == 0);
    start = position ? rows : 0;  // counted up, since streamed data begin anew within an epoch
  }

  __device__ __forceinline__ void store(long long* control) const {
    if (!good) return;
    control[STEP] = step, control[UPDATE] = update, control[SLOT] = slot;
    control[POSITION] = position, control[EPOCH] = epoch, control[START] = start;
  }
};

// The counters after a good step: operands control; scalars batch_rows, steps.
template <typename T>
__device__ void advance(const Row& row, Block block) {
  long long* control = vector<long long>(row, 0);
  if (block.index == 0 && threadIdx.x == 0) NextCounters(control, row.scalars[0], row.scalars[1]).store(control);
}

// The same behind an operation whose first operand is control, where its scratch, one word, is there: the block that comes
// last does it, and leaves 0 in that word. The last two scalars: batch_rows, steps. There is no fence: what one block
// writes no other reads here, and what a block read of control it has used when it comes.
__device__ __forceinline__ void advance_at_last(const Row& row, Block block) {
  unsigned* came = reinterpret_cast<unsigned*>(row.scratch);
  if (!came) return;
  long long* control = vector<long long>(row, 0);
  const NextCounters next(control, row.scalars[MAX_SCALARS - 2], row.scalars[MAX_SCALARS - 1]);
  __syncthreads();
  if (threadIdx.x != 0 || atomicAdd(came, 1u) + 1 < (unsigned)block.count) return;
  *came = 0;
  next.store(control);
}
