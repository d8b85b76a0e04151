#include "grid.h"

#include <algorithm>
#include <cmath>

namespace u2pl_fast::cpu {
namespace {

// Returns the source position of output `index`; a position below 0 reads input 0.
float position(int64_t index, int64_t low, int64_t full, bool align_corners) {
  if (align_corners) return (full > 1 ? float(low - 1) / float(full - 1) : 0.0f) * float(index);
  return float(low) / float(full) * (float(index) + 0.5f) - 0.5f;
}

struct Source {
  int32_t near, far;
  float near_weight, far_weight;
};

Source source(int64_t index, int64_t low, int64_t full, bool align_corners) {
  const float at = std::max(position(index, low, full, align_corners), 0.0f);
  const int32_t near = int32_t(std::min<int64_t>(int64_t(std::floor(at)), low - 1));
  if (near == low - 1) return {near, near, 1.0f, 0.0f};
  const float far_weight = std::min(at - float(near), 1.0f);
  return {near, near + 1, 1.0f - far_weight, far_weight};
}

// Returns whether n values form an arithmetic progression, up to the rounding error of the source index.
bool even_steps(const float* x, int n) {
  for (int i = 1; i + 1 < n; ++i) {
    const float even = x[0] + float(i) * (x[n - 1] - x[0]) / float(n - 1);
    if (std::abs(x[i] - even) > 1e-6f) return false;
  }
  return true;
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
          right_weight_.data()};
}

CellTable::CellTable(int64_t low, int64_t full, bool align_corners, int lanes) : full_(full) {
  std::vector<int32_t> begin(low + 2 + lanes, 0);  // cell q has columns begin[q + 1] .. begin[q + 2]
  std::vector<float> weight;                       // of the right low column
  for (int64_t i = 0; i < full; ++i) {
    const bool before = position(i, low, full, align_corners) < 0;
    const Source s = source(i, low, full, align_corners);
    weight.push_back(before ? 1.0f : s.far_weight);
    ++begin[before ? 1 : s.near + 2];
  }
  for (size_t cell = 1; cell < begin.size(); ++cell) begin[cell] += begin[cell - 1];
  for (int64_t cell = begin[1] > 0 ? 0 : 1; cell <= low; cell += lanes) {
    const int32_t* of_lane = &begin[cell];
    const auto left = [&](int lane, int k) { return of_lane[lane + 1] - of_lane[lane] - k; };
    int longest = 0;
    for (int lane = 0; lane < lanes; ++lane) longest = std::max(longest, left(lane, 0));
    for (int k = 0, columns; k < longest; k += columns) {
      columns = longest - k >= 4 ? 4 : longest - k >= 2 ? 2 : 1;
      for (int lane = 0; lane < lanes && columns == 4; ++lane) {
        if (!even_steps(&weight[of_lane[lane] + k], std::min(left(lane, k), 4))) columns = 2;
      }
      blocks_.push_back({int32_t(cell) - 1, columns, int32_t(column_.size() / lanes)});
      for (int j = k; j < k + columns; ++j) {
        for (int lane = 0; lane < lanes; ++lane) {
          const float* w = weight.data() + of_lane[lane] + k;
          const int count = std::min(left(lane, k), columns);
          const float right = count > 1 ? w[0] + float(j - k) * (w[count - 1] - w[0]) / float(count - 1)
                                        : count == 1 ? w[0] : 0.0f;
          column_.push_back(j - k < count ? of_lane[lane] + j : int32_t(full));
          right_weight_.push_back(j - k < count ? w[j - k] : right);
          left_weight_.push_back(count > 0 ? 1.0f - right_weight_.back() : 0.0f);
        }
      }
    }
  }
}

Cells CellTable::view() const {
  return {full_,
          int64_t(blocks_.size()),
          blocks_.data(),
          column_.data(),
          left_weight_.data(),
          right_weight_.data()};
}

}  // namespace u2pl_fast::cpu
