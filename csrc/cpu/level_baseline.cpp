// The kernels with nothing beyond the compiler's default target: any x86-64, any other architecture.
#include "levels.h"

#define U2PL_SIMD 128
namespace u2pl_fast::cpu {
namespace {
#include "level.inc"
}  // namespace

const Kernels& kernels_baseline() {
  static const Kernels kernels = table("baseline");
  return kernels;
}

}  // namespace u2pl_fast::cpu
