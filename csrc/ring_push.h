// The steps of ring_push as functors, for the CUDA kernels (cuda/ring_push.cu) and the CPU loops (cpu/ring_push.cpp).
//
// Pixels are processed in groups.
//   1. Count the keys of every class in every group.
//   2. Scan over the groups of each class to get the rank of each group's first key; then call Advance for the class.
//   3. If a class has more keys than its ring has slots, keep only the newest. Dropped returns the number of keys of a
//      group to skip, before they are read. FindSlot returns the slots of the others.
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

// One push. Pixels, and therefore ranks within a push, fit in 31 bits; the counters of all pushes have 64 bits.
struct Push {
  int64_t classes;
  int64_t groups;
  const int64_t* offsets;  // (classes + 1)
  int64_t* pushed;         // (classes)
  const bool* gate;        // null if there is no gate
  int32_t* rank;           // scratch (classes, groups): counts after step 1, ranks of first keys after step 2
  int64_t* oldest;         // scratch (classes): rank of the first kept key, or the number of keys if none is kept
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

  // Returns how many of the class's next `keys` keys, from this rank on, are too old to be kept.
  U2PL_SHARED int64_t operator()(int64_t c, int64_t rank, int64_t keys) const {
    const int64_t dropped = push.oldest[c] - rank;
    return dropped < 0 ? 0 : dropped < keys ? dropped : keys;
  }
};

struct FindSlot {
  Push push;

  // Returns the slot of a kept key by its rank among the class's keys of this push.
  U2PL_SHARED int64_t operator()(int64_t c, int64_t rank) const {
    const int64_t slot = push.position[c] + (rank - push.oldest[c]), end = push.offsets[c + 1];
    return slot < end ? slot : slot - (end - push.offsets[c]);
  }
};

// Returns the factor that normalizes a row: 1 / max(norm, 1e-12).
struct InverseNorm {
  U2PL_SHARED float operator()(float square_sum) const {
    const float norm = sqrtf(square_sum);
    return 1.0f / (norm < 1e-12f ? 1e-12f : norm);  // fmaxf would replace a NaN by a number
  }
};

}  // namespace u2pl_fast::ring
