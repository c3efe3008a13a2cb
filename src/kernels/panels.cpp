// Linear layers in float32 on weights of float32, float16 or bfloat16. Those of 16 bits are widened in registers: a product of
// few rows takes the time of reading its weights, which are half as many bytes.
//
// A panel has the weights of 32 (AVX-512) or 16 (AVX2) outputs, input after input. A tile is a panel times some rows, whose
// sums stay in registers. The sums of a row are always in the same order, whatever rows are beside it.

#include "activation.h"
#include "border.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

using prior_embed::check_dense;
using prior_embed::check_input;
using prior_embed::check_weight;
using prior_embed::checked_residual;
using prior_embed::checked_vector;
using prior_embed::guarded;
using prior_embed::owned;

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

namespace {

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define NAMED(name) name##_avx2
#define VECTOR __m256
#define LANES 8
#define ZERO _mm256_setzero_ps
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define ADD _mm256_add_ps
#define FMA _mm256_fmadd_ps
#define BROADCAST _mm256_set1_ps

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
#undef FMA
#undef BROADCAST

#define TARGET __attribute__((target("avx512f")))
#define NAMED(name) name##_avx512
#define VECTOR __m512
#define LANES 16
#define ZERO _mm512_setzero_ps
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define ADD _mm512_add_ps
#define FMA _mm512_fmadd_ps
#define BROADCAST _mm512_set1_ps

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

template <class Weight>
using Tile = void (*)(const float*, const Weight*, int64_t, float*, bool, const char*, int64_t);

// The tiles of an instruction set, by their number of rows less one.
template <class Weight, size_t... rows>
constexpr std::array<Tile<Weight>, sizeof...(rows)> tiles_avx2(std::index_sequence<rows...>) {
    return {tile_avx2<rows + 1, Weight>...};
}

template <class Weight, size_t... rows>
constexpr std::array<Tile<Weight>, sizeof...(rows)> tiles_avx512(std::index_sequence<rows...>) {
    return {tile_avx512<rows + 1, Weight>...};
}

// As many rows as there are registers for their sums.
constexpr int64_t most_rows_avx2 = 6, most_rows_avx512 = 12;

// Outputs of a panel; 0 if the processor has neither instruction set.
int64_t widest_panel() {
    if (__builtin_cpu_supports("avx512f")) {
        return 32;
    }
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") ? 16 : 0;
}

template <class Weight>
void multiply_tile(int64_t width, int64_t rows, const float* x, const Weight* weights, int64_t inputs, float* sums,
                   bool first, const char* ahead, int64_t ahead_step) {
    static constexpr auto narrow = tiles_avx2<Weight>(std::make_index_sequence<most_rows_avx2>());
    static constexpr auto wide = tiles_avx512<Weight>(std::make_index_sequence<most_rows_avx512>());
    const auto tile = width == 32 ? wide[rows - 1] : narrow[rows - 1];
    tile(x, weights, inputs, sums, first, ahead, ahead_step);
}

}  // namespace

#else

namespace {

constexpr int64_t most_rows_avx2 = 1, most_rows_avx512 = 1;

int64_t widest_panel() {
    return 0;
}

template <class Weight>
void multiply_tile(int64_t, int64_t, const float*, const Weight*, int64_t, float*, bool, const char*, int64_t) {
    TORCH_CHECK(false, "panels: not for this processor");
}

}  // namespace

#endif

namespace {

// Rows that are multiplied together: with so many inputs at a time, they stay in the second cache.
constexpr int64_t block_rows = 96;
// Rows worth a thread: with fewer, arranging them takes longer than it saves.
constexpr int64_t least_rows = 24;
// Inputs that are multiplied before the next panel: their share of one, 16 to 64 KB, stays in the cache for all tiles.
constexpr int64_t block_inputs = 512;
// Outputs that are multiplied with a block of rows and inputs before the next inputs.
constexpr int64_t chunk_outputs = 256;

struct Product {
    // The last is the outputs of a panel.
    int64_t rows, inputs, outputs, width;
    const float *x, *bias, *other;
    float* y;

