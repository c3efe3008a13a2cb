// `torch.randn` to the last bit of x86-64 with AVX2 or AVX-512, on any processor: libtorch itself gives other last bits
// without AVX2 and on ARM.
//
// Source: ATen/native/cpu/DistributionTemplates.h (Box-Muller in blocks of 16) and avx_mathfun.h (Cephes' logf, sinf
// and cosf). Which products are fused with a sum, by the choice of torch's compiler, was found by comparison: see
// golden `noise`.

#include "border.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rand.h>

#include <algorithm>
#include <cmath>

using prior_embed::guarded;
using prior_embed::owned;

namespace {

constexpr int64_t half_block = 8;
constexpr int64_t block = 2 * half_block;

PRIOR_EMBED_INLINE float fused(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}

// Cephes' logf, for normal numbers above 0.
PRIOR_EMBED_INLINE float log_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    // x = mantissa * 2^exponent, the mantissa between 1/2 and 1, and then between 1/sqrt(2) and sqrt(2), less 1.
    const int32_t mantissa_bits = (bits & 0x007fffff) | 0x3f000000;
    float mantissa;
    std::memcpy(&mantissa, &mantissa_bits, sizeof mantissa);
    const bool is_small = mantissa < 0.707106781186547524f;
    const float exponent = static_cast<float>((bits >> 23) - (is_small ? 127 : 126));
    // Both branchless, so that the loop is vectorized.
    const float rest = (mantissa - 1.f) + (is_small ? mantissa : 0.f);
    const float square = rest * rest;
    float sum = 7.0376836292e-2f;
    sum = fused(sum, rest, -1.1514610310e-1f);
    sum = fused(sum, rest, 1.1676998740e-1f);
    sum = fused(sum, rest, -1.2420140846e-1f);
    sum = fused(sum, rest, 1.4249322787e-1f);
    sum = fused(sum, rest, -1.6668057665e-1f);
    sum = fused(sum, rest, 2.0000714765e-1f);
    sum = fused(sum, rest, -2.4999993993e-1f);
    sum = fused(sum, rest, 3.3333331174e-1f);
    sum = fused(sum * rest, square, exponent * -2.12194440e-4f);
    sum = fused(square, -0.5f, sum);
    return fused(exponent, 0.693359375f, rest + sum);
}

// Cephes' sinf and cosf, for numbers from 0 to 8192.
PRIOR_EMBED_INLINE void sine_and_cosine(float x, float* sine, float* cosine) {
    // The octant, made even: x = octant * pi/4 + rest.
    const int32_t octant = (static_cast<int32_t>(x * 1.27323954473516f) + 1) & ~1;
    const float count = static_cast<float>(octant);
    float rest = fused(count, -0.78515625f, x);
    rest = fused(count, -2.4187564849853515625e-4f, rest);
    rest = fused(count, -3.77489497744594108e-8f, rest);
    const float square = rest * rest;
    float even = 2.443315711809948e-5f;
    even = fused(even, square, -1.388731625493765e-3f);
    even = fused(even, square, 4.166664568298827e-2f);
    even = fused(even * square, square, square * -0.5f) + 1.f;
    float odd = -1.9515295891e-4f;
    odd = fused(odd, square, 8.3321608736e-3f);
    odd = fused(odd, square, -1.6666654611e-1f);
    odd = fused(odd * square, rest, rest);
    const bool is_swapped = (octant & 2) != 0;
    *sine = (is_swapped ? even : odd) * static_cast<float>(1 - ((octant & 4) >> 1));
    *cosine = (is_swapped ? odd : even) * static_cast<float>(1 - (((octant + 2) & 4) >> 1));
}

// Box-Muller: radii from the first half of each block, angles from the second.
PRIOR_EMBED_INLINE void transform(float* values, int64_t size) {
    for (float* of_block = values; of_block + block <= values + size; of_block += block) {
#pragma omp simd
        for (int64_t i = 0; i < half_block; ++i) {
            const float radius = std::sqrt(-2.f * log_of(1.f - of_block[i]));
            float sine, cosine;
            sine_and_cosine(6.28318530717958648f * of_block[i + half_block], &sine, &cosine);
            // A zero loses its sign.
            of_block[i] = radius * cosine + 0.f;
            of_block[i + half_block] = radius * sine + 0.f;
        }
    }
}

#if defined(__x86_64__) && defined(__GNUC__)

__attribute__((target("avx2,fma"))) void transform_fused(float* values, int64_t size) {
    transform(values, size);
}

void transform_blocks(float* values, int64_t size) {
    const bool fuses = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    fuses ? transform_fused(values, size) : transform(values, size);
}

#else

void transform_blocks(float* values, int64_t size) {
    transform(values, size);
}

#endif

}  // namespace

extern "C" {

// Draws (draws, count) normals in float32, row by row: what `torch.randn((1, count), generator=generator)` gives each
// time with `generator = torch.Generator().manual_seed(seed)`. The generator is this call's own.
char* prior_embed_normals(at::Tensor** out, uint64_t seed, int64_t draws, int64_t count) {
    return guarded([&] {
        TORCH_CHECK(draws >= 0 && count >= 0, "normals: negative size");
        at::Generator generator = at::detail::createCPUGenerator(seed);
        at::Tensor normals = at::empty({draws, count}, at::kFloat);
        // Of uniforms, `torch.randn` draws one a normal, and 16 more to make the last, partial block anew.
        const int64_t more = count % block == 0 ? 0 : block;
        for (int64_t draw = 0; draw < draws; ++draw) {
            if (count < block) {
                // On any processor torch makes so few one by one, in float64.
                normals.select(0, draw).normal_(0, 1, generator);
                continue;
            }
            const at::Tensor uniforms = at::rand({count + more}, generator, at::kFloat);
            const float* from = uniforms.const_data_ptr<float>();
            float* to = normals.mutable_data_ptr<float>() + draw * count;
            std::copy(from, from + count, to);
            transform_blocks(to, count);
            if (more != 0) {
                std::copy(from + count, from + count + block, to + count - block);
                transform_blocks(to + count - block, block);
            }
        }
        *out = owned(std::move(normals));
    });
}

}  // extern "C"
