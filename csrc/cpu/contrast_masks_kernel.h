// contrast_masks on up to kMaskPixels pixels of one image, a vector of pixels at a time. Included after feature_rows.h,
// inside the level's namespace.
//
// With few classes, count the rank of each against every other. With many, find the key of the k-th likeliest class by
// bisection on order-preserving integers, O(classes) for each of at most 32 steps; ties go to the lower class.

constexpr int64_t kCountedClasses = 32;

inline int64_t mask_words(int64_t classes) { return (classes + 31) / 32; }

struct MaskScratch {
  float* logits;  // (classes, lanes)
  int32_t* keys;  // (classes, lanes), same order as the logits
  int32_t* words;  // (words, lanes)
  int32_t* key_count;     // (classes, lanes)
  int32_t* anchor_count;  // (classes)
  float* staging;

  MaskScratch(const ContrastMasks& args, float* scratch) {
    const int64_t classes = args.logits.dim, words_size = mask_words(classes) * kLanes;
    logits = scratch;
    keys = reinterpret_cast<int32_t*>(logits + classes * kLanes);
    words = keys + classes * kLanes;
    key_count = words + words_size;
    anchor_count = key_count + classes * kLanes;
    staging = reinterpret_cast<float*>(anchor_count + padded(classes));
  }
};

inline size_t contrast_masks_scratch(const ContrastMasks& args) {
  const int64_t classes = args.logits.dim;
  return size_t((3 * classes + mask_words(classes)) * kLanes + padded(classes) * (kLanes + 1));
}

// Labels of one vector: the class, or -1 if ignored or past the end.
template <typename T>
inline void load_mask_labels(const ContrastMasks& args, int64_t at, int64_t count, int32_t* out, ContrastCounts& counts) {
  const T* label = static_cast<const T*>(args.label) + at;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = label[i];
    const bool is_class = value >= 0 && value < args.logits.dim;
    out[i] = is_class ? int32_t(value) : -1;
    if (!is_class && value != args.ignore_index && (counts.bad_pixel < 0 || at + i < counts.bad_pixel)) {
      counts.bad_pixel = at + i;
      counts.bad_label = value;
    }
  }
  for (int64_t i = count; i < kLanes; ++i) out[i] = -1;
}

inline void load_mask_labels(const ContrastMasks& args, int64_t at, int64_t count, int32_t* out, ContrastCounts& counts) {
  switch (args.label_type) {
    case Integer::u8: return load_mask_labels<uint8_t>(args, at, count, out, counts);
    case Integer::i8: return load_mask_labels<int8_t>(args, at, count, out, counts);
    case Integer::i16: return load_mask_labels<int16_t>(args, at, count, out, counts);
    case Integer::i32: return load_mask_labels<int32_t>(args, at, count, out, counts);
    case Integer::i64: return load_mask_labels<int64_t>(args, at, count, out, counts);
  }
}

// Logits of `count` pixels, class after class.
inline void load_classes(const Features& x, int64_t start, int64_t count, const MaskScratch& s) {
  if (x.stride_p == 1) {
    for (int64_t c = 0; c < x.dim; ++c) {
      const F value = load_some(x.data, x.type, start + c * x.stride_d, count);
      store(s.logits + c * kLanes, max(broadcast(kLowest), value));
    }
    return;
  }
  const int64_t pitch = padded(x.dim);
  for (int64_t i = 0; i < kLanes; ++i) {
    if (i < count) {
      convert(x.data, x.type, start + i * x.stride_p, x.dim, s.staging + i * pitch);
    } else {
      __builtin_memset(s.staging + i * pitch, 0, size_t(pitch) * sizeof(float));
    }
  }
  for (int64_t c = 0; c < x.dim; c += kLanes) {
    F block[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) block[i] = load(s.staging + i * pitch + c);
    transpose(block);
    for (int64_t j = 0; j < kLanes && c + j < x.dim; ++j) store(s.logits + (c + j) * kLanes, block[j]);
  }
}

