// The steps of ring_push.h as loops: one task per group of pixels, with running counters in place of ballots.
#include "bits.h"
#include "contrast_ops.h"
#include "levels.h"

namespace u2pl_fast::cpu {
namespace {

constexpr int64_t kTile = 64;      // pixels transposed from planes to rows at once
constexpr int64_t kRowsAhead = 8;  // prefetch distance in rows

int64_t pitch_of(int64_t dim) { return ceil_div(dim, 16) * 16 + 16; }

struct Pixels {
  int64_t begin, end;
};

// Returns the mask rows of a range of pixels, clipped at the end.
bool any_key(const RingPush& args, Pixels p) {
  const int64_t words = words_of(args.push.classes), end = std::min(p.end, args.features.pixels());
  return std::any_of(args.mask + std::min(p.begin, end) * words, args.mask + end * words, [](int32_t w) { return w != 0; });
}

void prefetch_row(const Features& x, int64_t pixel) {
  const int64_t size = element_size(x.type);
  const char* row = static_cast<const char*>(x.data) + (pixel / x.plane * x.stride_b + pixel % x.plane * x.stride_p) * size;
  for (int64_t byte = 0; byte < x.dim * size; byte += 64) __builtin_prefetch(row + byte);
}

// Returns whether the group has a kept key; otherwise its pixels are not read.
bool keeps_any(const RingPush& args, int64_t group) {
  const ring::Push& push = args.push;
  if (group + 1 == push.groups) return true;  // the newest keys
  for (int64_t c = 0; c < push.classes; ++c) {
    const int64_t rank = push.rank[c * push.groups + group], keys = push.rank[c * push.groups + group + 1] - rank;
    if (ring::Dropped{push}(c, rank, keys) < keys) return true;
  }
  return false;
}

// Writes the kept keys of a range of pixels. `next` holds the rank of each class's next key. Each pixel is read and
// normalized once, for any number of classes.
void write_keys(const RingPush& args, Pixels pixels, std::vector<int64_t>& next, float* rows) {
  const ContrastKernels& k = kernels().contrast;
  const ring::FindSlot find_slot{args.push};
  const Features& x = args.features;
  const int64_t classes = args.push.classes, words = words_of(classes), pitch = pitch_of(x.dim);
  const RowWriter writer{args.bank, args.bank_type, x.dim};
  const bool planes = x.stride_d != 1;
  for (int64_t first = pixels.begin; first < pixels.end; first += kTile) {
    const Pixels tile{first, std::min(pixels.end, first + kTile)};
    if (!any_key(args, tile)) continue;
    bool tile_loaded = false;
    for (int64_t p = first; p < tile.end; ++p) {
      if (!planes && any_key(args, {p + kRowsAhead, p + kRowsAhead + 1})) prefetch_row(x, p + kRowsAhead);
      float* row = rows + (planes ? (p - first) * pitch : 0);
      bool loaded = false;
      float scale = 0;
      for_each_class(args.mask + p * words, classes, [&](int64_t c) {
        const int64_t rank = next[c]++;
        if (rank < args.push.oldest[c]) return;
        if (!loaded) {
          if (!planes) k.load_rows(x, p, 1, pitch, row);
          if (planes && !tile_loaded) k.load_rows(x, first, tile.end - first, pitch, rows);
          tile_loaded = loaded = true;
          scale = ring::InverseNorm{}(k.square_sum(row, x.dim));
        }
        k.write_row(writer, row, scale, find_slot(c, rank));
      });
    }
  }
}

}  // namespace

void ring_push(const RingPush& args, const Workers& workers) {
  const ring::Push& push = args.push;
  const int64_t classes = push.classes, groups = push.groups, words = words_of(classes);
  const auto pixels_of = [&](int64_t group) {
    return Pixels{group * ring::kCpuGroup, std::min(args.features.pixels(), (group + 1) * ring::kCpuGroup)};
  };
  run_tasks(groups, 0, workers, [&](int64_t group, float*) {
    for (int64_t c = 0; c < classes; ++c) push.rank[c * groups + group] = 0;
    for (int64_t p = pixels_of(group).begin; p < pixels_of(group).end; ++p) {
      for_each_class(args.mask + p * words, classes, [&](int64_t c) { ++push.rank[c * groups + group]; });
    }
  });
  for (int64_t c = 0; c < classes; ++c) {
    int32_t keys = 0;
    for (int64_t group = 0; group < groups; ++group) {
      const int32_t count = push.rank[c * groups + group];
      push.rank[c * groups + group] = keys;
      keys += count;
    }
    ring::Advance{push}(c, keys);
  }
  if (push.gate != nullptr && !*push.gate) return;
  std::atomic<int64_t> task{0};
  workers(groups, [&] {
    const Scratch rows = make_scratch(size_t(kTile * pitch_of(args.features.dim)));
    std::vector<int64_t> next(classes);
    for (int64_t group; (group = task.fetch_add(1, std::memory_order_relaxed)) < groups;) {
      if (!keeps_any(args, group)) continue;
      for (int64_t c = 0; c < classes; ++c) next[c] = push.rank[c * groups + group];
      write_keys(args, pixels_of(group), next, rows.get());
    }
    kernels().contrast.finish_writes();
  });
}

}  // namespace u2pl_fast::cpu
