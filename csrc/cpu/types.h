// Element types of the ops' inputs, and arithmetic that the ops share.
#pragma once

#include <cstdint>

namespace u2pl_fast::cpu {

enum class Float { f32, f16, bf16 };
enum class Integer { u8, i8, i16, i32, i64 };

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace u2pl_fast::cpu