// The classes of rank below k: those with a key above `bound`, and the first `ties` of those that equal it.
struct Top {
  I bound, ties, seen;

  Top(const int32_t* keys, int64_t classes, int64_t k, I least, I most) : seen(broadcast(int32_t{0})) {
    if (k <= 0 || k >= classes) {  // none or all of them
      bound = broadcast(k <= 0 ? int32_t(0x7fffffff) : int32_t(0x80000000));
      ties = broadcast(k <= 0 ? 0 : int32_t(classes));
      return;
    }
    const I wanted = broadcast(int32_t(k)), one = broadcast(int32_t{1});
    I low = least, high = add(most, one);  // at least k keys are >= low, fewer are >= high
    while (any(greater(subtract(high, one), low))) {
      const I middle = average(low, high);
      const I below = subtract(middle, one);
      I a = broadcast(int32_t{0}), b = a;
      int64_t c = 0;
      for (; c + 1 < classes; c += 2) {
        a = increment(a, greater(load(keys + c * kLanes), below));
        b = increment(b, greater(load(keys + (c + 1) * kLanes), below));
      }
      if (c < classes) a = increment(a, greater(load(keys + c * kLanes), below));
      const I count = add(a, b);
      const K few = greater(wanted, count), exact = equal(wanted, count);
      low = select(few, low, middle);
      high = select(few, middle, select(exact, add(middle, one), high));
    }
    bound = low;
    I above = broadcast(int32_t{0});
    for (int64_t c = 0; c < classes; ++c) above = increment(above, greater(load(keys + c * kLanes), bound));
    ties = subtract(wanted, above);
  }

  // Call for the classes in order.
  K operator()(I key) {
    const K tie = equal(key, bound);
    const K taken = K(greater(key, bound) | K(tie & greater(ties, seen)));
    seen = increment(seen, tie);
    return taken;
  }
};

inline void set_bit(const MaskScratch& s, int64_t c, K in) {
  int32_t* word = s.words + c / 32 * kLanes;
  const I bit = select(in, broadcast(int32_t(1u << (c % 32))), broadcast(int32_t{0}));
  store(word, I(load(word) | bit));
  int32_t* count = s.key_count + c * kLanes;
  store(count, increment(load(count), in));
}

// Negatives of one vector: for the pixels in `member`, the classes of rank low .. high - 1 other than their label.
inline void mark_negatives(const MaskScratch& s, int64_t classes, int64_t low, int64_t high, K member, I own) {
  const I zero = broadcast(int32_t{0});
  if (classes <= kCountedClasses) {
    const I first = broadcast(int32_t(low)), end = broadcast(int32_t(high));
    for (int64_t c = 0; c < classes; ++c) {
      const F x = load(s.logits + c * kLanes);
      I before = zero, after = zero;
      for (int64_t i = 0; i < c; ++i) before = increment(before, K(~greater(x, load(s.logits + i * kLanes))));
      for (int64_t i = c + 1; i < classes; ++i) after = increment(after, greater(load(s.logits + i * kLanes), x));
      const I rank = add(before, after);
      const K in = K(greater(end, rank) & K(~greater(first, rank)));
      set_bit(s, c, K(K(in & member) & K(~equal(own, broadcast(int32_t(c))))));
    }
    return;
  }
  I least = broadcast(int32_t{0x7fffffff}), most = broadcast(int32_t(0x80000000));
  for (int64_t c = 0; c < classes; ++c) {
    const I bits = as_int(load(s.logits + c * kLanes) + broadcast(0.0f));  // -0 becomes 0, its equal
    const I key = I(bits ^ (shift_right<31>(bits) & broadcast(int32_t{0x7fffffff})));
    store(s.keys + c * kLanes, key);
    least = minimum(least, key);
    most = maximum(most, key);
  }
  // Skip pixels that are not needed, since they would lengthen the search.
  least = select(member, least, zero);
  most = select(member, minimum(most, broadcast(int32_t{0x7ffffffe})), zero);
  Top lower(s.keys, classes, low, least, most);
  Top upper(s.keys, classes, high, least, most);
  for (int64_t c = 0; c < classes; ++c) {
    const I key = load(s.keys + c * kLanes);
    const K before = lower(key), in = K(upper(key) & K(~before));
    set_bit(s, c, K(K(in & member) & K(~equal(own, broadcast(int32_t(c))))));
  }
}

