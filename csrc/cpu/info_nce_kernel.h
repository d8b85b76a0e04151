// info_nce on a block of anchors of one class, with keys in tiles. Included after feature_rows.h, inside the level's
// namespace.
//
// Online softmax that starts from the positive: with m the largest score so far, total = sum of e^(score - m) and
// mean = sum of e^(score - m) key. At the end the gradient of -log p(positive) with respect to the unit anchor is
// (mean / total - center) / temperature, from which the component along the anchor is removed.

constexpr int64_t kKeyTile = 64;
constexpr int kTogether = 4;  // anchors per load of a key, and keys per load of an anchor

struct InfoNceScratch {
  float* unit;    // (anchors, pitch)
  float* mean;    // (anchors, pitch)
  float* center;  // (pitch)
  float* tile;    // (keys, pitch), unless the bank can be read in place
  float* score;   // (anchors together, keys)
  float* norm;    // (anchors)
  float* largest;   // (anchors)
  float* total;     // (anchors)
  float* positive;  // (anchors)
  int64_t pitch;

  InfoNceScratch(const InfoNce& args, float* scratch) : pitch(row_pitch(args.dim)) {
    unit = scratch;
    mean = unit + kAnchorBlock * pitch;
    center = mean + kAnchorBlock * pitch;
    tile = center + pitch;
    score = tile + kKeyTile * pitch;
    norm = score + kTogether * kKeyTile;
    largest = norm + kAnchorBlock;
    total = largest + kAnchorBlock;
    positive = total + kAnchorBlock;
  }
};

inline size_t info_nce_scratch(const InfoNce& args) {
  return size_t((2 * kAnchorBlock + 1 + kKeyTile) * row_pitch(args.dim) + kTogether * kKeyTile + 4 * kAnchorBlock);
}

// Scales a row to norm 1, with zeros past dim; returns its norm.
inline float load_unit(const void* data, Float type, int64_t start, int64_t dim, float* out) {
  for (int64_t d = 0; d < dim; d += kLanes) store(out + d, load_some(data, type, start + d, dim - d));
  const float norm = __builtin_sqrtf(square_sum(out, dim));
  const F inverse = broadcast(1.0f / (norm > 1e-12f ? norm : 1e-12f));
  for (int64_t d = 0; d < dim; d += kLanes) store(out + d, load(out + d) * inverse);
  return norm;
}

// Keys of one class by their slot, as rows of fp32.
struct Keys {
  const InfoNce& args;
  float* tile;
  int64_t pitch, start;
  bool in_place;

  Keys(const InfoNce& args, const InfoNceScratch& s, int64_t c)
      : args(args), tile(s.tile), pitch(s.pitch), start(args.offsets[c]),
        in_place(args.bank_type == Float::f32 && args.dim % kLanes == 0) {}

  // The bank is far larger than the cache and read at random: prefetch rows well ahead, into the second cache level,
  // since the first supports far fewer outstanding lines.
  void prefetch(int64_t slot) const {
    const int64_t size = args.dim * element_size(args.bank_type);
    const char* row = static_cast<const char*>(args.bank) + (start + slot) * size;
    for (int64_t byte = 0; byte < size; byte += 64) __builtin_prefetch(row + byte, 0, 2);
  }

  const float* operator()(int64_t slot, int64_t place) const {
    const int64_t at = (start + slot) * args.dim;
    if (in_place) return static_cast<const float*>(args.bank) + at;
    float* row = tile + place * pitch;
    for (int64_t d = 0; d < args.dim; d += kLanes) store(row + d, load_some(args.bank, args.bank_type, at + d, args.dim - d));
    return row;
  }
};

// Scores of A anchors against four keys.
template <int A>
inline void dots(const float* unit, int64_t pitch, const float* const* keys, int64_t dim, float* score) {
  F total[A][kTogether];
  for (int a = 0; a < A; ++a) {
    for (int k = 0; k < kTogether; ++k) total[a][k] = broadcast(0.0f);
  }
  for (int64_t d = 0; d < dim; d += kLanes) {
    F key[kTogether];
    for (int k = 0; k < kTogether; ++k) key[k] = load(keys[k] + d);
    for (int a = 0; a < A; ++a) {
      const F x = load(unit + a * pitch + d);
      for (int k = 0; k < kTogether; ++k) total[a][k] = fma(x, key[k], total[a][k]);
    }
  }
  for (int a = 0; a < A; ++a) {
    for (int k = 0; k < kTogether; ++k) score[a * kKeyTile + k] = sum(total[a][k]);
  }
}

