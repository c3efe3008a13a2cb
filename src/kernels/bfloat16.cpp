// Linear layers in bfloat16. Weights are stored in the order in which they are read: panels of 64 outputs, and in a
// panel, for each pair of inputs, the pairs of weights of all 64. With few rows this runs at memory bandwidth; with
// many it is as fast as oneDNN. The sums of a row are always in the same order, whatever rows are beside it.

#include "activation.h"
#include "border.h"

#include <ATen/Parallel.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstring>
#include <vector>

using prior_embed::check_input;
using prior_embed::check_weight;
using prior_embed::checked_residual;
using prior_embed::checked_vector;
using prior_embed::guarded;
using prior_embed::owned;

namespace {

constexpr int64_t panel_outputs = 64;
// The weights of a pair of inputs for all outputs of a panel.
constexpr int64_t pair_bytes = panel_outputs * 2 * sizeof(c10::BFloat16);

}  // namespace

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define PRIOR_EMBED_BFLOAT16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

namespace {

// The weights of a pair of inputs for 64 outputs: 4 vectors of 16 pairs.
constexpr int64_t vectors = 4;
// Input pairs that are multiplied before the next rows: their share of a panel, 256 KB, stays in the cache.
constexpr int64_t block_pairs = 1024;
constexpr int64_t most_rows = 6;

PRIOR_EMBED_BFLOAT16 inline __m512bh as_bfloat16(__m512i value) {
    return (__m512bh)value;
}

// sums[row][output] += x[row][pair] . weights[pair][output] for `rows` rows and one block of pairs.
template <int rows>
PRIOR_EMBED_BFLOAT16 void multiply_rows(const c10::BFloat16* x, int64_t stride, const char* weights, int64_t pairs,
                                        float* sums) {
    __m512 total[rows][vectors];
    for (int row = 0; row < rows; ++row) {
        for (int vector = 0; vector < vectors; ++vector) {
            total[row][vector] = _mm512_loadu_ps(sums + row * panel_outputs + vector * 16);
        }
    }
    for (int64_t pair = 0; pair < pairs; ++pair) {
        const char* source = weights + pair * pair_bytes;
        __m512bh weight[vectors];
        for (int vector = 0; vector < vectors; ++vector) {
            // Far enough ahead for the memory latency.
            _mm_prefetch(source + vector * 64 + 16 * pair_bytes, _MM_HINT_T0);
            weight[vector] = as_bfloat16(_mm512_loadu_si512(source + vector * 64));
        }
        for (int row = 0; row < rows; ++row) {
            int32_t both;
            std::memcpy(&both, x + row * stride + 2 * pair, sizeof both);
            const __m512bh input = as_bfloat16(_mm512_set1_epi32(both));
            for (int vector = 0; vector < vectors; ++vector) {
                total[row][vector] = _mm512_dpbf16_ps(total[row][vector], weight[vector], input);
            }
        }
    }
    for (int row = 0; row < rows; ++row) {
        for (int vector = 0; vector < vectors; ++vector) {
            _mm512_storeu_ps(sums + row * panel_outputs + vector * 16, total[row][vector]);
        }
    }
}

using MultiplyRows = void (*)(const c10::BFloat16*, int64_t, const char*, int64_t, float*);
constexpr MultiplyRows multiply_by_rows[most_rows] = {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                                      multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};

// One panel: sums (rows, 64) = x (rows, 2 * pairs) . weights.
void multiply_panel(const c10::BFloat16* x, int64_t rows, int64_t pairs, const char* weights, float* sums) {
    std::fill(sums, sums + rows * panel_outputs, 0.f);
    for (int64_t first = 0; first < pairs; first += block_pairs) {
        const int64_t count = std::min(block_pairs, pairs - first);
        for (int64_t row = 0; row < rows; row += most_rows) {
            const int64_t together = std::min(most_rows, rows - row);
            multiply_by_rows[together - 1](x + row * 2 * pairs + 2 * first, 2 * pairs, weights + first * pair_bytes,
                                           count, sums + row * panel_outputs);
        }
    }
}

}  // namespace

extern "C" bool prior_embed_has_bfloat16() {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}

#else

namespace {

void multiply_panel(const c10::BFloat16*, int64_t, int64_t, const char*, float*) {
    TORCH_CHECK(false, "bfloat16 linear: not for this processor");
}

}  // namespace

