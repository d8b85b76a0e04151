// upsampled_cross_entropy (and the p(target) map of ohem_mask) on one band. Included after low_rows.h, inside the
// level's namespace.
//
// A block of two vectors of full columns takes up to four full rows that lie between the same two low rows, and reads
// the classes once: blend, subtract a bound on the largest logit, one exponential, kept in cache. The gradient of a
// class is then a weighted sum of those exponentials, folded vertically into the two low rows and sideways into the
// low columns. Nothing of full size is stored.

// p(target) of an ignored pixel: after every probability in any order.
constexpr float kIgnored = 2.0f;

// Full-resolution targets of one row of a block: the class, or -1 where the pixel is ignored or past the end.
template <typename T>
inline void load_target(const CrossEntropy& args, int64_t at, int64_t count, int32_t* out, CrossEntropySums& sums) {
  const T* target = static_cast<const T*>(args.target) + at;
  bool bad = false;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = target[i];
    const bool inside = value >= 0 && value < args.logits.classes, ignored = value == args.ignore_index;
    bad |= !inside && !ignored;
    out[i] = inside && !ignored ? int32_t(value) : -1;
  }
  for (int64_t i = count; i < 2 * kLanes; ++i) out[i] = -1;
  if (!bad) return;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = target[i];
    if ((value >= 0 && value < args.logits.classes) || value == args.ignore_index) continue;
    if (sums.bad_position < 0 || at + i < sums.bad_position) {
      sums.bad_position = at + i;
      sums.bad_value = value;
    }
    return;
  }
}

inline void load_target(const CrossEntropy& args, int64_t at, int64_t count, int32_t* out, CrossEntropySums& sums) {
  switch (args.target_type) {
    case Integer::u8: return load_target<uint8_t>(args, at, count, out, sums);
    case Integer::i8: return load_target<int8_t>(args, at, count, out, sums);
    case Integer::i16: return load_target<int16_t>(args, at, count, out, sums);
    case Integer::i32: return load_target<int32_t>(args, at, count, out, sums);
    case Integer::i64: return load_target<int64_t>(args, at, count, out, sums);
  }
}

// Scratch of one worker. Low rows come with their bound as one class more.
struct CrossEntropyScratch {
  float* upper_row;
  float* lower_row;
  float* upper_grad;
  float* lower_grad;
  float* staging;
  float* exponential;  // (classes, rows, 2 lanes) of the block at hand

  CrossEntropyScratch(const CrossEntropy& args, float* scratch) {
    const int64_t row_size = (args.logits.classes + 1) * row_stride(args.logits);
    upper_row = scratch;
    lower_row = upper_row + row_size;
    upper_grad = lower_row + row_size;
    lower_grad = upper_grad + row_size;
    staging = lower_grad + row_size;
    exponential = staging + padded(args.logits.classes) * kLanes;
  }
};

inline size_t cross_entropy_scratch(const CrossEntropy& args) {
  const int64_t classes = args.logits.classes;
  return size_t(4 * (classes + 1) * row_stride(args.logits) + padded(classes) * kLanes + 8 * classes * kLanes);
}

// What the pixels of one block leave for its gradient.
template <int R>
struct PixelScale {
  F upper[R][2], lower[R][2];  // factor of e^d towards the two low rows
  F upper_smooth[2], lower_smooth[2];  // sum over rows of what label smoothing takes off every class, times its weight
};

