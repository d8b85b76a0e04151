// Pixels as rows of fp32, read in place from either layout. Included after vector_rows.h, inside the level's namespace.

// Rows lie an odd number of vectors apart: at a power of two, the same column of every row would share a cache set.
inline int64_t row_pitch(int64_t dim) { return padded(dim) + kLanes; }

// `count` pixels of an image whose planes lie apart. A run of pixels takes a few cache lines of every plane, each plane on
// a page of its own, which the hardware's prefetcher doesn't follow: the run after the next is asked for here. Into the
// second level, since the first can wait for far fewer lines at a time.
template <Float type>
inline void transpose_planes(const Features& x, int64_t start, int64_t count, int64_t stride, float* out) {
  const int64_t size = element_size(type);
  for (int64_t d = 0; d < x.dim; d += kLanes) {
    for (int64_t i = 0; i < count; i += kLanes) {
      const bool whole = d + kLanes <= x.dim && i + kLanes <= count;
      F block[kLanes];
      for (int64_t j = 0; j < kLanes; ++j) {
        const int64_t at = start + (d + j) * x.stride_d + i;
        if (whole) {
          block[j] = load_logits(x.data, type, at);
        } else {
          block[j] = d + j < x.dim ? load_some(x.data, type, at, count - i) : broadcast(0.0f);
        }
        __builtin_prefetch(static_cast<const char*>(x.data) + (at + 2 * count) * size, 0, 2);
      }
      transpose(block);
      const int64_t rows = count - i < kLanes ? count - i : kLanes;
      for (int64_t j = 0; j < rows; ++j) store(out + (i + j) * stride + d, block[j]);
    }
  }
}

// `count` pixels of one image.
inline void load_image_rows(const Features& x, int64_t start, int64_t count, int64_t stride, float* out) {
  if (x.stride_d == 1) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t d = 0; d < x.dim; d += kLanes) {
        store(out + i * stride + d, load_some(x.data, x.type, start + i * x.stride_p + d, x.dim - d));
      }
    }
    return;
  }
  switch (x.type) {
    case Float::f32: return transpose_planes<Float::f32>(x, start, count, stride, out);
    case Float::f16: return transpose_planes<Float::f16>(x, start, count, stride, out);
    case Float::bf16: return transpose_planes<Float::bf16>(x, start, count, stride, out);
  }
}

inline void load_rows(const Features& x, int64_t first, int64_t count, int64_t stride, float* out) {
  while (count > 0) {
    const int64_t image = first / x.plane, pixel = first % x.plane;
    const int64_t here = x.plane - pixel < count ? x.plane - pixel : count;
    load_image_rows(x, image * x.stride_b + pixel * x.stride_p, here, stride, out);
    first += here;
    count -= here;
    out += here * stride;
  }
}

// Of a row that is zero up to the next full vector.
inline float square_sum(const float* row, int64_t dim) {
  F a = broadcast(0.0f), b = a;
  int64_t d = 0;
  for (; d + kLanes < dim; d += 2 * kLanes) {
    const F x = load(row + d), y = load(row + d + kLanes);
    a = fma(x, x, a);
    b = fma(y, y, b);
  }
  if (d < dim) a = fma(load(row + d), load(row + d), a);
  return sum(a + b);
}

// A bank is larger than any cache and written once: where rows are aligned, their stores go round the cache.
inline void write_row(const RowWriter& w, const float* row, float scale, int64_t slot) {
  const F s = broadcast(scale);
  char* out = static_cast<char*>(w.bank) + slot * w.dim * element_size(w.bank_type);
  if (w.dim % kLanes != 0 || !streams(out)) {
    for (int64_t d = 0; d < w.dim; d += kLanes) store_some(out, w.bank_type, d, load(row + d) * s, w.dim - d);
    return;
  }
  float* full = reinterpret_cast<float*>(out);
  uint16_t* half = reinterpret_cast<uint16_t*>(out);
  switch (w.bank_type) {
    case Float::f32: for (int64_t d = 0; d < w.dim; d += kLanes) stream(full + d, load(row + d) * s); break;
    case Float::f16: for (int64_t d = 0; d < w.dim; d += kLanes) stream_f16(half + d, load(row + d) * s); break;
    case Float::bf16: for (int64_t d = 0; d < w.dim; d += kLanes) stream_bf16(half + d, load(row + d) * s); break;
  }
}

inline void finish_writes() { fence(); }

inline void sum_rows(const void* rows, Float type, int64_t dim, const int64_t* position, int64_t count, void* out) {
  for (int64_t d = 0; d < dim; d += kLanes) {
    F total = broadcast(0.0f);
    for (int64_t i = 0; i < count; ++i) total = total + load_some(rows, type, position[i] * dim + d, dim - d);
    store_some(out, type, d, total, dim - d);
  }
}

// Adds dims first_dim .. first_dim + dims of a chunk's pixels to the row of their class.
inline void class_sum(const ClassSum& args, int64_t chunk, int64_t first_dim, int64_t dims, float* scratch) {
  const Features& x = args.features;
  float* partial = args.partial + chunk * args.classes * x.dim;
  const int64_t stride = padded(dims);
  __builtin_memset(scratch, 0, size_t(args.classes * stride) * sizeof(float));
  const int64_t begin = chunk * args.chunk;
  const int64_t end = begin + args.chunk < x.pixels() ? begin + args.chunk : x.pixels();
  for (int64_t first = begin; first < end;) {
    const int64_t image = first / x.plane, pixel = first % x.plane;
    int64_t count = end - first < kLanes ? end - first : kLanes;
    if (x.plane - pixel < count) count = x.plane - pixel;
    const int16_t* label = args.anchor_label + first;
    const int64_t start = image * x.stride_b + pixel * x.stride_p + first_dim * x.stride_d;
    first += count;
    if (x.stride_d == 1) {
      for (int64_t i = 0; i < count; ++i) {
        if (label[i] < 0) continue;
        float* total = scratch + label[i] * stride;
        for (int64_t d = 0; d < dims; d += kLanes) {
          store(total + d, load(total + d) + load_some(x.data, x.type, start + i * x.stride_p + d, dims - d));
        }
      }
      continue;
    }
    bool wanted = false;
    for (int64_t i = 0; i < count; ++i) wanted |= label[i] >= 0;
    if (!wanted) continue;
    for (int64_t d = 0; d < dims; d += kLanes) {
      F block[kLanes];
      for (int64_t j = 0; j < kLanes; ++j) {
        block[j] = d + j < dims ? load_some(x.data, x.type, start + (d + j) * x.stride_d, count) : broadcast(0.0f);
      }
      transpose(block);
      for (int64_t i = 0; i < count; ++i) {
        if (label[i] < 0) continue;
        float* total = scratch + label[i] * stride + d;
        store(total, load(total) + block[i]);
      }
    }
  }
  for (int64_t c = 0; c < args.classes; ++c) {
    __builtin_memcpy(partial + c * x.dim + first_dim, scratch + c * stride, size_t(dims) * sizeof(float));
  }
}
