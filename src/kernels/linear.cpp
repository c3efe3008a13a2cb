// Linear layers on weights that oneDNN has packed for its kernels, with the epilogue fused into the product.

#include "border.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/List.h>

using prior_embed::check_dense;
using prior_embed::check_input;
using prior_embed::check_weight;
using prior_embed::checked_residual;
using prior_embed::guarded;
using prior_embed::optional;
using prior_embed::owned;

namespace {

using Scalars = c10::List<std::optional<at::Scalar>>;
using Pack = at::Tensor(const at::Tensor&, std::optional<c10::SymInt>);
using Unary = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, std::string_view,
                         Scalars, std::optional<std::string_view>);
using Binary = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                          std::string_view);

template <typename Signature>
c10::TypedOperatorHandle<Signature> operation(const char* name, const char* overload) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Signature>();
}

// oneDNN does not check that it gets a matrix on the CPU.
void check_arguments(const at::Tensor& x, const at::Tensor& weight, const at::Tensor* bias) {
    TORCH_CHECK(weight.defined() && weight.layout() == at::kMkldnn && weight.dim() == 2, "weight: not a packed one");
    check_input(x, weight.size(1));
    TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "input: ", weight.scalar_type(), " is needed, not ",
                x.scalar_type());
    if (bias != nullptr) {
        check_dense(*bias, "bias");
        TORCH_CHECK(bias->scalar_type() == weight.scalar_type() && bias->dim() == 1 && bias->is_contiguous() &&
                        bias->size(0) == weight.size(0),
                    "bias: ", weight.size(0), " numbers of the weight's type are needed");
    }
}

}  // namespace

extern "C" {

// Whether libtorch was built with oneDNN.
bool prior_embed_has_packed_linear() {
    auto& dispatcher = c10::Dispatcher::singleton();
    return dispatcher.findSchema({"mkldnn::_reorder_linear_weight", ""}).has_value() &&
           dispatcher.findSchema({"mkldnn::_linear_pointwise", ""}).has_value() &&
           dispatcher.findSchema({"mkldnn::_linear_pointwise", "binary"}).has_value();
}

// Packs a weight (outputs, inputs), float32 or bfloat16.
char* prior_embed_pack_linear(at::Tensor** out, const at::Tensor* weight) {
    return guarded([&] {
        static const auto pack = operation<Pack>("mkldnn::_reorder_linear_weight", "");
        check_weight(*weight);
        TORCH_CHECK(weight->scalar_type() == at::kFloat || weight->scalar_type() == at::kBFloat16,
                    "weight: float32 or bfloat16 is needed, not ", weight->scalar_type());
        *out = owned(pack.call(*weight, std::nullopt));
    });
}

// x W^T + b, then GELU if asked for.
char* prior_embed_packed_linear(at::Tensor** out, const at::Tensor* x, const at::Tensor* weight,
                                const at::Tensor* bias, bool gelu) {
    return guarded([&] {
        static const auto linear = operation<Unary>("mkldnn::_linear_pointwise", "");
        check_arguments(*x, *weight, bias);
        *out = owned(linear.call(*x, *weight, optional(bias), gelu ? "gelu" : "none", Scalars(), "none"));
    });
}

// x W^T + b + other.
char* prior_embed_packed_linear_add(at::Tensor** out, const at::Tensor* x, const at::Tensor* other,
                                    const at::Tensor* weight, const at::Tensor* bias) {
    return guarded([&] {
        static const auto linear = operation<Binary>("mkldnn::_linear_pointwise", "binary");
        check_arguments(*x, *weight, bias);
        const at::Tensor residual = checked_residual(*other, *x, weight->size(0), weight->scalar_type());
        *out = owned(linear.call(*x, residual, *weight, optional(bias), "add"));
    });
}

}  // extern "C"
