// Linear layers with int8 weights, one scale a channel, and dynamically quantized uint8 inputs, one scale and zero
// point a row, so that a row does not depend on those beside it.
//
// The products are oneDNN's, or of panels, as the weight was packed: sums of integers, they are the same numbers.

#include "activation.h"
#include "border.h"
#include "panels.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/List.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

using prior_embed::check_input;
using prior_embed::check_weight;
using prior_embed::checked_residual;
using prior_embed::checked_vector;
using prior_embed::guarded;
using prior_embed::owned;

namespace {

using Scalars = c10::List<std::optional<at::Scalar>>;
using Prepack = at::Tensor(at::Tensor, std::optional<c10::List<int64_t>>);
using Multiply = at::Tensor(at::Tensor, double, int64_t, at::Tensor, at::Tensor, at::Tensor, std::optional<at::Tensor>,
                            double, int64_t, std::optional<at::ScalarType>, std::string_view, Scalars,
                            std::string_view);

template <typename Signature>
c10::TypedOperatorHandle<Signature> operation(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Rounds to the nearest integer, halves to even, for values of less than 22 bits: adding a number whose last bit is
// worth 1 rounds, on every vector unit.
PRIOR_EMBED_INLINE float round_small(float value) {
    constexpr float shift = 12582912.f;
    return (value + shift) - shift;
}

// Quantizes one channel; gives its scale and the sum of its quantized weights. A NaN makes the scale NaN.
PRIOR_EMBED_WIDEST void quantize_channel(const float* weight, int64_t size, int8_t* quantized, float* scale,
                                         float* sum) {
    float largest = 0, poison = 0;
#pragma omp simd reduction(max : largest) reduction(+ : poison)
    for (int64_t i = 0; i < size; ++i) {
        const float magnitude = weight[i] < 0 ? -weight[i] : weight[i];
        largest = magnitude > largest ? magnitude : largest;
        poison += weight[i] * 0;
    }
    const float factor = largest > 0 ? 127 / largest : 0;
    int32_t total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < size; ++i) {
        const float rounded = round_small(weight[i] * factor);
        // Not a NaN, which no integer can hold.
        const int32_t value = static_cast<int32_t>(rounded > -127 ? rounded : -127);
        quantized[i] = static_cast<int8_t>(value);
        total += value;
    }
    *scale = largest / 127 + poison;
    *sum = static_cast<float>(total);
}

// Quantizes one row to 0..levels; x = scale * (quantized - zero_point). A NaN makes the scale NaN.
PRIOR_EMBED_WIDEST void quantize_row(const float* x, int64_t size, float levels, uint8_t* quantized, float* scale,
                                     float* zero_point) {
    float lowest = 0, highest = 0, poison = 0;
#pragma omp simd reduction(min : lowest) reduction(max : highest) reduction(+ : poison)
    for (int64_t i = 0; i < size; ++i) {
        lowest = x[i] < lowest ? x[i] : lowest;
        highest = x[i] > highest ? x[i] : highest;
        poison += x[i] * 0;
    }
    const float range = highest - lowest;
    const float factor = range > 0 ? levels / range : 0;
    const float zero = round_small(-lowest * factor);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
        const float value = round_small(x[i] * factor) + zero;
        const float not_below = value > 0 ? value : 0;
        const float inside = not_below < levels ? not_below : levels;
        quantized[i] = static_cast<uint8_t>(static_cast<int32_t>(inside));
    }
    *scale = range / levels + poison;
    *zero_point = zero;
}

// From products of quantized values, already scaled by channel, to the layer's output.
PRIOR_EMBED_WIDEST void finish_row(float* y, int64_t size, float scale, float zero_point, const float* scaled_sums,
                                   const float* bias, const float* other) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
        y[i] = scale * (y[i] - zero_point * scaled_sums[i]);
    }
    if (bias != nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
            y[i] += bias[i];
        }
    }
    if (other != nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
            y[i] += other[i];
        }
    }
}

// Inputs of one output that are multiplied together, four bytes side by side.
using Quad = int32_t;
constexpr int64_t quad = sizeof(Quad);
// Outputs of a panel.
constexpr int64_t width = 16;

