// The border between Rust and libtorch: tensors go in as tch's pointers and come out as new ones that tch owns;
// exceptions become messages.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstring>
#include <exception>

namespace prior_embed {

inline char* message_of(const char* text) {
    return strdup(text);
}

// Runs `body`; gives null if it succeeds, or else a message that the caller frees with prior_embed_free.
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

inline std::optional<at::Tensor> optional(const at::Tensor* tensor) {
    return tensor == nullptr ? std::nullopt : std::optional<at::Tensor>(*tensor);
}

}  // namespace prior_embed

// Loops that run on the widest vectors that the processor has, chosen when the program is loaded.
#if defined(__x86_64__) && defined(__GLIBC__)
#define PRIOR_EMBED_WIDEST __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define PRIOR_EMBED_WIDEST
#endif
#define PRIOR_EMBED_INLINE __attribute__((always_inline)) inline
