// upsampled_cross_entropy (and the p(target) map of ohem_mask) on one band. Included after low_rows.h, inside the
// level's namespace.
//
// A block is up to four columns of each of kLanes neighboring cells, one cell per lane, on up to four full rows between
// the same two low rows. Within a cell and along a row or column, the blended logits of a class are an arithmetic
// progression, so their exponentials are a geometric one: four exponentials per class give all sixteen of a cell. The
// second sweep multiplies them by the weights of the gradient and folds them back onto the corners of the cell. Nothing
// of full size is stored.

// p(target) of an ignored pixel: sorts after every probability.
constexpr float kIgnored = 2.0f;

constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;

// Below this, an exponential may have been clamped to 2^kLeastPower.
constexpr float kLeastPower = -126.0f, kFar = 1e-30f;

// Scratch of one worker. A low row is (classes + 1, stride), low column x of a class at x + origin, so that blocks are
// aligned, and holds log2(e) (l - max over classes of l). The class past the last serves label smoothing: in the
// logits, the sum over classes weighted by `weight`; in the gradient, the amount to subtract from every class in
// proportion to its weight.
struct CrossEntropyScratch {
  float* upper_row;
  float* lower_row;
  float* upper_grad;
  float* lower_grad;
  float* staging;
  float* largest;   // (stride)
  float* powers;    // (classes, 4, lanes) of the current block, see Powers
  int32_t* target;  // (4, full width + 1)
  int64_t origin;

  CrossEntropyScratch(const CrossEntropy& args, float* scratch) {
    const int64_t size = row_size(args);
    upper_row = scratch;
    lower_row = upper_row + size;
    upper_grad = lower_row + size;
    lower_grad = upper_grad + size;
    staging = lower_grad + size;
    largest = staging + padded(args.logits.classes) * kLanes;
    powers = largest + row_stride(args.logits);
    target = reinterpret_cast<int32_t*>(powers + 4 * args.logits.classes * kLanes);
    origin = -args.cells.block[0].first;
  }

  static int64_t row_size(const CrossEntropy& args) {
    return (args.logits.classes + 1) * row_stride(args.logits) + kLanes;
  }
};

inline size_t cross_entropy_scratch(const CrossEntropy& args) {
  const int64_t classes = args.logits.classes;
  return size_t(4 * CrossEntropyScratch::row_size(args) + padded(classes) * kLanes + row_stride(args.logits) +
                4 * classes * kLanes + 4 * (args.cells.full + 1));
}

// Targets of one full row: the class, or -1 where the pixel is ignored and past the end.
template <typename T>
inline void load_targets(const CrossEntropy& args, int64_t at, int32_t* out, CrossEntropySums& sums) {
  const T* target = static_cast<const T*>(args.target) + at;
  const int64_t count = args.cells.full, classes = args.logits.classes, ignore = args.ignore_index;
  int32_t valid = 0, bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = target[i];
    const bool inside = uint64_t(value) < uint64_t(classes) && value != ignore;
    valid += inside;
    bad |= !inside && value != ignore;
    out[i] = inside ? int32_t(value) : -1;
  }
  out[count] = -1;
  sums.valid += valid;
  for (int64_t i = 0; bad && i < count; ++i) {
    const int64_t value = target[i];
    if (out[i] >= 0 || value == ignore || (sums.bad_position >= 0 && sums.bad_position < at + i)) continue;
    sums.bad_position = at + i;
    sums.bad_value = value;
  }
}

inline void load_targets(const CrossEntropy& args, int64_t at, int32_t* out, CrossEntropySums& sums) {
  switch (args.target_type) {
    case Integer::u8: return load_targets<uint8_t>(args, at, out, sums);
    case Integer::i8: return load_targets<int8_t>(args, at, out, sums);
    case Integer::i16: return load_targets<int16_t>(args, at, out, sums);
    case Integer::i32: return load_targets<int32_t>(args, at, out, sums);
    case Integer::i64: return load_targets<int64_t>(args, at, out, sums);
  }
}

