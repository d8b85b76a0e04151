// The steps of ring_push as functors, run by a CUDA launch (cuda/ring_push.cu) or by a CPU loop (cpu/ring_push.cpp).
//
// Pixels come in groups.
//   1. The keys of every class in every group are counted.
//   2. A scan over the groups of each class gives the rank of a group's first key; Advance then closes the class.
//   3. Where a class has more keys than its ring holds, only the newest are kept. Dropped says how many of a group are
//      not, before anything of theirs is read, and FindSlot where the others go.
#pragma once

#include <cmath>
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
  int64_t* oldest;         // scratch (classes): rank of the first key that is kept, the number of keys if none is
  int64_t* position;       // scratch (classes): slot in the bank of that key
};

struct Advance {
  Push push;

  U2PL_SHARED void operator()(int64_t c, int64_t keys) const {
    const bool open = push.gate == nullptr || *push.gate;
    const int64_t first = push.offsets[c], capacity = push.offsets[c + 1] - first;
    const int64_t oldest = !open ? keys : keys > capacity ? keys - capacity : 0;
    push.oldest[c] = oldest;
    push.position[c] = capacity > 0 ? first + (push.pushed[c] + oldest) % capacity : first;
    if (open) push.pushed[c] += keys;
  }
};

struct Dropped {
  Push push;

  // Of the class's keys from this rank on, those too old to be kept; not more than `keys`, of which it is asked.
  U2PL_SHARED int64_t operator()(int64_t c, int64_t rank, int64_t keys) const {
    const int64_t dropped = push.oldest[c] - rank;
    return dropped < 0 ? 0 : dropped < keys ? dropped : keys;
  }
};

struct FindSlot {
  Push push;

  // Of the key with this rank among the class's keys of this push, one that is kept.
  U2PL_SHARED int64_t operator()(int64_t c, int64_t rank) const {
    const int64_t slot = push.position[c] + (rank - push.oldest[c]), end = push.offsets[c + 1];
    return slot < end ? slot : slot - (end - push.offsets[c]);
  }
};

// 1 / max(norm, 1e-12): what a row is multiplied by.
struct InverseNorm {
  U2PL_SHARED float operator()(float square_sum) const {
    const float norm = sqrtf(square_sum);
    return 1.0f / (norm < 1e-12f ? 1e-12f : norm);  // fmaxf would make a NaN a number
  }
};

}  // namespace u2pl_fast::ring