// The exponentials of one vector of columns and their sum, for every row. `shift` starts as the bound on the largest
// logit. Where that lies so far above the largest logit that the sum would lose digits (neighbouring low pixels more
// than ~40 apart and of different classes), the largest logit itself is found first.
template <int R, bool kSmooth>
inline void exponentials(const CrossEntropy& args, const CrossEntropyScratch& s, const Sideways& sideways, int half,
                         const F* upper, const F* lower, F* shift, F* sum, F* smooth) {
  const int64_t classes = args.logits.classes, stride = row_stride(args.logits);
  const F a = sideways(s.upper_row + classes * stride), b = sideways(s.lower_row + classes * stride);
  for (int r = 0; r < R; ++r) shift[r] = fma(upper[r], a, lower[r] * b);
  for (bool exact = false;; exact = true) {
    for (int r = 0; r < R; ++r) sum[r] = smooth[r] = broadcast(0.0f);
    for (int64_t c = 0; c < classes; ++c) {
      const F a = sideways(s.upper_row + c * stride), b = sideways(s.lower_row + c * stride);
      float* out = s.exponential + (c * R * 2 + half) * kLanes;
      const F weight = broadcast(kSmooth && args.weight != nullptr ? args.weight[c] : 1.0f);
      for (int r = 0; r < R; ++r) {
        const F d = fma(upper[r], a, lower[r] * b) - shift[r];
        const F e = exp(max(broadcast(kLeastExponent), d));
        sum[r] = sum[r] + e;
        if (kSmooth) smooth[r] = fma(weight, d, smooth[r]);
        store(out + r * 2 * kLanes, e);
      }
    }
    bool lost = false;
    for (int r = 0; r < R; ++r) lost |= any(greater(broadcast(0x1p-60f), sum[r]));
    if (!lost || exact) return;
    for (int r = 0; r < R; ++r) shift[r] = broadcast(-__builtin_inff());
    for (int64_t c = 0; c < classes; ++c) {
      const F a = sideways(s.upper_row + c * stride), b = sideways(s.lower_row + c * stride);
      for (int r = 0; r < R; ++r) shift[r] = max(fma(upper[r], a, lower[r] * b), shift[r]);
    }
  }
}

// Below this e^d may have been cut off at kLeastExponent.
constexpr float kFar = 1e-36f;

// -log p where the target's exponential is cut off, from the logits themselves.
inline F far_losses(const CrossEntropy& args, const CrossEntropyScratch& s, int64_t block, int half, int64_t row,
                    const int32_t* target, F e, F loss, F shift, F log_sum) {
  alignas(64) float losses[kLanes], exponential[kLanes], shifts[kLanes], log_sums[kLanes];
  store(losses, loss);
  store(exponential, e);
  store(shifts, shift);
  store(log_sums, log_sum);
  const Columns& columns = args.columns;
  const int64_t offset = columns.narrow[block] ? columns.base[block] : 0;
  const float upper = args.rows.upper[row], lower = args.rows.lower[row];
  for (int i = 0; i < kLanes; ++i) {
    if (target[i] < 0 || !(exponential[i] < kFar)) continue;
    const int64_t at = (block * 2 + half) * kLanes + i, start = target[i] * row_stride(args.logits) + offset;
    const int64_t left = start + columns.left[at], right = start + columns.right[at];
    const float u = columns.left_weight[at], v = columns.right_weight[at];
    const float logit = upper * (u * s.upper_row[left] + v * s.upper_row[right]) +
                        lower * (u * s.lower_row[left] + v * s.lower_row[right]);
    losses[i] = logit < -1e30f ? __builtin_inff() : (shifts[i] - logit) + log_sums[i];  // kLowest stands for -inf
  }
  return load(losses);
}

// Targets and weights of one block; pixels past the end count as ignored.
template <int R>
struct Pixels {
  alignas(64) int32_t target[R][2 * kLanes];
  alignas(64) float weight[R][2 * kLanes];
  int64_t count, at[R];
  int32_t valid = 0;

  Pixels(const CrossEntropy& args, int64_t block, int64_t image, int64_t first_row, CrossEntropySums& sums) {
    const int64_t column = block * 2 * kLanes;
    count = args.columns.full - column < 2 * kLanes ? args.columns.full - column : 2 * kLanes;
    for (int r = 0; r < R; ++r) {
      at[r] = (image * args.rows.full + first_row + r) * args.columns.full + column;
      load_target(args, at[r], count, target[r], sums);
      for (int i = 0; i < 2 * kLanes; ++i) valid += target[r][i] >= 0;
      if (args.pixel_weight == nullptr) continue;
      __builtin_memset(weight[r], 0, sizeof weight[r]);
      __builtin_memcpy(weight[r], args.pixel_weight + at[r], count * sizeof(float));
    }
    sums.valid += valid;
  }
};

// Where each lane's target lies in the block's exponentials of row r.
template <int R>
inline void target_positions(I target, int r, int half, int32_t* out) {
  alignas(64) int32_t lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = (r * 2 + half) * kLanes + i;
  store(out, add(multiply(target, broadcast(int32_t{R * 2 * kLanes})), load(lane)));
}

