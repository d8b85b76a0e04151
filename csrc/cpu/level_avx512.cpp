// The kernels for AVX-512. Standard headers come before the target pragma, and what comes after it uses no
// standard library: an inline function of it compiled here could be linked into code for older machines.
#include "levels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define U2PL_SIMD 512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace u2pl_fast::cpu {
namespace {
#include "level.inc"
}  // namespace

const Kernels& kernels_avx512() {
  static const Kernels kernels = table("avx512");
  return kernels;
}

}  // namespace u2pl_fast::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
