// Reads pixels as fp32 rows, in place from either layout. Included after vector_rows.h, inside the level's namespace.

// The pitch is an odd number of vectors. With a power of two, a column of all rows would map to one cache set.
inline int64_t row_pitch(int64_t dim) { return padded(dim) + kLanes; }

// Loads `count` pixels of an image stored in planes. A run of pixels needs a few cache lines of every plane, and each
// plane is on another page, which the hardware prefetcher does not follow. Prefetch the run after the next, into the
// second cache level, since the first supports far fewer outstanding lines.
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

// Loads `count` pixels of one image.
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

// The row is padded with zeros to a full vector.
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

// A bank is larger than any cache and written once: aligned rows are stored past the cache.
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

// The classes of a range of pixels of one image.
struct ClassVectors {
  int32_t* label;   // of each pixel, padded to whole vectors
  int32_t* where;   // first pixels of vectors, once for each class in them ...
  int32_t* which;   // ... and those classes
  int32_t* found;   // the classes in all of them
  int32_t* seen;    // (classes)
  int64_t listed = 0, founds = 0;

  static size_t size(const ClassSum& args) { return size_t(3 * padded(args.chunk) + 2 * args.classes); }

  ClassVectors(const ClassSum& args, float* scratch) {
    label = reinterpret_cast<int32_t*>(scratch);
    where = label + padded(args.chunk);
    which = where + padded(args.chunk);
    found = which + padded(args.chunk);
    seen = found + args.classes;
    __builtin_memset(seen, 0, size_t(args.classes) * sizeof(int32_t));
  }

  void list(const int16_t* labels, int64_t count) {
    listed = founds = 0;
    for (int64_t i = 0; i < padded(count); ++i) label[i] = i < count ? labels[i] : -1;
    for (int64_t first = 0; first < count; first += kLanes) {
      const int64_t begin = listed;
      for (int64_t i = first; i < first + kLanes; ++i) {
        bool known = label[i] < 0;
        for (int64_t k = listed; k > begin && !known; --k) known = which[k - 1] == label[i];
        if (known) continue;
        where[listed] = int32_t(first);
        which[listed++] = label[i];
        if (seen[label[i]]++ == 0) found[founds++] = label[i];
      }
    }
    for (int64_t k = 0; k < founds; ++k) seen[found[k]] = 0;
  }
};

// Planes summed together: a single stream does not use the full memory bandwidth.
constexpr int64_t kPlanes = 4;

inline size_t class_sum_scratch(const ClassSum& args) {
  return size_t(args.classes * kPlanes * kLanes) + ClassVectors::size(args);
}

// Adds P planes of `count` pixels to the rows of their classes; lanes are summed at the end.
template <Float type, int64_t P>
inline void sum_planes(const Features& x, const ClassVectors& v, int64_t start, int64_t count, float* lanes, float* out,
                       int64_t pitch) {
  constexpr int64_t kAhead = 2048;  // bytes; the hardware prefetcher stops at the end of a page
  for (int64_t k = 0; k < v.founds; ++k) __builtin_memset(lanes + v.found[k] * P * kLanes, 0, P * sizeof(F));
  for (int64_t k = 0; k < v.listed;) {
    const int32_t c = v.which[k];
    F total[P];
    for (int64_t j = 0; j < P; ++j) total[j] = load(lanes + (c * P + j) * kLanes);
    do {  // neighbors usually have the same class
      const int64_t i = v.where[k];
      const K own = equal(load(v.label + i), broadcast(c));
      for (int64_t j = 0; j < P; ++j) {
        const int64_t at = start + j * x.stride_d + i;
        const F value = i + kLanes <= count ? load_logits(x.data, type, at) : load_some(x.data, type, at, count - i);
        __builtin_prefetch(static_cast<const char*>(x.data) + at * element_size(type) + kAhead, 0, 2);
        total[j] = total[j] + select(own, value, broadcast(0.0f));
      }
    } while (++k < v.listed && v.which[k] == c);
    for (int64_t j = 0; j < P; ++j) store(lanes + (c * P + j) * kLanes, total[j]);
  }
  for (int64_t k = 0; k < v.founds; ++k) {
    const int64_t c = v.found[k];
    for (int64_t j = 0; j < P; ++j) out[c * pitch + j] += sum(load(lanes + (c * P + j) * kLanes));
  }
}

// Adds `count` pixels of one image to the rows of their classes.
template <Float type>
inline void sum_pixels(const ClassSum& args, const int16_t* label, int64_t start, int64_t count, float* scratch,
                       float* out) {
  const Features& x = args.features;
  if (x.stride_d == 1) {
    for (int64_t i = 0; i < count; ++i) {
      if (label[i] < 0) continue;
      float* total = out + label[i] * args.pitch;
      for (int64_t d = 0; d < x.dim; d += kLanes) {
        const int64_t at = start + i * x.stride_p + d;
        store(total + d, load(total + d) + load_some(x.data, type, at, x.dim - d));
      }
    }
    return;
  }
  ClassVectors v(args, scratch + args.classes * kPlanes * kLanes);
  v.list(label, count);
  int64_t d = 0;
  for (; d + kPlanes <= x.dim; d += kPlanes) {
    sum_planes<type, kPlanes>(x, v, start + d * x.stride_d, count, scratch, out + d, args.pitch);
  }
  for (; d < x.dim; ++d) sum_planes<type, 1>(x, v, start + d * x.stride_d, count, scratch, out + d, args.pitch);
}

// Adds the pixels of one chunk to sums that begin at zero.
inline void class_sum(const ClassSum& args, int64_t chunk, float* scratch) {
  const Features& x = args.features;
  float* out = args.partial + chunk * args.classes * args.pitch;
  const int64_t begin = chunk * args.chunk;
  const int64_t end = begin + args.chunk < x.pixels() ? begin + args.chunk : x.pixels();
  for (int64_t first = begin, count; first < end; first += count) {
    const int64_t image = first / x.plane, pixel = first % x.plane;
    count = end - first < x.plane - pixel ? end - first : x.plane - pixel;
    const int64_t start = image * x.stride_b + pixel * x.stride_p;
    const int16_t* label = args.anchor_label + first;
    switch (x.type) {
      case Float::f32: sum_pixels<Float::f32>(args, label, start, count, scratch, out); break;
      case Float::f16: sum_pixels<Float::f16>(args, label, start, count, scratch, out); break;
      case Float::bf16: sum_pixels<Float::bf16>(args, label, start, count, scratch, out); break;
    }
  }
}