extern "C" bool prior_embed_has_bfloat16() {
    return false;
}

#endif

extern "C" {

// Packs a weight (outputs, inputs) of any float type into bfloat16 (panels, pairs of inputs, 64, 2).
char* prior_embed_pack_bfloat16(at::Tensor** out, const at::Tensor* weight) {
    return guarded([&] {
        check_weight(*weight);
        const at::Tensor source = weight->to(at::kBFloat16).contiguous();
        const int64_t outputs = source.size(0), inputs = source.size(1);
        const int64_t panels = (outputs + panel_outputs - 1) / panel_outputs, pairs = (inputs + 1) / 2;
        at::Tensor packed = at::empty({panels, pairs, panel_outputs, 2}, source.options());
        const auto* from = source.const_data_ptr<c10::BFloat16>();
        auto* to = packed.mutable_data_ptr<c10::BFloat16>();
        at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
            for (int64_t panel = begin; panel < end; ++panel) {
                auto* target = to + panel * pairs * panel_outputs * 2;
                // A few pairs at a time, so that whole cache lines of the rows are read.
                for (int64_t first = 0; first < pairs; first += 16) {
                    const int64_t last = std::min(pairs, first + 16);
                    for (int64_t place = 0; place < panel_outputs; ++place) {
                        const int64_t output = panel * panel_outputs + place;
                        for (int64_t input = 2 * first; input < 2 * last; ++input) {
                            const bool inside = output < outputs && input < inputs;
                            target[(input / 2 * panel_outputs + place) * 2 + input % 2] =
                                inside ? from[output * inputs + input] : c10::BFloat16(0.f);
                        }
                    }
                }
            }
        });
        *out = owned(std::move(packed));
    });
}

// x W^T + b, then GELU or plus `other`; x of any float type, (..., inputs), bias and other float32. Gives float32.
char* prior_embed_bfloat16_linear(at::Tensor** out, const at::Tensor* x, const at::Tensor* weight, int64_t outputs,
                                  int64_t inputs, const at::Tensor* bias, const at::Tensor* other, bool gelu) {
    return guarded([&] {
        TORCH_CHECK(prior_embed_has_bfloat16(), "bfloat16 linear: not for this processor");
        const int64_t panels = (outputs + panel_outputs - 1) / panel_outputs, pairs = (inputs + 1) / 2;
        TORCH_CHECK(outputs > 0 && inputs > 0, "bfloat16 linear: nothing to multiply");
        const auto* weights = reinterpret_cast<const char*>(
            checked_vector<c10::BFloat16>(*weight, panels * pairs * panel_outputs * 2, "weight"));
        check_input(*x, inputs);
        at::Tensor source = x->to(at::kBFloat16).reshape({-1, inputs}).contiguous();
        if (inputs % 2 != 0) {
            source = at::constant_pad_nd(source, {0, 1});
        }
        const int64_t rows = source.size(0);
        at::Tensor y = at::empty({rows, outputs}, source.options().dtype(at::kFloat));
        const at::Tensor residual =
            other == nullptr ? at::Tensor() : checked_residual(*other, *x, outputs, at::kFloat);
        const float* bias_from = bias == nullptr ? nullptr : checked_vector<float>(*bias, outputs, "bias");
        const float* other_from = other == nullptr ? nullptr : residual.const_data_ptr<float>();
        const auto* input = source.const_data_ptr<c10::BFloat16>();
        float* output = y.mutable_data_ptr<float>();
        at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
            std::vector<float> sums(rows * panel_outputs);
            for (int64_t panel = begin; panel < end; ++panel) {
                multiply_panel(input, rows, pairs, weights + panel * pairs * pair_bytes, sums.data());
                const int64_t first = panel * panel_outputs, count = std::min(panel_outputs, outputs - first);
                for (int64_t row = 0; row < rows; ++row) {
                    float* target = output + row * outputs + first;
                    for (int64_t i = 0; i < count; ++i) {
                        target[i] = sums[row * panel_outputs + i] + (bias_from == nullptr ? 0 : bias_from[first + i]) +
                                    (other_from == nullptr ? 0 : other_from[row * outputs + first + i]);
                    }
                }
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
