// The bits of a mask of classes.
#pragma once

#include <cstdint>

namespace u2pl_fast::cpu {

inline int64_t words_of(int64_t classes) { return (classes + 31) / 32; }

// Calls body(class) for every bit that is set, in order, without reading bits past the last class.
template <typename Body>
inline void for_each_class(const int32_t* words, int64_t classes, const Body& body) {
  for (int64_t first = 0; first < classes; first += 32) {
    uint32_t bits = uint32_t(*words++);
    if (classes - first < 32) bits &= (1u << (classes - first)) - 1;
    for (; bits != 0; bits &= bits - 1) body(first + __builtin_ctz(bits));
  }
}

}  // namespace u2pl_fast::cpu
