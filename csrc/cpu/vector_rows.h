// More on vectors: transposes, sums, half-precision and streaming stores. Included after low_rows.h, inside the
// level's namespace.

inline float lane_sum(const float* x) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

inline float lane_max(F x) {
  alignas(64) float lane[kLanes];
  store(lane, x);
  float largest = lane[0];
  for (int i = 1; i < kLanes; ++i) largest = lane[i] > largest ? lane[i] : largest;
  return largest;
}

// e^x for x <= 0, -inf included.
inline F exp_decay(F x) { return exp(max(broadcast(kLeastExponent), x)); }

inline I average(I a, I b) { return add(I(a & b), shift_right<1>(I(a ^ b))); }  // rounded down, no overflow
inline I minimum(I a, I b) { return select(greater(a, b), b, a); }
inline I maximum(I a, I b) { return select(greater(a, b), a, b); }

#if U2PL_SIMD == 512

inline I increment(I n, K k) { return _mm512_mask_add_epi32(n, k, n, broadcast(int32_t{1})); }
inline K equal(I a, I b) { return _mm512_cmpeq_epi32_mask(a, b); }
inline float sum(F x) { return _mm512_reduce_add_ps(x); }
inline bool streams(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }
inline void stream(float* p, F x) { _mm512_stream_ps(p, x); }
inline void fence() { _mm_sfence(); }

inline __m256i to_bf16(F x) {
  const I bits = as_int(x);
  const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), broadcast(int32_t{1}));
  const I rounded = _mm512_srli_epi32(add(bits, add(odd, broadcast(int32_t{0x7fff}))), 16);
  const K nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(select(nan, broadcast(int32_t{0x7fc0}), rounded));
}
inline __m256i to_f16(F x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store_bf16(uint16_t* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(x)); }
inline void store_f16(uint16_t* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_f16(x)); }
inline void stream_bf16(uint16_t* p, F x) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bf16(x)); }
inline void stream_f16(uint16_t* p, F x) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_f16(x)); }

// Rows become columns.
inline void transpose(F* r) {
  F t[16], u[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + 2 + j]);
      u[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      u[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
  for (int j = 0; j < 4; ++j) {  // quarter q of u[4 i + j] is column 4 q + j of rows 4 i .. 4 i + 3
    const F even_low = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88), odd_low = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd);
    const F even_high = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
    const F odd_high = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
    r[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    r[4 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    r[8 + j] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    r[12 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

#elif U2PL_SIMD == 256

inline I increment(I n, K k) { return subtract(n, k); }
inline K equal(I a, I b) { return _mm256_cmpeq_epi32(a, b); }
inline float sum(F x) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
inline bool streams(const void* p) { return reinterpret_cast<uintptr_t>(p) % 32 == 0; }
inline void stream(float* p, F x) { _mm256_stream_ps(p, x); }
inline void fence() { _mm_sfence(); }

inline __m128i to_bf16(F x) {
  const I bits = as_int(x);
  const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), broadcast(int32_t{1}));
  const I rounded = _mm256_srli_epi32(add(bits, add(odd, broadcast(int32_t{0x7fff}))), 16);
  const K nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const I value = select(nan, broadcast(int32_t{0x7fc0}), rounded);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(value, value), 0x08));
}
inline __m128i to_f16(F x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store_bf16(uint16_t* p, F x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16(x)); }
inline void store_f16(uint16_t* p, F x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_f16(x)); }
inline void stream_bf16(uint16_t* p, F x) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_bf16(x)); }
inline void stream_f16(uint16_t* p, F x) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_f16(x)); }

inline void transpose(F* r) {
  F t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m256d a = _mm256_castps_pd(t[i + j]), b = _mm256_castps_pd(t[i + 2 + j]);
      u[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
      u[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
  }
  for (int j = 0; j < 4; ++j) {
    r[j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x20);
    r[4 + j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x31);
  }
}

#else

inline I increment(I n, K k) { return subtract(n, k); }
inline K equal(I a, I b) { return a == b; }
inline float sum(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
inline bool streams(const void*) { return false; }
inline void stream(float* p, F x) { store(p, x); }
inline void fence() {}

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t to_f16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x47800000) return uint16_t(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));  // 65536 and above
  if (magnitude < 0x38800000) {  // subnormal: next to 1/2 a float's last digit is the smallest half
    float value;
    __builtin_memcpy(&value, &magnitude, sizeof value);
    value += 0.5f;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  return uint16_t(sign | (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13);
}
inline void store_bf16(uint16_t* p, F x) { for (int i = 0; i < 4; ++i) p[i] = to_bf16(x[i]); }
inline void store_f16(uint16_t* p, F x) { for (int i = 0; i < 4; ++i) p[i] = to_f16(x[i]); }
inline void stream_bf16(uint16_t* p, F x) { store_bf16(p, x); }
inline void stream_f16(uint16_t* p, F x) { store_f16(p, x); }

inline void transpose(F* r) {
  const F a = r[0], b = r[1], c = r[2], d = r[3];
  for (int i = 0; i < 4; ++i) r[i] = F{a[i], b[i], c[i], d[i]};
}

#endif

// n numbers of any type that are adjacent, zero past the end.
inline F load_some(const void* data, Float type, int64_t offset, int64_t n) {
  if (n >= kLanes) return load_logits(data, type, offset);
  alignas(64) float some[kLanes] = {};
  const int64_t size = element_size(type);
  __builtin_memcpy(some, static_cast<const char*>(data) + offset * size, size_t(n * size));
  return load_logits(some, type, 0);
}

// The first n numbers of a vector, at most kLanes, rounded to the type.
inline void store_some(void* data, Float type, int64_t offset, F x, int64_t n) {
  alignas(64) float some[kLanes];
  const int64_t size = element_size(type);
  char* out = static_cast<char*>(data) + offset * size;
  void* to = n >= kLanes ? static_cast<void*>(out) : static_cast<void*>(some);
  if (type == Float::f32) {
    store(static_cast<float*>(to), x);
  } else if (type == Float::bf16) {
    store_bf16(static_cast<uint16_t*>(to), x);
  } else {
    store_f16(static_cast<uint16_t*>(to), x);
  }
  if (n < kLanes) __builtin_memcpy(out, some, size_t(n * size));
}
