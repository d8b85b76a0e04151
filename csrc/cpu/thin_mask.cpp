// Thins keys evenly in two passes over the mask: count the keys of each class in each chunk, then select every key r
// with floor(((r+1)k + v) / n) > floor((rk + v) / n). Since k <= n, this holds if adding k to the remainder of rk + v
// by n reaches n, so that one addition per key replaces two divisions.
#include <cstring>

#include "bits.h"
#include "contrast_ops.h"

namespace u2pl_fast::cpu {
namespace {

constexpr int64_t kChunk = 4096;

struct Comb {
  int64_t keys, kept, remainder;

  bool keep() {
    remainder += kept;
    if (remainder < keys) return false;
    remainder -= keys;
    return true;
  }
};

}  // namespace

void thin_mask(const int32_t* mask, int64_t pixels, int64_t classes, const int64_t* max_keys, const int64_t* draw,
               int32_t* out, const Workers& workers) {
  const int64_t words = words_of(classes), chunks = ceil_div(pixels, kChunk);
  const auto rows = [&](int64_t chunk) { return std::min(pixels, (chunk + 1) * kChunk); };
  std::vector<int64_t> first(chunks * classes);  // counts, then the rank of each chunk's first key
  run_tasks(chunks, 0, workers, [&](int64_t chunk, float*) {
    int64_t* count = first.data() + chunk * classes;
    for (int64_t p = chunk * kChunk; p < rows(chunk); ++p) {
      for_each_class(mask + p * words, classes, [&](int64_t c) { ++count[c]; });
    }
  });
  std::vector<int64_t> keys(classes);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t c = 0; c < classes; ++c) {
      const int64_t count = first[chunk * classes + c];
      first[chunk * classes + c] = keys[c];
      keys[c] += count;
    }
  }
  bool thins = false;
  for (int64_t c = 0; c < classes; ++c) thins |= max_keys[c] > 0 && max_keys[c] < keys[c];
  if (!thins) {
    std::memcpy(out, mask, size_t(pixels * words) * sizeof(int32_t));
    return;
  }
  run_tasks(chunks, 0, workers, [&](int64_t chunk, float*) {
    std::vector<Comb> combs(classes);
    for (int64_t c = 0; c < classes; ++c) {
      const int64_t n = std::max<int64_t>(keys[c], 1), k = max_keys[c] > 0 ? std::min(max_keys[c], n) : n;
      combs[c] = {n, k, (first[chunk * classes + c] * k + (draw[c] * keys[c] >> 32)) % n};
    }
    for (int64_t p = chunk * kChunk; p < rows(chunk); ++p) {
      std::memset(out + p * words, 0, size_t(words) * sizeof(int32_t));
      for_each_class(mask + p * words, classes, [&](int64_t c) {
        if (combs[c].keep()) out[p * words + c / 32] |= int32_t(1u << (c % 32));
      });
    }
  });
}

}  // namespace u2pl_fast::cpu
