// Activation functions whose results do not depend on an element's position. libtorch computes whole vectors with one
// function and the remainder, at the end or at the end of a thread's share, with another that differs in the last bit.
// So it gets only whole vectors here, in chunks that do not depend on the number of threads.

#include "activation.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/mish.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>

#include <algorithm>

namespace prior_embed {

namespace {

// A multiple of the stride of its loops: two 512-bit vectors of 16-bit elements.
constexpr int64_t together = 64;
// Fits into the cache, and is worth a thread.
constexpr int64_t piece = 1 << 14;

void apply(at::Tensor x, Activation function) {
    switch (function) {
        case Activation::silu:
            at::silu_(x);
            return;
        case Activation::mish:
            at::mish_(x);
            return;
        case Activation::gelu:
            at::gelu_(x);
            return;
        case Activation::quick_gelu:
            x.mul_(x.mul(1.702).sigmoid_());
            return;
        case Activation::relu:
            at::relu_(x);
            return;
    }
    TORCH_CHECK(false, "activation: no such function");
}

// Applies the function to `whole`, which is contiguous whole vectors; its first elements are copied from `source` if
// given.
void run(const at::Tensor& whole, const at::Tensor* source, Activation function) {
    const int64_t size = whole.numel();
    at::parallel_for(0, (size + piece - 1) / piece, 1, [&](int64_t begin, int64_t end) {
        for (int64_t number = begin; number < end; ++number) {
            const int64_t first = number * piece, count = std::min(piece, size - first);
            const at::Tensor part = whole.narrow(0, first, count);
            if (source != nullptr) {
                const int64_t given = std::min(count, source->numel() - first);
                part.narrow(0, 0, given).copy_(source->narrow(0, first, given));
                part.narrow(0, given, count - given).zero_();
            }
            apply(part, function);
        }
    });
}

}  // namespace

at::Tensor activated(const at::Tensor& x, Activation function) {
    const at::Tensor source = x.contiguous().view({-1});
    const int64_t size = source.numel();
    const at::Tensor whole = at::empty({(size + together - 1) / together * together}, source.options());
    run(whole, &source, function);
    return whole.narrow(0, 0, size).view(x.sizes());
}

at::Tensor activated_in_place(at::Tensor x, Activation function) {
    if (!x.is_contiguous() || x.numel() % together != 0) {
        return activated(x, function);
    }
    run(x.view({-1}), nullptr, function);
    return x;
}

}  // namespace prior_embed

// Applies the function to every element of `x`, of any float type; gives a new tensor.
extern "C" char* prior_embed_activate(at::Tensor** out, const at::Tensor* x, int64_t function) {
    return prior_embed::guarded([&] {
        prior_embed::check_dense(*x, "activation: input");
        TORCH_CHECK(x->is_floating_point(), "activation: a float type is needed, not ", x->scalar_type());
        *out = prior_embed::owned(prior_embed::activated(*x, static_cast<prior_embed::Activation>(function)));
    });
}
