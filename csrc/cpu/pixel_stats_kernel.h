// pixel_stats on one band. Included after low_rows.h, inside the level's namespace.
//
// Each step processes a vector of full columns on up to four full rows between the same two low rows. Sweep 1 over the
// classes blends, keeps the logits in L1 and finds the largest; sweep 2 has one exponential per class and pixel.

template <typename T>
inline void write_label(T* out, const int32_t* label, int64_t count) {
  if (count == kLanes) {  // a constant trip count: the compiler emits one narrowing store
    for (int i = 0; i < kLanes; ++i) out[i] = T(label[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = T(label[i]);
  }
}

inline void write(const PixelStats& args, int64_t at, int64_t count, I label, F confidence, F entropy) {
  alignas(64) int32_t winner[kLanes];
  store(winner, label);
  if (args.label_is_wide) {
    write_label(static_cast<int16_t*>(args.label) + at, winner, count);
  } else {
    write_label(static_cast<uint8_t*>(args.label) + at, winner, count);
  }
  store_first(args.confidence + at, confidence, count);
  store_first(args.entropy + at, entropy, count);
}

// With the largest class known, d = l - max l <= 0 and S = sum e^d >= 1, so no term of the entropy
// log S - (sum d e^d) / S can cancel.
template <int R>
inline void pixel_stats_rows(const PixelStats& args, const float* upper_row, const float* lower_row, int64_t block,
                             int64_t image, int64_t first_row, float* logits) {
  const int64_t classes = args.logits.classes, stride = row_stride(args.logits);
  for (int half = 0; half < 2; ++half) {
    const int64_t column = (block * 2 + half) * kLanes;
    const int64_t count = args.columns.full - column < kLanes ? args.columns.full - column : kLanes;
    if (count <= 0) return;
    const Sideways sideways(args.columns, block, half);
    F upper[R], lower[R], largest[R];
    I label[R];
    for (int r = 0; r < R; ++r) {
      upper[r] = broadcast(args.rows.upper[first_row + r]);
      lower[r] = broadcast(args.rows.lower[first_row + r]);
      largest[r] = broadcast(-__builtin_inff());
      label[r] = broadcast(int32_t{0});
    }
    for (int64_t c = 0; c < classes; ++c) {
      const F a = sideways(upper_row + c * stride), b = sideways(lower_row + c * stride);
      const I id = broadcast(int32_t(c));
      for (int r = 0; r < R; ++r) {
        const F l = fma(upper[r], a, lower[r] * b);
        store(logits + (c * R + r) * kLanes, l);
        label[r] = select(greater(l, largest[r]), id, label[r]);
        largest[r] = max(l, largest[r]);
      }
    }
    F sum[R], weighted[R];
    for (int r = 0; r < R; ++r) sum[r] = weighted[r] = broadcast(0.0f);
    for (int64_t c = 0; c < classes; ++c) {
      for (int r = 0; r < R; ++r) {
        const F d = max(broadcast(kLeastExponent), load(logits + (c * R + r) * kLanes) - largest[r]);
        const F e = exp(d);
        sum[r] = sum[r] + e;
        weighted[r] = fma(d, e, weighted[r]);
      }
    }
    for (int r = 0; r < R; ++r) {
      const F inverse = broadcast(1.0f) / sum[r];
      const int64_t at = (image * args.rows.full + first_row + r) * args.columns.full + column;
      write(args, at, count, label[r], inverse, log(sum[r]) - weighted[r] * inverse);
    }
  }
}

inline size_t pixel_stats_scratch(const PixelStats& args) {
  const int64_t classes = args.logits.classes;
  return size_t(2 * classes * row_stride(args.logits) + padded(classes) * kLanes + 4 * classes * kLanes);
}

inline void pixel_stats(const PixelStats& args, int64_t task, float* scratch) {
  const Logits& x = args.logits;
  const int64_t row_size = x.classes * row_stride(x);
  float* upper_row = scratch;
  float* lower_row = upper_row + row_size;
  float* staging = lower_row + row_size;
  float* logits = staging + padded(x.classes) * kLanes;

  const int64_t image = task / bands(x), begin = task % bands(x) * kBandRows;
  const int64_t end = begin + kBandRows < x.height ? begin + kBandRows : x.height;
  int64_t in_lower = -1;  // the low row that lower_row holds
  for (int64_t y = begin; y < end; ++y) {
    if (args.rows.first[y] == args.rows.first[y + 1]) continue;
    if (in_lower == y) {
      float* swap = upper_row;
      upper_row = lower_row;
      lower_row = swap;
    } else {
      pack_row(x, image, y, upper_row, staging);
    }
    in_lower = y + 1 < x.height ? y + 1 : y;
    pack_row(x, image, in_lower, lower_row, staging);
    for (int64_t block = 0; block < args.columns.blocks; ++block) {
      for (int64_t row = args.rows.first[y]; row < args.rows.first[y + 1];) {
        const int64_t left = args.rows.first[y + 1] - row;
        if (left >= 4) {
          pixel_stats_rows<4>(args, upper_row, lower_row, block, image, row, logits);
          row += 4;
        } else if (left >= 2) {
          pixel_stats_rows<2>(args, upper_row, lower_row, block, image, row, logits);
          row += 2;
        } else {
          pixel_stats_rows<1>(args, upper_row, lower_row, block, image, row, logits);
          row += 1;
        }
      }
    }
  }
}