// Processes class by class to read memory in order; the largest logits of all columns stay in cache.
inline void pack_low_row(const CrossEntropy& args, int64_t image, int64_t y, const CrossEntropyScratch& s, float* row) {
  const int64_t stride = row_stride(args.logits), classes = args.logits.classes;
  store(row, broadcast(0.0f));
  row += s.origin;
  pack_row(args.logits, image, y, row, s.staging);
  __builtin_memcpy(s.largest, row, stride * sizeof(float));
  for (int64_t c = 1; c < classes; ++c) {
    for (int64_t i = 0; i < stride; i += kLanes) {
      store(s.largest + i, max(load(row + c * stride + i), load(s.largest + i)));
    }
  }
  const bool smooth = args.label_smoothing != 0;
  float* sum = row + classes * stride;
  for (int64_t i = 0; i < stride && smooth; i += kLanes) store(sum + i, broadcast(0.0f));
  for (int64_t c = 0; c < classes; ++c) {
    const F weight = broadcast(args.weight != nullptr ? args.weight[c] : 1.0f);
    for (int64_t i = 0; i < stride; i += kLanes) {
      float* at = row + c * stride + i;
      const F d = max(broadcast(kLowest), (load(at) - load(s.largest + i)) * broadcast(kLog2e));
      store(at, d);
      if (smooth) store(sum + i, max(broadcast(kLowest), fma(weight, d, load(sum + i))));
    }
  }
}

// Where a block lies, from `row` and the tables' `entry` on, and how its pixels blend their cells' corners: pixel (r, k)
// weighs the lower two by lower + r * down and the right two by right + k * across.
struct Block {
  int64_t at;  // of lane 0's left corner in the low rows
  F upper, lower, left, right, down, across;

  Block(const CrossEntropy& args, int64_t at, int64_t row, int rows, int64_t entry, int columns)
      : at(at) {
    const Cells& cells = args.cells;
    upper = broadcast(args.rows.upper[row]);
    lower = broadcast(args.rows.lower[row]);
    down = rows > 1 ? broadcast((args.rows.lower[row + rows - 1] - args.rows.lower[row]) / float(rows - 1))
                    : broadcast(0.0f);
    left = load(cells.left_weight + entry * kLanes);
    right = load(cells.right_weight + entry * kLanes);
    const F last = load(cells.right_weight + (entry + columns - 1) * kLanes);
    across = (last - right) * broadcast(1.0f / float(columns > 1 ? columns - 1 : 1));
  }

  F blend(const CrossEntropyScratch& s, int64_t row_at) const {
    const float *a = s.upper_row + row_at + at, *b = s.lower_row + row_at + at;
    return fma(upper, fma(left, load(a), right * load(a + 1)), lower * fma(left, load(b), right * load(b + 1)));
  }
};

// One class's exponentials on a block: pixel (r, k) has first * down^r * across^k * both^(r k).
struct Powers {
  F first, down, across, both;

  template <int R, int S>
  void expand(F (&e)[R][S]) const {
    F ratio[R];
    e[0][0] = first;
    ratio[0] = across;
    for (int r = 1; r < R; ++r) {
      e[r][0] = e[r - 1][0] * down;
      ratio[r] = ratio[r - 1] * both;
    }
    for (int k = 1; k < S; ++k) {
      for (int r = 0; r < R; ++r) e[r][k] = e[r][k - 1] * ratio[r];
    }
  }

  F at(int row, int column) const {
    F e = first, ratio = across;
    for (int r = 0; r < row; ++r) {
      e = e * down;
      ratio = ratio * both;
    }
    for (int k = 0; k < column; ++k) e = e * ratio;
    return e;
  }
};

inline Powers load_powers(const float* p) {
  return {load(p), load(p + kLanes), load(p + 2 * kLanes), load(p + 3 * kLanes)};
}

// The class differs by lane.
inline Powers gather_powers(const CrossEntropyScratch& s, I id) {
  alignas(64) int32_t lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  const I index = add(multiply(id, broadcast(int32_t{4 * kLanes})), load(lane));
  return {gather(s.powers, index), gather(s.powers + kLanes, index), gather(s.powers + 2 * kLanes, index),
          gather(s.powers + 3 * kLanes, index)};
}

