// Linear layers in float32 on weights of float32, float16 or bfloat16. Those of 16 bits are widened in registers: a
// product of few rows takes the time of reading its weights, which are half as many bytes.

#include "activation.h"
#include "border.h"
#include "panels.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <array>
#include <type_traits>
#include <utility>

using prior_embed::check_dense;
using prior_embed::check_input;
using prior_embed::check_weight;
using prior_embed::checked_residual;
using prior_embed::checked_vector;
using prior_embed::guarded;
using prior_embed::owned;
using prior_embed::Product;
using prior_embed::TileSet;

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

namespace {

#define NUMBER float

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define NAMED(name) name##_avx2
#define VECTOR __m256
#define LANES 8
#define ZERO _mm256_setzero_ps
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define ADD _mm256_add_ps
#define BROADCAST _mm256_set1_ps
#define MULTIPLY_ADD _mm256_fmadd_ps

TARGET inline __m256 widen_avx2(const float* weights) {
    return _mm256_loadu_ps(weights);
}

TARGET inline __m256 widen_avx2(const c10::Half* weights) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
}

TARGET inline __m256 widen_avx2(const c10::BFloat16* weights) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

#include "panels_tile.h"

#undef TARGET
#undef NAMED
#undef VECTOR
#undef LANES
#undef ZERO
#undef LOAD
#undef STORE
#undef ADD
#undef BROADCAST
#undef MULTIPLY_ADD

#define TARGET __attribute__((target("avx512f")))
#define NAMED(name) name##_avx512
#define VECTOR __m512
#define LANES 16
#define ZERO _mm512_setzero_ps
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define ADD _mm512_add_ps
#define BROADCAST _mm512_set1_ps
#define MULTIPLY_ADD _mm512_fmadd_ps

TARGET inline __m512 widen_avx512(const float* weights) {
    return _mm512_loadu_ps(weights);
}

TARGET inline __m512 widen_avx512(const c10::Half* weights) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights)));
}

TARGET inline __m512 widen_avx512(const c10::BFloat16* weights) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

#include "panels_tile.h"

// Outputs of a panel; 0 if the processor has neither instruction set.
int64_t widest_panel() {
    if (__builtin_cpu_supports("avx512f")) {
        return 32;
    }
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") ? 16 : 0;
}

template <class Weight>
TileSet<float, Weight> tiles_of(int64_t width) {
    static constexpr auto narrow = tiles_avx2<Weight>(std::make_index_sequence<6>());
    static constexpr auto wide = tiles_avx512<Weight>(std::make_index_sequence<12>());
    return width == 32 ? TileSet<float, Weight>{wide.data(), wide.size()}
                       : TileSet<float, Weight>{narrow.data(), narrow.size()};
}

}  // namespace

#else

namespace {

int64_t widest_panel() {
    return 0;
}

template <class Weight>
TileSet<float, Weight> tiles_of(int64_t) {
    TORCH_CHECK(false, "panels: not for this processor");
}

}  // namespace

#endif

namespace {

// Calls `body` with the numbers of a contiguous weight, in its type.
template <class Body>
void with_weights(const at::Tensor& weight, const Body& body) {
    switch (weight.scalar_type()) {
        case at::kFloat:
            return body(weight.const_data_ptr<float>());
        case at::kHalf:
            return body(weight.const_data_ptr<c10::Half>());
        case at::kBFloat16:
            return body(weight.const_data_ptr<c10::BFloat16>());
        default:
            TORCH_CHECK(false, "panels: weights of ", weight.scalar_type());
    }
}

}  // namespace

extern "C" {

// The outputs of a panel on this processor: 32 with AVX-512, 16 with AVX2; 0 if it has neither.
int64_t prior_embed_panel_width() {
    return widest_panel();
}

// Packs a weight (outputs, inputs), float32, float16 or bfloat16, into (panels, inputs, width).
char* prior_embed_pack_panels(at::Tensor** out, const at::Tensor* weight, int64_t width) {
    return guarded([&] {
        check_weight(*weight);
        TORCH_CHECK(width == 16 || width == 32, "panels: of ", width, " outputs");
        const int64_t outputs = weight->size(0), inputs = weight->size(1);
        at::Tensor packed = at::empty({(outputs + width - 1) / width, inputs, width}, weight->options());
        const at::Tensor source = weight->contiguous();
        with_weights(source, [&](const auto* from) {
            using Weight = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
            prior_embed::pack_panels(from, outputs, inputs, width, packed.mutable_data_ptr<Weight>());
        });
        *out = owned(std::move(packed));
    });
}

// x W^T + b, then GELU or plus `other`; all in float32.
char* prior_embed_panel_linear(at::Tensor** out, const at::Tensor* x, const at::Tensor* weight, int64_t outputs,
                              const at::Tensor* bias, const at::Tensor* other, bool gelu) {
    return guarded([&] {
        check_dense(*weight, "weight");
        TORCH_CHECK(weight->dim() == 3 && weight->is_contiguous() && weight->numel() > 0, "weight: not a packed one");
        const int64_t inputs = weight->size(1), width = weight->size(2);
        TORCH_CHECK((width == 16 || width == 32) && width <= widest_panel(), "panels: not for this processor");
        TORCH_CHECK(outputs > 0 && weight->size(0) == (outputs + width - 1) / width, "weight: not of ", outputs,
                    " outputs");
        check_input(*x, inputs);
        TORCH_CHECK(x->scalar_type() == at::kFloat, "panels: float32 input is needed, not ", x->scalar_type());
        const at::Tensor source = x->reshape({-1, inputs}).contiguous();
        at::Tensor y = at::empty({source.size(0), outputs}, source.options());
        const at::Tensor residual = other == nullptr ? at::Tensor() : checked_residual(*other, *x, outputs, at::kFloat);
        const float* bias_from = bias == nullptr ? nullptr : checked_vector<float>(*bias, outputs, "bias");
        const float* other_from = other == nullptr ? nullptr : residual.const_data_ptr<float>();
        const float* input = source.const_data_ptr<float>();
        float* output = y.mutable_data_ptr<float>();
        const auto finish = [&](int64_t row, int64_t first, int64_t size, const float* sums) {
            const int64_t at = row * outputs + first;
            for (int64_t i = 0; i < size; ++i) {
                output[at + i] = sums[i] + (bias_from == nullptr ? 0 : bias_from[first + i]) +
                                 (other_from == nullptr ? 0 : other_from[at + i]);
            }
        };
        with_weights(*weight, [&](const auto* weights) {
            using Weight = std::remove_const_t<std::remove_pointer_t<decltype(weights)>>;
            const Product<float, Weight> product{source.size(0), inputs, outputs, width, input, weights};
            prior_embed::multiply(product, tiles_of<Weight>(width), finish);
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