// Adds the losses of one block up and leaves in `scale` what its gradient needs.
template <int R, bool kSmooth>
inline void block_losses(const CrossEntropy& args, const CrossEntropyScratch& s, int64_t block, int64_t first_row,
                         const Pixels<R>& pixels, PixelScale<R>& scale, double* num, double* den) {
  const float smoothing = kSmooth ? float(args.label_smoothing / double(args.logits.classes)) : 0.0f;
  const F keep = broadcast(float(1.0 - args.label_smoothing)), spread = broadcast(smoothing);
  const F weight_sum = broadcast(float(args.weight_sum));
  const F zero = broadcast(0.0f), one = broadcast(1.0f);
  F block_num = zero, block_den = zero;
  for (int half = 0; half < 2; ++half) {
    const Sideways sideways(args.columns, block, half);
    F upper[R], lower[R], shift[R], sum[R], smooth[R];
    for (int r = 0; r < R; ++r) {
      upper[r] = broadcast(args.rows.upper[first_row + r]);
      lower[r] = broadcast(args.rows.lower[first_row + r]);
    }
    exponentials<R, kSmooth>(args, s, sideways, half, upper, lower, shift, sum, smooth);
    scale.upper_smooth[half] = scale.lower_smooth[half] = zero;
    for (int r = 0; r < R; ++r) {
      const int32_t* target = &pixels.target[r][half * kLanes];
      const I id = load(target);
      const K kept = greater(id, broadcast(int32_t{-1}));
      const I safe = select(kept, id, broadcast(int32_t{0}));
      alignas(64) int32_t position[kLanes];
      target_positions<R>(safe, r, half, position);
      const F e = gather(s.exponential, load(position));
      const F class_weight = args.weight != nullptr ? gather(args.weight, safe) : one;
      const F pixel = args.pixel_weight != nullptr ? load(&pixels.weight[r][half * kLanes]) : one;

      F loss = log(sum[r] / e);
      if (any(greater(broadcast(kFar), e))) {
        loss = far_losses(args, s, block, half, first_row + r, target, e, loss, shift[r], log(sum[r]));
      }
      F value = class_weight * loss;
      F factor = pixel * class_weight;  // of p in the gradient
      F correction = sum[r];            // factor / sum * (e - correction) is the gradient towards the target
      block_den = block_den + select(kept, factor, zero);
      if (kSmooth) {
        value = fma(keep, value, spread * fma(weight_sum, log(sum[r]), zero - smooth[r]));
        const F share = keep * class_weight, whole = fma(spread, weight_sum, share);
        factor = pixel * whole;
        correction = sum[r] * select(greater(whole, zero), share / whole, zero);
        const F taken = select(kept, pixel * spread, zero);
        scale.upper_smooth[half] = fma(upper[r], taken, scale.upper_smooth[half]);
        scale.lower_smooth[half] = fma(lower[r], taken, scale.lower_smooth[half]);
      }
      block_num = block_num + select(kept, pixel * value, zero);
      if (args.probability != nullptr && half * kLanes < pixels.count) {
        const int64_t left = pixels.count - half * kLanes;
        store_first(args.probability + pixels.at[r] + half * kLanes, select(kept, e / sum[r], broadcast(kIgnored)),
                    left < kLanes ? left : kLanes);
      }
      if (args.grad == nullptr) continue;
      const F k = select(kept, factor / sum[r], zero);
      scale.upper[r][half] = upper[r] * k;
      scale.lower[r][half] = lower[r] * k;
      alignas(64) float corrected[kLanes];
      store(corrected, e - correction);
#pragma GCC unroll 1  // unrolled, GCC takes the lanes apart with shuffles, which costs more than these reloads
      for (int i = 0; i < kLanes; ++i) s.exponential[position[i]] = corrected[i];
    }
  }
  alignas(64) float num_lane[kLanes], den_lane[kLanes];
  store(num_lane, block_num);
  store(den_lane, block_den);
  for (int i = 0; i < kLanes; ++i) num[i] += num_lane[i];
  for (int i = 0; i < kLanes; ++i) den[i] += den_lane[i];
}

// The transposed blend: one class's gradient on the block's full columns, added to its low columns. kTaps is the
// number of taps, kept in registers, or 0 where it is known only now.
template <int kTaps>
struct Fold {
  static constexpr int kKept = kTaps > 0 ? kTaps : 1;
  const Columns& columns;
  int64_t block, base, first, last;
  I index[kKept];
  F weight[kKept];

