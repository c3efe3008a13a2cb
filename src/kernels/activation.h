// Activation functions whose results do not depend on where a number lies.
#pragma once

#include "border.h"

namespace prior_embed {

// The numbers are those that Rust passes.
enum class Activation : int64_t { silu = 0, mish = 1, gelu = 2, quick_gelu = 3, relu = 4 };

// The function of every number of `x`, of any float type.
at::Tensor activated(const at::Tensor& x, Activation function);

// The same, in the memory of `x` where that will do.
at::Tensor activated_in_place(at::Tensor x, Activation function);

}  // namespace prior_embed