    int64_t most_rows() const {
        return width == 32 ? most_rows_avx512 : most_rows_avx2;
    }
};

// `count` rows in tiles of about the same size.
struct Tiles {
    int64_t count, tiles;

    Tiles(int64_t count, int64_t most) : count(count), tiles((count + most - 1) / most) {}

    int64_t first_row(int64_t tile) const {
        return count * tile / tiles;
    }
};

// Some rows of x, tile by tile: the rows of a tile side by side, input after input, in blocks of inputs.
void arrange(const float* x, const Tiles& tiles, int64_t inputs, float* to) {
    for (int64_t start = 0; start < inputs; start += block_inputs) {
        const int64_t size = std::min(block_inputs, inputs - start);
        for (int64_t tile = 0; tile < tiles.tiles; ++tile) {
            const int64_t first = tiles.first_row(tile), rows = tiles.first_row(tile + 1) - first;
            for (int64_t input = 0; input < size; ++input) {
                for (int64_t row = 0; row < rows; ++row) {
                    *to++ = x[(first + row) * inputs + start + input];
                }
            }
        }
    }
}

// Panels from `begin` to `end` of the product of rows from `first` on.
template <class Weight>
void multiply_block(const Product& product, const Weight* weights, int64_t first, int64_t count, int64_t begin, int64_t end) {
    const int64_t inputs = product.inputs, width = product.width;
    const Tiles tiles(count, product.most_rows());
    const std::unique_ptr<float[]> x(new float[count * inputs]);
    arrange(product.x + first * inputs, tiles, inputs, x.get());
    // One tile reads each weight once, in the order in which they are stored.
    const int64_t chunk = tiles.tiles == 1 ? 1 : chunk_outputs / width;
    const std::unique_ptr<float[]> sums(new float[chunk * width * count]);
    for (int64_t panel = begin; panel < end; panel += chunk) {
        const int64_t panels = std::min(chunk, end - panel);
        for (int64_t start = 0; start < inputs; start += block_inputs) {
            const int64_t size = std::min(block_inputs, inputs - start);
            for (int64_t place = 0; place < panels; ++place) {
                const Weight* from = weights + ((panel + place) * inputs + start) * width;
                // What the next round reads, or its like. Each tile fetches its part.
                const bool is_last = place + 1 == panels;
                const int64_t next = is_last ? (start + size < inputs ? panel : panel + panels) : panel + place + 1;
                const int64_t next_start = is_last ? (start + size) % inputs : start;
                const char* ahead = reinterpret_cast<const char*>(
                    next < end ? weights + (next * inputs + next_start) * width : from);
                const int64_t bytes = width * sizeof(Weight);
                for (int64_t tile = 0; tile < tiles.tiles; ++tile) {
                    const int64_t row = tiles.first_row(tile), rows = tiles.first_row(tile + 1) - row;
                    multiply_tile(width, rows, x.get() + start * count + row * size, from, size,
                                  sums.get() + (place * count + row) * width, start == 0,
                                  ahead + bytes * size * tile / tiles.tiles, bytes / tiles.tiles);
                }
            }
        }
        for (int64_t row = 0; row < count; ++row) {
            for (int64_t place = 0; place < panels; ++place) {
                const int64_t output = (panel + place) * width, size = std::min(width, product.outputs - output);
                const float* sum = sums.get() + (place * count + row) * width;
                const int64_t at = (first + row) * product.outputs + output;
                for (int64_t i = 0; i < size; ++i) {
                    product.y[at + i] = sum[i] + (product.bias == nullptr ? 0 : product.bias[output + i]) +
                                        (product.other == nullptr ? 0 : product.other[at + i]);
                }
            }
        }
    }
}

template <class Weight>
void multiply(const Product& product, const Weight* weights) {
    if (product.rows == 0) {
        return;
    }
    const int64_t panels = (product.outputs + product.width - 1) / product.width;
    const int64_t threads = at::get_num_threads();
    int64_t blocks = (product.rows + block_rows - 1) / block_rows;
    if (product.rows >= threads * least_rows) {
        blocks = (blocks + threads - 1) / threads * threads;
    } else {
        // Threads that have no rows of their own share the panels.
        while (threads % blocks != 0) {
            ++blocks;
        }
    }
    const int64_t groups = std::min(panels, std::max<int64_t>(1, threads / blocks));
    at::parallel_for(0, blocks * groups, 1, [&](int64_t task, int64_t end) {
        for (; task < end; ++task) {
            const int64_t block = task / groups, group = task % groups;
            const int64_t first = product.rows * block / blocks, last = product.rows * (block + 1) / blocks;
            multiply_block(product, weights, first, last - first, panels * group / groups, panels * (group + 1) / groups);
        }
    });
}

template <class Weight>
at::Tensor packed(const Weight* from, const at::Tensor& weight, int64_t width) {
    const int64_t outputs = weight.size(0), inputs = weight.size(1), panels = (outputs + width - 1) / width;
    at::Tensor packed = at::empty({panels, inputs, width}, weight.options());
    auto* to = packed.mutable_data_ptr<Weight>();
    at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
            Weight* target = to + panel * inputs * width;
            // A few inputs at a time, so that whole cache lines of the rows are read.
            for (int64_t first = 0; first < inputs; first += 32) {
                const int64_t last = std::min(inputs, first + 32);
                for (int64_t place = 0; place < width; ++place) {
                    const int64_t output = panel * width + place;
                    for (int64_t input = first; input < last; ++input) {
                        target[input * width + place] = output < outputs ? from[output * inputs + input] : Weight(0.f);
                    }
                }
            }
        }
    });
    return packed;
}

