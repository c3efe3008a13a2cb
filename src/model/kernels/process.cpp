// What concerns the process as a whole.

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <unistd.h>

// Rust's runtime, which starts later than this, opens /dev/null in place of a standard stream that is closed.
static const bool stdout_was_closed = fcntl(STDOUT_FILENO, F_GETFD) == -1 && errno == EBADF;

extern "C" {

// Whether the process was started without a standard output.
bool prior_embed_stdout_was_closed() {
    return stdout_was_closed;
}

// Whether a signal is ignored.
bool prior_embed_is_ignored(int signal) {
    struct sigaction action;
    return sigaction(signal, nullptr, &action) == 0 && (action.sa_flags & SA_SIGINFO) == 0 &&
           action.sa_handler == SIG_IGN;
}

// Asks libtorch, before it allocates anything, for memory in huge pages: a model is loaded and read faster in these.
void prior_embed_prefer_huge_pages() {
    setenv("THP_MEM_ALLOC_ENABLE", "1", 0);
}

// Ends the process without the destructors of what lives as long as it.
[[noreturn]] void prior_embed_leave(int code) {
    std::_Exit(code);
}

}  // extern "C"
