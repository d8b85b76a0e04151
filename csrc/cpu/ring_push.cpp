// The steps of ring_push.h as loops: groups of pixels are tasks, the ballots are made one bit at a time.
#include "bits.h"
#include "contrast_ops.h"
#include "tasks.h"

namespace u2pl_fast::cpu {
namespace {

// The ballots of one group: (classes, kWarps) words. Returns whether any bit is set.
bool make_ballots(const int32_t* mask, int64_t classes, int64_t first, int64_t count, std::vector<uint32_t>& ballots) {
  std::fill(ballots.begin(), ballots.end(), 0);
  bool any = false;
  for (int64_t i = 0; i < count; ++i) {
    for_each_class(mask + (first + i) * words_of(classes), classes, [&](int64_t c) {
      ballots[c * ring::kWarps + i / ring::kWarp] |= 1u << (i % ring::kWarp);
      any = true;
    });
  }
  return any;
}

// Writes the kept keys of one group; a pixel's row is read and its norm taken once, whatever the number of its classes.
void write_group(const RingPush& args, int64_t group, int64_t count, const std::vector<uint32_t>& ballots, float* rows) {
  const ContrastKernels& k = kernels().contrast;
  const ring::Push& push = args.push;
  const ring::FindSlot find_slot{push};
  const int64_t first = group * ring::kGroup, dim = args.features.dim, words = words_of(push.classes);
  const int64_t pitch = ceil_div(dim, 16) * 16 + 16;
  const RowWriter writer{args.bank, args.bank_type, dim};
  const bool planes = args.features.stride_d != 1;
  if (planes) k.load_rows(args.features, first, count, pitch, rows);
  for (int64_t i = 0; i < count; ++i) {
    float* row = rows + (planes ? i * pitch : 0);
    bool loaded = false;
    float scale = 0;
    for_each_class(args.mask + (first + i) * words, push.classes, [&](int64_t c) {
      const int rank = ring::RankInGroup{}(&ballots[c * ring::kWarps], int(i));
      const int64_t slot = find_slot(c, push.rank[c * push.groups + group] + rank);
      if (slot < 0) return;
      if (!loaded) {
        if (!planes) k.load_rows(args.features, first + i, 1, pitch, row);
        scale = ring::InverseNorm{}(k.square_sum(row, dim));
        loaded = true;
      }
      k.write_row(writer, row, scale, slot);
    });
  }
}

}  // namespace

void ring_push(const RingPush& args, const Workers& workers) {
  const ring::Push& push = args.push;
  const int64_t pixels = args.features.pixels(), groups = push.groups;
  const auto size_of = [&](int64_t group) {
    return std::min<int64_t>(ring::kGroup, pixels - group * ring::kGroup);
  };
  const auto over_groups = [&](size_t scratch_floats, const auto& body) {
    std::atomic<int64_t> next{0};
    workers(groups, [&] {
      const Scratch scratch = make_scratch(scratch_floats);
      std::vector<uint32_t> ballots(push.classes * ring::kWarps);
      for (int64_t group; (group = next.fetch_add(1, std::memory_order_relaxed)) < groups;) {
        const bool any = make_ballots(args.mask, push.classes, group * ring::kGroup, size_of(group), ballots);
        body(group, any, ballots, scratch.get());
      }
      kernels().contrast.finish_writes();
    });
  };

  over_groups(0, [&](int64_t group, bool, const std::vector<uint32_t>& ballots, float*) {
    for (int64_t c = 0; c < push.classes; ++c) {
      push.rank[c * groups + group] = ring::CountKeys{}(&ballots[c * ring::kWarps]);
    }
  });
  for (int64_t c = 0; c < push.classes; ++c) {
    int32_t keys = 0;
    for (int64_t group = 0; group < groups; ++group) {
      const int32_t count = push.rank[c * groups + group];
      push.rank[c * groups + group] = keys;
      keys += count;
    }
    ring::Advance{push}(c, keys);
  }
  if (push.gate != nullptr && !*push.gate) return;
  const size_t tile = size_t(ring::kGroup * (ceil_div(args.features.dim, 16) * 16 + 16));
  over_groups(tile, [&](int64_t group, bool any, const std::vector<uint32_t>& ballots, float* rows) {
    if (any) write_group(args, group, size_of(group), ballots, rows);
  });
}

}  // namespace u2pl_fast::cpu
