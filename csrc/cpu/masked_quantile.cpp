// Exact order statistics by radix selection: order-preserving 32-bit keys, histograms of their upper 11, next 11 and
// last 10 bits. Counts are integers, so the order of addition does not matter.
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "pixel_ops.h"

namespace u2pl_fast::cpu {
namespace {

constexpr int64_t kChunk = 1 << 16;
constexpr int kBins = 1 << 11;
struct Digit {
  int shift, bits;
};
constexpr Digit kDigits[3] = {{21, 11}, {10, 11}, {0, 10}};

uint32_t to_key(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

float from_key(uint32_t key) {
  const uint32_t bits = key ^ (key >> 31 ? 0x80000000u : 0xffffffffu);
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The search state of one rank: the digits of the key found so far, and its rank among the keys that share them.
struct Descent {
  uint32_t prefix = 0;
  int64_t rank = 0;

  void step(const std::vector<int64_t>& histogram, int bits) {
    uint32_t bin = 0;
    while (rank >= histogram[bin]) rank -= histogram[bin++];
    prefix = prefix << bits | bin;
  }
};

// Threads process chunks of 0 .. n-1; each collects into its own State, and the States are merged once.
template <typename State, typename Body, typename Merge>
void over_chunks(int64_t n, const Workers& workers, const Body& body, const Merge& merge) {
  std::mutex lock;
  std::atomic<int64_t> next{0};
  const int64_t chunks = ceil_div(n, kChunk);
  workers(chunks, [&] {
    State own;
    for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      body(own, chunk * kChunk, std::min(n, (chunk + 1) * kChunk));
    }
    const std::lock_guard<std::mutex> guard(lock);
    merge(own);
  });
}

// Histogram of the first digit; elements outside the mask count in an extra bin, to avoid branches.
struct FirstDigit {
  std::vector<int64_t> bins = std::vector<int64_t>(kBins + 1);
  bool has_nan = false;
};

FirstDigit count_first_digit(const float* x, const uint8_t* mask, int64_t n, const Workers& workers) {
  FirstDigit total;
  over_chunks<FirstDigit>(
      n, workers,
      [&](FirstDigit& own, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const bool kept = mask == nullptr || mask[i] != 0;
          own.has_nan |= kept & (x[i] != x[i]);
          ++own.bins[kept ? to_key(x[i]) >> kDigits[0].shift : kBins];
        }
      },
      [&](const FirstDigit& own) {
        for (int bin = 0; bin < kBins; ++bin) total.bins[bin] += own.bins[bin];
        total.has_nan |= own.has_nan;
      });
  return total;
}

// Histograms of a later digit for the keys under each of two prefixes; the second stays empty where they are equal.
struct Histograms {
  std::vector<int64_t> low = std::vector<int64_t>(kBins), high = std::vector<int64_t>(kBins);
};

Histograms count_digit(const float* x, const uint8_t* mask, int64_t n, Digit digit, uint32_t low, uint32_t high,
                       const Workers& workers) {
  Histograms total;
  const uint32_t last = (1u << digit.bits) - 1;
  over_chunks<Histograms>(
      n, workers,
      [&](Histograms& own, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const uint32_t key = to_key(x[i]), prefix = key >> (digit.shift + digit.bits);
          if (prefix != low && prefix != high) continue;
          if (mask != nullptr && mask[i] == 0) continue;
          ++(prefix == low ? own.low : own.high)[key >> digit.shift & last];
        }
      },
      [&](const Histograms& own) {
        for (int bin = 0; bin < kBins; ++bin) {
          total.low[bin] += own.low[bin];
          total.high[bin] += own.high[bin];
        }
      });
  return total;
}

struct Neighbors {
  float low, high;
};

// Elements `rank` and `rank + 1` (clamped) of the sorted selected elements.
Neighbors descend(const FirstDigit& first, const float* x, const uint8_t* mask, int64_t n, int64_t rank,
                   int64_t selected, const Workers& workers) {
  Descent low{0, rank}, high{0, std::min(rank + 1, selected - 1)};
  low.step(first.bins, kDigits[0].bits);
  high.step(first.bins, kDigits[0].bits);
  for (int digit = 1; digit < 3; ++digit) {
    const Histograms counts = count_digit(x, mask, n, kDigits[digit], low.prefix, high.prefix, workers);
    const bool together = low.prefix == high.prefix;
    low.step(counts.low, kDigits[digit].bits);
    high.step(together ? counts.low : counts.high, kDigits[digit].bits);
  }
  return {from_key(low.prefix), from_key(high.prefix)};
}

}  // namespace

float kth_smallest(const float* x, int64_t n, int64_t rank, const Workers& workers) {
  return descend(count_first_digit(x, nullptr, n, workers), x, nullptr, n, rank, n, workers).low;
}

float masked_quantile(const float* x, const uint8_t* mask, int64_t n, double q, const Workers& workers) {
  const FirstDigit first = count_first_digit(x, mask, n, workers);
  int64_t selected = 0;
  for (int bin = 0; bin < kBins; ++bin) selected += first.bins[bin];
  if (selected == 0 || first.has_nan || q != q) return std::numeric_limits<float>::quiet_NaN();
  const double position = q * double(selected - 1);
  const int64_t rank = std::min(int64_t(std::floor(position)), selected - 1);
  const Neighbors found = descend(first, x, mask, n, rank, selected, workers);
  if (found.low == found.high) return found.low;
  const double t = position - double(rank), low = found.low, high = found.high;
  return float(t < 0.5 ? low + (high - low) * t : high - (high - low) * (1 - t));
}

}  // namespace u2pl_fast::cpu
