// CUDA threads as fibers on one thread of the CPU: the text of the kernels as C++, for tests on machines without a GPU.
//
// The threads of a block are resumed in a chosen order, each until it comes to a barrier; blocks run one after the
// other in that order too. A kernel that misses a barrier then gives other bits in another order. Shuffles and
// __syncwarp wait for the whole warp, __syncthreads for the whole block. Where some threads wait and others have ended,
// or wait elsewhere, the launch ends with an error.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#define __device__
#define __global__ __attribute__((visibility("default")))
#define __host__
#if defined(__ELF__)  // in a section of its own, which is filled with NaN before each block
#define __shared__ static __attribute__((section("gpumlp_shared")))
extern "C" __attribute__((weak, visibility("hidden"))) char __start_gpumlp_shared[], __stop_gpumlp_shared[];
#else
#define __shared__ static
#endif
#define __restrict__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#if !defined(__clang__)
#define __builtin_assume(condition)
#endif
#define __align__(n) alignas(n)
#define GPUMLP_DYNAMIC_SHARED(name) unsigned char* name = fibers::dynamic_shared

struct dim3 {
  unsigned x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline double2 make_double2(double x, double y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

namespace fibers {

constexpr int LARGEST_BLOCK = 1024, WARP_THREADS = 32;
constexpr size_t STACK_BYTES = 64 * 1024;
enum State { RUNS, WAITS_FOR_BLOCK, WAITS_FOR_WARP, ENDED };

// --- switching from one stack to another: what a function must keep is pushed, the stack pointers are exchanged ---

#if defined(__x86_64__) || defined(__aarch64__)
extern "C" __attribute__((visibility("hidden"))) void gpumlp_switch(void** from, void* to);
#endif
#if defined(__x86_64__)
asm(R"(
.text
.hidden gpumlp_switch
.globl gpumlp_switch
.type gpumlp_switch, %function
gpumlp_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size gpumlp_switch, .-gpumlp_switch
)");
static void* first_frame(char* end, void (*entry)()) {
  // at the entry of a function the stack pointer is 8 beyond a multiple of 16
  void** sp = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(end) & ~uintptr_t(15)) - 8);
  *--sp = reinterpret_cast<void*>(entry);
  for (int k = 0; k < 6; k++) *--sp = nullptr;
  return sp;
}
#elif defined(__aarch64__)
asm(R"(
.text
.hidden gpumlp_switch
.globl gpumlp_switch
.type gpumlp_switch, %function
gpumlp_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size gpumlp_switch, .-gpumlp_switch
)");
static void* first_frame(char* end, void (*entry)()) {
  void** sp = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(end) & ~uintptr_t(15)) - 160);
  std::memset(sp, 0, 160);
  sp[11] = reinterpret_cast<void*>(entry);  // x30, where `ret` goes
  return sp;
}
#endif