// Stores the powers of every class in the scratch. Returns false if a progression starts or ends below the least
// power but rises above it.
template <int R, int S>
inline bool find_powers(const CrossEntropy& args, const CrossEntropyScratch& s, const Block& block, F shift) {
  const int64_t classes = args.logits.classes, stride = row_stride(args.logits);
  const F least = broadcast(kLeastPower), zero = broadcast(0.0f);
  const F rows = broadcast(float(R - 1)), columns = broadcast(float(S - 1));
  K cut = greater(zero, zero);
  for (int64_t c = 0; c < classes; ++c) {
    const float *a = s.upper_row + c * stride + block.at, *b = s.lower_row + c * stride + block.at;
    const F upper_left = load(a), upper_right = load(a + 1), lower_left = load(b), lower_right = load(b + 1);
    const F u = fma(block.left, upper_left, block.right * upper_right);
    const F l = fma(block.left, lower_left, block.right * lower_right);
    const F d = fma(block.upper, u, block.lower * l);
    float* out = s.powers + c * 4 * kLanes;
    if constexpr (R * S == 1) {
      F power[1] = {max(least, d - shift)};
      exp2(power);
      store(out, power[0]);
    } else {
      const F u_across = block.across * (upper_right - upper_left);
      const F l_across = block.across * (lower_right - lower_left);
      const F across = fma(block.upper, u_across, block.lower * l_across);
      const F down = block.down * (l - u), both = block.down * (l_across - u_across);
      const F last_column = fma(columns, across, d), last_row = fma(rows, down, d);
      const F opposite = fma(columns, fma(rows, both, across), last_row);
      const F highest = max(max(d, last_column), max(last_row, opposite));
      const F lowest = min(min(d, last_column), min(last_row, opposite));
      const K dead = greater(least, highest);
      cut = cut | (greater(least, lowest) ^ dead);
      F power[4] = {select(dead, least, d), select(dead, zero, down), select(dead, zero, across),
                    select(dead, zero, both)};
      exp2(power);
      for (int i = 0; i < 4; ++i) store(out + i * kLanes, power[i]);
    }
  }
  return !any(cut);
}

// Computes the sums over classes. Returns false if one is out of range: the bound is then far above the largest logit
// (neighboring low pixels of different classes, more than ~40 apart).
template <int R, int S>
inline bool sum_classes(const CrossEntropy& args, const CrossEntropyScratch& s, F (&sum)[R][S]) {
  F total[R][S];
  load_powers(s.powers).expand(total);
  for (int64_t c = 1; c < args.logits.classes; ++c) {
    F e[R][S];
    load_powers(s.powers + c * 4 * kLanes).expand(e);
    for (int r = 0; r < R; ++r) {
      for (int k = 0; k < S; ++k) total[r][k] = total[r][k] + e[r][k];
    }
  }
  F highest = total[0][0], lowest = highest;
  for (int r = 0; r < R; ++r) {
    for (int k = 0; k < S; ++k) {
      sum[r][k] = total[r][k];
      highest = max(highest, total[r][k]);
      lowest = min(lowest, total[r][k]);
    }
  }
  return !any(greater(broadcast(0x1p-60f), lowest)) && !any(greater(highest, broadcast(0x1p60f)));
}

struct Corners {
  F upper_left, upper_right, lower_left, lower_right;
};

// The transposed blend of scale * e. Partial sums from the end give the sums weighted by r and by k.
template <int R, int S>
__attribute__((always_inline)) inline Corners fold(const Block& block, const F (&scale)[R][S],
                                                   const F (&e)[R][S]) {
  const F zero = broadcast(0.0f);
  F sum = zero, by_row = zero, by_column = zero, by_both = zero;
  for (int k = S - 1; k >= 0; --k) {
    F part = scale[R - 1][k] * e[R - 1][k], parts = R > 1 ? part : zero;
    for (int r = R - 2; r >= 0; --r) {
      part = fma(scale[r][k], e[r][k], part);
      if (r > 0) parts = parts + part;
    }
    sum = sum + part;
    if (R > 1) by_row = by_row + parts;
    if (k == 0) break;
    by_column = by_column + sum;
    if (R > 1) by_both = by_both + by_row;
  }
  const F lower = fma(block.lower, sum, block.down * by_row);
  const F lower_columns = fma(block.lower, by_column, block.down * by_both);
  const F upper = block.upper * sum - block.down * by_row;
  const F upper_columns = block.upper * by_column - block.down * by_both;
  return {block.left * upper - block.across * upper_columns, fma(block.right, upper, block.across * upper_columns),
          block.left * lower - block.across * lower_columns, fma(block.right, lower, block.across * lower_columns)};
}