#if defined(__x86_64__) && defined(__GNUC__)

#define NUMBER Quad
#define TARGET __attribute__((target("avx2")))
#define NAMED(name) name##_avx2
#define VECTOR __m256i
#define LANES 8
#define ZERO _mm256_setzero_si256
#define LOAD(from) _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
#define STORE(to, value) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value)
#define ADD _mm256_add_epi32
#define BROADCAST _mm256_set1_epi32
#define MULTIPLY_ADD add_products_avx2

TARGET inline __m256i widen_avx2(const Quad* weights) {
    return LOAD(weights);
}

// Sums of two products do not overflow 16 bits if inputs have 7.
TARGET inline __m256i add_products_avx2(__m256i x, __m256i weights, __m256i sums) {
    const __m256i pairs = _mm256_maddubs_epi16(x, weights);
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#include "panels_tile.h"

bool has_panels() {
    return __builtin_cpu_supports("avx2");
}

void multiply_panels(const prior_embed::Product<Quad, Quad>& product, const float* scales, float* y) {
    // Four rows and their products fill the registers.
    static constexpr auto tiles = tiles_avx2<Quad>(std::make_index_sequence<4>());
    const auto scale = [&](int64_t row, int64_t first, int64_t size, const Quad* sums) {
        for (int64_t i = 0; i < size; ++i) {
            y[row * product.outputs + first + i] = static_cast<float>(sums[i]) * scales[first + i];
        }
    };
    prior_embed::multiply(product, {tiles.data(), tiles.size()}, scale);
}

#else

bool has_panels() {
    return false;
}

void multiply_panels(const prior_embed::Product<Quad, Quad>&, const float*, float*) {
    TORCH_CHECK(false, "int8 linear: not for this processor");
}

#endif

// Rows worth a thread.
int64_t grain_of(int64_t size) {
    return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, size));
}

}  // namespace

extern "C" {

// Whether weights can be packed in panels, for inputs of 7 bits.
bool prior_embed_has_int8_panels() {
    return has_panels();
}

// Quantizes and packs a weight (outputs, inputs) for oneDNN or in panels; also gives the channels' scales and their
// scaled sums.
char* prior_embed_pack_int8(at::Tensor** out, at::Tensor** scales, at::Tensor** scaled_sums, const at::Tensor* weight,
                            bool in_panels) {
    return guarded([&] {
        static const auto prepack = operation<Prepack>("onednn::qlinear_prepack");
        check_weight(*weight);
        const at::Tensor source = weight->to(at::kFloat).contiguous();
        const int64_t outputs = source.size(0), inputs = source.size(1);
        const int64_t quads = (inputs + quad - 1) / quad, stride = in_panels ? quads * quad : inputs;
        at::Tensor quantized = at::zeros({outputs, stride}, source.options().dtype(at::kChar));
        at::Tensor scale = at::empty({outputs}, source.options());
        at::Tensor sum = at::empty({outputs}, source.options());
        const float* from = source.const_data_ptr<float>();
        int8_t* to = quantized.mutable_data_ptr<int8_t>();
        float *scale_to = scale.mutable_data_ptr<float>(), *sum_to = sum.mutable_data_ptr<float>();
        at::parallel_for(0, outputs, grain_of(inputs), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                quantize_channel(from + row * inputs, inputs, to + row * stride, scale_to + row, sum_to + row);
            }
        });
        if (in_panels) {
            const auto options = quantized.options().dtype(at::kInt);
            at::Tensor packed = at::empty({(outputs + width - 1) / width, quads, width}, options);
            const auto* whole = static_cast<const Quad*>(quantized.const_data_ptr());
            prior_embed::pack_panels(whole, outputs, quads, width, packed.mutable_data_ptr<Quad>());
            *out = owned(std::move(packed));
        } else {
            *out = owned(prepack.call(quantized, std::nullopt));
        }
        *scaled_sums = owned(sum.mul(scale));
        *scales = owned(std::move(scale));
    });
}