#if defined(__x86_64__) || defined(__aarch64__)
struct Context {
  void* sp;
};
static void start(Context& c, char* stack, void (*entry)()) { c.sp = first_frame(stack + STACK_BYTES, entry); }
static void exchange(Context& from, Context& to) { gpumlp_switch(&from.sp, to.sp); }
#else
}  // namespace fibers
#include <ucontext.h>
namespace fibers {
struct Context {
  ucontext_t context;
};
static void start(Context& c, char* stack, void (*entry)()) {
  getcontext(&c.context);
  c.context.uc_stack.ss_sp = stack;
  c.context.uc_stack.ss_size = STACK_BYTES;
  c.context.uc_link = nullptr;
  makecontext(&c.context, entry, 0);
}
static void exchange(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
#endif

// --- a block -----------------------------------------------------------------------------------------------------

struct Thread {
  Context context;
  State state;
  unsigned exchanges;  // done so far: values lie in two places in turn, so that one barrier each is enough
};

static Thread threads[LARGEST_BLOCK];
static Context scheduler;
static int current;
constexpr int LANE_BYTES = 32;
alignas(16) static unsigned char exchanged[2][LARGEST_BLOCK * LANE_BYTES];
static int vote, outcome;
static bool bad_mask;
static unsigned char* dynamic_shared;
static size_t dynamic_bytes;
static void (*body)(const void*);
static const void* argument;

static void wait(State state) {
  threads[current].state = state;
  exchange(threads[current].context, scheduler);
}

static void entry() {
  body(argument);
  wait(ENDED);
  std::abort();  // an ended thread is never resumed
}

// What each lane of the warp gives, by lane, until the next but one.
template <typename V>
static const V* shared_out(const V& mine) {
  static_assert(sizeof(V) <= LANE_BYTES, "room for what a lane gives");
  const int here = current, lane = here % WARP_THREADS;
  V* all = reinterpret_cast<V*>(exchanged[threads[here].exchanges++ & 1] + (here - lane) * LANE_BYTES);
  std::memcpy(all + lane, &mine, sizeof(V));
  wait(WAITS_FOR_WARP);
  return all;
}

template <typename V>
static V shuffle(unsigned mask, V v, int from) {
  bad_mask = bad_mask || mask != 0xffffffffu;
  return shared_out(v)[from];
}

enum { FINE = 0, STUCK = 1, BAD_GEOMETRY = 2, BAD_MASK = 3 };

static bool all_wait(int first, int last, State state) {
  for (int t = first; t < last; t++)
    if (threads[t].state != state) return false;
  return true;
}

static void release(int first, int last) {
  for (int t = first; t < last; t++) threads[t].state = RUNS;
}

static int run_block(int count, std::vector<int>& order, std::mt19937* random) {
  static char* stacks = static_cast<char*>(std::malloc(size_t(LARGEST_BLOCK) * STACK_BYTES));  // touched where used
  vote = 0;
  for (int t = 0; t < count; t++) {
    threads[t].exchanges = 0;
    threads[t].state = RUNS;
    start(threads[t].context, stacks + size_t(t) * STACK_BYTES, entry);
  }
  while (!all_wait(0, count, ENDED)) {
    bool moved = false;
    for (int t : order) {
      if (threads[t].state != RUNS) continue;
      moved = true;
      current = t;
      threadIdx.x = unsigned(t);
      exchange(scheduler, threads[t].context);
    }
    if (!moved) return STUCK;
    if (random) std::shuffle(order.begin(), order.end(), *random);
    for (int first = 0; first < count; first += WARP_THREADS)
      if (all_wait(first, first + WARP_THREADS, WAITS_FOR_WARP)) release(first, first + WARP_THREADS);
    if (all_wait(0, count, WAITS_FOR_BLOCK)) {
      outcome = vote;
      vote = 0;
      release(0, count);
    }
  }
  return FINE;
}

// Order: 0 ascending, 1 descending, 2 random by `seed`, and new after each barrier.
static int launch(void (*function)(const void*), const void* arguments, int blocks, int count, size_t shared_bytes,
                  int order, unsigned seed) {
  if (blocks < 1 || count < WARP_THREADS || count > LARGEST_BLOCK || count % WARP_THREADS) return BAD_GEOMETRY;
  std::mt19937 generator(seed);
  std::mt19937* random = order == 2 ? &generator : nullptr;
  std::vector<int> threads_in_order(count), blocks_in_order(blocks);
  for (auto* places : {&threads_in_order, &blocks_in_order}) {
    for (size_t k = 0; k < places->size(); k++) (*places)[k] = int(order == 1 ? places->size() - 1 - k : k);
    if (random) std::shuffle(places->begin(), places->end(), generator);
  }
  std::vector<double2> shared(shared_bytes / sizeof(double2) + 1);
  dynamic_shared = reinterpret_cast<unsigned char*>(shared.data());
  dynamic_bytes = shared_bytes;
  body = function;
  argument = arguments;
  blockDim = {unsigned(count), 1, 1};
  gridDim = {unsigned(blocks), 1, 1};
  bad_mask = false;
  for (int b : blocks_in_order) {
    blockIdx = {unsigned(b), 0, 0};
    // what is read before it is written shows, and nothing of an earlier block stands in for what a barrier protects
    std::memset(shared.data(), 0xff, shared.size() * sizeof(double2));
#if defined(__ELF__)
    std::memset(__start_gpumlp_shared, 0xff, size_t(__stop_gpumlp_shared - __start_gpumlp_shared));
#endif
    if (const int code = run_block(count, threads_in_order, random)) return code;
  }
  return bad_mask ? BAD_MASK : FINE;
}

}  // namespace fibers

// --- what CUDA offers to a thread --------------------------------------------------------------------------------

static inline void __syncthreads() { fibers::wait(fibers::WAITS_FOR_BLOCK); }
static inline int __syncthreads_or(int predicate) {
  fibers::vote |= predicate != 0;
  fibers::wait(fibers::WAITS_FOR_BLOCK);
  return fibers::outcome;
}
static inline int __syncthreads_and(int predicate) { return !__syncthreads_or(!predicate); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { fibers::shuffle(mask, 0, 0); }
static inline void __threadfence_block() {}
static inline void __threadfence() {}
static inline unsigned atomicAdd(unsigned* p, unsigned v) { return (*p += v) - v; }  // one thread runs at a time

template <typename V>
static V __shfl_sync(unsigned mask, V v, int from) {
  return fibers::shuffle(mask, v, from & 31);
}
template <typename V>
static V __shfl_xor_sync(unsigned mask, V v, int lanes) {
  return fibers::shuffle(mask, v, int(threadIdx.x & 31) ^ lanes);
}
template <typename V>
static V __shfl_down_sync(unsigned mask, V v, unsigned lanes) {
  const unsigned lane = threadIdx.x & 31;
  return fibers::shuffle(mask, v, int(lane + lanes < 32 ? lane + lanes : lane));
}

static inline bool __isShared(const void* p) {  // of what a kernel asks for as it is launched
  return size_t(static_cast<const unsigned char*>(p) - fibers::dynamic_shared) < fibers::dynamic_bytes;
}
static inline size_t __cvta_generic_to_shared(const void* p) { return (size_t)p; }
static inline void* __cvta_shared_to_generic(size_t place) { return (void*)place; }

template <typename V>
static V __ldg(const V* p) {
  return *p;
}
template <typename To, typename From>
static To gpumlp_bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "bits of the same number");
  To bits;
  std::memcpy(&bits, &v, sizeof(To));
  return bits;
}
static inline unsigned __float_as_uint(float v) { return gpumlp_bits<unsigned>(v); }
static inline float __uint_as_float(unsigned v) { return gpumlp_bits<float>(v); }
static inline long long __double_as_longlong(double v) { return gpumlp_bits<long long>(v); }
static inline double __longlong_as_double(long long v) { return gpumlp_bits<double>(v); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline double cospi(double x) { return std::cos(3.14159265358979323846 * x); }
static inline double sinpi(double x) { return std::sin(3.14159265358979323846 * x); }
using std::max;
using std::min;
