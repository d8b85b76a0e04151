#include "grid.h"

#include <algorithm>
#include <cmath>

namespace u2pl_fast::cpu {
namespace {

struct Source {
  int32_t near, far;
  float near_weight, far_weight;
};

Source source(int64_t index, int64_t low, int64_t full, bool align_corners) {
  float at;
  if (align_corners) {
    const float scale = full > 1 ? float(low - 1) / float(full - 1) : 0.0f;
    at = scale * float(index);
  } else {
    const float scale = float(low) / float(full);
    at = std::max(scale * (float(index) + 0.5f) - 0.5f, 0.0f);
  }
  const int32_t near = int32_t(std::min<int64_t>(int64_t(std::floor(at)), low - 1));
  const float far_weight = std::min(std::max(at - float(near), 0.0f), 1.0f);
  return {near, int32_t(std::min<int64_t>(near + 1, low - 1)), 1.0f - far_weight, far_weight};
}

}  // namespace

RowTable::RowTable(int64_t low, int64_t full, bool align_corners) : first_(low + 1), upper_(full), lower_(full) {
  std::vector<int32_t> count(low + 1, 0);
  for (int64_t i = 0; i < full; ++i) {
    const Source s = source(i, low, full, align_corners);
    upper_[i] = s.near_weight;
    lower_[i] = s.far_weight;
    ++count[s.near];
  }
  for (int64_t y = 0; y < low; ++y) first_[y + 1] = first_[y] + count[y];
}

Rows RowTable::view() const { return {int64_t(upper_.size()), first_.data(), upper_.data(), lower_.data()}; }

ColumnTable::ColumnTable(int64_t low, int64_t full, bool align_corners, int lanes)
    : full_(full), blocks_(ceil_div(full, 2 * lanes)) {
  const int64_t width = 2 * lanes;
  tap_first_.push_back(0);
  for (int64_t block = 0; block < blocks_; ++block) {
    const int64_t begin = block * width;
    int32_t last = 0;
    for (int64_t i = begin; i < begin + width; ++i) {
      const Source s = source(std::min(i, full - 1), low, full, align_corners);
      left_.push_back(s.near);
      right_.push_back(s.far);
      left_weight_.push_back(s.near_weight);
      right_weight_.push_back(s.far_weight);
      last = s.far;
    }
    base_.push_back(left_[begin]);
    narrow_.push_back(last - base_.back() < lanes);
    if (narrow_.back()) {
      for (int64_t i = begin; i < begin + width; ++i) {
        left_[i] -= base_.back();
        right_[i] -= base_.back();
      }
      add_taps(block, lanes);
    }
    tap_first_.push_back(int32_t(tap_weight_.size() / lanes));
  }
}

void ColumnTable::add_taps(int64_t block, int lanes) {
  const int64_t begin = block * 2 * lanes, end = std::min(begin + 2 * lanes, full_);
  std::vector<std::vector<std::pair<int32_t, float>>> taps(lanes);
  for (int64_t i = begin; i < end; ++i) {
    if (left_weight_[i] != 0) taps[left_[i]].emplace_back(int32_t(i - begin), left_weight_[i]);
    if (right_weight_[i] != 0) taps[right_[i]].emplace_back(int32_t(i - begin), right_weight_[i]);
  }
  size_t most = 0;
  for (const auto& lane : taps) most = std::max(most, lane.size());
  most = size_t(ceil_div(int64_t(most), 4)) * 4;  // few distinct counts, so that the common one can be unrolled
  for (size_t tap = 0; tap < most; ++tap) {
    for (const auto& lane : taps) {
      const bool used = tap < lane.size();
      tap_index_.push_back(used ? lane[tap].first : 0);
      tap_weight_.push_back(used ? lane[tap].second : 0.0f);
    }
  }
}

Columns ColumnTable::view() const {
  return {full_,
          blocks_,
          base_.data(),
          narrow_.data(),
          left_.data(),
          right_.data(),
          left_weight_.data(),
          right_weight_.data(),
          tap_first_.data(),
          tap_index_.data(),
          tap_weight_.data()};
}

}  // namespace u2pl_fast::cpu
