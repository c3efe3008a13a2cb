// The FFI boundary: tensors go in as tch's pointers and come out as new ones that tch owns; exceptions become messages.
// Nothing is read of a tensor before it is checked to be dense and on the CPU.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <exception>
#include <string>

namespace prior_embed {

// Keeps a string for the caller until this thread's next call.
inline char* kept(const char* text) {
    thread_local std::string last;
    last = text;
    return last.data();
}

inline char* message_of(const char* text) noexcept {
    try {
        return kept(text);
    } catch (...) {
        // Never null, which would be success.
        static char message[] = "out of memory";
        return message;
    }
}

// Runs `body`; gives null if it succeeds, or else a message that is valid until this thread's next call.
template <typename Body>
char* guarded(Body&& body) noexcept {
    try {
        body();
        return nullptr;
    } catch (const c10::Error& error) {
        return message_of(error.what_without_backtrace());
    } catch (const std::exception& error) {
        return message_of(error.what());
    } catch (...) {
        return message_of("unknown C++ exception");
    }
}

// A tensor for tch to own.
inline at::Tensor* owned(at::Tensor tensor) {
    return new at::Tensor(std::move(tensor));
}

// Refuses what is not plain dense data in CPU memory: another device; a sparse, packed or quantized tensor; a lazily
// negated or zero one.
inline void check_dense(const at::Tensor& tensor, const char* name) {
    TORCH_CHECK(tensor.defined(), name, ": undefined");
    TORCH_CHECK(tensor.device().is_cpu() && tensor.layout() == at::kStrided, name,
                ": a dense tensor on the CPU is needed, not ", tensor.layout(), " on ", tensor.device());
    TORCH_CHECK(!tensor.is_quantized() && !tensor.is_neg() && !tensor.is_conj() && !tensor._is_zerotensor(), name,
                ": plain numbers are needed");
}

// A dense, contiguous vector of `size` elements of type T.
template <typename T>
const T* checked_vector(const at::Tensor& tensor, int64_t size, const char* name) {
    check_dense(tensor, name);
    TORCH_CHECK(tensor.scalar_type() == c10::CppTypeToScalarType<T>::value, name, ": ",
                c10::CppTypeToScalarType<T>::value, " is needed, not ", tensor.scalar_type());
    TORCH_CHECK(tensor.numel() == size && tensor.is_contiguous(), name, ": ", size,
                " numbers in a row are needed, not ", tensor.sizes());
    return tensor.const_data_ptr<T>();
}

// A dense weight (outputs, inputs) of a float type.
inline void check_weight(const at::Tensor& weight) {
    check_dense(weight, "weight");
    TORCH_CHECK(weight.dim() == 2 && weight.numel() > 0, "weight: (outputs, inputs) is needed, not ", weight.sizes());
    TORCH_CHECK(weight.is_floating_point(), "weight: a float type is needed, not ", weight.scalar_type());
}

// A dense input (..., inputs).
inline void check_input(const at::Tensor& x, int64_t inputs) {
    check_dense(x, "input");
    TORCH_CHECK(x.dim() >= 1 && x.size(-1) == inputs, "input: (..., ", inputs, ") is needed, not ", x.sizes());
    TORCH_CHECK(x.is_floating_point(), "input: a float type is needed, not ", x.scalar_type());
}

// A dense residual for the output of `x`, made contiguous.
inline at::Tensor checked_residual(const at::Tensor& other, const at::Tensor& x, int64_t outputs, at::ScalarType type) {
    check_dense(other, "residual");
    TORCH_CHECK(other.dim() >= 1 && other.size(-1) == outputs && other.numel() == x.numel() / x.size(-1) * outputs,
                "residual: ", other.sizes(), " does not fit ", outputs, " outputs of ", x.sizes());
    TORCH_CHECK(other.scalar_type() == type, "residual: ", type, " is needed, not ", other.scalar_type());
    return other.contiguous();
}

inline std::optional<at::Tensor> optional(const at::Tensor* tensor) {
    return tensor == nullptr ? std::nullopt : std::optional<at::Tensor>(*tensor);
}

}  // namespace prior_embed

// Clones a function for the widest vectors of the processor, chosen when the program is loaded; by feature levels,
// because a processor's name would match that processor alone.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define PRIOR_EMBED_WIDEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PRIOR_EMBED_WIDEST
#endif
#define PRIOR_EMBED_INLINE __attribute__((always_inline)) inline