// x W^T + b, then GELU or plus `other`, float32; inputs are quantized to 0..levels.
char* prior_embed_int8_linear(at::Tensor** out, const at::Tensor* x, const at::Tensor* weight, const at::Tensor* scales,
                              const at::Tensor* scaled_sums, int64_t outputs, int64_t inputs, const at::Tensor* bias,
                              const at::Tensor* other, bool gelu, int64_t levels) {
    return guarded([&] {
        static const auto multiply = operation<Multiply>("onednn::qlinear_pointwise");
        const int64_t quads = (inputs + quad - 1) / quad, panels = (outputs + width - 1) / width;
        TORCH_CHECK(weight->defined() && inputs > 0 && outputs > 0, "int8 linear: nothing to multiply");
        const bool in_panels = weight->layout() == at::kStrided;
        if (in_panels) {
            checked_vector<Quad>(*weight, panels * quads * width, "weight");
        } else {
            TORCH_CHECK(weight->layout() == at::kMkldnn && weight->scalar_type() == at::kChar &&
                            weight->numel() == inputs * outputs,
                        "int8 linear: not a packed weight");
        }
        TORCH_CHECK(0 < levels && levels <= (in_panels ? 127 : 255), "int8 linear: ", levels, " levels");
        check_input(*x, inputs);
        TORCH_CHECK(x->scalar_type() == at::kFloat, "int8 linear: float32 input is needed");
        checked_vector<float>(*scales, outputs, "scales");
        const float* sums = checked_vector<float>(*scaled_sums, outputs, "scaled sums");
        const float* bias_from = bias == nullptr ? nullptr : checked_vector<float>(*bias, outputs, "bias");
        const at::Tensor residual =
            other == nullptr ? at::Tensor() : checked_residual(*other, *x, outputs, at::kFloat);
        const float* other_from = other == nullptr ? nullptr : residual.const_data_ptr<float>();
        const at::Tensor source = x->reshape({-1, inputs}).contiguous();
        const int64_t rows = source.size(0);
        const int64_t stride = in_panels ? quads * quad : inputs;
        at::Tensor quantized = at::empty({rows, stride}, source.options().dtype(at::kByte));
        at::Tensor row_scale = at::empty({rows}, source.options());
        at::Tensor zero_point = at::empty({rows}, source.options());
        const float* from = source.const_data_ptr<float>();
        uint8_t* to = quantized.mutable_data_ptr<uint8_t>();
        float *scale_to = row_scale.mutable_data_ptr<float>(), *zero_to = zero_point.mutable_data_ptr<float>();
        at::parallel_for(0, rows, grain_of(inputs), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                quantize_row(from + row * inputs, inputs, static_cast<float>(levels), to + row * stride, scale_to + row,
                             zero_to + row);
                std::fill(to + row * stride + inputs, to + (row + 1) * stride, uint8_t{0});
            }
        });

        at::Tensor y;
        if (in_panels) {
            y = at::empty({rows, outputs}, source.options());
            const auto* whole = static_cast<const Quad*>(quantized.const_data_ptr());
            multiply_panels({rows, quads, outputs, width, whole, weight->const_data_ptr<Quad>()},
                            scales->const_data_ptr<float>(), y.mutable_data_ptr<float>());
        } else {
            const at::Tensor no_zero_points = at::zeros({outputs}, scales->options().dtype(at::kInt));
            y = multiply.call(quantized, 1.0, 0, *weight, *scales, no_zero_points, std::nullopt, 1.0, 0, at::kFloat,
                              "none", Scalars(), "");
            TORCH_CHECK(y.is_contiguous() && y.size(0) == rows && y.size(1) == outputs, "int8 linear: wrong output");
        }

        float* output = y.mutable_data_ptr<float>();
        at::parallel_for(0, rows, grain_of(outputs), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                finish_row(output + row * outputs, outputs, scale_to[row], zero_to[row], sums, bias_from,
                           other_from == nullptr ? nullptr : other_from + row * outputs);
            }
        });
        if (gelu) {
            y = prior_embed::activated_in_place(std::move(y), prior_embed::Activation::gelu);
        }
        auto shape = x->sizes().vec();
        shape.back() = outputs;
        *out = owned(y.view(shape));
    });
}

}  // extern "C"
