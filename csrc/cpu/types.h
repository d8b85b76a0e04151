// Element types of what the ops read.
#pragma once

namespace u2pl_fast::cpu {

enum class Float { f32, f16, bf16 };
enum class Integer { u8, i8, i16, i32, i64 };

}  // namespace u2pl_fast::cpu
