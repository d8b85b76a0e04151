// exp and log on a vector, a few ulp. Included after simd.h, inside the level's namespace.

// The smallest argument of exp: e^-86 is 5e-38, still a normal number.
constexpr float kLeastExponent = -86.0f;

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits

// 2^(n + f) where `shifted` holds n in its low bits and |f| <= 1/2; the polynomial's relative error is 9e-8.
// Processes several vectors step by step, since each step depends on the one before.
template <int N>
inline void power_of_two(const F (&shifted)[N], const F (&f)[N], F (&out)[N]) {
  F p[N];
  for (int i = 0; i < N; ++i) p[i] = broadcast(0.001326472731307149f);
  for (int i = 0; i < N; ++i) p[i] = fma(p[i], f[i], broadcast(0.009671512991189957f));
  for (int i = 0; i < N; ++i) p[i] = fma(p[i], f[i], broadcast(0.05550733581185341f));
  for (int i = 0; i < N; ++i) p[i] = fma(p[i], f[i], broadcast(0.24022242426872253f));
  for (int i = 0; i < N; ++i) p[i] = fma(p[i], f[i], broadcast(0.6931470036506653f));
  for (int i = 0; i < N; ++i) p[i] = fma(p[i], f[i], broadcast(1.0f));
  for (int i = 0; i < N; ++i) out[i] = as_float(add(as_int(p[i]), shift_left<23>(as_int(shifted[i]))));
}

// e^x for kLeastExponent <= x <= 88; NaN gives NaN.
inline F exp(F x) {
  const F log2e = broadcast(1.44269504f), round = broadcast(kRound);
  const F shifted[1] = {fma(x, log2e, round)}, f[1] = {fma(x, log2e, round - shifted[0])};
  F out[1];
  power_of_two(shifted, f, out);
  return out[0];
}

// 2^x in place, for -126 <= x <= 127; NaN gives NaN.
template <int N>
inline void exp2(F (&x)[N]) {
  F shifted[N], f[N];
  for (int i = 0; i < N; ++i) shifted[i] = x[i] + broadcast(kRound);
  for (int i = 0; i < N; ++i) f[i] = x[i] - (shifted[i] - broadcast(kRound));
  power_of_two(shifted, f, x);
}

// log x for normal x > 0; NaN gives NaN and infinity infinity. x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
inline F log(F x) {
  const I bits = as_int(x);
  const I n = shift_right<23>(subtract(bits, broadcast(int32_t{0x3f3504f3})));
  const F f = as_float(subtract(bits, shift_left<23>(n))) - broadcast(1.0f);
  F p = broadcast(0.08700438588857651f);
  p = fma(p, f, broadcast(-0.14267492294311523f));
  p = fma(p, f, broadcast(0.14914768934249878f));
  p = fma(p, f, broadcast(-0.1657758355140686f));
  p = fma(p, f, broadcast(0.19963063299655914f));
  p = fma(p, f, broadcast(-0.2500133812427521f));
  p = fma(p, f, broadcast(0.3333390951156616f));
  const F square = f * f;
  const F series = fma(p * f, square, fma(square, broadcast(-0.5f), f));
  const F value = fma(to_float(n), broadcast(0.6931471806f), series);
  return select(greater(broadcast(__builtin_inff()), x), value, x);
}
