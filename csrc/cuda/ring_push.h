// The CUDA launch of ring_push. No torch headers: the binding lends the scratch and the stream.
#pragma once

#include <cuda_runtime_api.h>

#include "../cpu/contrast_ops.h"

namespace u2pl_fast::cuda {

// Three kernels on the stream, no wait; null or what the launch failed with.
const char* ring_push(const cpu::RingPush& args, cudaStream_t stream);

}  // namespace u2pl_fast::cuda
