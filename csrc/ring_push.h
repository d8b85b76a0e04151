// The steps of ring_push as functors, run by a CUDA launch (cuda/ring_push.cu) or by a CPU loop (cpu/ring_push.cpp).
//
// Pixels come in groups.
//   1. The keys of every class in every group are counted.
//   2. A scan over the groups of each class gives the rank of a group's first key; Advance then closes the class.
//   3. FindSlot: where each key goes. More keys than the ring holds: only the newest are written.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define U2PL_SHARED __host__ __device__ __forceinline__
#else
#define U2PL_SHARED inline
#endif

namespace u2pl_fast::ring {

constexpr int kCudaGroup = 128;
constexpr int kCpuGroup = 1024;  // a run of pages in each plane

// One push. Pixels, and so ranks within a push, fit in 31 bits; the counters of keys ever pushed have 64.
struct Push {
  int64_t classes;
  int64_t groups;
  const int64_t* offsets;  // (classes + 1)
  int64_t* pushed;         // (classes)
  const bool* gate;        // null: open
  int32_t* rank;           // scratch (classes, groups): counts after step 1, ranks of first keys after step 2
  int64_t* start;          // scratch (classes): pushed before this push
  int64_t* total;          // scratch (classes): keys of this push
};

struct Advance {
  Push push;

  U2PL_SHARED void operator()(int64_t c, int64_t keys) const {
    const bool open = push.gate == nullptr || *push.gate;
    push.start[c] = push.pushed[c];
    push.total[c] = open ? keys : 0;
    push.pushed[c] += push.total[c];
  }
};

struct FindSlot {
  Push push;

  // Of the key with this rank among the class's keys of this push; -1 where it isn't kept.
  U2PL_SHARED int64_t operator()(int64_t c, int64_t rank) const {
    const int64_t first = push.offsets[c], capacity = push.offsets[c + 1] - first, total = push.total[c];
    if (rank >= total || rank < total - capacity) return -1;
    return first + (push.start[c] + rank) % capacity;
  }
};

// 1 / max(norm, 1e-12): what a row is multiplied by.
struct InverseNorm {
  U2PL_SHARED float operator()(float square_sum) const {
#ifdef __CUDA_ARCH__
    return 1.0f / fmaxf(sqrtf(square_sum), 1e-12f);
#else
    const float norm = __builtin_sqrtf(square_sum);
    return 1.0f / (norm < 1e-12f ? 1e-12f : norm);
#endif
  }
};

}  // namespace u2pl_fast::ring
