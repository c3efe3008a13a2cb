// The properties of the processor that decide which kernels run, and how they split their work.
#include "border.h"

#include <ATen/Version.h>
#include <ATen/cpu/Utils.h>

#include <map>
#include <sstream>

using namespace prior_embed;

namespace {

// Whether libraries have kernels of their own for an extension of x86-64. What belongs to the vectors' width is left
// out: libtorch's capability tells it.
bool has_kernels(const std::string& name) {
    for (const char* start : {"amx_", "avx10", "avx_", "avx512_bf16", "avx512_fp16", "avx512_vnni"}) {
        if (name.rfind(start, 0) == 0) {
            return true;
        }
    }
    return false;
}

}  // namespace

extern "C" {

// Three lines: the vectors that libtorch uses, the extensions that there are, the sizes of the caches. The text is
// there until this thread's next call.
char* prior_embed_processor(char** text) {
    return guarded([&] {
        const auto unsorted = at::cpu::get_cpu_capabilities();
        const std::map<std::string, c10::IValue> capabilities(unsorted.begin(), unsorted.end());
        const auto architecture = capabilities.find("architecture");
        const bool is_x86 = architecture != capabilities.end() && architecture->second.isString() &&
            architecture->second.toStringRef() == "x86_64";
        std::ostringstream extensions, caches;
        for (const auto& [name, value] : capabilities) {
            if (value.isBool() && value.toBool() && (!is_x86 || has_kernels(name))) {
                extensions << (extensions.tellp() > 0 ? " " : "") << name;
            } else if (value.isInt() && name.find("cache_size") != std::string::npos) {
                caches << (caches.tellp() > 0 ? " and " : "") << value.toInt() / 1024 << " KiB";
            }
        }
        *text = kept((at::get_cpu_capability() + "\n" + extensions.str() + "\n" + caches.str()).c_str());
    });
}

}  // extern "C"