// Forced inline, here and below: otherwise GCC passes the vectors of every class through memory.
__attribute__((always_inline)) inline void add_pair(float* grad, F left, F right, I previous) {
  store(grad, load(grad) + (left + permute(broadcast(0.0f), right, previous)));
  grad[kLanes] += right[kLanes - 1];
}

__attribute__((always_inline)) inline void add_corners(const CrossEntropyScratch& s, int64_t at, const Corners& g) {
  alignas(64) int32_t index[kLanes];
  for (int i = 0; i < kLanes; ++i) index[i] = kLanes - 1 + i;
  const I previous = load(index);
  add_pair(s.upper_grad + at, g.upper_left, g.upper_right, previous);
  add_pair(s.lower_grad + at, g.lower_left, g.lower_right, previous);
}

// Subtracts each lane's value from the class of the lane.
inline void subtract_corners(const CrossEntropyScratch& s, int64_t stride, int64_t at, const int32_t* id,
                             const Corners& g) {
  alignas(64) float value[4][kLanes];
  store(value[0], g.upper_left);
  store(value[1], g.upper_right);
  store(value[2], g.lower_left);
  store(value[3], g.lower_right);
  for (int i = 0; i < kLanes; ++i) {
    const int64_t to = id[i] * stride + at + i;
    s.upper_grad[to] -= value[0][i];
    s.upper_grad[to + 1] -= value[1][i];
    s.lower_grad[to] -= value[2][i];
    s.lower_grad[to + 1] -= value[3][i];
  }
}

// Computes -log p of pixel (row, entry) from the logits, for a target whose exponential was clamped.
inline F far_losses(const CrossEntropy& args, const CrossEntropyScratch& s, int64_t at, int64_t row, int64_t entry,
                    I id, F e, F loss, F shift, F log_sum) {
  alignas(64) float losses[kLanes], exponential[kLanes], shifts[kLanes], log_sums[kLanes];
  alignas(64) int32_t target[kLanes];
  store(losses, loss);
  store(exponential, e);
  store(shifts, shift);
  store(log_sums, log_sum);
  store(target, id);
  const float upper = args.rows.upper[row], lower = args.rows.lower[row];
  for (int i = 0; i < kLanes; ++i) {
    if (!(exponential[i] < kFar)) continue;
    const int64_t from = target[i] * row_stride(args.logits) + at + i;
    const float left = args.cells.left_weight[entry * kLanes + i], right = args.cells.right_weight[entry * kLanes + i];
    const float d = upper * (left * s.upper_row[from] + right * s.upper_row[from + 1]) +
                    lower * (left * s.lower_row[from] + right * s.lower_row[from + 1]);
    losses[i] = d < -1e30f ? __builtin_inff() : (shifts[i] - d) * kLn2 + log_sums[i];  // kLowest represents -inf
  }
  return load(losses);
}