// mean += weight of each key times the key, for A anchors.
template <int A>
inline void add_keys(const float* weight, const float* const* keys, int64_t count, int64_t pitch, int64_t dim, float* mean) {
  constexpr int kSlab = kLanes == 16 ? 4 : 2;
  int64_t d = 0;
  for (; d + kSlab * kLanes <= padded(dim); d += kSlab * kLanes) {
    F total[A][kSlab];
    for (int a = 0; a < A; ++a) {
      for (int j = 0; j < kSlab; ++j) total[a][j] = load(mean + a * pitch + d + j * kLanes);
    }
    for (int64_t k = 0; k < count; ++k) {
      F key[kSlab];
      for (int j = 0; j < kSlab; ++j) key[j] = load(keys[k] + d + j * kLanes);
      for (int a = 0; a < A; ++a) {
        const F w = broadcast(weight[a * kKeyTile + k]);
        for (int j = 0; j < kSlab; ++j) total[a][j] = fma(w, key[j], total[a][j]);
      }
    }
    for (int a = 0; a < A; ++a) {
      for (int j = 0; j < kSlab; ++j) store(mean + a * pitch + d + j * kLanes, total[a][j]);
    }
  }
  for (; d < dim; d += kLanes) {
    for (int a = 0; a < A; ++a) {
      F total = load(mean + a * pitch + d);
      for (int64_t k = 0; k < count; ++k) total = fma(broadcast(weight[a * kKeyTile + k]), load(keys[k] + d), total);
      store(mean + a * pitch + d, total);
    }
  }
}

// Converts the scores of one anchor to weights relative to its largest score, and rescales its running sums.
inline void fold_scores(const InfoNce& args, const InfoNceScratch& s, int64_t anchor, float* score, int64_t count) {
  const F inverse = broadcast(1.0f / args.temperature);
  for (int64_t k = count; k < padded(count); ++k) score[k] = -__builtin_inff();
  F top = broadcast(s.largest[anchor]);
  for (int64_t k = 0; k < count; k += kLanes) {
    const F scaled = load(score + k) * inverse;
    store(score + k, scaled);
    top = max(scaled, top);
  }
  const float largest = lane_max(top);
  if (largest > s.largest[anchor]) {
    alignas(64) float factor[kLanes];
    store(factor, exp_decay(broadcast(s.largest[anchor] - largest)));
    s.total[anchor] *= factor[0];
    float* mean = s.mean + anchor * s.pitch;
    const F rescale = broadcast(factor[0]);
    for (int64_t d = 0; d < args.dim; d += kLanes) store(mean + d, load(mean + d) * rescale);
    s.largest[anchor] = largest;
  }
  F total = broadcast(0.0f);
  for (int64_t k = 0; k < count; k += kLanes) {
    const F weight = exp_decay(load(score + k) - broadcast(largest));
    store(score + k, weight);
    total = total + weight;
  }
  s.total[anchor] += sum(total);
}

template <int A>
inline void meet_keys(const InfoNce& args, const InfoNceScratch& s, int64_t anchor, const float* const* keys, int64_t count) {
  for (int64_t k = 0; k < count; k += kTogether) {
    dots<A>(s.unit + anchor * s.pitch, s.pitch, keys + k, args.dim, s.score + k);
  }
  for (int a = 0; a < A; ++a) fold_scores(args, s, anchor + a, s.score + a * kKeyTile, count);
  if (args.grad != nullptr) add_keys<A>(s.score, keys, count, s.pitch, args.dim, s.mean + anchor * s.pitch);
}

// Every anchor has its own keys.
inline void meet_own_keys(const InfoNce& args, const InfoNceScratch& s, const Keys& keys, const int64_t* slots,
                          int64_t anchors) {
  const int64_t ahead = 4 * kTogether, all = anchors * args.negatives;
  const float* rows[kKeyTile];
  for (int64_t anchor = 0; anchor < anchors; ++anchor) {
    for (int64_t first = 0; first < args.negatives; first += kKeyTile) {
      const int64_t count = args.negatives - first < kKeyTile ? args.negatives - first : kKeyTile;
      const int64_t at = anchor * args.negatives + first;
      for (int64_t k = 0; k < count; k += kTogether) {
        for (int64_t j = k; j < k + kTogether; ++j) {
          if (at + j + ahead < all) keys.prefetch(slots[at + j + ahead]);
          rows[j] = keys(slots[at + (j < count ? j : count - 1)], j);
        }
        dots<1>(s.unit + anchor * s.pitch, s.pitch, rows + k, args.dim, s.score + k);
      }
      fold_scores(args, s, anchor, s.score, count);
      if (args.grad != nullptr) add_keys<1>(s.score, rows, count, s.pitch, args.dim, s.mean + anchor * s.pitch);
    }
  }
}

