// What concerns the process as a whole.

#include <cstdlib>

extern "C" {

// Asks libtorch, before it allocates anything, for memory in huge pages: a model is loaded and read faster in these.
void prior_embed_prefer_huge_pages() {
    setenv("THP_MEM_ALLOC_ENABLE", "1", 0);
}

// Ends the process without the destructors of what lives as long as it.
[[noreturn]] void prior_embed_leave(int code) {
    std::_Exit(code);
}

}  // extern "C"
