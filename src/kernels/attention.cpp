// Attention of each token over a few ranges of cached keys and values: no copies, no padding, no masks.

#include "border.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

using prior_embed::check_dense;
using prior_embed::checked_vector;
using prior_embed::guarded;
using prior_embed::owned;

namespace {

// Rows of keys, each followed by its values, and the range of rows that each token sees.
template <typename T>
struct Segment {
    const T* rows;
    int64_t row_stride;
    const int64_t* starts;
    const int64_t* ends;
};

template <typename T>
struct Task {
    const T* query;
    int64_t query_stride;
    T* output;
    int64_t heads;
    int64_t head_dim;
    float scale;
    c10::SmallVector<Segment<T>, 4> segments;
};

// Tokens x heads [begin, end): softmax(q K^T / sqrt(head_dim)) V in float32, with a buffer for the scores of one token.
template <typename T>
PRIOR_EMBED_INLINE void attend_range(const Task<T>& task, int64_t begin, int64_t end, float* scores, float* buffer) {
    const int64_t head_dim = task.head_dim;
    const int64_t width = task.heads * head_dim;
    float* query = buffer;
    float* sum = buffer + head_dim;
    for (int64_t index = begin; index < end; ++index) {
        const int64_t token = index / task.heads;
        const int64_t column = index % task.heads * head_dim;
        const T* source = task.query + token * task.query_stride + column;
        for (int64_t i = 0; i < head_dim; ++i) {
            query[i] = static_cast<float>(source[i]) * task.scale;
            sum[i] = 0;
        }

        int64_t count = 0;
        float highest = -std::numeric_limits<float>::infinity();
        for (const auto& segment : task.segments) {
            for (int64_t row = segment.starts[token]; row < segment.ends[token]; ++row) {
                const T* key = segment.rows + row * segment.row_stride + column;
                float score = 0;
#pragma omp simd reduction(+ : score)
                for (int64_t i = 0; i < head_dim; ++i) {
                    score += query[i] * static_cast<float>(key[i]);
                }
                scores[count++] = score;
                highest = score > highest || std::isnan(score) ? score : highest;
            }
        }

        float total = 0;
        for (int64_t i = 0; i < count; ++i) {
            scores[i] = std::exp(scores[i] - highest);
            total += scores[i];
        }

        count = 0;
        for (const auto& segment : task.segments) {
            for (int64_t row = segment.starts[token]; row < segment.ends[token]; ++row) {
                const T* value = segment.rows + row * segment.row_stride + width + column;
                const float weight = scores[count++] / total;
#pragma omp simd
                for (int64_t i = 0; i < head_dim; ++i) {
                    sum[i] += weight * static_cast<float>(value[i]);
                }
            }
        }
        T* target = task.output + token * width + column;
        for (int64_t i = 0; i < head_dim; ++i) {
            target[i] = static_cast<T>(sum[i]);
        }
    }
}

PRIOR_EMBED_WIDEST void attend(const Task<float>& task, int64_t begin, int64_t end, float* scores, float* buffer) {
    attend_range(task, begin, end, scores, buffer);
}

PRIOR_EMBED_WIDEST void attend(const Task<c10::BFloat16>& task, int64_t begin, int64_t end, float* scores,
                               float* buffer) {
    attend_range(task, begin, end, scores, buffer);
}

PRIOR_EMBED_WIDEST void attend(const Task<c10::Half>& task, int64_t begin, int64_t end, float* scores, float* buffer) {
    attend_range(task, begin, end, scores, buffer);
}

// Checks the ranges, since rows out of bounds would be read unnoticed; gives the largest number of rows that a token
// sees.
int64_t check_ranges(int64_t tokens, int64_t count, const at::Tensor* const* rows, const at::Tensor* const* starts,
                     const at::Tensor* const* ends) {
    std::vector<int64_t> seen(tokens, 0);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t* start = checked_vector<int64_t>(*starts[i], tokens, "attend: starts");
        const int64_t* end = checked_vector<int64_t>(*ends[i], tokens, "attend: ends");
        for (int64_t token = 0; token < tokens; ++token) {
            TORCH_CHECK(0 <= start[token] && start[token] <= end[token] && end[token] <= rows[i]->size(0),
                        "attend: a range is outside of its segment");
            seen[token] += end[token] - start[token];
        }
    }
    return tokens == 0 ? 0 : *std::max_element(seen.begin(), seen.end());
}

template <typename T>
at::Tensor run(const at::Tensor& query, int64_t heads, int64_t count, const at::Tensor* const* rows,
               const at::Tensor* const* starts, const at::Tensor* const* ends) {
    const int64_t tokens = query.size(0);
    const int64_t width = query.size(1);
    for (int64_t i = 0; i < count; ++i) {
        const at::Tensor& segment = *rows[i];
        check_dense(segment, "attend: a segment");
        TORCH_CHECK(segment.dim() == 2 && segment.size(1) == 2 * width && segment.scalar_type() == query.scalar_type() &&
                        segment.stride(1) == 1,
                    "attend: a segment must be rows of keys and values, each as wide as the query");
    }
    const int64_t most = check_ranges(tokens, count, rows, starts, ends);
    at::Tensor output = at::empty({tokens, width}, query.options());
    const int64_t head_dim = width / heads;
    Task<T> task{query.const_data_ptr<T>(), query.stride(0), output.mutable_data_ptr<T>(),          heads,
                 head_dim,                  static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim))), {}};
    for (int64_t i = 0; i < count; ++i) {
        task.segments.push_back({rows[i]->const_data_ptr<T>(), rows[i]->stride(0), starts[i]->const_data_ptr<int64_t>(),
                                 ends[i]->const_data_ptr<int64_t>()});
    }
    // A thread is worth starting for some tens of thousands of products.
    const int64_t grain = std::max<int64_t>(1, 32768 / (std::max<int64_t>(1, most) * head_dim));
    at::parallel_for(0, tokens * heads, grain, [&](int64_t begin, int64_t end) {
        std::vector<float> scores(most), buffer(2 * head_dim);
        attend(task, begin, end, scores.data(), buffer.data());
    });
    return output;
}

}  // namespace

// query: (tokens, heads * head_dim). Each of `count` segments is rows (n, 2 * heads * head_dim) of keys and values, and
// for each token the start and end of the rows that it sees, int64. Gives (tokens, heads * head_dim).
extern "C" char* prior_embed_attend(at::Tensor** out, const at::Tensor* query, int64_t heads, int64_t count,
                                    const at::Tensor* const* rows, const at::Tensor* const* starts,
                                    const at::Tensor* const* ends) {
    return guarded([&] {
        check_dense(*query, "attend: the query");
        TORCH_CHECK(query->dim() == 2 && query->stride(1) == 1 && query->size(1) > 0 && heads > 0 &&
                        query->size(1) % heads == 0,
                    "attend: the query must be (tokens, heads * head_dim)");
        switch (query->scalar_type()) {
            case at::kFloat:
                *out = owned(run<float>(*query, heads, count, rows, starts, ends));
                break;
            case at::kBFloat16:
                *out = owned(run<c10::BFloat16>(*query, heads, count, rows, starts, ends));
                break;
            case at::kHalf:
                *out = owned(run<c10::Half>(*query, heads, count, rows, starts, ends));
                break;
            default:
                TORCH_CHECK(false, "attend: float32, bfloat16 or float16 is needed");
        }
    });
}