// All anchors of the class share keys; `slots` is null for the slots 0 .. count - 1.
inline void meet_shared_keys(const InfoNce& args, const InfoNceScratch& s, const Keys& keys, const int64_t* slots,
                             int64_t all, int64_t anchors) {
  const float* rows[kKeyTile];
  for (int64_t first = 0; first < all; first += kKeyTile) {
    const int64_t count = all - first < kKeyTile ? all - first : kKeyTile;
    for (int64_t k = 0; k < kKeyTile; ++k) {
      const int64_t at = first + (k < count ? k : count - 1);
      rows[k] = k < count ? keys(slots != nullptr ? slots[at] : at, k) : rows[0];
    }
    int64_t anchor = 0;
    for (; anchor + kTogether <= anchors; anchor += kTogether) meet_keys<kTogether>(args, s, anchor, rows, count);
    for (; anchor < anchors; ++anchor) meet_keys<1>(args, s, anchor, rows, count);
  }
}

// The gradient with respect to the anchor before normalization, which passes through its norm unless that is clamped.
inline void write_anchor_grad(const InfoNce& args, const InfoNceScratch& s, int64_t anchor, float weight, float* out) {
  const float* unit = s.unit + anchor * s.pitch;
  float* slope = s.mean + anchor * s.pitch;
  const F inverse_total = broadcast(1.0f / s.total[anchor]);
  F along = broadcast(0.0f);
  for (int64_t d = 0; d < args.dim; d += kLanes) {
    const F value = load(slope + d) * inverse_total - load(s.center + d);
    store(slope + d, value);
    along = fma(value, load(unit + d), along);
  }
  const bool clamped = s.norm[anchor] < 1e-12f;
  const F project = broadcast(clamped ? 0.0f : sum(along));
  const F scale = broadcast(weight / args.temperature / (clamped ? 1e-12f : s.norm[anchor]));
  for (int64_t d = 0; d < args.dim; d += kLanes) {
    store_some(out, Float::f32, d, (load(slope + d) - project * load(unit + d)) * scale, args.dim - d);
  }
}

inline void info_nce(const InfoNce& args, int64_t task, float* scratch) {
  const int64_t blocks = (args.count + kAnchorBlock - 1) / kAnchorBlock;
  const int64_t c = task / blocks, begin = task % blocks * kAnchorBlock;
  const int64_t anchors = args.count - begin < kAnchorBlock ? args.count - begin : kAnchorBlock;
  const int64_t at = c * args.count + begin;
  float* grad = args.grad == nullptr ? nullptr : args.grad + at * args.dim;
  if (args.weight[c] == 0) {
    if (grad != nullptr) __builtin_memset(grad, 0, size_t(anchors * args.dim) * sizeof(float));
    return;
  }
  const InfoNceScratch s(args, scratch);
  load_unit(args.positives, Float::f32, c * args.dim, args.dim, s.center);
  for (int64_t a = 0; a < anchors; ++a) {
    s.norm[a] = load_unit(args.anchors, args.anchor_type, (at + a) * args.dim, args.dim, s.unit + a * s.pitch);
    F dot = broadcast(0.0f);
    for (int64_t d = 0; d < args.dim; d += kLanes) {
      const F center = load(s.center + d);
      store(s.mean + a * s.pitch + d, center);
      dot = fma(load(s.unit + a * s.pitch + d), center, dot);
    }
    s.positive[a] = s.largest[a] = sum(dot) / args.temperature;
    s.total[a] = 1.0f;
  }

  const Keys keys(args, s, c);
  switch (args.mode) {
    case Negatives::per_anchor: meet_own_keys(args, s, keys, args.indices + at * args.negatives, anchors); break;
    case Negatives::shared:
      meet_shared_keys(args, s, keys, args.indices + c * args.negatives, args.negatives, anchors);
      break;
    case Negatives::full: meet_shared_keys(args, s, keys, nullptr, args.fill[c], anchors); break;
  }

  for (int64_t a = 0; a < anchors; ++a) {
    args.excess[at + a] = s.largest[a] - s.positive[a];
    args.total[at + a] = s.total[a];
    if (grad != nullptr) write_anchor_grad(args, s, a, args.weight[c] / float(args.count), grad + a * args.dim);
  }
}
