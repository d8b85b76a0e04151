// The steps of ring_push.h on the device: count, scan, write. The first two use integers only, and in the third every
// key has its own slot, so the bits never depend on the order of blocks.
#include <cub/block/block_scan.cuh>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ring_push.h"

namespace u2pl_fast::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kGroup = ring::kCudaGroup;
constexpr int kWarps = kGroup / kWarp;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kCountThreads = 256;
constexpr int kScanThreads = 256;
constexpr int kWriteThreads = 256;
constexpr int kWriteWarps = kWriteThreads / kWarp;
constexpr int kWordsAtOnce = 8;               // 256 classes per pass: the ballots that fit in a block
constexpr size_t kSharedBytes = 48 * 1024;    // the default limit per block

struct Mask {
  const int32_t* words;  // (pixels, count)
  int64_t pixels, count;
  uint32_t last;  // bits of the last word that stand for classes

  __device__ uint32_t operator()(int64_t pixel, int64_t word) const {
    if (pixel >= pixels) return 0u;
    const uint32_t bits = uint32_t(words[pixel * count + word]);
    return word + 1 < count ? bits : bits & last;
  }
};

// Transposes the bits of one word per lane: lane i gets the ballot of bit i.
__device__ __forceinline__ uint32_t ballot_of_lane(uint32_t bits, int lane) {
  uint32_t mine = 0;
#pragma unroll
  for (int bit = 0; bit < 32; ++bit) {
    const uint32_t ballot = __ballot_sync(kAll, bits >> bit & 1u);
    if (lane == bit) mine = ballot;
  }
  return mine;
}

// The keys of a class in a group are kWarps ballots.
__device__ __forceinline__ int count_keys(const uint32_t* ballots) {
  int count = 0;
  for (int warp = 0; warp < kWarps; ++warp) count += __popc(ballots[warp]);
  return count;
}

// Clears the first `dropped` keys.
__device__ __forceinline__ void drop_keys(uint32_t* ballots, int dropped) {
  for (int warp = 0; warp < kWarps && dropped > 0; ++warp) {
    const int count = __popc(ballots[warp]);
    if (count <= dropped) {
      ballots[warp] = 0;
    } else {
      for (int i = 0; i < dropped; ++i) ballots[warp] &= ballots[warp] - 1;
    }
    dropped -= count;
  }
}

// Counts the keys of the pixels before this one.
__device__ __forceinline__ int rank_in_group(const uint32_t* ballots, int pixel) {
  int rank = 0;
  for (int warp = 0; warp < pixel / kWarp; ++warp) rank += __popc(ballots[warp]);
  return rank + __popc(ballots[pixel / kWarp] & ((1u << pixel % kWarp) - 1));
}

// One warp per group.
__global__ void __launch_bounds__(kCountThreads) count_kernel(ring::Push push, Mask mask) {
  const int lane = threadIdx.x % kWarp;
  const int64_t group = int64_t(blockIdx.x) * (kCountThreads / kWarp) + threadIdx.x / kWarp;
  if (group >= push.groups) return;
  for (int64_t word = 0; word < mask.count; ++word) {
    uint32_t ballots[kWarps];
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      ballots[warp] = ballot_of_lane(mask(group * kGroup + warp * kWarp + lane, word), lane);
    }
    const int64_t c = word * 32 + lane;
    if (c < push.classes) push.rank[c * push.groups + group] = count_keys(ballots);
  }
}

// One block per class.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(ring::Push push) {
  constexpr int kItems = 4;
  using Scan = cub::BlockScan<int32_t, kScanThreads>;
  __shared__ typename Scan::TempStorage storage;
  const int64_t c = blockIdx.x;
  int32_t* rank = push.rank + c * push.groups;
  int32_t keys = 0;
  for (int64_t first = 0; first < push.groups; first += kScanThreads * kItems) {
    int32_t item[kItems], sum;
    const int64_t own = first + threadIdx.x * kItems;
#pragma unroll
    for (int i = 0; i < kItems; ++i) item[i] = own + i < push.groups ? rank[own + i] : 0;
    Scan(storage).ExclusiveSum(item, item, sum);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (own + i < push.groups) rank[own + i] = keys + item[i];
    }
    keys += sum;
    __syncthreads();
  }
  if (threadIdx.x == 0) ring::Advance{push}(c, keys);
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// A warp writes a row: neighboring lanes write neighboring elements.
__device__ __forceinline__ void write_row(float* out, const float* row, float scale, int dim, int lane) {
#pragma unroll 4
  for (int d = lane; d < dim; d += kWarp) out[d] = row[d] * scale;
}