  Fold(const Columns& columns, int64_t block)
      : columns(columns), block(block), base(columns.base[block]), first(columns.tap_first[block]),
        last(columns.tap_first[block + 1]) {
    for (int tap = 0; tap < kTaps; ++tap) {
      index[tap] = load(columns.tap_index + (first + tap) * kLanes);
      weight[tap] = load(columns.tap_weight + (first + tap) * kLanes);
    }
  }

  void operator()(const F* upper, const F* lower, float* upper_grad, float* lower_grad) const {
    if (kTaps == 0 && !columns.narrow[block]) return wide(upper, lower, upper_grad, lower_grad);
    F g = broadcast(0.0f), h = g;
    if (kTaps > 0) {
      for (int tap = 0; tap < kTaps; ++tap) {
        g = fma(weight[tap], permute(upper[0], upper[1], index[tap]), g);
        h = fma(weight[tap], permute(lower[0], lower[1], index[tap]), h);
      }
    } else {
      for (int64_t tap = first; tap < last; ++tap) {
        const I from = load(columns.tap_index + tap * kLanes);
        const F by = load(columns.tap_weight + tap * kLanes);
        g = fma(by, permute(upper[0], upper[1], from), g);
        h = fma(by, permute(lower[0], lower[1], from), h);
      }
    }
    store(upper_grad + base, load(upper_grad + base) + g);
    store(lower_grad + base, load(lower_grad + base) + h);
  }

  void wide(const F* upper, const F* lower, float* upper_grad, float* lower_grad) const {
    alignas(64) float g[2 * kLanes], h[2 * kLanes];
    for (int half = 0; half < 2; ++half) {
      store(g + half * kLanes, upper[half]);
      store(h + half * kLanes, lower[half]);
    }
    for (int i = 0; i < 2 * kLanes; ++i) {
      const int64_t at = block * 2 * kLanes + i;
      const int32_t left = columns.left[at], right = columns.right[at];
      upper_grad[left] += columns.left_weight[at] * g[i];
      upper_grad[right] += columns.right_weight[at] * g[i];
      lower_grad[left] += columns.left_weight[at] * h[i];
      lower_grad[right] += columns.right_weight[at] * h[i];
    }
  }
};

template <int R, bool kSmooth, int kTaps>
inline void block_grad(const CrossEntropy& args, const CrossEntropyScratch& s, int64_t block,
                       const PixelScale<R>& scale) {
  const int64_t classes = args.logits.classes, stride = row_stride(args.logits);
  const Fold<kTaps> fold(args.columns, block);
  for (int64_t c = 0; c < classes; ++c) {
    const float* e = s.exponential + c * R * 2 * kLanes;
    F upper[2], lower[2];
    for (int half = 0; half < 2; ++half) {
      upper[half] = lower[half] = broadcast(0.0f);
      if (kSmooth) {
        const F weight = broadcast(args.weight != nullptr ? -args.weight[c] : -1.0f);
        upper[half] = weight * scale.upper_smooth[half];
        lower[half] = weight * scale.lower_smooth[half];
      }
      for (int r = 0; r < R; ++r) {
        const F x = load(e + (r * 2 + half) * kLanes);
        upper[half] = fma(scale.upper[r][half], x, upper[half]);
        lower[half] = fma(scale.lower[r][half], x, lower[half]);
      }
    }
    fold(upper, lower, s.upper_grad + c * stride, s.lower_grad + c * stride);
  }
}

template <int R, bool kSmooth>
inline void cross_entropy_rows(const CrossEntropy& args, const CrossEntropyScratch& s, int64_t block, int64_t image,
                               int64_t first_row, double* num, double* den, CrossEntropySums& sums) {
  const Pixels<R> pixels(args, block, image, first_row, sums);
  if (pixels.valid == 0) {
    for (int r = 0; r < R && args.probability != nullptr; ++r) {
      for (int64_t i = 0; i < pixels.count; ++i) args.probability[pixels.at[r] + i] = kIgnored;
    }
    return;
  }
  PixelScale<R> scale;
  block_losses<R, kSmooth>(args, s, block, first_row, pixels, scale, num, den);
  if (args.grad == nullptr) return;
  if (args.columns.tap_first[block + 1] - args.columns.tap_first[block] == 8) {
    block_grad<R, kSmooth, 8>(args, s, block, scale);  // upsampling by 4
  } else {
    block_grad<R, kSmooth, 0>(args, s, block, scale);
  }
}

