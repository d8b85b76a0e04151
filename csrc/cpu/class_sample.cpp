// A stable counting sort of the anchor pixels by class (counts per chunk, scan, scatter), then one lookup per draw.
#include "contrast_ops.h"

namespace u2pl_fast::cpu {
namespace {

constexpr int64_t kChunk = 16384;

}  // namespace

void class_sample(const int16_t* anchor_label, int64_t pixels, int64_t classes, const int64_t* draws, int64_t count,
                  int64_t* index, const Workers& workers) {
  const int64_t chunks = ceil_div(pixels, kChunk);
  std::vector<int64_t> place(chunks * classes);  // counts, then the destination of each chunk's first pixel of a class
  run_tasks(chunks, 0, workers, [&](int64_t chunk, float*) {
    int64_t* own = place.data() + chunk * classes;
    for (int64_t p = chunk * kChunk; p < std::min(pixels, (chunk + 1) * kChunk); ++p) {
      if (anchor_label[p] >= 0) ++own[anchor_label[p]];
    }
  });
  std::vector<int64_t> begin(classes + 1);
  for (int64_t c = 0, next = 0; c < classes; ++c) {
    begin[c] = next;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t n = place[chunk * classes + c];
      place[chunk * classes + c] = next;
      next += n;
    }
    begin[c + 1] = next;
  }
  std::vector<int64_t> order(begin[classes]);
  run_tasks(chunks, 0, workers, [&](int64_t chunk, float*) {
    int64_t* next = place.data() + chunk * classes;
    for (int64_t p = chunk * kChunk; p < std::min(pixels, (chunk + 1) * kChunk); ++p) {
      if (anchor_label[p] >= 0) order[next[anchor_label[p]]++] = p;
    }
  });
  for (int64_t c = 0; c < classes; ++c) {
    const int64_t n = begin[c + 1] - begin[c];
    for (int64_t m = c * count; m < (c + 1) * count; ++m) {
      index[m] = n > 0 ? order[begin[c] + (draws[m] * n >> 32)] : -1;
    }
  }
}

}  // namespace u2pl_fast::cpu
