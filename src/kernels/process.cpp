// The program's process; the library leaves it alone.

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <torch/version.h>
#include <unistd.h>

namespace {

// Initialized before Rust's runtime opens /dev/null in place of a closed standard stream.
const bool stdout_was_closed = fcntl(STDOUT_FILENO, F_GETFD) == -1 && errno == EBADF;

struct sigaction previous;

// Handles SIGBUS, raised by reading missing pages of a mapped file. The program maps the files of a model, the parts
// that it merges, and banks. Calls async-signal-safe functions only.
void end_at_lost_pages(int signal, siginfo_t* info, void*) {
    if (info->si_code <= 0) {
        // Sent by a process.
        std::signal(signal, SIG_DFL);
        raise(signal);
        return;
    }
    if (info->si_code != BUS_ADRERR) {
        // Another fault: it is raised again on return, with the previous handler.
        sigaction(signal, &previous, nullptr);
        return;
    }
    static volatile std::sig_atomic_t is_told = 0;
    if (!is_told) {
        is_told = 1;
        static const char line[] =
            "prior-embed: error: a file of the model, a part to merge or a bank was cut off or its disk failed while it was read; "
            "run again once it is whole\n";
        [[maybe_unused]] auto written = write(STDERR_FILENO, line, sizeof line - 1);
    }
    _exit(1);
}

}  // namespace

extern "C" {

// Turns two signals that end a process into errors: writing beyond the file size limit fails, and a mapped file that
// was truncated is a line on standard error and exit code 1.
void prior_embed_tame_signals() {
    std::signal(SIGXFSZ, SIG_IGN);
    struct sigaction action = {};
    action.sa_sigaction = end_at_lost_pages;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGBUS, &action, &previous);
}

// Whether the process was started with standard output closed.
bool prior_embed_stdout_was_closed() {
    return stdout_was_closed;
}

// Whether a signal is ignored.
bool prior_embed_is_ignored(int signal) {
    struct sigaction action;
    return sigaction(signal, nullptr, &action) == 0 && (action.sa_flags & SA_SIGINFO) == 0 &&
           action.sa_handler == SIG_IGN;
}

// Makes libtorch allocate huge pages, in which a model is loaded and read faster. To be called before it allocates.
void prior_embed_prefer_huge_pages() {
    setenv("THP_MEM_ALLOC_ENABLE", "1", 0);
}

// The version of libtorch that this was built against.
const char* prior_embed_libtorch_version() {
    return TORCH_VERSION;
}

// Ends the process without running static destructors.
[[noreturn]] void prior_embed_leave(int code) {
    std::_Exit(code);
}

}  // extern "C"