template <int R, int S>
inline void block_losses(const CrossEntropy& args, const CrossEntropyScratch& s, int64_t image, int64_t at,
                         int64_t row, int64_t entry, const int32_t* targets, double* num, double* den) {
  const int64_t classes = args.logits.classes, stride = row_stride(args.logits);
  const Cells& cells = args.cells;
  const F zero = broadcast(0.0f), one = broadcast(1.0f);
  const I no_class = broadcast(int32_t{-1}), class_zero = broadcast(int32_t{0});
  I target[R][S];
  I highest = no_class;
  for (int r = 0; r < R; ++r) {
    for (int k = 0; k < S; ++k) {
      const I column = load(cells.column + (entry + k) * kLanes);
      const float* from = reinterpret_cast<const float*>(targets + r * (cells.full + 1));
      target[r][k] = as_int(gather(from, column));
      highest = select(greater(target[r][k], highest), target[r][k], highest);
    }
  }
  if (!any(greater(highest, no_class))) return;

  const Block block(args, at, row, R, entry, S);
  F sum[R][S], shift = zero;
  if (!find_powers<R, S>(args, s, block, zero) || !sum_classes(args, s, sum)) {
    if constexpr (R * S > 1) {
      for (int r = 0; r < R; ++r) {
        for (int k = 0; k < S; ++k) {
          block_losses<1, 1>(args, s, image, at, row + r, entry + k, targets + r * (cells.full + 1), num, den);
        }
      }
      return;
    } else {
      shift = block.blend(s, 0);
      for (int64_t c = 1; c < classes; ++c) shift = max(block.blend(s, c * stride), shift);
      find_powers<1, 1>(args, s, block, shift);
      sum_classes(args, s, sum);
    }
  }

  const bool smooth = args.label_smoothing != 0;
  const F keep = broadcast(float(1.0 - args.label_smoothing));
  const F spread = broadcast(float(args.label_smoothing / double(classes)));
  const F weight_sum = broadcast(float(args.weight_sum));
  // Most pixels of a cell have the same target.
  const I middle = target[R / 2][S / 2], common = select(greater(middle, no_class), middle, class_zero);
  F common_e[R][S];
  gather_powers(s, common).expand(common_e);
  F scale[R][S], taken[R][S], smoothed[R][S];
  F block_num = zero, block_den = zero;
  for (int r = 0; r < R; ++r) {
    for (int k = 0; k < S; ++k) {
      const K kept = greater(target[r][k], no_class);
      const I id = select(kept, target[r][k], common);
      const K other = greater(id, common) | greater(common, id);
      F e = common_e[r][k];
      if (any(other)) e = select(other, gather_powers(s, id).at(r, k), e);
      const F class_weight = args.weight != nullptr ? gather(args.weight, id) : one;
      F pixel = one;
      const int64_t full_row = (image * args.rows.full + row + r) * cells.full;
      if (args.pixel_weight != nullptr) {
        const I column = load(cells.column + (entry + k) * kLanes);
        pixel = gather(args.pixel_weight + full_row, select(kept, column, class_zero));
      }
      const F inverse = one / sum[r][k], p = e * inverse;
      F loss = max(zero, zero - log(p));
      if (any(greater(broadcast(kFar), e))) {
        loss = far_losses(args, s, block.at, row + r, entry + k, id, e, loss, shift, log(sum[r][k]));
      }
      const F factor = pixel * class_weight;
      block_den = block_den + select(kept, factor, zero);
      F value = class_weight * loss;
      taken[r][k] = select(kept, keep * factor, zero);
      scale[r][k] = taken[r][k];
      smoothed[r][k] = zero;
      if (smooth) {
        const Block here(args, at, row + r, 1, entry + k, 1);
        const F d = here.blend(s, classes * stride) - weight_sum * shift;
        value = fma(keep, value, spread * fma(weight_sum, log(sum[r][k]), d * broadcast(-kLn2)));
        smoothed[r][k] = select(kept, pixel * spread, zero);
        scale[r][k] = fma(weight_sum, smoothed[r][k], taken[r][k]);
      }
      scale[r][k] = scale[r][k] * inverse;
      block_num = block_num + select(kept, pixel * value, zero);
      if (args.probability != nullptr) {
        alignas(64) float probability[kLanes];
        alignas(64) int32_t own[kLanes];
        store(probability, p);
        store(own, target[r][k]);
        const int32_t* column = cells.column + (entry + k) * kLanes;
        for (int i = 0; i < kLanes; ++i) {
          if (own[i] >= 0) args.probability[full_row + column[i]] = probability[i];
        }
      }
      if (args.grad == nullptr || !any(other)) continue;
      const Block here(args, at, row + r, 1, entry + k, 1);
      const F one_taken[1][1] = {{select(other, taken[r][k], zero)}}, ones[1][1] = {{one}};
      alignas(64) int32_t ids[kLanes];
      store(ids, id);
      subtract_corners(s, stride, block.at, ids, fold(here, one_taken, ones));
      taken[r][k] = select(other, zero, taken[r][k]);
    }
  }
  alignas(64) float num_lane[kLanes], den_lane[kLanes];
  store(num_lane, block_num);
  store(den_lane, block_den);
  for (int i = 0; i < kLanes; ++i) num[i] += num_lane[i];
  for (int i = 0; i < kLanes; ++i) den[i] += den_lane[i];
  if (args.grad == nullptr) return;

  for (int64_t c = 0; c < classes; ++c) {
    F e[R][S];
    load_powers(s.powers + c * 4 * kLanes).expand(e);
    add_corners(s, c * stride + block.at, fold(block, scale, e));
  }
  F ones[R][S];
  for (int r = 0; r < R; ++r) {
    for (int k = 0; k < S; ++k) ones[r][k] = one;
  }
  if (smooth) add_corners(s, classes * stride + block.at, fold(block, smoothed, ones));
  alignas(64) int32_t ids[kLanes];
  store(ids, common);
  subtract_corners(s, stride, block.at, ids, fold(block, taken, ones));
}

