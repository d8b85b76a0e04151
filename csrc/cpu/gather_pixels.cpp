// Gathers rows of pixels from a feature map, and scatters their gradients back. Elements are copied unchanged; the only
// arithmetic is the sum over repeated pixels, in the order of `index`.
#include <cstring>
#include <numeric>

#include "contrast_ops.h"
#include "levels.h"

namespace u2pl_fast::cpu {
namespace {

constexpr int64_t kRows = 256;  // rows per task
constexpr int64_t kSlab = 16;   // planes per task
constexpr size_t kAhead = 16;   // prefetch distance in pixels

// Returns the positions in `index`, sorted stably by their pixel, without those of -1.
std::vector<int64_t> by_pixel(const int64_t* index, int64_t count) {
  std::vector<int64_t> order;
  order.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    if (index[i] >= 0) order.push_back(i);
  }
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return index[a] != index[b] ? index[a] < index[b] : a < b;
  });
  return order;
}

int64_t offset_of(const Features& x, int64_t pixel) {
  return pixel / x.plane * x.stride_b + pixel % x.plane * x.stride_p;
}

// Reads planes in the order of the pixels, since neighboring pixels share cache lines.
template <typename T>
void gather_planes(const Features& x, const int64_t* index, const std::vector<int64_t>& order, T* out,
                   const Workers& workers) {
  const T* data = static_cast<const T*>(x.data);
  const int64_t slabs = ceil_div(x.dim, kSlab);
  run_tasks(slabs, 0, workers, [&](int64_t task, float*) {
    const int64_t first = task * kSlab, end = std::min(x.dim, first + kSlab);
    for (size_t n = 0; n < order.size(); ++n) {
      const int64_t i = order[n];
      const T* from = data + offset_of(x, index[i]);
      const T* next = data + offset_of(x, index[order[std::min(n + kAhead, order.size() - 1)]]);
      for (int64_t d = first; d < end; ++d) {
        __builtin_prefetch(next + d * x.stride_d, 0, 2);
        out[i * x.dim + d] = from[d * x.stride_d];
      }
    }
  });
}

// Stores row i of `rows` (pixels named, dim) to pixel named[i] of a zeroed gradient.
template <typename T>
void scatter_planes(const std::vector<int64_t>& named, const T* rows, const Features& x, T* out,
                    const Workers& workers) {
  const int64_t slabs = ceil_div(x.dim, kSlab);
  run_tasks(x.batch * slabs, 0, workers, [&](int64_t task, float*) {
    const int64_t image = task / slabs, first = task % slabs * kSlab, end = std::min(x.dim, first + kSlab);
    T* to = out + image * x.stride_b;
    for (int64_t d = first; d < end; ++d) std::memset(to + d * x.stride_d, 0, size_t(x.plane) * sizeof(T));
    const auto begin = std::lower_bound(named.begin(), named.end(), image * x.plane);
    for (auto it = begin; it != named.end() && *it < (image + 1) * x.plane; ++it) {
      const T* row = rows + (it - named.begin()) * x.dim;
      for (int64_t d = first; d < end; ++d) to[d * x.stride_d + *it % x.plane] = row[d];
    }
  });
}

}  // namespace

void gather_pixels(const Features& x, const int64_t* index, int64_t count, void* out, const Workers& workers) {
  const size_t row = size_t(x.dim * element_size(x.type));
  const bool rows = x.stride_d == 1;
  run_tasks(ceil_div(count, kRows), 0, workers, [&](int64_t task, float*) {
    for (int64_t i = task * kRows; i < std::min(count, (task + 1) * kRows); ++i) {
      char* to = static_cast<char*>(out) + i * row;
      if (index[i] < 0) {
        std::memset(to, 0, row);
      } else if (rows) {
        const char* from = static_cast<const char*>(x.data) + offset_of(x, index[i]) * element_size(x.type);
        std::memcpy(to, from, row);
      }
    }
  });
  if (rows) return;
  const std::vector<int64_t> order = by_pixel(index, count);
  if (x.type == Float::f32) {
    gather_planes(x, index, order, static_cast<uint32_t*>(out), workers);
  } else {
    gather_planes(x, index, order, static_cast<uint16_t*>(out), workers);
  }
}

void gather_pixels_backward(const void* grad, const int64_t* index, int64_t count, const Features& x, void* out,
                            const Workers& workers) {
  const ContrastKernels& k = kernels().contrast;
  const std::vector<int64_t> order = by_pixel(index, count);
  std::vector<int64_t> named, first;  // pixels that occur, and the start of their positions in `order`
  for (size_t i = 0; i < order.size(); ++i) {
    if (i == 0 || index[order[i]] != index[order[i - 1]]) {
      named.push_back(index[order[i]]);
      first.push_back(int64_t(i));
    }
  }
  first.push_back(int64_t(order.size()));
  const int64_t pixels = int64_t(named.size()), row = x.dim * element_size(x.type);
  const auto sum_into = [&](int64_t i, void* to) {
    k.sum_rows(grad, x.type, x.dim, order.data() + first[i], first[i + 1] - first[i], to);
  };
  if (x.stride_d == 1) {
    run_tasks(ceil_div(x.pixels(), kRows), 0, workers, [&](int64_t task, float*) {
      const int64_t begin = task * kRows, end = std::min(x.pixels(), begin + kRows);
      char* to = static_cast<char*>(out) + begin * row;
      std::memset(to, 0, size_t((end - begin) * row));
      int64_t i = std::lower_bound(named.begin(), named.end(), begin) - named.begin();
      for (; i < pixels && named[i] < end; ++i) sum_into(i, to + (named[i] - begin) * row);
    });
    return;
  }
  std::vector<char> sums(size_t(pixels * row));
  run_tasks(ceil_div(pixels, kRows), 0, workers, [&](int64_t task, float*) {
    for (int64_t i = task * kRows; i < std::min(pixels, (task + 1) * kRows); ++i) sum_into(i, sums.data() + i * row);
  });
  if (x.type == Float::f32) {
    scatter_planes(named, reinterpret_cast<const uint32_t*>(sums.data()), x, static_cast<uint32_t*>(out), workers);
  } else {
    scatter_planes(named, reinterpret_cast<const uint16_t*>(sums.data()), x, static_cast<uint16_t*>(out), workers);
  }
}

}  // namespace u2pl_fast::cpu