// Calls `body` with the numbers of a contiguous weight, in its type, and the weight.
template <class Body>
void with_weights(const at::Tensor& weight, const Body& body) {
    switch (weight.scalar_type()) {
        case at::kFloat:
            return body(weight.const_data_ptr<float>(), weight);
        case at::kHalf:
            return body(weight.const_data_ptr<c10::Half>(), weight);
        case at::kBFloat16:
            return body(weight.const_data_ptr<c10::BFloat16>(), weight);
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
        with_weights(weight->contiguous(), [&](const auto* weights, const at::Tensor& source) {
            *out = owned(packed(weights, source, width));
        });
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
        TORCH_CHECK(outputs > 0 && weight->size(0) == (outputs + width - 1) / width, "weight: not of ", outputs, " outputs");
        check_input(*x, inputs);
        TORCH_CHECK(x->scalar_type() == at::kFloat, "panels: float32 input is needed, not ", x->scalar_type());
        const at::Tensor source = x->reshape({-1, inputs}).contiguous();
        at::Tensor y = at::empty({source.size(0), outputs}, source.options());
        const at::Tensor residual = other == nullptr ? at::Tensor() : checked_residual(*other, *x, outputs, at::kFloat);
        const Product product{
            source.size(0), inputs, outputs, width, source.const_data_ptr<float>(),
            bias == nullptr ? nullptr : checked_vector<float>(*bias, outputs, "bias"),
            other == nullptr ? nullptr : residual.const_data_ptr<float>(), y.mutable_data_ptr<float>(),
        };
        with_weights(*weight, [&](const auto* weights, const at::Tensor&) { multiply(product, weights); });
        if (gelu) {
            y = prior_embed::activated_in_place(std::move(y), prior_embed::Activation::gelu);
        }
        auto shape = x->sizes().vec();
        shape.back() = outputs;
        *out = owned(y.view(shape));
    });
}

}  // extern "C"