template <int R>
inline void cross_entropy_rows(const CrossEntropy& args, const CrossEntropyScratch& s, int64_t image, int64_t row,
                               double* num, double* den, CrossEntropySums& sums) {
  for (int r = 0; r < R; ++r) {
    const int64_t at = (image * args.rows.full + row + r) * args.cells.full;
    load_targets(args, at, s.target + r * (args.cells.full + 1), sums);
    for (int64_t i = 0; i < args.cells.full && args.probability != nullptr; ++i) args.probability[at + i] = kIgnored;
  }
  for (int64_t i = 0; i < args.cells.blocks; ++i) {
    const CellBlock& b = args.cells.block[i];
    const int64_t at = b.first + s.origin;
    switch (b.columns) {
      case 4: block_losses<R, 4>(args, s, image, at, row, b.entry, s.target, num, den); break;
      case 2: block_losses<R, 2>(args, s, image, at, row, b.entry, s.target, num, den); break;
      default: block_losses<R, 1>(args, s, image, at, row, b.entry, s.target, num, den);
    }
  }
}

// Returns whether the weights of the next four rows rise evenly, up to rounding.
inline bool four_rows(const Rows& rows, int64_t row, int64_t end) {
  if (end - row < 4) return false;
  const float* w = rows.lower + row;
  const float step = (w[3] - w[0]) / 3.0f, a = w[1] - w[0] - step, b = w[3] - w[2] - step;
  return a < 1e-6f && a > -1e-6f && b < 1e-6f && b > -1e-6f;
}

inline void cross_entropy_between(const CrossEntropy& args, const CrossEntropyScratch& s, int64_t image, int64_t y,
                                  double* num, double* den, CrossEntropySums& sums) {
  const int64_t end = args.rows.first[y + 1];
  for (int64_t row = args.rows.first[y]; row < end;) {
    if (four_rows(args.rows, row, end)) {
      cross_entropy_rows<4>(args, s, image, row, num, den, sums);
      row += 4;
    } else if (end - row >= 2) {
      cross_entropy_rows<2>(args, s, image, row, num, den, sums);
      row += 2;
    } else {
      cross_entropy_rows<1>(args, s, image, row, num, den, sums);
      row += 1;
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

// Finishes a gradient row that no other block adds to: subtracts the smoothing term of every class; column 0.
inline const float* finished(const CrossEntropy& args, const CrossEntropyScratch& s, float* grad) {
  const int64_t stride = row_stride(args.logits), classes = args.logits.classes;
  for (int64_t c = 0; c < classes && args.label_smoothing != 0; ++c) {
    const F weight = broadcast(args.weight != nullptr ? -args.weight[c] : -1.0f);
    for (int64_t i = s.origin; i < args.logits.width + s.origin; i += kLanes) {
      float* at = grad + c * stride + i;
      store(at, fma(weight, load(grad + classes * stride + i), load(at)));
    }
  }
  return grad + s.origin;
}

inline void cross_entropy(const CrossEntropy& args, int64_t task, float* scratch, CrossEntropySums& sums) {
  const Logits& x = args.logits;
  CrossEntropyScratch s(args, scratch);
  const int64_t stride = row_stride(x), size = CrossEntropyScratch::row_size(args);
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
        pack_low_row(args, image, y, s, s.upper_row);
      }
      in_lower = y + 1 < x.height ? y + 1 : y;  // below the last low row, use the row again with weight 0
      pack_low_row(args, image, in_lower, s, s.lower_row);
      cross_entropy_between(args, s, image, y, num, den, sums);
    }
    if (!grad) continue;
    write_grad(args, finished(args, s, s.upper_grad), image, y);
    float* swap = s.upper_grad;
    s.upper_grad = s.lower_grad;
    s.lower_grad = swap;
  }
  if (grad && end < x.height) {
    const float* last = finished(args, s, s.upper_grad);
    float* seam = args.seam + task * x.classes * x.width;
    for (int64_t c = 0; c < x.classes; ++c) {
      __builtin_memcpy(seam + c * x.width, last + c * stride, x.width * sizeof(float));
    }
  }
  for (int i = 0; i < kLanes; ++i) {
    sums.num += num[i];
    sums.den += den[i];
  }
}