template <typename Pair, typename T, typename Convert, typename ConvertPair>
__device__ __forceinline__ void write_half_row(T* out, const float* row, float scale, int dim, int lane, Convert one,
                                               ConvertPair two) {
  if (dim % 2 == 0) {
    Pair* pairs = reinterpret_cast<Pair*>(out);
#pragma unroll 4
    for (int d = lane; d < dim / 2; d += kWarp) pairs[d] = two(row[2 * d] * scale, row[2 * d + 1] * scale);
    return;
  }
  for (int d = lane; d < dim; d += kWarp) out[d] = one(row[d] * scale);
}

__device__ __forceinline__ void write_row(__half* out, const float* row, float scale, int dim, int lane) {
  write_half_row<__half2>(out, row, scale, dim, lane, [](float x) { return __float2half_rn(x); },
                          [](float x, float y) { return __floats2half2_rn(x, y); });
}

__device__ __forceinline__ void write_row(__nv_bfloat16* out, const float* row, float scale, int dim, int lane) {
  write_half_row<__nv_bfloat162>(out, row, scale, dim, lane, [](float x) { return __float2bfloat16_rn(x); },
                                 [](float x, float y) { return __floats2bfloat162_rn(x, y); });
}

// Loads pixels first .. first + count of a tile into shared fp32 rows, if their bit is set in `wanted`. Neighboring
// threads read neighboring addresses: the pixels of a plane, or the elements of a row.
template <typename T>
__device__ __forceinline__ void load_tile(const cpu::Features& x, uint32_t wanted, int64_t first, int count, int pitch,
                                          float* tile) {
  const T* data = static_cast<const T*>(x.data);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, dim = int(x.dim);
  if (x.stride_d == 1) {
    for (int i = warp; i < count; i += kWriteWarps) {
      if (!(wanted >> i & 1u)) continue;
      const int64_t pixel = first + i;
      const T* row = data + pixel / x.plane * x.stride_b + pixel % x.plane * x.stride_p;
#pragma unroll 4
      for (int d = lane; d < dim; d += kWarp) tile[i * pitch + d] = to_float(row[d]);
    }
    return;
  }
  const int step = kWriteThreads / count, i = threadIdx.x % count, from = threadIdx.x / count;
  if (from >= step || !(wanted >> i & 1u)) return;  // if the count is not a power of two, some threads are idle
  const int64_t pixel = first + i;
  const T* column = data + pixel / x.plane * x.stride_b + pixel % x.plane * x.stride_p;
#pragma unroll 4
  for (int d = from; d < dim; d += step) tile[i * pitch + d] = to_float(column[d * x.stride_d]);
}

