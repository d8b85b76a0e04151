// One float vector F, one int32 vector I, one mask K, at the widest width of the level that includes this file.
// Included inside the level's namespace, after its target pragma. `+ - * /` on F and I are the compiler's own.
// A max or min with a NaN returns the second operand on every level.

#if U2PL_SIMD == 512

using F = __m512;
using I = __m512i;
using K = __mmask16;
constexpr int kLanes = 16;

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F broadcast(float x) { return _mm512_set1_ps(x); }
inline I load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void store(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
inline I broadcast(int32_t x) { return _mm512_set1_epi32(x); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline K greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline K greater(I a, I b) { return _mm512_cmpgt_epi32_mask(a, b); }
inline bool any(K k) { return k != 0; }
inline F select(K k, F a, F b) { return _mm512_mask_blend_ps(k, b, a); }
inline I select(K k, I a, I b) { return _mm512_mask_blend_epi32(k, b, a); }
inline F permute(F x, I index) { return _mm512_permutexvar_ps(index, x); }
inline F permute(F low, F high, I index) { return _mm512_permutex2var_ps(low, index, high); }
inline F gather(const float* p, I index) { return _mm512_i32gather_ps(index, p, 4); }
inline I as_int(F x) { return _mm512_castps_si512(x); }
inline F as_float(I x) { return _mm512_castsi512_ps(x); }
inline F to_float(I x) { return _mm512_cvtepi32_ps(x); }
template <int bits> inline I shift_left(I x) { return _mm512_slli_epi32(x, bits); }
template <int bits> inline I shift_right(I x) { return _mm512_srai_epi32(x, bits); }
inline I add(I a, I b) { return _mm512_add_epi32(a, b); }
inline I subtract(I a, I b) { return _mm512_sub_epi32(a, b); }
inline I multiply(I a, I b) { return _mm512_mullo_epi32(a, b); }
inline F load_bf16(const uint16_t* p) {
  return as_float(shift_left<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))));
}
inline F load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

#elif U2PL_SIMD == 256

using F = __m256;
using I = __m256i;
using K = __m256i;
constexpr int kLanes = 8;

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
inline F broadcast(float x) { return _mm256_set1_ps(x); }
inline I load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store(int32_t* p, I x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
inline I broadcast(int32_t x) { return _mm256_set1_epi32(x); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline K greater(F a, F b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
inline K greater(I a, I b) { return _mm256_cmpgt_epi32(a, b); }
inline bool any(K k) { return !_mm256_testz_si256(k, k); }
inline F select(K k, F a, F b) { return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(k)); }
inline I select(K k, I a, I b) { return _mm256_blendv_epi8(b, a, k); }
inline F permute(F x, I index) { return _mm256_permutevar8x32_ps(x, index); }
inline F permute(F low, F high, I index) {
  return select(greater(index, broadcast(int32_t{7})), permute(high, index), permute(low, index));
}
inline F gather(const float* p, I index) { return _mm256_i32gather_ps(p, index, 4); }
inline I as_int(F x) { return _mm256_castps_si256(x); }
inline F as_float(I x) { return _mm256_castsi256_ps(x); }
inline F to_float(I x) { return _mm256_cvtepi32_ps(x); }
template <int bits> inline I shift_left(I x) { return _mm256_slli_epi32(x, bits); }
template <int bits> inline I shift_right(I x) { return _mm256_srai_epi32(x, bits); }
inline I add(I a, I b) { return _mm256_add_epi32(a, b); }
inline I subtract(I a, I b) { return _mm256_sub_epi32(a, b); }
inline I multiply(I a, I b) { return _mm256_mullo_epi32(a, b); }
inline F load_bf16(const uint16_t* p) {
  return as_float(shift_left<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
}
inline F load_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

#else  // 128-bit vectors by the compiler: SSE2, NEON, anything else.

typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
using K = I;
constexpr int kLanes = 4;

inline F load(const float* p) { F x; __builtin_memcpy(&x, p, sizeof x); return x; }
inline void store(float* p, F x) { __builtin_memcpy(p, &x, sizeof x); }
inline F broadcast(float x) { return F{x, x, x, x}; }
inline I load(const int32_t* p) { I x; __builtin_memcpy(&x, p, sizeof x); return x; }
inline void store(int32_t* p, I x) { __builtin_memcpy(p, &x, sizeof x); }
inline I broadcast(int32_t x) { return I{x, x, x, x}; }
inline F fma(F a, F b, F c) { return a * b + c; }
inline K greater(F a, F b) { return a > b; }
inline K greater(I a, I b) { return a > b; }
inline bool any(K k) { return (k[0] | k[1] | k[2] | k[3]) != 0; }
inline I as_int(F x) { I y; __builtin_memcpy(&y, &x, sizeof y); return y; }
inline F as_float(I x) { F y; __builtin_memcpy(&y, &x, sizeof y); return y; }
inline I select(K k, I a, I b) { return (k & a) | (~k & b); }
inline F select(K k, F a, F b) { return as_float(select(k, as_int(a), as_int(b))); }
inline F max(F a, F b) { return select(greater(a, b), a, b); }
inline F min(F a, F b) { return select(greater(b, a), a, b); }
inline F permute(F x, I i) { return F{x[i[0] & 3], x[i[1] & 3], x[i[2] & 3], x[i[3] & 3]}; }
inline F permute(F low, F high, I i) {
  const float x[8] = {low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]};
  return F{x[i[0]], x[i[1]], x[i[2]], x[i[3]]};
}
inline F gather(const float* p, I i) { return F{p[i[0]], p[i[1]], p[i[2]], p[i[3]]}; }
inline F to_float(I x) { return F{float(x[0]), float(x[1]), float(x[2]), float(x[3])}; }
template <int bits> inline I shift_left(I x) { return x << bits; }
template <int bits> inline I shift_right(I x) { return x >> bits; }
inline I add(I a, I b) { return a + b; }
inline I subtract(I a, I b) { return a - b; }
inline I multiply(I a, I b) { return a * b; }
inline F load_bf16(const uint16_t* p) {
  return as_float(I{int32_t(uint32_t(p[0]) << 16), int32_t(uint32_t(p[1]) << 16), int32_t(uint32_t(p[2]) << 16),
                    int32_t(uint32_t(p[3]) << 16)});
}
inline float half_to_float(uint16_t h) {
  // After the shift, the exponent is 112 too small. One product corrects it, for normal and subnormal numbers;
  // infinities and NaN get the largest exponent instead.
  const uint32_t magnitude = uint32_t(h & 0x7fff) << 13;
  const uint32_t sign = uint32_t(h & 0x8000) << 16;
  float value;
  __builtin_memcpy(&value, &magnitude, sizeof value);
  value *= 0x1p112f;
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  if ((h & 0x7c00) == 0x7c00) bits = magnitude | 0x7f800000;
  bits |= sign;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
inline F load_f16(const uint16_t* p) {
  return F{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
}

#endif
