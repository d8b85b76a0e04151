// The table of kernels that each instruction-set level fills in, and the choice of the level.
#pragma once

#include <string>
#include <vector>

#include "contrast_kernels.h"
#include "pixel_kernels.h"

namespace u2pl_fast::cpu {

struct Kernels {
  const char* name;
  int lanes;
  PixelKernels pixel;
  ContrastKernels contrast;
};

const Kernels& kernels_baseline();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();

// The levels that this machine can run, best first, and the current one.
std::vector<std::string> levels();
std::string level();
void use_level(const std::string& name);
const Kernels& kernels();

}  // namespace u2pl_fast::cpu