// One block per group, which it processes in tiles; within a tile one warp per pixel, which computes the norm once and
// writes the row to the slot of each class. Unlabeled images come last and have the most keys: they start first.
template <typename T, typename B>
__global__ void __launch_bounds__(kWriteThreads)
    write_kernel(cpu::Features x, Mask mask, B* bank, ring::Push push, int tile_pixels, int pitch) {
  extern __shared__ float tile[];
  __shared__ uint32_t ballots[kWordsAtOnce * 32 * kWarps];  // of the kept keys
  __shared__ int32_t ranks[kWordsAtOnce * 32];              // of the first kept key in the group
  __shared__ uint32_t wanted[kWarps];                       // pixels with a kept key
  if (push.gate != nullptr && !*push.gate) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, dim = int(x.dim);
  const int64_t group = int64_t(gridDim.x) - 1 - blockIdx.x, first = group * kGroup;
  const int64_t left = mask.pixels - first;
  const int pixels = left < kGroup ? int(left) : kGroup;
  const ring::Dropped count_dropped{push};
  const ring::FindSlot find_slot{push};

  for (int64_t word = 0; word < mask.count; word += kWordsAtOnce) {
    const int words = mask.count - word < kWordsAtOnce ? int(mask.count - word) : kWordsAtOnce;
    bool any = false;
    for (int i = warp; i < words * kWarps; i += kWriteWarps) {
      const uint32_t bits = mask(first + i % kWarps * kWarp + lane, word + i / kWarps);
      ballots[(i / kWarps * 32 + lane) * kWarps + i % kWarps] = ballot_of_lane(bits, lane);
      any |= bits != 0;
    }
    if (threadIdx.x < kWarps) wanted[threadIdx.x] = 0;
    if (!__syncthreads_or(any)) continue;
    for (int i = threadIdx.x; i < words * 32; i += kWriteThreads) {
      const int64_t c = word * 32 + i;
      if (c >= push.classes) continue;
      uint32_t* own = ballots + i * kWarps;
      const int64_t rank = push.rank[c * push.groups + group];
      const int dropped = int(count_dropped(c, rank, count_keys(own)));
      drop_keys(own, dropped);
      ranks[i] = int32_t(rank) + dropped;
      for (int part = 0; part < kWarps; ++part) {
        if (own[part] != 0) atomicOr(&wanted[part], own[part]);
      }
    }
    __syncthreads();
    for (int begin = 0; begin < pixels; begin += tile_pixels) {
      const int count = pixels - begin < tile_pixels ? pixels - begin : tile_pixels;
      // A tile lies within the ballot of one warp; shift its first pixel to bit 0.
      const uint32_t tile_wanted = wanted[begin / kWarp] >> begin % kWarp & (kAll >> (kWarp - count));
      if (tile_wanted == 0) continue;
      load_tile<T>(x, tile_wanted, first + begin, count, pitch, tile);
      __syncthreads();
      for (int i = warp; i < count; i += kWriteWarps) {
        if (!(tile_wanted >> i & 1u)) continue;
        const int pixel = begin + i;
        const float* row = tile + i * pitch;
        float square_sum = 0;
        for (int d = lane; d < dim; d += kWarp) square_sum += row[d] * row[d];
#pragma unroll
        for (int other = kWarp / 2; other > 0; other /= 2) square_sum += __shfl_xor_sync(kAll, square_sum, other);
        const float scale = ring::InverseNorm{}(square_sum);
        for (int w = 0; w < words; ++w) {
          const uint32_t* own = ballots + (w * 32 + lane) * kWarps;
          const bool kept = own[pixel / kWarp] >> pixel % kWarp & 1u;
          int64_t slot = 0;
          if (kept) slot = find_slot((word + w) * 32 + lane, ranks[w * 32 + lane] + rank_in_group(own, pixel));
          for (unsigned keys = __ballot_sync(kAll, kept); keys != 0; keys &= keys - 1) {
            write_row(bank + __shfl_sync(kAll, slot, __ffs(int(keys)) - 1) * x.dim, row, scale, dim, lane);
          }
        }
      }
      __syncthreads();
    }
    __syncthreads();
  }
}

template <typename T, typename B>
void launch_write(const cpu::RingPush& args, const Mask& mask, cudaStream_t stream) {
  // With an odd pitch, the elements of a column are in different shared-memory banks.
  const int64_t dim = args.features.dim, pitch = dim | 1;
  const size_t budget = kSharedBytes - (kWordsAtOnce * 32 * (kWarps + 1) + kWarps) * sizeof(uint32_t);
  int tile_pixels = kWarp;
  while (tile_pixels > 1 && tile_pixels * pitch * sizeof(float) > budget) tile_pixels /= 2;
  const size_t bytes = tile_pixels * pitch * sizeof(float);
  if (bytes > budget) {
    cudaFuncSetAttribute(write_kernel<T, B>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  }
  write_kernel<T, B><<<unsigned(args.push.groups), kWriteThreads, bytes, stream>>>(
      args.features, mask, static_cast<B*>(args.bank), args.push, tile_pixels, int(pitch));
}

template <typename T>
void launch_write(const cpu::RingPush& args, const Mask& mask, cudaStream_t stream) {
  switch (args.bank_type) {
    case cpu::Float::f32: return launch_write<T, float>(args, mask, stream);
    case cpu::Float::f16: return launch_write<T, __half>(args, mask, stream);
    case cpu::Float::bf16: return launch_write<T, __nv_bfloat16>(args, mask, stream);
  }
}

}  // namespace

const char* ring_push(const cpu::RingPush& args, cudaStream_t stream) {
  const ring::Push& push = args.push;
  const Mask mask{args.mask, args.features.pixels(), (push.classes + 31) / 32, kAll >> ((32 - push.classes % 32) % 32)};
  constexpr int64_t kGroupsPerBlock = kCountThreads / kWarp;
  count_kernel<<<unsigned((push.groups + kGroupsPerBlock - 1) / kGroupsPerBlock), kCountThreads, 0, stream>>>(push, mask);
  scan_kernel<<<unsigned(push.classes), kScanThreads, 0, stream>>>(push);
  switch (args.features.type) {
    case cpu::Float::f32: launch_write<float>(args, mask, stream); break;
    case cpu::Float::f16: launch_write<__half>(args, mask, stream); break;
    case cpu::Float::bf16: launch_write<__nv_bfloat16>(args, mask, stream); break;
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace u2pl_fast::cuda
