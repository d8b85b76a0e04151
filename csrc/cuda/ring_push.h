// The CUDA launch of ring_push. It needs no torch headers: the binding passes scratch memory and the stream.
#pragma once

#include <cuda_runtime_api.h>

#include "../cpu/contrast_ops.h"

namespace u2pl_fast::cuda {

// Launches three kernels on the stream without waiting. Returns null, or the error message of the launch.
const char* ring_push(const cpu::RingPush& args, cudaStream_t stream);

}  // namespace u2pl_fast::cuda