// p(own class) of one vector; `own` must be a class.
inline F own_probability(const MaskScratch& s, int64_t classes, I own) {
  F largest = load(s.logits);
  for (int64_t c = 1; c < classes; ++c) largest = max(load(s.logits + c * kLanes), largest);
  F total = broadcast(0.0f);
  for (int64_t c = 0; c < classes; ++c) total = total + exp_decay(load(s.logits + c * kLanes) - largest);
  alignas(64) int32_t lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  const F x = gather(s.logits, add(multiply(own, broadcast(int32_t{kLanes})), load(lane)));
  return exp_decay(x - largest) / total;
}

inline void contrast_masks(const ContrastMasks& args, int64_t task, float* scratch, ContrastCounts& counts) {
  const Features& x = args.logits;
  const int64_t classes = x.dim, words = mask_words(classes);
  const int64_t tasks = (x.plane + kMaskPixels - 1) / kMaskPixels;
  const int64_t image = task / tasks, begin = task % tasks * kMaskPixels;
  const int64_t end = begin + kMaskPixels < x.plane ? begin + kMaskPixels : x.plane;
  const bool labeled = image < args.num_labeled;
  const int64_t low = labeled ? 0 : args.low_rank;
  const int64_t wanted = labeled ? args.low_rank : args.high_rank, high = wanted < classes ? wanted : classes;
  const MaskScratch s(args, scratch);
  __builtin_memset(s.key_count, 0, size_t(classes * kLanes + padded(classes)) * sizeof(int32_t));
  const I none = broadcast(int32_t{-1}), zero = broadcast(int32_t{0});

  for (int64_t pixel = begin; pixel < end; pixel += kLanes) {
    const int64_t count = end - pixel < kLanes ? end - pixel : kLanes, at = image * x.plane + pixel;
    alignas(64) int32_t label[kLanes], member[kLanes], trusted[kLanes];
    load_mask_labels(args, at, count, label, counts);
    bool any_member = false, any_trusted = false;
    for (int64_t i = 0; i < kLanes; ++i) {
      const bool inside = i < count;
      member[i] = inside && (labeled ? label[i] >= 0 : args.unreliable[at + i] != 0);
      trusted[i] = inside && label[i] >= 0 && (labeled || args.reliable[at + i] != 0);
      any_member |= member[i] != 0;
      any_trusted |= trusted[i] != 0;
    }
    any_member &= low < high;
    for (int64_t w = 0; w < words; ++w) store(s.words + w * kLanes, zero);
    alignas(64) int32_t anchor[kLanes];
    store(anchor, none);
    if (any_member || any_trusted) load_classes(x, image * x.stride_b + pixel * x.stride_p, count, s);
    const I own = load(label);
    if (any_member) {
      mark_negatives(s, classes, low, high, greater(load(member), zero), labeled ? own : none);
    }
    if (any_trusted) {
      const F p = own_probability(s, classes, maximum(own, zero));
      const K is_anchor = K(greater(p, broadcast(args.positive_threshold)) & greater(load(trusted), zero));
      store(anchor, select(is_anchor, own, none));
    }
    for (int64_t i = 0; i < count; ++i) {
      args.anchor_label[at + i] = int16_t(anchor[i]);
      if (anchor[i] >= 0) ++s.anchor_count[anchor[i]];
      for (int64_t w = 0; w < words; ++w) args.mask[(at + i) * words + w] = s.words[w * kLanes + i];
    }
  }
  for (int64_t c = 0; c < classes; ++c) {
    for (int i = 0; i < kLanes; ++i) counts.keys[c] += s.key_count[c * kLanes + i];
    counts.anchors[c] += s.anchor_count[c];
  }
}
