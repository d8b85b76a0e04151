// The kernels for AVX2 with FMA. Standard headers come before the target pragma, and what comes after it uses no
// standard library: an inline function of it compiled here could be linked into code for older machines.
#include "levels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define U2PL_SIMD 256
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

namespace u2pl_fast::cpu {
namespace {
#include "level.inc"
}  // namespace

const Kernels& kernels_avx2() {
  static const Kernels kernels = table("avx2");
  return kernels;
}

}  // namespace u2pl_fast::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
