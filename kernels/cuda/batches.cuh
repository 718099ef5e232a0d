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

// The same for few rows, up to four a thread, which counts how many keys are smaller than its own: by their upper halves.
// Where two of these are equal, which is rare, nothing is written, and false returned to all threads.
__device__ inline bool place_rows(const long long* control, const long long* rows, long long* index, int n) {
  unsigned* keys = shared_scratch<unsigned>();
  unsigned own[4];
  int before[4] = {}, total = 0;
  __syncthreads();  // what lay there may still be read
#pragma unroll
  for (int u = 0; u < 4; u++) {
    const int i = threadIdx.x + u * blockDim.x;
    own[u] = i < n ? (unsigned)(shuffle_key(i, control) >> 32) : 0;
    if (i < (n + 3) / 4 * 4) keys[i] = i < n ? own[u] : 0xffffffffu;  // nothing is above that
  }
  __syncthreads();
  for (int t = 0; t < n; t += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(keys + t);
#pragma unroll
    for (int u = 0; u < 4; u++)
      before[u] += (four.x < own[u]) + (four.y < own[u]) + (four.z < own[u]) + (four.w < own[u]);
  }
#pragma unroll
  for (int u = 0; u < 4; u++) total += before[u];
  if (block_total(total) != 0.5 * n * (n - 1)) return false;  // of two keys one is smaller, or they are equal
#pragma unroll
  for (int u = 0; u < 4; u++) {
    const int i = threadIdx.x + u * blockDim.x;
    if (i < n) index[before[u]] = rows[i];
  }
  return true;
}

// index = rows in the order of their keys: operands control, rows, index; one block wants a scratch of a key for each
// row where they are many. Equal keys go by their places, as a stable sort has them. Blocks cannot sort together: a
// thread of theirs takes up to four rows at once and counts the keys that come before.
template <typename T>
__device__ void shuffle(const Row& row, Block block) {
  constexpr int TILE_KEYS = SCRATCH_BYTES / 8;
  const long long *control = vector<long long>(row, 0), *rows = vector<long long>(row, 1);
  long long* index = vector<long long>(row, 2);
  const Index n = (Index)row.operands[1].columns, chunk = 4 * blockDim.x;
  unsigned long long* keys = shared_scratch<unsigned long long>();
  if (block.count == 1 && n <= 4 * (Index)blockDim.x && n <= TILE_KEYS && place_rows(control, rows, index, (int)n)) return;
  if (block.count == 1 && (n <= TILE_KEYS || row.scratch)) {
    sort_rows(control, rows, index, (int)n, n <= TILE_KEYS ? keys : reinterpret_cast<unsigned long long*>(row.scratch));
    return;
  }
  for (Index start = block.index * chunk; start < n; start += block.count * chunk) {
    unsigned long long own[4];
    Index place[4], before[4] = {0, 0, 0, 0};
#pragma unroll
    for (int u = 0; u < 4; u++) {
      place[u] = start + u * (Index)blockDim.x + threadIdx.x;
      own[u] = place[u] < n ? shuffle_key(place[u], control) : 0;
    }
    for (Index first = 0; first < n; first += TILE_KEYS) {
      const int tile = (int)(n - first < TILE_KEYS ? n - first : TILE_KEYS);
      __syncthreads();  // the tile before may still be read
      for (int t = threadIdx.x; t < tile; t += blockDim.x) keys[t] = shuffle_key(first + t, control);
      __syncthreads();
      for (int t = 0; t < tile; t++) {
        const unsigned long long key = keys[t];
#pragma unroll
        for (int u = 0; u < 4; u++) before[u] += key < own[u] || (key == own[u] && first + t < place[u]);
      }
    }
#pragma unroll
    for (int u = 0; u < 4; u++)
      if (place[u] < n) index[before[u]] = rows[place[u]];
  }
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
