// Low-resolution rows in the format of the kernels: fp32, class by class, padded so that a full vector can be loaded at
// any column. Included after simd.h, inside the level's namespace.

inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }
inline int64_t row_stride(const Logits& x) { return padded(x.width) + kLanes; }

// Replaces -inf, so that a blend with weight 0 is 0 and not NaN; its exponential is 0 too.
constexpr float kLowest = -1e38f;

inline F load_logits(const void* data, Float type, int64_t offset) {
  if (type == Float::f32) return load(static_cast<const float*>(data) + offset);
  const uint16_t* half = static_cast<const uint16_t*>(data) + offset;
  return type == Float::bf16 ? load_bf16(half) : load_f16(half);
}

// The first `count` lanes.
inline void store_first(float* out, F x, int64_t count) {
  if (count == kLanes) return store(out, x);
  alignas(64) float lanes[kLanes];
  store(lanes, x);
  for (int64_t i = 0; i < count; ++i) out[i] = lanes[i];
}

// Loads n adjacent logits; the tail is copied to a full vector first, so nothing is read past the end.
inline void convert(const void* data, Float type, int64_t offset, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, max(broadcast(kLowest), load_logits(data, type, offset + i)));
  if (i == n) return;
  alignas(64) float tail[kLanes] = {};
  const size_t size = type == Float::f32 ? 4 : 2;
  __builtin_memcpy(tail, static_cast<const char*>(data) + (offset + i) * size, (n - i) * size);
  store(tail, max(broadcast(kLowest), load_logits(tail, type, 0)));
  for (int64_t j = 0; i < n; ++i, ++j) out[i] = tail[j];
}

// Row y of one image into out (classes, stride); `staging` holds kLanes * padded(classes) floats. Columns past the
// width are zero.
inline void pack_row(const Logits& x, int64_t image, int64_t y, float* out, float* staging) {
  const int64_t stride = row_stride(x), classes = x.classes;
  const int64_t start = image * x.stride_b + y * x.stride_y;
  if (x.stride_x == 1) {
    for (int64_t c = 0; c < classes; ++c) {
      float* row = out + c * stride;
      for (int64_t i = stride - 2 * kLanes; i < stride; i += kLanes) store(row + i, broadcast(0.0f));
      convert(x.data, x.type, start + c * x.stride_c, x.width, row);
    }
    return;
  }
  // Channels last: kLanes pixels at a time are transposed.
  const int64_t pixel = padded(classes);
  alignas(64) int32_t step[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) step[lane] = int32_t(lane * pixel);
  const I index = load(step);
  for (int64_t i = 0; i < stride; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      float* row = staging + lane * pixel;
      if (i + lane < x.width) {
        convert(x.data, x.type, start + (i + lane) * x.stride_x, classes, row);
      } else {
        __builtin_memset(row, 0, pixel * sizeof(float));
      }
    }
    for (int64_t c = 0; c < classes; ++c) store(out + c * stride + i, gather(staging + c, index));
  }
}

// The largest class of every column: blended like the logits, it bounds the blended logits from above.
inline void pack_bound(const float* row, int64_t classes, int64_t stride, float* bound) {
  for (int64_t i = 0; i < stride; i += kLanes) {
    F largest = load(row + i);
    for (int64_t c = 1; c < classes; ++c) largest = max(load(row + c * stride + i), largest);
    store(bound + i, largest);
  }
}

// The columns of one vector of a block, prepared to blend low rows horizontally.
struct Sideways {
  I left, right;
  F left_weight, right_weight;
  int64_t base;
  bool narrow;

  Sideways(const Columns& columns, int64_t block, int half) {
    const int64_t at = (block * 2 + half) * kLanes;
    left = load(columns.left + at);
    right = load(columns.right + at);
    left_weight = load(columns.left_weight + at);
    right_weight = load(columns.right_weight + at);
    base = columns.base[block];
    narrow = columns.narrow[block] != 0;
  }

  F operator()(const float* row) const {
    if (narrow) {
      const F window = load(row + base);
      return fma(left_weight, permute(window, left), right_weight * permute(window, right));
    }
    return fma(left_weight, gather(row, left), right_weight * gather(row, right));
  }
};