template <bool kSmooth>
inline void cross_entropy_between(const CrossEntropy& args, const CrossEntropyScratch& s, int64_t image, int64_t y,
                                  double* num, double* den, CrossEntropySums& sums) {
  const int64_t end = args.rows.first[y + 1];
  for (int64_t block = 0; block < args.columns.blocks; ++block) {
    for (int64_t row = args.rows.first[y]; row < end;) {
      if (end - row >= 4) {
        cross_entropy_rows<4, kSmooth>(args, s, block, image, row, num, den, sums);
        row += 4;
      } else if (end - row >= 2) {
        cross_entropy_rows<2, kSmooth>(args, s, block, image, row, num, den, sums);
        row += 2;
      } else {
        cross_entropy_rows<1, kSmooth>(args, s, block, image, row, num, den, sums);
        row += 1;
      }
    }
  }
}

inline void write_grad(const CrossEntropy& args, const float* grad, int64_t image, int64_t y) {
  const int64_t stride = row_stride(args.logits), classes = args.logits.classes, width = args.logits.width;
  float* out = args.grad + image * args.grad_stride_b + y * args.grad_stride_y;
  if (args.grad_stride_x == 1) {
    for (int64_t c = 0; c < classes; ++c) {
      __builtin_memcpy(out + c * args.grad_stride_c, grad + c * stride, width * sizeof(float));
    }
    return;
  }
  alignas(64) int32_t step[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) step[lane] = int32_t(lane * stride);
  const I index = load(step);
  for (int64_t x = 0; x < width; ++x) {
    int64_t c = 0;
    for (; c + kLanes <= classes; c += kLanes) {
      store(out + x * args.grad_stride_x + c, gather(grad + c * stride + x, index));
    }
    for (; c < classes; ++c) out[x * args.grad_stride_x + c] = grad[c * stride + x];
  }
}

inline void cross_entropy(const CrossEntropy& args, int64_t task, float* scratch, CrossEntropySums& sums) {
  const Logits& x = args.logits;
  CrossEntropyScratch s(args, scratch);
  const int64_t stride = row_stride(x), size = x.classes * stride;
  const int64_t image = task / bands(x), begin = task % bands(x) * kBandRows;
  const int64_t end = begin + kBandRows < x.height ? begin + kBandRows : x.height;
  double num[kLanes] = {}, den[kLanes] = {};
  const bool grad = args.grad != nullptr;
  if (grad) __builtin_memset(s.upper_grad, 0, size * sizeof(float));
  int64_t in_lower = -1;
  for (int64_t y = begin; y < end; ++y) {
    if (grad) __builtin_memset(s.lower_grad, 0, size * sizeof(float));
    if (args.rows.first[y] < args.rows.first[y + 1]) {
      if (in_lower == y) {
        float* swap = s.upper_row;
        s.upper_row = s.lower_row;
        s.lower_row = swap;
      } else {
        pack_row(x, image, y, s.upper_row, s.staging);
        pack_bound(s.upper_row, x.classes, stride, s.upper_row + size);
      }
      in_lower = y + 1 < x.height ? y + 1 : y;
      pack_row(x, image, in_lower, s.lower_row, s.staging);
      pack_bound(s.lower_row, x.classes, stride, s.lower_row + size);
      if (args.label_smoothing != 0) {
        cross_entropy_between<true>(args, s, image, y, num, den, sums);
      } else {
        cross_entropy_between<false>(args, s, image, y, num, den, sums);
      }
    }
    if (!grad) continue;
    if (y + 1 == x.height) {  // the last low row is its own lower neighbour
      for (int64_t i = 0; i < size; i += kLanes) {
        store(s.upper_grad + i, load(s.upper_grad + i) + load(s.lower_grad + i));
      }
    }
    write_grad(args, s.upper_grad, image, y);
    float* swap = s.upper_grad;
    s.upper_grad = s.lower_grad;
    s.lower_grad = swap;
  }
  if (grad && end < x.height) {
    float* seam = args.seam + task * x.classes * x.width;
    for (int64_t c = 0; c < x.classes; ++c) {
      __builtin_memcpy(seam + c * x.width, s.upper_grad + c * stride, x.width * sizeof(float));
    }
  }
  for (int i = 0; i < kLanes; ++i) {
    sums.num += num[i];
    sums.den += den[i];
  }
}
